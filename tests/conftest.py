"""Shared fixtures: tiny models and their data. Nothing here needs a network or an accelerator."""

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

from tests.support.networks import settled

settings.register_profile(
    "ci", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci")
torch.set_num_threads(1)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mrla_b() -> nn.Module:
    return settled("mrla_b_resnet32")


@pytest.fixture
def mrla_l() -> nn.Module:
    return settled("mrla_l_resnet20")
