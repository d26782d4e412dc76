"""Learned layer sums, depth-weighted averages and hyper-connections: weights, damage, pruning."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ela_probe import analyze, discover, make_plan, prune
from ela_probe.adapters.registry import MixingAdapter, adapter_for
from ela_probe.analysis.damage_probe import DamageProbe, handovers_of
from ela_probe.analysis.handover_hooks import HandoverHooks
from ela_probe.discovery.capture import Capture
from ela_probe.discovery.sites_file import SitesFile
from ela_probe.errors import ModelError, PlanError
from ela_probe.evaluation.objectives import sample_losses
from ela_probe.forward import logits_of
from ela_probe.pruning.ablation import Ablation, ablate_sites
from ela_probe.pruning.plan import Constraints, SkipPlan
from ela_probe.training.ela.network import Network
from tests.support import layer_mixing
from tests.support.identities import assert_same

needs_streams = pytest.mark.skipif(
    not pytest.importorskip("importlib.util").find_spec("hyper_connections"),
    reason="needs the package hyper-connections",
)
needs_transformers = pytest.mark.skipif(
    not pytest.importorskip("importlib.util").find_spec("transformers"),
    reason="needs the package transformers",
)
NETWORKS = {
    "dwa": (layer_mixing.denseformer, layer_mixing.batch),
    "dwa dilated": (lambda: layer_mixing.denseformer(blocks=5, dilation=2), layer_mixing.batch),
    "dwa every second": (lambda: layer_mixing.denseformer(period=2), layer_mixing.batch),
    "streams": (layer_mixing.streams, layer_mixing.batch),
    "streams outside": (lambda: layer_mixing.streams(inside=False), layer_mixing.batch),
    "layer sum": (layer_mixing.audio_classifier, layer_mixing.sound),
}
needs = {"streams": [needs_streams], "layer": [needs_transformers]}
networks = pytest.mark.parametrize(
    ("build", "batch"),
    [pytest.param(*n, id=k, marks=needs.get(k.split()[0], [])) for k, n in NETWORKS.items()],
)
Build = Callable[[], Any]
Batch = Callable[[], tuple[Tensor, Tensor]]


def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    found = logits_of(model(inputs))
    assert found is not None
    return found


def read(model: nn.Module, inputs: Tensor) -> tuple[list[list[Tensor]], dict[str, list[Tensor]]]:
    """The weights by stage, and by the name of a signed stage the mixed values, of one pass."""
    found = discover(model)
    weights: list[list[Tensor]] = []
    mixed: dict[str, list[Tensor]] = {}

    def receive(stages: list[list[Tensor]]) -> None:
        weights.extend(stages)
        mixed.update(capture.mixed)

    capture = Capture(model, found.adapter, stages=found.stages, receive=receive)
    with torch.no_grad(), capture:
        model(inputs)
    return weights, mixed


@networks
def test_ablation_of_a_site_equals_pruning_it_alone(build: Build, batch: Batch) -> None:
    """Pruning removes what the definition of `skip` replaces, and nothing else."""
    model, (inputs, labels) = build(), batch()
    found = discover(model)
    handovers = handovers_of(model, found)
    names = [site.name for stage in found.stages for site in stage.sites]
    assert list(handovers) == names
    (measured,) = ablate_sites(
        model, handovers, {}, [(inputs, labels)], Ablation(), device=torch.device("cpu")
    )
    with torch.no_grad():
        before = float(sample_losses(logits(model, inputs), labels)[0].mean())
    for change in measured.changes:
        pruned = build()
        adapter_for(pruned).apply(pruned, {change.site: "skip"})
        with torch.no_grad():
            after = float(sample_losses(logits(pruned, inputs), labels)[0].mean())
        assert change.mean(len(labels)) == pytest.approx(after - before, abs=1e-9)
        remaining = [
            s.name for st in (adapter_for(pruned) or Nothing()).stages(pruned) for s in st.sites
        ]
        assert remaining == [name for name in names if name != change.site]


class Nothing:
    """No adapter knows a network whose only retrieval is gone."""

    def stages(self, model: nn.Module) -> list[Any]:
        return []


@networks
def test_first_order_damage_is_the_slope_of_the_loss(build: Build, batch: Batch) -> None:
    model, (inputs, labels) = build(), batch()
    found = discover(model)
    handovers = handovers_of(model, found)
    with DamageProbe(model, handovers) as probe:
        probe.backward(sample_losses(logits(model, inputs), labels)[0])
    damage = probe.compute(found.stages)
    step = 1e-5

    def loss(site: str, share: float) -> float:
        """Where a site hands on y + share · (what it hands on when skipped − y)."""

        def arrive(name: str, tensors: Any, y: Tensor) -> Tensor | None:
            if name != site:
                return None
            return y + share * (handovers[site].alternatives(*tensors).skipped - y)

        with torch.no_grad(), HandoverHooks(model, handovers, arrive):
            return float(sample_losses(logits(model, inputs), labels)[0].mean())

    for stage in found.stages:
        for t, site in enumerate(stage.sites):
            estimate = damage[stage.name].of(t, "skip")
            assert estimate is not None
            slope = (loss(site.name, step) - loss(site.name, -step)) / (2 * step)
            # the central difference is off by step² and by 1e-16 / step
            assert estimate.first == pytest.approx(slope, rel=1e-6, abs=1e-9)


@networks
def test_probing_leaves_the_network_as_it_was(build: Build, batch: Batch) -> None:
    model, (inputs, labels) = build(), batch()
    names, before = [name for name, _ in model.named_modules()], dict(model.state_dict())
    with torch.no_grad():
        expected = logits(model, inputs)
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    analyze(model, [(inputs, labels)], progress=False)
    with torch.no_grad():
        assert torch.equal(logits(model, inputs), expected)
    assert [name for name, _ in model.named_modules()] == names
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("settings", [{}, {"dilation": 2}, {"period": 2}])
def test_depth_weighted_averages_by_hand(settings: dict[str, int]) -> None:
    model, (inputs, _) = layer_mixing.denseformer(**settings), layer_mixing.batch()
    weights, mixed = read(model, inputs)
    x = model.embedding(inputs)
    sources = [x]
    values = {}
    for i, block in enumerate(model.blocks):
        x = x + block(x)
        sources.append(x)
        alpha = model.dwa.alphas[i]
        if alpha is not None:
            group = sources[(i + 1) % model.dwa.dilation :: model.dwa.dilation]
            x = sum(a * s for a, s in zip(alpha.weight[0], group, strict=True))
            values[f"dwa.alphas.{i}"] = x
    for stage, rows in zip(discover(model).stages, weights, strict=True):
        assert stage.kind == "signed"
        for site, row, value in zip(stage.sites, rows, mixed[stage.name], strict=True):
            assert_same(row, model.get_parameter(f"{site.name}.weight").detach())
            assert_same(value, values[site.name].detach())


def test_averages_that_are_skipped_are_gone_and_later_ones_read_the_same_sources() -> None:
    model, (inputs, _) = layer_mixing.denseformer(), layer_mixing.batch()
    stages = discover(model).stages
    plan = SkipPlan.for_actions(stages, {"dwa.alphas.0": "skip", "dwa.alphas.2": "skip"})
    pruned = prune(model, plan)
    x = model.embedding(inputs)
    sources = [x]
    for i, block in enumerate(model.blocks):
        x = x + block(x)
        sources.append(x)
        if i in (1, 3):
            weight = model.dwa.alphas[i].weight[0]
            x = sum(a * s for a, s in zip(weight, sources, strict=True))
    assert_same(pruned(inputs), model.head(x.mean(1)))
    lost = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in pruned.parameters())
    assert lost == 2 + 4
    assert [s.name for s in discover(pruned).stages[0].sites] == ["dwa.alphas.1", "dwa.alphas.3"]


def test_a_source_that_a_later_average_reads_is_not_dropped() -> None:
    model = layer_mixing.denseformer()
    with pytest.raises(PlanError, match=r"dwa.alphas.1 cannot be dropped: a later average reads"):
        adapter_for(model).apply(model, {"dwa.alphas.1": "drop"})
    adapter_for(model).apply(model, {"dwa.alphas.3": "drop"})  # nothing reads behind it


class Reweighted(layer_mixing.Averages):
    """Built as the averages are, but its weights are softmaxed first."""

    def forward(self, x: Tensor, block_idx: int) -> Tensor:
        self.seen.append(x)
        weights = self.alphas[block_idx].weight[0].softmax(0)  # type: ignore[index]
        return torch.stack([a * s for a, s in zip(weights, self.seen, strict=True)]).sum(0)


def test_averages_of_another_formula_are_not_taken() -> None:
    model = layer_mixing.Denseformer()
    model.dwa = Reweighted(4)
    assert adapter_for(layer_mixing.random_parameters(model)) is None


@needs_streams
@pytest.mark.parametrize("inside", [True, False])
def test_what_a_branch_reads_by_hand(inside: bool) -> None:
    model, (inputs, _) = layer_mixing.streams(inside=inside), layer_mixing.batch()
    entered: list[Tensor] = []
    branches = model.branches if len(model.branches) else [layer.branch for layer in model.layers]
    residuals: list[Tensor] = []
    for layer, branch in zip(model.layers, branches, strict=True):
        layer.register_forward_pre_hook(lambda _, a: residuals.append(a[0]))
        branch.register_forward_pre_hook(lambda _, a: entered.append(a[0]))
    (weights,), mixed = read(model, inputs)
    for t, layer in enumerate(model.layers):
        by_stream = residuals[t].unflatten(0, (len(inputs), 3))
        alphas = []
        for s in range(3):
            h = by_stream[:, s]
            normed = h / h.norm(dim=-1, keepdim=True) * 8**0.5 * (layer.norm.gamma + 1)
            dynamic = torch.tanh(normed @ layer.dynamic_alpha_fn[:, 0])
            alphas.append(dynamic * layer.dynamic_alpha_scale + layer.static_alpha[s, 0])
        assert_same(weights[t], torch.stack(alphas, -1).detach())
        assert_same(mixed["streams"][t], entered[t].detach())


@needs_streams
def test_without_mixing_a_branch_reads_the_mean_and_streams_pass_unmixed() -> None:
    """Where α and β are 1 for all streams alike, what is left is a plain residual network."""
    model, (inputs, _) = layer_mixing.streams(), layer_mixing.batch()
    for layer in model.layers:
        layer.static_beta.data.fill_(1.0)
        layer.dynamic_beta_scale.data.zero_()
    stages = discover(model).stages
    names = [site.name for site in stages[0].sites]
    every = SkipPlan.for_actions(
        stages, dict.fromkeys(names, "skip"), constraints=Constraints(min_keep=0)
    )
    pruned = prune(model, every)
    x = model.embedding(inputs)
    for layer in model.layers:
        x = x + layer.branch(x)
    assert_same(pruned(inputs), model.head(3 * x.mean(1)))
    assert not any("alpha" in name for name, _ in pruned.named_parameters())
    with pytest.raises(ModelError, match="no layer attention"):
        discover(pruned)


@needs_transformers
@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("Wav2Vec2", "SequenceClassification"),
        ("Wav2Vec2", "AudioFrameClassification"),
        ("WavLM", "SequenceClassification"),
        ("Hubert", "SequenceClassification"),
        ("UniSpeechSat", "SequenceClassification"),
        ("Data2VecAudio", "SequenceClassification"),
        ("SEW", "SequenceClassification"),
    ],
)
def test_a_layer_sum_of_any_audio_encoder(name: str, task: str) -> None:
    model = layer_mixing.audio_classifier(name, task)
    (waves, _), found = layer_mixing.sound(), discover(model)
    (stage,) = found.stages
    assert (stage.kind, stage.sizes) == ("static", (4,))
    ((row,),), _ = read(model, waves)
    exponentials = model.layer_weights.detach().exp()
    assert_same(row, (exponentials / exponentials.sum())[None])
    assert not isinstance(found.adapter, MixingAdapter)
    plan = SkipPlan.for_actions(
        found.stages, {"layer_weights": "skip"}, constraints=Constraints(min_keep=0)
    )
    pruned = prune(model, plan)
    with torch.no_grad():
        last = model.base_model(waves).last_hidden_state
        if task == "SequenceClassification":
            expected = model.classifier(model.projector(last).mean(1))
        else:
            expected = model.classifier(last)
        assert_same(pruned(waves).logits, expected)
    assert "layer_weights" not in pruned.state_dict()
    assert model.config.use_weighted_layer_sum  # the pruned copy has a config of its own


@needs_transformers
def test_the_layer_sum_of_whisper() -> None:
    import transformers

    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=24,
        num_mel_bins=8, max_source_positions=10, use_weighted_layer_sum=True,
        classifier_proj_size=8, num_labels=3,
    )  # fmt: skip
    model = layer_mixing.random_parameters(transformers.WhisperForAudioClassification(config))
    sound = torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(0)).double()
    ((row,),), _ = read(model, sound)
    assert_same(row, model.layer_weights.detach().softmax(0)[None])
    pruned = layer_mixing.random_parameters(transformers.WhisperForAudioClassification(config))
    adapter_for(pruned).apply(pruned, {"layer_weights": "skip"})
    with torch.no_grad():
        last = model.encoder(sound).last_hidden_state
        expected = model.classifier(model.projector(last).mean(1))
        assert_same(pruned(sound).logits, expected)


@needs_transformers
def test_an_audio_encoder_without_a_layer_sum_is_not_taken() -> None:
    model = layer_mixing.audio_classifier()
    model.config.use_weighted_layer_sum = False
    assert adapter_for(model) is None


@needs_transformers
def test_a_static_row_is_recorded_once_and_has_no_standard_error() -> None:
    model, (waves, labels) = layer_mixing.audio_classifier(), layer_mixing.sound(8)
    batches = [(waves[:4], labels[:4]), (waves[4:], labels[4:])]
    (part,) = analyze(model, batches, progress=False).stages
    assert (part.samples, part.rows) == (1, 1)
    assert part.weights[0] == pytest.approx(model.layer_weights.detach().softmax(0).numpy())
    assert part.damage is not None
    assert part.damage.samples == 8


def test_plans_of_a_network_of_signed_weights_go_by_damage() -> None:
    model, (inputs, labels) = layer_mixing.denseformer(), layer_mixing.batch()
    analysis = analyze(model, [(inputs, labels)], progress=False)
    plan = make_plan(analysis, skip=0.5)
    assert plan.origin.planner == "damage"
    assert len(plan.skipped) == 2
    assert prune(model, plan)(inputs).shape == (6, 3)
    for planner in ("budget", "score"):
        with pytest.raises(PlanError, match="dwa has none: its weights are signed"):
            make_plan(analysis, skip=0.5, planner=planner)
    whole = make_plan(analysis, skip=0.99, constraints=Constraints(min_keep=0))
    assert len(whole.skipped) == 4  # the first as well: the plain network is left
    assert len(make_plan(analysis, skip=0.5, planner="random").skipped) == 2


def test_ela_refuses_networks_whose_weights_have_no_averages_over_epochs() -> None:
    with pytest.raises(ModelError, match="ELA: dwa has signed weights; expected softmax"):
        Network(layer_mixing.denseformer(), None, decay=0.5)


@pytest.mark.parametrize("kind", ["static", "signed"])
def test_a_sites_file_declares_no_kind_that_is_not_read_alone(kind: str) -> None:
    with pytest.raises(ValidationError, match=f"{kind} weights are found by observation"):
        SitesFile.model_validate({"stage": [{"modules": "layers.*", "kind": kind}]})
