"""The action `recur` of MRLA-B: exact where it should be, and never worse than its bound."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ela_probe.adapters.registry import adapter_for
from ela_probe.analysis import divergence
from ela_probe.errors import PlanError
from ela_probe.models.mrla import MRLABase, Sources
from ela_probe.models.registry import create_model
from ela_probe.sites import Action


def a_stage(sites: int, scale: float, seed: int) -> tuple[list[MRLABase], list[Tensor]]:
    """Retrievals whose weights are far from uniform for a large scale, and their inputs."""
    generator = torch.Generator().manual_seed(seed)
    retrievals = [MRLABase(8, head_dim=4).double().eval() for _ in range(sites)]
    for retrieval in retrievals:
        for parameter in (retrieval.key.weight, retrieval.query.weight, retrieval.value.weight):
            with torch.no_grad():
                parameter.normal_(generator=generator).mul_(math.sqrt(scale))
    inputs = [
        torch.randn(3, 8, 4, 4, generator=generator, dtype=torch.float64) + 1 for _ in retrievals
    ]
    return retrievals, inputs


def last_of(retrievals: Sequence[nn.Module], inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What the last site retrieves, by head, and the values."""
    state, seen, values = [Sources(retrievals)], [], []
    norm = retrievals[-1].norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    retrieval: Any
    for retrieval, x in zip(retrievals, inputs, strict=True):
        _, *state = retrieval(x, x, *state)
        values.append(retrieval.value(x).unflatten(1, (2, -1)).flatten(2))
    norm.remove()
    return seen[0].unflatten(1, (2, -1)).flatten(2), values


@given(
    sites=st.integers(2, 5), skipped=st.integers(0, 2), scale=st.floats(0.1, 4), seed=st.integers(0)
)
@torch.no_grad()
def test_the_error_of_a_step_is_bounded_by_the_shape_divergence(
    sites: int, skipped: int, scale: float, seed: int
) -> None:
    """‖o' − o‖ <= (1 − m) √(2 · shape) · max ‖V‖, by head (Pinsker), also after skipped sites."""
    retrievals, inputs = a_stage(sites, scale, seed % 2**31)
    skipped = min(skipped, sites - 2)
    reference = sites - 2 - skipped
    weights = []
    hooks = [r.tap.register_forward_hook(lambda *a: weights.append(a[2])) for r in retrievals]
    exact, values = last_of(retrievals, inputs)
    for hook in hooks:
        hook.remove()
    chain: list[nn.Module] = list(retrievals)
    chain[reference + 1 : -1] = [r.without_retrieval() for r in retrievals[reference + 1 : -1]]
    chain[-1] = retrievals[-1].as_recurrence()
    recurred, _ = last_of(chain, inputs)
    before, now = weights[reference], weights[-1]
    newest = now[..., reference + 1 :].sum(dim=-1)
    shape = divergence.shape(*(divergence.normalise(w) for w in (before, now)))
    largest = torch.stack(values[: reference + 1]).norm(dim=-1).amax(dim=0)
    bound = (1 - newest) * (2 * shape).sqrt() * largest
    assert ((recurred - exact).norm(dim=-1) <= bound + 1e-9).all()


def recurring(model: nn.Module, actions: dict[str, Action] | None = None) -> nn.Module:
    adapter = adapter_for(model)
    assert adapter is not None
    sites = [site.name for stage in adapter.stages(model) for site in stage.sites[1:]]
    adapter.apply(model, dict.fromkeys(sites, "recur") if actions is None else actions)
    return model


def test_where_all_sites_have_alike_weights_it_is_exact() -> None:
    """Without a query all weights are uniform: the shape divergence is 0."""
    torch.manual_seed(0)
    model = create_model("mrla_b_resnet20").double()
    for module in model.modules():
        if isinstance(module, MRLABase):
            nn.init.zeros_(module.query.weight)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    expected = model(images)
    torch.testing.assert_close(recurring(model)(images), expected)


def test_all_parameters_of_a_recurring_network_are_trained() -> None:
    torch.manual_seed(0)
    model = recurring(create_model("mrla_b_resnet20"))
    assert sum(type(m) is MRLABase for m in model.modules()) == 3  # the first of each stage
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert all("stages" in name and ".0.retrieval." in name for name in unused), unused


@pytest.mark.slow
def test_its_gradients_are_those_of_the_compiled_network() -> None:
    torch.manual_seed(0)
    model = create_model("mrla_b_resnet20").double()
    mixed: dict[str, Action] = {
        "stages.0.1.retrieval": "recur",
        "stages.0.2.retrieval": "recur",
        "stages.1.1.retrieval": "skip",
        "stages.1.2.retrieval": "recur",
        "stages.2.1.retrieval": "recur",
    }
    model = recurring(model, mixed).to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    figures = []
    for form in (model, compiled):
        loss = form(images).square().sum()
        figures.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(figures[1], figures[0])


def test_what_is_a_recurrence_already_cannot_recur() -> None:
    with pytest.raises(PlanError, match="cannot recur"):
        recurring(create_model("mrla_l_resnet8"), {"stages.0.0.retrieval": "recur"})
