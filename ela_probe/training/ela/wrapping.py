"""What Lightning wraps around a network: which strategies let ELA change it, and how."""

from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch.nn.parallel import DistributedDataParallel

from ela_probe.errors import OptionError


def check_strategy(strategy: Strategy, *, stochastic: bool) -> None:
    """Raise OptionError unless a network can change while the strategy trains it.

    Args:
        stochastic: whether steps leave retrievals out, whose parameters then have no gradient.
    """
    if isinstance(strategy, SingleDeviceStrategy):
        return
    if not isinstance(strategy, DDPStrategy):
        raise OptionError(
            "ELA changes the network while it trains, which one device or DDP allow, and the "
            f"trainer's strategy is {type(strategy).__name__}; choose strategy='ddp', or prune "
            "before training"
        )
    if stochastic and not strategy._ddp_kwargs.get("find_unused_parameters", False):
        raise OptionError(
            "ELA: with stochastic skipping parameters go unused at random; choose "
            "strategy='ddp_find_unused_parameters_true'"
        )


def wrap_again(strategy: Strategy) -> None:
    """Have DDP expect the gradients of the parameters that are left. All processes call it."""
    wrapped = strategy.model
    if not isinstance(wrapped, DistributedDataParallel):
        return
    assert isinstance(strategy, DDPStrategy)
    # else those of the old wrapper fire until it is collected
    wrapped._remove_autograd_hooks()
    strategy.model = strategy.lightning_module
    strategy.configure_ddp()
