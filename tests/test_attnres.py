"""Attention Residuals: the formulas against plain loops, and what pruning leaves of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ela_probe import AttentionProbe, create_model, discover, load_checkpoint, prune
from ela_probe.analysis.result import Analysis
from ela_probe.checkpoint import save_checkpoint
from ela_probe.errors import ModelError, PlanError
from ela_probe.evaluation.profiling import count_flops
from ela_probe.models.attnres import CausalAttention, Transformer, rotary
from ela_probe.models.depth_attention import History, Recurrence, Residual, Retrieval
from ela_probe.models.registry import ModelSpec
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.planners import make_plan
from tests.support.identities import assert_same

SMALL = {"dim": 16, "heads": 4, "kv_heads": 2, "vocab_size": 11}


def model_of(name: str = "attnres3", **arguments: object) -> Transformer:
    """A model in eval mode whose queries and weights are far from their start."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = create_model(name, **{**SMALL, **arguments})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)
    assert isinstance(model, Transformer)
    return model.eval()


def tokens_of(batch: int = 2, length: int = 7) -> Tensor:
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(1))


def naive(model: Transformer, tokens: Tensor, actions: dict[str, str] | None = None) -> Tensor:
    """The forward pass from the formulas of docs/method.md, over a stack of all sources."""
    actions = actions or {}
    outputs, dropped = [model.embedding(tokens)], set()
    h, retrieved_key, entropy = outputs[0], torch.empty(0), torch.empty(0)
    sublayer: Any
    for t, (name, sublayer) in enumerate(model.sublayers()):
        action = actions.get(f"{name}.retrieval", "keep")
        if action == "drop":
            dropped.add(t)
        blocks = [outputs[0]]
        for start in range(1, t + 1, model.block_size):
            kept = range(start, min(start + model.block_size, t + 1))
            if model.block_size == 1 and start in dropped:
                continue
            blocks.append(sum(outputs[s] for s in kept))
        values = torch.stack(blocks)
        keys = values / values.square().mean(-1, keepdim=True).sqrt()
        if action in ("skip", "drop"):
            h = h + outputs[t]
        else:
            query = sublayer.retrieval.query
            if action == "keep":
                weights = (keys @ query).softmax(0)
                h = (weights[..., None] * values).sum(0)
                retrieved_key = (weights[..., None] * keys).sum(0)
                entropy = -(weights * weights.log()).sum(0)
            else:
                new, old = (keys[-1] @ query).exp(), (retrieved_key @ query + entropy).exp()
                m = new / (new + old)
                h = (1 - m)[..., None] * h + m[..., None] * values[-1]
                retrieved_key = (1 - m)[..., None] * retrieved_key + m[..., None] * keys[-1]
                entropy = (1 - m) * entropy - m * m.log() - (1 - m) * (1 - m).log()
        outputs.append(sublayer.body(sublayer.norm(h)))
    return outputs[-1]


def plan_of(model: nn.Module, actions: dict[str, str] | None = None) -> SkipPlan:
    with AttentionProbe(model) as probe, torch.no_grad():
        model(tokens_of(8))
    document = make_plan(probe.analysis(), skip=0.0).model_dump(mode="json")
    for site in document["stages"][0]["sites"]:
        site["action"] = (actions or {}).get(site["name"], "keep")
    return SkipPlan.model_validate(document)


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 50])
def test_the_forward_pass_is_the_formula(block_size: int) -> None:
    model = model_of("attnres_block3", block_size=block_size).double()
    with torch.no_grad():
        assert_same(model(tokens_of()), naive(model, tokens_of()))


def test_sources_grow_by_outputs_or_by_blocks() -> None:
    def sizes(model: nn.Module) -> tuple[int, ...]:
        (stage,) = discover(model).stages
        assert stage.kind == "softmax"
        with AttentionProbe(model) as probe:  # raises unless the weights have these shapes
            model(tokens_of())
        assert int(probe.metrics["depth"].samples) == 2  # sequences
        assert int(probe.metrics["depth"].rows) == 2 * 7  # tokens
        return stage.sizes

    assert sizes(model_of("attnres3")) == (1, 2, 3, 4, 5, 6, 7)
    assert sizes(model_of("attnres_block3", block_size=1)) == (1, 2, 3, 4, 5, 6, 7)
    assert sizes(model_of("attnres_block3", block_size=4)) == (1, 2, 2, 2, 2, 3, 3)
    with pytest.raises(ModelError, match="no layer attention found"):
        discover(model_of("gpt3"))


def test_weights_are_uniform_at_the_start_and_every_parameter_learns() -> None:
    model = create_model("attnres2", **SMALL).double()
    seen: list[Tensor] = []
    for _, sublayer in model.sublayers():  # type: ignore[operator]
        sublayer.retrieval.tap.register_forward_hook(lambda m, a, out: seen.append(out))
    model(tokens_of()).sum().backward()
    assert [w.shape for w in seen] == [(2, 7, s) for s in range(1, 6)]
    for weights in seen:
        assert_same(weights, torch.full_like(weights, 1 / weights.shape[-1]))
    assert all(p.grad is not None for p in model.parameters())


def test_a_model_that_skips_everything_is_the_plain_transformer() -> None:
    full, plain = model_of("attnres3").double(), model_of("gpt3").double()
    for _, sublayer in full.sublayers():
        sublayer.retrieval = Residual()
    plain.load_state_dict(full.state_dict())
    assert torch.equal(full(tokens_of()), plain(tokens_of()))

    x = plain.embedding(tokens_of())
    for layer in plain.layers:
        for part in layer.values():  # type: ignore[operator]
            x = x + part.body(part.norm(x))
    assert_same(plain(tokens_of()), plain.final.body(plain.final.norm(x)))


@pytest.mark.parametrize("name", ["attnres2", "attnres_block2", "gpt2"])
def test_the_future_does_not_change_the_past(name: str) -> None:
    model, tokens = model_of(name).double(), tokens_of(2, 9)
    other = tokens.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 11
    with torch.no_grad():
        before, after = model(tokens), model(other)
    assert_same(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-3


def test_rotary_products_depend_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    turned = [rotary(x.expand(1, 1, 20, 8))[0, 0] for x in (query, key)]
    products = turned[0] @ turned[1].T
    for distance in range(-5, 6):
        diagonal = products.diagonal(distance)
        assert_same(diagonal, diagonal[:1].expand_as(diagonal))
    assert_same(turned[0].norm(dim=-1), query.norm().expand(20))


def test_grouped_heads_are_heads_with_repeated_keys_and_values() -> None:
    grouped = CausalAttention(16, heads=4, kv_heads=2).double()
    full = CausalAttention(16, heads=4, kv_heads=4).double()
    state = grouped.state_dict()
    for name in ("key.weight", "value.weight"):
        by_head = state[name].unflatten(0, (2, 4))
        state[name] = by_head.repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_same(grouped(x), full(x))


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"kv_heads": 3}, {"dim": 18, "heads": 9}])
def test_heads_that_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    create_model("attnres1", dim=18, heads=3, kv_heads=1)
    with pytest.raises(ModelError, match="do not fit"):
        create_model("attnres1", **{**SMALL, **wrong})


@settings(max_examples=20)
@given(st.data())
def test_pruned_models_compute_their_definition(data: st.DataObject) -> None:
    model = model_of("attnres3").double()
    actions: dict[str, str] = {}
    formed = True
    for site in discover(model).stages[0].sites[1:]:
        choices = ["keep", "skip", "drop", *(["recur"] if formed else [])]
        actions[site.name] = data.draw(st.sampled_from(choices))
        formed = actions[site.name] in ("keep", "recur")
    pruned = prune(model, plan_of(model, actions))
    with torch.no_grad():
        assert_same(pruned(tokens_of()), naive(model, tokens_of(), actions))


@pytest.mark.parametrize("block_size", [2, 3])
def test_pruned_block_models_compute_their_definition(block_size: int) -> None:
    model = model_of("attnres_block3", block_size=block_size).double()
    actions = {
        "layers.0.attention.retrieval": "keep",
        "layers.1.attention.retrieval": "skip",
        "layers.2.mlp.retrieval": "skip",
        "final.retrieval": "skip",  # trailing: dropped
    }
    if block_size == 3:  # site 4 is the first to read the second block
        actions["layers.2.attention.retrieval"] = "recur"
    else:
        actions["layers.1.mlp.retrieval"] = "keep"
        actions["layers.2.mlp.retrieval"] = "skip"
    pruned = prune(model, plan_of(model, actions))
    with torch.no_grad():
        assert_same(pruned(tokens_of()), naive(model, tokens_of(), actions))


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(1, 5), st.floats(0, 3))
def test_recur_is_exact_where_the_shape_divergence_is_zero(
    seed: int, sources: int, shift: float
) -> None:
    """The query moves along a direction in which the logits of all old sources shift alike."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    values = [drawn(1, 1, 8) for _ in range(sources + 1)]
    history = History(1)
    for value in values[:-1]:
        history = history.arrive(value, record=True, continued=True)
    old_keys = torch.cat(history.all_keys()).squeeze(1)
    first, second = Retrieval(8).double(), Retrieval(8).double()
    with torch.no_grad():
        first.query.copy_(drawn(8))
        alike = torch.linalg.lstsq(old_keys, torch.ones(sources, dtype=torch.float64)[:, None])
        second.query.copy_(first.query + shift * alike.solution[:, 0])
    recurrence = Recurrence(second.query)
    _, history = first(history)
    history = history.arrive(values[-1], record=True, continued=True)
    short, recurred = recurrence(history)
    key, entropy = recurred.summary
    exact, read = second(history)
    exact_key, exact_entropy = read.summary
    torch.testing.assert_close(short, exact, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(key, exact_key, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(entropy, exact_entropy, rtol=1e-6, atol=1e-8)


def test_what_is_skipped_is_gone_and_survives_saving(tmp_path: Path) -> None:
    spec = ModelSpec(name="attnres3", args=SMALL)
    model = spec.build().eval()
    plan = plan_of(
        model,
        {
            "layers.0.mlp.retrieval": "skip",
            "layers.1.attention.retrieval": "drop",
            "layers.2.mlp.retrieval": "recur",
        },
    )
    pruned = prune(model, plan)
    gone = set(model.state_dict()) - set(pruned.state_dict())
    assert gone == {"layers.0.mlp.retrieval.query", "layers.1.attention.retrieval.query"}
    (stage,) = discover(pruned).stages
    assert stage.sizes == (1, 4 - 1, 5 - 1, 7 - 1)  # of sites 0, 3, 4 and 6
    for name in ("a.pt", "a.safetensors"):
        save_checkpoint(tmp_path / name, pruned, spec=spec, plans=[plan])
        again = load_checkpoint(tmp_path / name)
        assert torch.equal(again(tokens_of()), pruned(tokens_of()))
    pruned.train()(tokens_of()).sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())


def test_tied_models_are_saved_once(tmp_path: Path) -> None:
    spec = ModelSpec(name="attnres2", args={**SMALL, "tied": True})
    model = spec.build().eval()
    assert "final.body.weight" not in model.state_dict()
    save_checkpoint(tmp_path / "a.safetensors", model, spec=spec)
    assert torch.equal(load_checkpoint(tmp_path / "a.safetensors")(tokens_of()), model(tokens_of()))


def test_a_pruned_model_can_be_analysed_and_pruned_again() -> None:
    model = model_of("attnres3")
    once = prune(model, plan_of(model, {"layers.1.mlp.retrieval": "skip"}))
    analysis: Analysis = analysed(once)
    twice = prune(once, make_plan(analysis, skip=0.4, planner="deepest"))
    assert len(discover(twice).stages[0].sites) == 4
    assert twice(tokens_of()).isfinite().all()


def analysed(model: nn.Module) -> Analysis:
    with AttentionProbe(model) as probe, torch.no_grad():
        model(tokens_of(8))
    return probe.analysis()


def test_the_first_site_is_always_kept_and_recur_can_be_planned() -> None:
    model = model_of("attnres3")
    assert analysed(model).sites["kl"].isna()[0]
    with pytest.raises(ValueError, match="first site"):
        plan_of(model, {"layers.0.attention.retrieval": "skip"})
    made = make_plan(analysed(model), skip=0.5, action="recur", planner="deepest")
    assert list(made.actions.values()) == ["keep"] * 3 + ["recur"] * 4
    assert prune(model, made)(tokens_of()).isfinite().all()


@pytest.mark.parametrize(
    ("name", "actions", "message"),
    [
        ("attnres3", {1: "skip", 2: "recur"}, "has none"),
        ("attnres_block3", {2: "recur"}, "before has read"),
        ("attnres_block3", {2: "drop"}, "another source"),
    ],
)
def test_actions_without_a_meaning_are_refused(
    name: str, actions: dict[int, str], message: str
) -> None:
    model = model_of(name)
    sites = discover(model).stages[0].sites
    plan = plan_of(model, {sites[t].name: action for t, action in actions.items()})
    with pytest.raises(PlanError, match=message):
        prune(model, plan)


def test_flops_are_those_of_the_matrix_products() -> None:
    dim, length, vocab = 16, 7, 11
    inside = 64  # 8/3 of 16 in multiples of 32
    layer = 2 * length * (2 * dim * dim + 2 * dim * dim // 2 + 3 * dim * inside)
    layer += 2 * 2 * length * length * dim  # scores and sums, over all pairs of tokens
    plain = 2 * layer + 2 * length * dim * vocab
    assert count_flops(model_of("gpt2"), (length,), dtype=torch.int64) == plain
    # a key times a query is no product of matrices: retrievals are not counted, as the docs say
    assert count_flops(model_of("attnres2"), (length,), dtype=torch.int64) == plain
