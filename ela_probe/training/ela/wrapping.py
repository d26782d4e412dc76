"""The strategies under which ELA can change a network, and how DDP follows the change.

Lightning comes as two packages with the same content, `pytorch_lightning` and `lightning.pytorch`,
and a class of one is not a class of the other. Strategies are therefore recognised by their name.
"""

from typing import Any

from torch.nn.parallel import DistributedDataParallel

from ela_probe.errors import OptionError

PACKAGES = ("pytorch_lightning.", "lightning.pytorch.")
REWRITE_THE_NETWORK = ("DeepSpeedStrategy", "XLAStrategy")  # subclasses of DDPStrategy


def is_strategy(strategy: object, name: str) -> bool:
    """Whether this is Lightning's strategy of that name, of either package, or a subclass."""
    return any(
        base.__name__ == name and base.__module__.startswith(PACKAGES)
        for base in type(strategy).__mro__
    )


def check_strategy(strategy: Any, *, stochastic: bool) -> None:
    """Raise OptionError unless a network can change while the strategy trains it.

    Args:
        strategy: `trainer.strategy`, of either package.
        stochastic: whether steps leave retrievals out, whose parameters then have no gradient.
    """
    if is_strategy(strategy, "SingleDeviceStrategy"):
        return
    rewrites = any(is_strategy(strategy, name) for name in REWRITE_THE_NETWORK)
    if rewrites or not is_strategy(strategy, "DDPStrategy"):
        kind = type(strategy)
        raise OptionError(
            "ELA changes the network while it trains, which Lightning allows on one device "
            f"(SingleDeviceStrategy) or with DDP (DDPStrategy); got {kind.__module__}."
            f"{kind.__qualname__}. Choose devices=1 or strategy='ddp', or prune before training"
        )
    if stochastic and not strategy._ddp_kwargs.get("find_unused_parameters", False):
        raise OptionError(
            "ELA: with stochastic skipping parameters go unused at random; choose "
            "strategy='ddp_find_unused_parameters_true'"
        )


def rewrap(strategy: Any) -> None:
    """Have DDP expect the gradients of the remaining parameters only. All processes call it."""
    wrapped = strategy.model
    if not isinstance(wrapped, DistributedDataParallel):
        return
    # the hooks of the old wrapper would otherwise fire until it is collected
    wrapped._remove_autograd_hooks()
    strategy.model = strategy.lightning_module
    strategy.configure_ddp()
