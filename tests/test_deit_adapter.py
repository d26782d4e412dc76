"""The adapter of DeiT with MRLA, on a look-alike: same submodules and signatures, other code."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ela_probe import AttentionProbe, analyze, discover, make_plan, prune
from ela_probe.adapters.deit import DeiTAdapter
from ela_probe.errors import PlanError
from ela_probe.pruning.plan import SkipPlan
from tests.support.deit import HEADS, SIDE, WIDTH, DeiT, TokenAttention
from tests.support.identities import assert_same


@pytest.fixture(params=[True, False], ids=["base", "light"])
def model(request: pytest.FixtureRequest) -> DeiT:
    torch.manual_seed(0)
    return DeiT(base=request.param).double().eval()


@pytest.fixture
def patches() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, SIDE * SIDE, WIDTH, generator=generator, dtype=torch.float64)


def planned(model: nn.Module, patches: Tensor, **actions: str) -> SkipPlan:
    """A plan with these actions by block number."""
    plan = make_plan(analyze(model, [patches], progress=False), skip=0.0)
    document = plan.model_dump()
    for stage in document["stages"]:
        for site in stage["sites"]:
            site["action"] = actions.get("b" + site["name"].split(".")[1], "keep")
    return SkipPlan.model_validate(document)


def test_every_retrieval_is_a_site_and_token_attention_is_none(model: DeiT) -> None:
    stages = discover(model).stages
    assert [site.name for stage in stages for site in stage.sites] == [
        f"blocks.{t}.mrla" for t in range(6)
    ]
    assert isinstance(discover(model).adapter, DeiTAdapter)
    if model.base:
        assert [(s.kind, s.sizes) for s in stages] == [("softmax", (1, 2, 3))] * 2
    else:
        assert [(s.kind, s.sizes) for s in stages] == [("unrolled", (1, 2, 3, 4, 5, 6))]


def test_the_weights_are_those_of_the_modules(model: DeiT, patches: Tensor) -> None:
    seen: dict[int, Tensor] = {}
    block: Any
    for t, block in enumerate(model.blocks):
        layer = block.mrla.mrla

        def note(module: nn.Module, args: Any, out: Tensor, t: int = t) -> None:
            seen[t] = out.detach().double()

        (layer.softmax if model.base else layer.sigmoid).register_forward_hook(note)
    with AttentionProbe(model) as probe, torch.no_grad():
        model(patches)
    contributions: list[Tensor] = []
    for stage in probe.stages:
        weights = probe.metrics[stage.name].compute()["weights"]
        for t, site in enumerate(stage.sites):
            number = int(site.name.split(".")[1])
            if model.base:
                expected = seen[number].mean((0, 1, 2))
            else:
                decay = model.get_parameter(f"{site.name}.lambda_t").detach().abs().double()
                gate = seen[number].flatten(1).repeat_interleave(WIDTH // HEADS, 1)
                contributions = [c * decay for c in contributions] + [gate]
                raw = torch.stack(contributions, -1)
                expected = (raw / raw.sum(-1, keepdim=True)).mean((0, 1))
            assert_same(weights[t, : t + 1], expected)


def test_a_skipped_retrieval_adds_nothing_and_stays_a_source(model: DeiT, patches: Tensor) -> None:
    pruned = prune(model, planned(model, patches, b1="skip", b4="skip"))
    silent = copy.deepcopy(model)
    for number in (1, 4):
        silent.blocks[number].mrla.register_forward_hook(
            lambda module, args, out: (out[0] * 0, *out[1:]) if len(out) == 3 else out * 0
        )
    with torch.no_grad():
        torch.testing.assert_close(pruned(patches), silent(patches), rtol=0, atol=0)
    sizes = [stage.sizes for stage in discover(pruned).stages]
    assert sizes == ([(1, 3), (1, 3)] if model.base else [(1, 2, 3, 4)])
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())


def test_a_dropped_retrieval_is_no_source(patches: Tensor) -> None:
    torch.manual_seed(0)
    model = DeiT(base=True).double().eval()
    pruned: Any = prune(model, planned(model, patches, b1="drop", b4="skip", b5="skip"))
    assert [stage.sizes for stage in discover(pruned).stages] == [(1, 2), (1,)]
    assert not list(pruned.blocks[1].mrla.parameters())
    assert not list(pruned.blocks[4].mrla.parameters())  # nothing reads it: dropped
    assert pruned(patches).shape == (5, 4)
    again = prune(pruned, planned(pruned, patches, b2="skip"))
    assert [stage.sizes for stage in discover(again).stages] == [(1,), (1,)]


def test_recur_is_refused(model: DeiT, patches: Tensor) -> None:
    with pytest.raises(PlanError, match=r"blocks\.1\.mrla: .*'recur'"):
        prune(model, planned(model, patches, b1="recur", b2="keep"))


@pytest.mark.parametrize("other", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))])
def test_other_models_are_not_matched(other: nn.Module) -> None:
    plain = nn.Module()
    plain.blocks = nn.Sequential(TokenAttention(), TokenAttention())
    assert not DeiTAdapter().matches(other)
    assert not DeiTAdapter().matches(plain)
