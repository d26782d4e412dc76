"""Discovery by observation: it finds what grows with the layers, and nothing else."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from ela_probe import AttentionProbe, analyze, discover
from ela_probe.discovery.capture import Capture
from ela_probe.discovery.discover import Discovery
from ela_probe.errors import ModelError, PlanError, ProbeError
from ela_probe.models.registry import create_model
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.prune import prune
from tests.support.foreign_models import EinsumChain, OnAxisZero, SharedInALoop
from tests.support.identities import assert_same
from tests.support.networks import hooks

FOREIGN = (OnAxisZero, EinsumChain, SharedInALoop)


def captured(model: nn.Module, inputs: Any, found: Discovery) -> list[Tensor]:
    """The weights of all sites in one pass of the model, in the order of the sites."""
    weights: list[Tensor] = []

    def receive(stages: list[list[Tensor]]) -> None:
        weights.extend(w for stage in stages for w in stage)

    with Capture(model, found.adapter, stages=found.stages, receive=receive):
        model(inputs)
    return weights


@settings(max_examples=12)
@given(
    family=st.sampled_from(FOREIGN),
    depth=st.integers(2, 8),
    heads=st.integers(1, 3),
    head_width=st.integers(1, 3),
    tokens=st.integers(1, 9),
    batch=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_models_that_no_adapter_knows_are_read_exactly(
    family: Any, depth: int, heads: int, head_width: int, tokens: int, batch: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model = family(heads * head_width, heads, depth, tokens).double()
    example = torch.randn(batch, tokens, heads * head_width, dtype=torch.float64)
    found = discover(model, example)
    (stage,) = found.stages
    first = 2 if family is SharedInALoop else 1
    assert stage.sizes == tuple(range(first, first + depth))
    assert {found.found[s.name].how.split()[0] for s in stage.sites} == {"observed"}
    assert hooks(model) == []
    inputs = torch.randn(batch + 2, tokens, heads * head_width, dtype=torch.float64)
    with torch.no_grad():
        weights = captured(model, inputs, found)
    for read, expected in zip(weights, model.by_hand, strict=True):
        assert_same(read, expected)


@pytest.mark.parametrize("family", FOREIGN)
def test_as_many_tokens_and_samples_as_layers_change_nothing(family: Any) -> None:
    model, inputs = family(4, 2, 4, 4).double(), torch.randn(4, 4, 4, dtype=torch.float64)
    found = discover(model, inputs)
    assert [len(stage.sites) for stage in found.stages] == [4]
    for read, expected in zip(captured(model, inputs, found), model.by_hand, strict=True):
        assert_same(read, expected)


def test_what_else_attends_is_listed_with_the_reason() -> None:
    found = discover(OnAxisZero(4, 2, 3, 5), torch.randn(2, 5, 4))
    listed = {(b.name, b.what): b.reason for b in found.bystanders}
    assert listed["blocks.*.tokens", "softmax"] == "length 5 in all 3 calls: attends over tokens"
    assert "tokens" in listed["blocks.*.fused", "multi_head_attention_forward"]
    assert listed["forward", "softmax"].startswith("length 3 in its only call")
    assert len(listed) == 3


def test_networks_without_layer_attention_say_what_attends() -> None:
    from torchvision.models import VisionTransformer

    vit = VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=8,
        num_classes=3,
    )  # fmt: skip
    attends = r"here is what attends: .*self_attention .*, length 5 in all 2 calls"
    with pytest.raises(ModelError, match=attends):
        discover(vit, torch.randn(2, 3, 16, 16))
    gated = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1), nn.Sigmoid())
    with pytest.raises(ModelError, match=r"what attends: 2 \(sigmoid\), gates 3 channels"):
        discover(gated, torch.randn(2, 3, 4, 4))
    with pytest.raises(ModelError, match="no layer attention .* what attends: nothing"):
        discover(create_model("resnet20", depth=8), torch.randn(1, 3, 8, 8))
    with pytest.raises(ModelError, match="give example inputs"):
        discover(vit)
    with pytest.raises(ModelError, match="does not take these example inputs"):
        discover(vit, torch.randn(2, 3, 9, 9))


def test_an_adapter_comes_first_and_reports_shapes(mrla_b: nn.Module, images: Tensor) -> None:
    found, blind = discover(mrla_b, images[:2]), discover(mrla_b)
    assert found.stages == blind.stages
    assert found.bystanders == ()
    last = found.found[found.stages[0].sites[-1].name]
    assert (last.how, last.axis) == ("adapter resnet", -1)
    assert last.shape is not None
    assert last.shape[-1] == 5
    assert blind.found[found.stages[0].sites[0].name].shape is None


def test_discovery_changes_nothing_of_the_model() -> None:
    model = nn.Sequential(OnAxisZero(4, 2, 2, 3), nn.BatchNorm1d(3), nn.Dropout())
    model[1].eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    discover(model, torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert _get_current_function_mode_stack() == []


class Checkpointed(OnAxisZero):
    """The same network, its blocks run again in the backward pass."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        self.by_hand = []
        sources = [x]
        for block in self.blocks:

            def run(*tensors: Tensor, block: nn.Module = block) -> Tensor:
                return block(list(tensors), self.by_hand)

            sources.append(checkpoint(run, *sources, use_reentrant=self.reentrant))
        return sources[-1]


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_counts_once(reentrant: bool) -> None:
    model = Checkpointed(4, 2, 3, 3).train()
    model.reentrant = reentrant
    inputs = torch.randn(2, 3, 4, requires_grad=True)
    with AttentionProbe(model, example_inputs=inputs.detach()) as probe:
        for _ in range(2):
            model(inputs).sum().backward()
    assert probe.passes == 2
    assert probe.metrics["blocks"].samples == 4


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_modes_and_precisions(training: bool, precision: torch.dtype) -> None:
    torch.manual_seed(0)
    model = EinsumChain(4, 2, 3, 3).train(training).requires_grad_(False)
    inputs = torch.randn(2, 3, 4)
    with torch.no_grad():
        plain = model(inputs)["features"]
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16)
    with AttentionProbe(model, example_inputs=inputs) as probe, mixed:
        result = model(inputs)["features"]
    assert model.training == training
    exact = precision is torch.float32
    torch.testing.assert_close(result.float(), plain, rtol=0, atol=0 if exact else 0.2)
    weights = probe.metrics["layers"].compute()["weights"]
    expected = model.by_hand[-1].mean((0, 1))
    # A softmax of float32 is off by 1e-7, one of bfloat16 by 4e-3, and so are the scores.
    torch.testing.assert_close(weights[-1], expected, rtol=0, atol=1e-5 if exact else 0.02)
    assert_same(weights.sum(1), torch.ones(3, dtype=torch.float64))


def test_wrappers_are_looked_through(tmp_path: Path) -> None:
    model, inputs = OnAxisZero(4, 2, 2, 3), torch.randn(2, 3, 4)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        for wrap in (nn.DataParallel, nn.parallel.DistributedDataParallel):
            wrapped = wrap(model)
            with AttentionProbe(wrapped, example_inputs=inputs) as probe:
                wrapped(inputs)
            assert probe.metrics["blocks"].samples == 2
    finally:
        torch.distributed.destroy_process_group()
    assert hooks(model) == []


def test_a_pass_that_raises_leaves_hooks_and_modes_as_before() -> None:
    model, inputs = OnAxisZero(4, 2, 3, 3), torch.randn(2, 3, 4)
    probe = AttentionProbe(model, example_inputs=inputs)
    bias = model.get_parameter("blocks.1.tokens.qkv.bias")
    with probe:
        bias.data = torch.zeros(1, 5)
        with pytest.raises(RuntimeError):
            model(inputs)
        bias.data = torch.zeros(12)
        model(inputs)
    assert probe.metrics["blocks"].samples == 2
    with pytest.raises(RuntimeError), probe:
        model(torch.randn(2, 3, 5))
    assert hooks(model) == []
    assert _get_current_function_mode_stack() == []


def test_another_number_of_firings_is_an_error() -> None:
    model, inputs = SharedInALoop(4, 2, 3, 3), torch.randn(2, 3, 4)
    probe = AttentionProbe(model, example_inputs=inputs)
    with pytest.raises(ProbeError, match="fired 2 times in a forward pass; expected 3"), probe:
        model.depth = 2
        model(inputs)


@dataclass
class Answer:
    features: Tensor
    parts: dict[str, list[Tensor]]


class Asked(nn.Module):
    """Token ids and a mask in, a data class out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = OnAxisZero(4, 2, 3, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Answer:
        x = self.embed(ids)
        x = x if mask is None else x * mask.diagonal()[None, :, None]
        return Answer(self.body(x), {"embedded": [x]})


def test_inputs_come_as_tensor_tuple_or_dict() -> None:
    model, ids = Asked(), torch.randint(7, (3, 3))
    mask = torch.ones(3, 3)  # as long as the batch by chance
    kinds = [discover(model, inputs) for inputs in (ids, (ids, mask), {"ids": ids, "mask": mask})]
    assert kinds[0] == kinds[1] == kinds[2]
    assert kinds[0].stages[0].sites[0].batch_axis == 1
    with AttentionProbe(model, discovery=kinds[0]) as probe:
        model(ids=ids, mask=mask)
    assert probe.passes == 1


class Static(nn.Module):
    """Learned weights over the layers so far, the same for every input."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.ParameterList(torch.randn(t + 1) for t in range(3))

    def forward(self, x: Tensor) -> Tensor:
        sources = [x]
        for scores in self.scores:
            mixed = torch.stack(sources, -1) @ F.softmax(scores, dim=0)
            sources.append(mixed + torch.relu(mixed))
        return sources[-1]


def test_weights_that_do_not_depend_on_the_input_are_one_sample_a_pass() -> None:
    model, inputs = Static().double(), torch.randn(2, 4, dtype=torch.float64)
    with AttentionProbe(model, example_inputs=inputs) as probe:
        model(inputs)
    (metric,) = probe.metrics.values()
    assert_same(metric.compute()["weights"][2], model.scores[2].detach().softmax(0))
    assert metric.samples == 1


def test_an_observed_model_is_analysed_without_losing_a_batch() -> None:
    model = nn.Sequential(OnAxisZero(4, 2, 3, 3))
    batches = [(torch.randn(5, 3, 4), torch.tensor([0, 1, 2, 0, 1])) for _ in range(2)]
    for given_batches in (batches, iter(batches)):
        analysis = analyze(model, given_batches, progress=False)
        assert analysis.provenance.samples == 10
    plan = SkipPlan.model_construct(stages=())  # type: ignore[call-arg]
    with pytest.raises(PlanError, match="no adapter knows how to prune"):
        prune(model, plan)


def build() -> nn.Module:
    """What `--factory` names in the test below."""
    return OnAxisZero(4, 2, 3, 5)


def test_the_command_lists_sites_and_bystanders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    from ela_probe_cli import main

    torch.save(build().state_dict(), tmp_path / "model.pth")
    words = ["discover", str(tmp_path / "model.pth"), "--factory", "tests.test_discovery:build"]
    assert main([*words, "--input-size", "5,4", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [site["sources"] for site in document["stages"][0]["sites"]] == [1, 2, 3]
    assert document["stages"][0]["sites"][2]["shape"] == [3, 2, 5]
    assert len(document["bystanders"]) == 3
    assert main([*words, "--input-size", "5,4"]) == 0
    assert "blocks.2" in capsys.readouterr().out
    torch.save(create_model("resnet20", depth=8).state_dict(), tmp_path / "plain.pth")
    plain = [str(tmp_path / "plain.pth"), "--model", "resnet20", "--model-args", '{"depth": 8}']
    assert main(["discover", *plain, "--input-size", "3,8,8"]) == 2
    assert "no layer attention found" in capsys.readouterr().err
    assert main([*words, "--input-size", "5,x"]) == 2
    assert main(words) == 2
    assert "--input-size" in capsys.readouterr().err


def test_the_examples_in_the_docstrings_hold() -> None:
    import doctest

    from ela_probe import sites
    from ela_probe.discovery import calls, growth, sampling

    for module in (sites, calls, growth, sampling):
        result = doctest.testmod(module)
        assert result.attempted
        assert not result.failed


def test_an_analysis_searches_a_known_model_once(mrla_b: nn.Module, images: Tensor) -> None:
    from ela_probe.adapters.resnet import ResNetAdapter

    searches = []
    original = ResNetAdapter.stages

    def stages(*given: Any) -> Any:
        searches.append(1)
        return original(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResNetAdapter, "stages", stages)
        found = discover(mrla_b)
        analyze(mrla_b, [images], discovery=found, progress=False)
        assert len(searches) == 1
        analyze(mrla_b, [images], progress=False)
    assert len(searches) == 2
