"""inkling2's block Attention Residuals: weights, and what pruning leaves, against formulas."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ela_probe import AttentionProbe, analyze, discover, make_plan, prune
from ela_probe.adapters.inkling import PlainSum
from ela_probe.adapters.registry import adapter_for
from ela_probe.analysis.damage_probe import DamageProbe, handovers_of
from ela_probe.analysis.stand_ins import fit_stand_ins
from ela_probe.discovery.capture import Capture
from ela_probe.errors import PlanError
from ela_probe.evaluation.objectives import sample_losses
from ela_probe.pruning.ablation import Ablation, ablate_sites

pytest.importorskip("transformers.models.inkling2", reason="needs transformers with inkling2")

from tests.support.transformers_models import inkling, inkling_loop, token_ids


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return inkling()


def read(model: nn.Module, tokens: Tensor) -> tuple[list[list[Tensor]], dict[str, list[Any]]]:
    """The weights by stage, and by module the inputs of each of its calls."""
    found = discover(model)
    weights: list[list[Tensor]] = []
    seen: dict[str, list[Any]] = {}
    modules = {site.module for stage in found.stages for site in stage.sites}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.setdefault(name, []).append((inputs, output))
        )
        for name in modules
    ]

    def receive(stages: list[list[Tensor]]) -> None:
        weights[:] = stages

    with torch.no_grad(), Capture(
        model, found.adapter, stages=found.stages, receive=receive
    ):  # fmt: skip
        model(tokens)
    for hook in hooks:
        hook.remove()
    return weights, seen


def by_hand(query: Tensor, blocks: Tensor, running: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [batch, tokens, queries, sources] and normalised sources, by loops in float64."""
    sources = [*blocks.double().unbind(-2), running.double()]
    sources = [x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() for x in sources]
    queries = query.double().reshape(-1, query.shape[-1])
    logits = [
        torch.stack([(q * x).sum(-1) / len(q) ** 0.5 for x in sources], dim=-1) for q in queries
    ]
    return torch.stack([row.softmax(-1) for row in logits], dim=-2), torch.stack(sources, dim=-2)


def test_sites_and_sources(model: nn.Module) -> None:
    (stage,) = discover(model).stages
    layers = [f"model.layers.{n}." for n in range(4)]
    names = [layer + name for layer in layers for name in ("attention_input", "mlp_input")][1:]
    assert [site.name for site in stage.sites] == [*names, "model.final_input"]
    # one source more from each layer that begins a block, after its attention
    assert stage.sizes == (2, 2, 2, 2, 3, 3, 3, 3)


def test_weights_equal_those_by_hand(model: nn.Module) -> None:
    (weights,), seen = read(model, token_ids())
    (stage,) = discover(model).stages
    for site, found in zip(stage.sites, weights, strict=True):
        ((inputs, output),) = seen[site.module]
        query: Any = model.get_submodule(site.module).query
        expected, sources = by_hand(query, *inputs)
        assert torch.allclose(found.double(), expected.mean(-2), atol=1e-6, rtol=0)
        retrieved = expected @ sources  # what the model itself hands on, query by query
        assert torch.allclose(torch.stack(output, -2).double(), retrieved, atol=1e-5)


def test_where_all_sites_have_as_many_queries_each_is_a_head() -> None:
    model = inkling()
    for layer in model.model.layers:
        for retrieval in (layer.attention_input, layer.mlp_input):
            if retrieval is not None:
                retrieval.query = nn.Parameter(torch.randn(3, 32))
    model.model.final_input.query = nn.Parameter(torch.randn(3, 32))
    adapter = adapter_for(model)
    (stage,) = adapter.stages(model)
    x = torch.randn(2, 5, 2, 32), torch.randn(2, 5, 32)
    captured = [adapter.reduced(model, site.module, 0, x) for site in stage.sites]
    weights = adapter.weights(model, stage, captured)
    assert {w.shape for w in weights} == {(2, 5, 3, 3)}
    expected, _ = by_hand(model.model.layers[0].mlp_input.query, *x)
    assert torch.allclose(weights[0].double(), expected, atol=1e-6, rtol=0)


def test_a_probe_keeps_no_states(model: nn.Module) -> None:
    adapter = adapter_for(model)
    (kept,) = adapter.reduced(
        model,
        "model.layers.1.attention_input",
        0,
        (torch.randn(2, 5, 1, 32), torch.randn(2, 5, 32)),
    )
    assert kept.untyped_storage().nbytes() == 2 * 5 * 3 * 2 * 4


def only(name: str, model: nn.Module, action: str = "skip") -> dict[str, Any]:
    (stage,) = discover(model).stages
    return {site.name: action if site.name == name else "keep" for site in stage.sites}


class NormedSum(nn.Module):
    """The definition of `skip` in other words: the sum of all sources, divided by its rms."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, blocks: Tensor, running: Tensor) -> list[Tensor]:
        total = torch.stack([*blocks.unbind(-2), running]).sum(0)
        return [total / (total.square().mean(-1, keepdim=True) + 1e-6).sqrt()] * self.heads


@pytest.mark.parametrize("skipped", [["model.layers.1.attention_input"], None])
def test_pruning_equals_its_definition(model: nn.Module, skipped: list[str] | None) -> None:
    (stage,) = discover(model).stages
    names = skipped or [site.name for site in stage.sites]
    pruned, expected = inkling(), inkling()
    adapter_for(pruned).apply(pruned, dict.fromkeys(names, "skip"))
    for name in names:
        parent, _, child = name.rpartition(".")
        heads = 3 if "attention_input" in name and int(name.split(".")[2]) % 2 else 1
        setattr(expected.get_submodule(parent), child, NormedSum(heads))
    with torch.no_grad():
        outputs = [m(token_ids()).logits for m in (pruned, expected, model)]
    assert torch.allclose(outputs[0], outputs[1], atol=1e-4)
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-2)
    left = sum(p.numel() for p in pruned.parameters())
    queries: list[Any] = [model.get_submodule(name).query for name in names]
    removed = sum(query.numel() for query in queries)
    assert sum(p.numel() for p in model.parameters()) - left == removed
    remaining = [s.name for stage in adapter_for(pruned).stages(pruned) for s in stage.sites]
    assert remaining == [site.name for site in stage.sites if site.name not in names]


def test_a_stand_in_scales_blocks_and_running_sum_by_channel_and_query() -> None:
    name = "model.layers.1.attention_input"
    pruned = inkling()
    adapter = adapter_for(pruned)
    adapter.apply(pruned, only(name, pruned))
    coefficients = torch.randn(2, 3 * 32)
    adapter.stand_in(pruned, name, coefficients)
    blocks, running = torch.randn(2, 5, 2, 32), torch.randn(2, 5, 32)
    with torch.no_grad():
        outputs = pruned.get_submodule(name)(blocks, running)
    total = blocks.sum(-2) + running
    rms = (total.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    for head, output in enumerate(outputs):
        a, b = 1 + coefficients[:, 32 * head : 32 * (head + 1)]
        assert torch.allclose(output, (a * blocks.sum(-2) + b * running) / rms, atol=1e-4)


def test_recur_and_drop_are_refused_by_name(model: nn.Module) -> None:
    adapter = adapter_for(model)
    for action, why in (("recur", "cannot recur"), ("drop", "cannot be dropped")):
        with pytest.raises(PlanError, match=rf"layers.2.mlp_input {why}"):
            adapter.apply(inkling(), only("model.layers.2.mlp_input", model, action))


def nudged_loss(model: nn.Module, site: str, share: float, batch: tuple[Tensor, Tensor]) -> float:
    """The mean loss where a site hands on y + share · (y without the retrieval - y)."""
    retrieval = model.get_submodule(site)

    def nudge(_: nn.Module, inputs: Any, outputs: Any) -> Any:
        total = inputs[0].sum(-2) + inputs[1]
        skipped = total / (total.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return tuple(y + share * (skipped - y) for y in outputs)

    hook = retrieval.register_forward_hook(nudge)
    try:
        with torch.no_grad():
            return float(sample_losses(model(batch[0]).logits.double(), batch[1])[0].mean())
    finally:
        hook.remove()


def test_first_order_damage_is_the_slope_of_the_loss() -> None:
    """Also at sites with three queries, whose results go three ways.

    Every token takes all experts: where it may change its experts, the loss jumps.
    """
    model = inkling(num_experts_per_tok=4)
    batch = token_ids(8), token_ids(8, seed=2)
    found = discover(model)
    handovers = handovers_of(model, found)
    with DamageProbe(model, handovers) as probe:
        probe.backward(sample_losses(model(batch[0]).logits, batch[1])[0])
    damage = probe.compute(found.stages)["depth"]
    step = 1e-3
    for t, site in enumerate(found.stages[0].sites):
        losses = [nudged_loss(model, site.name, share, batch) for share in (step, -step)]
        estimate = damage.of(t, "skip")
        assert estimate is not None
        slope = (losses[0] - losses[1]) / (2 * step)
        assert estimate.first == pytest.approx(slope, rel=0.01, abs=1e-4)


def test_ablation_of_a_site_equals_pruning_it_alone(model: nn.Module) -> None:
    batch = token_ids(8), token_ids(8, seed=2)
    found = discover(model)
    handovers = handovers_of(model, found)
    stand_ins = fit_stand_ins(model, handovers, [batch], progress=False)
    cpu = torch.device("cpu")
    (measured,) = ablate_sites(model, handovers, stand_ins, [batch], Ablation(), device=cpu)
    changes = {(c.site, c.action): c.mean(8) for c in measured.changes}
    for site in found.stages[0].sites:
        for action in ("skip", "affine"):
            pruned = inkling()
            adapter = adapter_for(pruned)
            adapter.apply(pruned, {site.name: "skip"})
            if action == "affine":
                adapter.stand_in(pruned, site.name, stand_ins[site.name])
            with torch.no_grad():
                losses = [sample_losses(m(batch[0]).logits, batch[1])[0] for m in (pruned, model)]
            change = float((losses[0] - losses[1]).mean())
            assert changes.pop((site.name, action)) == pytest.approx(change, abs=1e-4)
    assert not changes


def test_layers_that_run_several_times_have_a_site_for_each_run() -> None:
    model, tokens = inkling_loop(), token_ids()
    found = discover(model)
    stages = {stage.name: stage for stage in found.stages}
    assert list(stages) == ["run-0", "messages-0", "run-1", "messages-1", "depth"]
    assert stages["run-1"].sites[0].name == "model.layers.2.attention_input@1"
    assert stages["messages-1"].sites[-1].name == "model.message_input@7"
    weights, seen = read(model, tokens)
    for stage, of_stage in zip(found.stages, weights, strict=True):
        for site, one in zip(stage.sites, of_stage, strict=True):
            inputs, _ = seen[site.module][site.call]
            query: Any = model.get_submodule(site.module).query
            query = query[inputs[2]] if len(inputs) == 3 else query
            expected, _ = by_hand(query, *inputs[:2])
            assert one.shape[-1] == site.sources
            if one.dim() == 3:
                expected = expected.mean(-2)
            assert torch.allclose(one.double(), expected, atol=1e-6, rtol=0)


def test_a_retrieval_that_runs_several_times_is_not_pruned() -> None:
    model = inkling_loop()
    adapter = adapter_for(model)
    for name in ("model.layers.3.mlp_input@1", "model.message_input@5"):
        with pytest.raises(PlanError, match=rf"{name} cannot be pruned"):
            adapter.apply(model, {name: "skip"})
    adapter.apply(model, {"model.layers.1.mlp_input": "skip"})
    assert isinstance(model.model.layers[1].mlp_input, PlainSum)


def test_padding_is_left_out_of_the_statistics(model: nn.Module) -> None:
    """Samples padded on the right have the statistics of each sample run alone."""
    lengths = (7, 4, 4, 2)
    tokens = token_ids(4)
    mask = torch.tensor([[n < length for n in range(7)] for length in lengths])
    tokens[~mask] = 0
    with AttentionProbe(model) as padded, torch.no_grad():
        model(input_ids=tokens, attention_mask=mask.long())
    with AttentionProbe(model) as alone, torch.no_grad():
        for row, length in zip(tokens, lengths, strict=True):
            model(input_ids=row[None, :length])
    found, expected = (probe.metrics["depth"].compute() for probe in (padded, alone))
    assert found["samples"] == 4
    assert found["rows"] == sum(lengths)
    for name in ("weights", "kl", "kl_se", "mass"):
        assert torch.allclose(found[name], expected[name], atol=1e-6, rtol=1e-4, equal_nan=True)


def test_from_analysis_to_a_pruned_model(model: nn.Module) -> None:
    batches = [(token_ids(8, seed=n), token_ids(8, seed=n + 9)) for n in range(2)]
    analysis = analyze(model, batches, progress=False)
    assert analysis.has_damage
    plan = make_plan(analysis, skip=0.4, action="affine")
    smaller = prune(model, plan)
    assert len(plan.skipped) == 3
    with torch.no_grad():
        assert smaller(token_ids()).logits.shape == (3, 7, 64)
    with AttentionProbe(smaller) as probe, torch.no_grad():
        smaller(token_ids())
    assert sum(len(stage.sites) for stage in probe.stages) == 5


def test_the_runs_of_a_loop_are_analysed_apart() -> None:
    model = inkling_loop()
    analysis = analyze(model, [(token_ids(4), token_ids(4, seed=2))], progress=False)
    sizes = {part.stage.name: len(part.stage.sites) for part in analysis.stages}
    assert sizes == {"run-0": 8, "messages-0": 4, "run-1": 8, "messages-1": 4, "depth": 16}
    # only what runs once has its damage measured, and a plan by damage leaves the rest alone
    damage = analysis.sites.set_index("site")["damage_skip"]
    assert set(damage.dropna().index) == {
        site.name
        for stage in discover(model).stages
        for site in stage.sites
        if "@" not in site.name
    }
    plan = make_plan(analysis, skip=0.1, action="skip")
    smaller = prune(model, plan)
    assert len(plan.skipped) == 4
    with torch.no_grad():
        assert smaller(token_ids()).logits.shape == (3, 7, 64)
