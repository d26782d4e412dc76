"""Small float64 networks of every family whose damage is measured, with a batch for each."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ela_probe import SkipPlan, create_model, discover
from ela_probe.pruning.plan import encode_stand_in
from ela_probe.sites import Action
from tests.support.deit import SIDE, WIDTH, DeiT
from tests.support.lookalikes import GateNetwork, SoftNetwork
from tests.support.lookalikes_stateful import GatedNetwork, NormNetwork, RefreshingNetwork
from tests.support.networks import settled


def attnres(block_size: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model("attnres3", dim=32, vocab_size=13, block_size=block_size)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{n: partial(settled, f"{n}_resnet20") for n in ("mrla_b", "mrla_l", "dla_b", "dla_l", "dia")},
    "attnres": attnres,
    "attnres in blocks": partial(attnres, 2),
    "published mrla_b": SoftNetwork,
    "published mrla_l": GateNetwork,
    "published dla_b": RefreshingNetwork,
    "published dia": GatedNetwork,
    "kcla": NormNetwork,
    "deit, MRLA-B": partial(DeiT, base=True),
    "deit, MRLA-L": partial(DeiT, base=False),
}


def network(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETWORKS[name]().double().eval()


def batch(name: str, samples: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if name.startswith("attnres"):
        tokens = torch.randint(0, 13, (samples, 9), generator=generator)
        return tokens[:, :-1], tokens[:, 1:]
    shape = (SIDE * SIDE, WIDTH) if name.startswith("deit") else (3, 16, 16)
    images = torch.randn(samples, *shape, generator=generator)
    return images.double(), torch.randint(0, 3, (samples,), generator=generator)


def only(model: nn.Module, site: str, action: Action, stand_in: Tensor | None) -> SkipPlan:
    """A plan with one action at one site."""
    figures = (
        {}
        if action != "affine" or stand_in is None
        else {site: {"stand_in": encode_stand_in(stand_in.numpy())}}
    )
    return SkipPlan.for_actions(discover(model).stages, {site: action}, figures=figures)
