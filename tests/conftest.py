"""Shared fixtures: tiny models and their data. Nothing here needs a network or an accelerator."""

import copy
import functools

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

from ela_probe.models.registry import create_model

settings.register_profile(
    "ci", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci")
torch.set_num_threads(1)


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


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mrla_b() -> nn.Module:
    return settled("mrla_b_resnet32")


@pytest.fixture
def mrla_l() -> nn.Module:
    return settled("mrla_l_resnet20")
