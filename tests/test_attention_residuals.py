"""Attention Residuals as others write them: weights, pruning and damage, against formulas."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ela_probe import analyze, discover, make_plan, prune
from ela_probe.adapters.registry import adapter_for
from ela_probe.analysis.damage_probe import DamageProbe, handovers_of
from ela_probe.analysis.stand_ins import fit_stand_ins
from ela_probe.discovery.capture import Capture
from ela_probe.errors import PlanError
from ela_probe.evaluation.objectives import sample_losses
from ela_probe.pruning.ablation import Ablation, ablate_sites
from ela_probe.sites import Action
from tests.support.attention_residuals import (
    NETWORKS,
    WIDTH,
    Integrated,
    handing_on,
    network,
    words,
)
from tests.support.identities import assert_same


@pytest.fixture(params=list(NETWORKS))
def name(request: pytest.FixtureRequest) -> str:
    if request.param in ("LIMe", "aggregated", "aggregated, three views"):
        pytest.importorskip("x_transformers", reason="needs x-transformers")
    return request.param


# one of each kind of replacement, for what takes long
FEW = ("kimi_k3", "block, biased", "delta", "LIMe", "aggregated, three views")
few = pytest.mark.parametrize("name", FEW, indirect=True)

SITES = {
    "kimi_k3": (2, 2, 2, 2, 3, 3, 3, 3, 4, 4),
    "block": (1, 2, 2, 2, 2, 3, 3, 3, 3),
    "block, biased": (2, 2, 2, 2, 2, 3, 3, 3, 3),
    "block, cumulative": (2, 2, 2, 2, 3, 3, 3, 3),
    "full": (1, 2, 3, 4, 5, 6, 7, 8, 9),
    "full, cumulative": (2, 3, 4, 5, 6, 7, 8, 9),
    "delta": (2, 3, 4, 5, 6, 7, 8),
    "delta, biased": (1, 2, 3, 4, 5, 6, 7, 8),
    "delta_block": (1, 1, 1, 1, 2, 2, 2),
    "delta_block, biased": (1, 1, 1, 1, 2, 2, 2, 2),
}


def test_every_retrieval_is_a_site_and_nothing_else(name: str) -> None:
    model = network(name)
    found = discover(model, words())
    (stage,) = found.stages
    assert stage.kind == "softmax"
    assert stage.sizes == SITES.get(name, (1, 2, 3, 4, 5, 6))
    assert all("attend" in b.name or "self_attn" in b.name for b in found.bystanders)
    assert found.bystanders


def read(model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """The weights of one pass by site."""
    found = discover(model)
    weights: dict[str, Tensor] = {}

    def receive(stages: list[list[Tensor]]) -> None:
        for stage, of_stage in zip(found.stages, stages, strict=True):
            weights.update(zip([site.name for site in stage.sites], of_stage, strict=True))

    capture = Capture(model, found.adapter, stages=found.stages, receive=receive)
    with torch.no_grad(), capture:
        model(tokens)
    return weights


def test_weights_equal_those_by_hand(name: str) -> None:
    model = network(name)
    weights = read(model, words())
    expected = by_hand(model) if isinstance(model, Integrated) else model.record.by_hand
    assert weights.keys() == expected.keys()
    for site, found in weights.items():
        assert_same(found, expected[site])


def by_hand(model: Any) -> dict[str, Tensor]:
    """The weights of x-transformers' integrators: means over views, by loops over the sources."""
    found: dict[str, Tensor] = {}

    def recompute(site: str, part: Any, inputs: Any, output: Tensor) -> None:
        x, states = inputs
        if hasattr(part, "to_weights"):
            rms = (x.square().mean(-1, keepdim=True)).sqrt()
            linear = part.to_weights[1]
            scores = (x / rms * part.to_weights[0].g * linear.weight.new_ones(1)) @ linear.weight.T
            scores = (scores + linear.bias).unflatten(-1, (-1, len(states)))
        else:
            views = part.num_views
            queries = (x.repeat(1, 1, views) + part.to_query(x)).unflatten(-1, (views, WIDTH))
            queries, keys = part.norm(queries), [part.to_keys(s) for s in states]
            scores = torch.stack([(queries * k[:, :, None]).sum(-1) for k in keys], -1) / WIDTH**0.5
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        mixed = sum(weights[..., s, None] * states[s][:, :, None] for s in range(len(states)))
        views_first = output if output.dim() == 4 else output[None]
        assert_same(mixed.movedim(2, 0), views_first)  # what the model itself hands on
        found[site] = weights.mean(-2)

    hooks = [
        model.get_submodule(site.name).register_forward_hook(
            lambda part, inputs, output, site=site.name: recompute(site, part, inputs, output)
        )
        for site in discover(model).stages[0].sites
    ]
    with torch.no_grad():
        model(words())
    for hook in hooks:
        hook.remove()
    return found


def prunable(model: nn.Module) -> list[str]:
    return list(handovers_of(model, discover(model)))


def applied(name: str, actions: dict[str, Any]) -> Any:
    model = network(name)
    adapter_for(model).apply(model, actions)
    return model


def test_skipping_one_site_or_all_equals_the_definition(name: str) -> None:
    model = network(name)
    every = prunable(model)
    for skipped in (every[2:3], every[1::2], every):
        pruned = applied(name, dict.fromkeys(skipped, "skip"))
        with torch.no_grad(), handing_on(model, dict.fromkeys(skipped, 1.0)):
            assert_same(pruned(words()), model(words()))
        left = [site.name for stage in adapter_for(pruned).stages(pruned) for site in stage.sites]
        assert left == [s.name for s in discover(model).stages[0].sites if s.name not in skipped]
        assert sum(p.numel() for p in pruned.parameters()) < sum(
            p.numel() for p in model.parameters()
        )
    with torch.no_grad():
        assert (pruned(words()) - model(words())).abs().max() > 1e-2


@few
def test_what_remains_keeps_its_names(name: str) -> None:
    model = network(name)
    pruned = applied(name, dict.fromkeys(prunable(model)[1::2], "skip"))
    assert pruned.state_dict().keys() < model.state_dict().keys()


def losses_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    with torch.no_grad():
        return sample_losses(model(batch[0]), batch[1])[0]


def test_first_order_damage_is_the_slope_of_the_loss(name: str) -> None:
    model, batch = network(name), (words(4), words(4, seed=2))
    # x-transformers' softmax over tokens is in float32, so that the loss is off by 1e-8
    step = 1e-3 if isinstance(model, Integrated) else 1e-5
    found = discover(model)
    with DamageProbe(model, handovers_of(model, found)) as probe:
        probe.backward(sample_losses(model(batch[0]), batch[1])[0])
    (damage,) = probe.compute(found.stages).values()
    for t, site in enumerate(found.stages[0].sites):
        estimate = damage.of(t, "skip")
        if site.name not in prunable(model):
            assert estimate is None
            continue
        nudged = []
        for share in (step, -step):
            with handing_on(model, {site.name: share}):
                nudged.append(losses_of(model, batch).mean())
        slope = float(nudged[0] - nudged[1]) / (2 * step)
        # the loss's third derivative leaves step² of the slope, its rounding is divided by the step
        assert estimate.first == pytest.approx(slope, rel=step, abs=step / 50)


@few
def test_ablation_of_a_site_equals_pruning_it_alone(name: str) -> None:
    model, batch = network(name), (words(6), words(6, seed=2))
    handovers = handovers_of(model, discover(model))
    stand_ins = fit_stand_ins(model, handovers, [batch], progress=False)
    cpu = torch.device("cpu")
    (measured,) = ablate_sites(model, handovers, stand_ins, [batch], Ablation(), device=cpu)
    changes = {(c.site, c.action): c.mean(6) for c in measured.changes}
    for site in handovers:
        for action in ("skip", "affine"):
            pruned = applied(name, {site: "skip"})
            if action == "affine":
                adapter_for(pruned).stand_in(pruned, site, stand_ins[site].double())
            change = float((losses_of(pruned, batch) - losses_of(model, batch)).mean())
            # losses are kept in float32
            assert changes.pop((site, action)) == pytest.approx(change, abs=1e-5)
    assert not changes


def test_recur_is_refused_and_drop_only_before_a_retrieval_that_stays(name: str) -> None:
    model = network(name)
    sites = [site.name for site in discover(model).stages[0].sites]
    refusals: dict[Action, str] = {"recur": "cannot recur", "drop": "cannot be dropped"}
    for action, why in refusals.items():
        with pytest.raises(PlanError, match=rf"{sites[1]} {why}"):
            adapter_for(model).apply(model, {sites[1]: action})
    if sites[-1] in prunable(model):
        dropped, skipped = (applied(name, {sites[-1]: action}) for action in ("drop", "skip"))
        with torch.no_grad():
            assert_same(dropped(words()), skipped(words()))


@few
def test_from_analysis_to_a_pruned_model(name: str) -> None:
    model = network(name)
    batches = [(words(4, seed=n), words(4, seed=n + 9)) for n in range(2)]
    analysis = analyze(model, batches, progress=False)
    assert analysis.has_damage
    plan = make_plan(analysis, skip=0.3, action="affine")
    smaller = prune(model, plan)
    before, after = (len(discover(m).stages[0].sites) for m in (model, smaller))
    assert before - after == len(plan.skipped) > 0
    assert untrained(smaller) <= untrained(model)


def untrained(model: nn.Module) -> set[str]:
    """The parameters that a training step does not reach, such as those of a query never used."""
    model.train()(words()).sum().backward()
    return {name for name, p in model.named_parameters() if p.grad is None}


def changed(name: str, settings: Sequence[tuple[str, Any]]) -> Any:
    model = network(name)
    for layer in model.model.layers:
        for attribute, value in settings:
            setattr(layer, attribute, value)
    return model


def test_what_is_similar_but_different_is_not_matched() -> None:
    assert adapter_for(changed("delta", [("attnres_mode", "delta_v")])) is None
    assert adapter_for(changed("block", [("attn_res_proj", nn.Linear(WIDTH, 2))])) is None
    assert adapter_for(changed("kimi_k3", [("is_start_of_residual_block", None)])) is None
    model = network("kimi_k3")
    model.model.layers[1].post_attn_residual.pseudo_queries = nn.Linear(WIDTH, 2, bias=False)
    assert adapter_for(model) is None


def test_weights_that_are_no_distribution_are_left_to_observation() -> None:
    pytest.importorskip("x_transformers", reason="needs x-transformers")
    model = Integrated(integrate_layers=True, layer_integrate_use_softmax=False)
    assert adapter_for(model) is None


def test_deep_cross_attention_has_no_distribution_over_layers() -> None:
    """Its weights are relu(w · n(x)) + b by channel: they may be negative, and sum to anything."""
    network = pytest.importorskip("deep_cross_attention.dca_gpt", reason="needs the package")
    model = network.DCAGPT(num_tokens=16, dim=16, depth=3, dim_head=8, heads=2)
    assert adapter_for(model) is None
    mixer, states = model.final_grn, torch.randn(4, 2, 5, 16)
    weights = mixer.to_aggregate(states)[0, ..., None] + mixer.bias[0][:, None, None]
    assert torch.allclose((weights * states).sum(0), mixer(states), atol=1e-5)
    assert (weights.sum(0) - 1).abs().min() > 0.1


def test_a_gate_is_read_and_not_pruned() -> None:
    model = changed("full", [("gate_type", "sigmoid_scalar")])
    assert not prunable(model)
    assert len(read(model, words())) == 9
    with pytest.raises(PlanError, match="model.layers.1.attn_res cannot be pruned: a gate"):
        adapter_for(model).apply(model, {"model.layers.1.attn_res": "skip"})


def test_the_retrieval_before_the_head_and_unknown_records_are_not_pruned() -> None:
    model = network("block")
    with pytest.raises(PlanError, match="model.final_res cannot be pruned: the forward of the"):
        adapter_for(model).apply(model, {"model.final_res": "skip"})
    model.model.layers[1].with_block = model.model.layers[1].with_full
    with pytest.raises(PlanError, match="model.layers.1.attn_res cannot be pruned: in a trial"):
        adapter_for(model).apply(model, {"model.layers.1.attn_res": "skip"})


def test_a_learned_null_source_is_one_more_and_goes_with_its_retrieval() -> None:
    from ela_probe.adapters.open_attnres_layer import ThinnedLayer, scheme_of

    model = network("delta")
    decoder = model.model
    for layer in decoder.layers:
        for sublayer in ("attn", "mlp"):
            null = torch.randn(WIDTH, dtype=torch.float64)
            setattr(layer, f"{sublayer}_null_source", nn.Parameter(null))
    (stage,) = discover(model).stages
    assert stage.sizes == (1, 3, 4, 5, 6, 7, 8, 9)
    thinned = ThinnedLayer(decoder.layers[1], scheme_of(decoder))
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    _, kept = thinned([x, 2 * x], x)
    thinned.remove("mlp")
    assert not any("mlp_" in name and "null" in name for name, _ in thinned.named_parameters())
    assert not torch.allclose(thinned([x, 2 * x], x)[1], kept)
