"""Small networks, and what a test compares of two networks."""

import copy
import functools

import torch
from torch import Tensor, nn

from ela_probe import create_model, discover
from ela_probe.models.attention_mechanisms import mrla_b
from ela_probe.models.resnet import Layout, ResNet


def settled(name: str, **arguments: object) -> nn.Module:
    """A model in eval mode whose BatchNorm statistics are those of one random batch."""
    return copy.deepcopy(_settled(name, tuple(sorted(arguments.items()))))


@functools.cache
def _settled(name: str, arguments: tuple[tuple[str, object], ...]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model(name, **dict(arguments)).train()
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model(torch.randn(16, int(dict(arguments).get("in_channels", 3)), 16, 16))  # type: ignore[call-overload]
        for norm in norms:
            norm.momentum = 0.1
    return model.eval()


def network(name: str = "mrla_b_resnet20") -> nn.Module:
    """A model of three classes with the weights of seed 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_model(name, num_classes=3)


def one_stage() -> nn.Module:
    """One stage of four sites, for three classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ResNet(Layout("small", (4,), (16,), "basic"), mrla_b(), num_classes=3)


class InFloat64(nn.Module):
    """A network in float64 for inputs of any type."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.network(x.double())
        return result


def without_norms() -> nn.Module:
    """A float64 network whose gradients are means over samples, however these are divided up."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return InFloat64(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        )


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def sites(model: nn.Module) -> list[str]:
    """The names of the sites that discovery finds."""
    return [site.name for stage in discover(model).stages for site in stage.sites]


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    """Whether two state dicts have the same names in the same order, and equal tensors."""
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def hooks(model: nn.Module) -> list[object]:
    """Every hook on any module of a model."""
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [h for m in model.modules() for table in tables for h in getattr(m, table).values()]
