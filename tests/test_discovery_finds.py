"""Discovery by observation on small networks: what is layer attention, and what only looks so."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ela_probe import AttentionProbe, analyze, discover
from ela_probe.discovery.discover import DiscoveryWarning
from ela_probe.errors import ModelError
from ela_probe.models.registry import create_model
from tests.support import not_layer_attention as others
from tests.support.lookalikes import SoftNetwork
from tests.support.lookalikes_stateful import RefreshingNetwork
from tests.support.ways_of_reading import WAYS, Read, Stack, scores, weighted
from tests.test_discovery import captured

NO_LIST = "reads no list of earlier outputs that grows from call to call"
TOKENS = "follows the length of the inputs: attends over tokens"
TIME = "their number follows the length of the inputs: attends over time"

NOT_FOUND: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str]] = {
    "vit": (others.VisionTransformer, lambda: torch.randn(2, 3, 8, 8), "attends over tokens"),
    "windows": (others.Windows, lambda: torch.randn(2, 32, 4), "attends over tokens"),
    "cache": (others.Decoder, lambda: torch.randint(11, (2, 3)), TOKENS),
    "fused cache": (
        lambda: others.Decoder(fused=True),
        lambda: torch.randint(11, (2, 3)),
        TOKENS,
    ),
    "captioner": (
        others.Captioner,
        lambda: torch.randn(2, 3, 4, 4),
        "a token is chosen between the calls: decodes step by step",
    ),
    "memory": (others.SegmentMemory, lambda: torch.randn(2, 12, 4), TIME),
    "memory of the last segment": (others.TransformerXL, lambda: torch.randn(2, 12, 4), TIME),
    "memory of the last pass": (
        lambda: others.TransformerXL(kept=True),
        lambda: torch.randn(2, 4, 4),
        "attends over tokens",
    ),
    "U-Net": (others.UNet, lambda: torch.randn(2, 3, 8, 8), "attends over a fixed number"),
    "U-Net, fused": (
        lambda: others.UNet(fused=True),
        lambda: torch.randn(2, 3, 8, 8),
        "attends over a fixed number",
    ),
    "chunks": (others.Chunks, lambda: torch.randn(2, 8, 4), TIME),
    "history": (others.History, lambda: torch.randn(2, 5, 4), TIME),
    "history of one length": (
        lambda: others.History(fixed=5),
        lambda: torch.randn(2, 5, 4),
        "as many steps of one loop as the inputs are long: attends over time",
    ),
    "experts": (others.Experts, lambda: torch.randn(2, 4), NO_LIST),
    "experts of tokens": (others.Experts, lambda: torch.randn(2, 6, 4), NO_LIST),
    "experts from one": (lambda: others.Experts(1, 2, 3), lambda: torch.randn(2, 4), NO_LIST),
    "heads": (others.Heads, lambda: torch.randn(2, 4), NO_LIST),
    "heads side by side": (
        lambda: others.Heads(joined=True),
        lambda: torch.randn(2, 4),
        NO_LIST,
    ),
    "pyramid": (others.Pyramid, lambda: torch.randn(2, 10, 4), NO_LIST),
    "prompts": (others.Prompts, lambda: torch.randn(2, 10, 4), NO_LIST),
    "summary tokens": (
        lambda: others.Prompts(summary=True),
        lambda: torch.randn(2, 10, 4),
        NO_LIST,
    ),
}


@pytest.mark.parametrize("case", NOT_FOUND)
def test_what_is_no_layer_attention_is_not_found_and_the_reason_is_shown(case: str) -> None:
    build, example, reason = NOT_FOUND[case]
    torch.manual_seed(0)
    model, inputs = build(), example()
    with pytest.raises(ModelError) as caught:
        discover(model, inputs)
    assert re.search(
        rf"no layer attention found in this .* what attends: .*: {reason}", str(caught.value)
    )


@pytest.mark.parametrize("case", NOT_FOUND)
def test_layer_attention_beside_it_is_found_all_the_same(case: str) -> None:
    build, example, reason = NOT_FOUND[case]
    torch.manual_seed(0)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.other, self.stack = build(), Stack(WAYS[0])

        def forward(self, x: Tensor) -> Any:
            return self.other(x), self.stack(x.float().flatten(1)[:, :4])

    inputs = example()
    found = discover(Both(), inputs.repeat(1, 2) if inputs.shape[1:] == (3,) else inputs)
    assert [(stage.name, stage.sizes) for stage in found.stages] == [("stack.layers", (1, 2, 3, 4))]
    assert any(reason in bystander.reason for bystander in found.bystanders)


@pytest.mark.parametrize("read", WAYS, ids=lambda read: read.__name__)
def test_a_retrieval_is_found_and_read_however_it_is_written(read: Read) -> None:
    torch.manual_seed(0)
    model, inputs = Stack(read), torch.randn(3, 4)
    found = discover(model, inputs)
    assert [stage.sizes for stage in found.stages] == [(1, 2, 3, 4)]
    assert {site.batch_axis for site in found.stages[0].sites} == {0}
    inputs = torch.randn(5, 4)
    with torch.no_grad():
        weights = captured(model, inputs, found)
    for read_here, expected in zip(weights, model.by_hand, strict=True):
        torch.testing.assert_close(read_here.double(), expected, rtol=0, atol=1e-6)


class InMultiheadAttention(nn.Module):
    """A query of one token over the stack of all outputs so far, in nn.MultiheadAttention."""

    def __init__(self, *, show: bool = True, depth: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(depth)
        )
        self.show, self.seen = show, list[Any]()

    def forward(self, x: Tensor) -> Tensor:
        outputs, self.seen = [x], []
        for layer in self.layers:
            stacked = torch.stack(outputs, 1)
            query = outputs[-1][:, None]
            out, weights = layer(query, stacked, stacked, need_weights=self.show)
            self.seen.append(weights)
            outputs.append(torch.tanh(out[:, 0] + outputs[-1]))
        return outputs[-1]


def test_weights_inside_multihead_attention_are_read_where_it_returns_them() -> None:
    model, inputs = InMultiheadAttention(), torch.randn(3, 8)
    found = discover(model, inputs)
    assert [stage.sizes for stage in found.stages] == [(1, 2, 3, 4)]
    with torch.no_grad():
        weights = captured(model, inputs, found)
    for read, expected in zip(weights, model.seen, strict=True):
        torch.testing.assert_close(read, expected)
    hidden = InMultiheadAttention(show=False)
    with pytest.raises(
        ModelError, match="lengths 1 to 4 in 4 calls: reads a list .* need_weights=True"
    ):
        discover(hidden, inputs)


class HeadsTimesLayers(nn.Module):
    """Every layer adds the keys of all its heads to the list, and attends over all of them."""

    def __init__(self, heads: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4 * heads) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        keys: list[Tensor] = []
        for layer in self.layers:
            keys.append(layer(x).unflatten(1, (-1, 4)))
            stacked = torch.cat(keys, 1)
            x = x + ((stacked @ x[..., None]).softmax(1) * stacked).sum(1)
        return x


@pytest.mark.parametrize(("heads", "depth"), [(1, 3), (17, 3), (32, 5), (100, 2)])
def test_a_layer_may_add_any_number_of_sources(heads: int, depth: int) -> None:
    found = discover(HeadsTimesLayers(heads, depth), torch.randn(2, 4))
    assert [stage.sizes for stage in found.stages] == [
        tuple(range(heads, heads * depth + 1, heads))
    ]


class OneStageAfterAnother(nn.Module):
    """Stages of these depths; each starts a list of its own, called from another line."""

    def __init__(self, *depths: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleList(nn.Linear(4, 4) for _ in range(depth)) for depth in depths
        )

    def forward(self, x: Tensor) -> Tensor:
        stage: Any
        for stage in self.stages:
            for number, layer in enumerate(stage):
                if number == 0:
                    x, sources = self.step(layer, x, [])
                else:
                    x, sources = self.step(layer, x, sources)
        return x

    def step(
        self, layer: nn.Module, x: Tensor, sources: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        sources.append(layer(x).tanh())
        return weighted(scores(x, sources).softmax(-1), sources), sources


def test_a_stage_is_one_stage_also_where_its_first_site_is_called_elsewhere() -> None:
    found = discover(OneStageAfterAnother(3, 4, 6, 3), torch.randn(2, 4))
    assert [stage.sizes for stage in found.stages] == [
        tuple(range(1, depth + 1)) for depth in (3, 4, 6, 3)
    ]


class CompiledPart(nn.Module):
    """A network whose retrieval is a function that was given to torch.compile."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.read = torch.compile(read_compiled)

    def forward(self, x: Tensor) -> Tensor:
        sources = [x]
        for layer in self.layers:
            sources.append(layer(self.read(sources[-1], sources)).tanh())
        return sources[-1]


def read_compiled(query: Tensor, sources: Sequence[Tensor]) -> Tensor:
    return weighted(scores(query, sources).softmax(-1), sources)


def test_a_compiled_function_inside_a_model_is_looked_into() -> None:
    model, batches = CompiledPart().eval(), [torch.randn(4, 4)]
    found = discover(model, batches[0])
    assert [stage.sizes for stage in found.stages] == [(1, 2, 3)]
    analysis = analyze(model, batches, progress=False)
    assert analysis.stages[0].samples == 4
    with AttentionProbe(model, discovery=found) as probe:
        model(batches[0])
    assert probe.passes == 1


class FixedBatch(nn.Module):
    """Takes `batch` samples only; the weights are [tokens, samples, sources]."""

    def __init__(self, batch: int, *, tokens: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.batch, self.tokens = batch, tokens

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(self.batch, self.tokens, 4).transpose(0, 1)
        sources = [x]
        for layer in self.layers:
            stacked = torch.stack(sources, 2)  # [tokens, samples, sources, 4]
            weights = (stacked @ sources[-1][..., None]).squeeze(-1).softmax(-1)
            sources.append(layer((weights[..., None] * stacked).sum(2)).tanh())
        return sources[-1].transpose(0, 1)


@pytest.mark.parametrize(("batch", "tokens"), [(5, 3), (3, 3), (2, 1)])
def test_the_batch_axis_of_a_fixed_batch_is_the_one_that_rolls_with_it(
    batch: int, tokens: int
) -> None:
    model, inputs = FixedBatch(batch, tokens=tokens), torch.randn(batch, tokens, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = discover(model, inputs)
    assert [site.batch_axis for site in found.stages[0].sites] == [1, 1, 1]
    analysis = analyze(model, [inputs], discovery=found, progress=False)
    assert analysis.stages[0].samples == batch


def test_a_fixed_batch_of_one_sample_needs_no_guess() -> None:
    found = discover(FixedBatch(1), torch.randn(1, 3, 4))
    assert {site.batch_axis for site in found.stages[0].sites} == {1}


def test_a_guess_of_the_batch_axis_is_said() -> None:
    model = FixedBatch(2, tokens=2)
    with pytest.warns(DiscoveryWarning, match=r"no other number of samples.*axis 0 is assumed"):
        discover(model, torch.ones(2, 2, 4))


class MaskedTokens(nn.Module):
    """Attention over layers for every token, beside masked token attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        sources = [x]
        for layer in self.layers:
            logits = (x @ x.transpose(1, 2)).masked_fill(mask, -1e9)
            x = logits.softmax(-1) @ x
            stacked = torch.stack(sources)
            x = x + (F.softmax((stacked * x).sum(-1), 0)[..., None] * stacked).sum(0)
            sources.append(layer(x).tanh())
        return x


@pytest.mark.parametrize("tokens", [2, 4, 5])
def test_a_mask_as_long_as_the_sequence_is_shortened_with_it(tokens: int) -> None:
    inputs = {"x": torch.randn(4, tokens, 4), "mask": torch.ones(tokens, tokens).triu(1).bool()}
    found = discover(MaskedTokens(), inputs)
    assert [stage.sizes for stage in found.stages] == [(1, 2, 3)]
    assert {site.batch_axis for site in found.stages[0].sites} == {1}


@pytest.mark.parametrize(
    "build",
    [SoftNetwork, lambda: SoftNetwork(raw=True), RefreshingNetwork],
    ids=["MRLA-B", "equation 4", "DLA-B"],
)
def test_observation_finds_what_the_adapters_know(
    build: Callable[[], nn.Module], images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build().eval()
    known = discover(model, images)
    monkeypatch.setattr("ela_probe.discovery.discover.adapter_for", lambda model: None)
    seen = discover(model, images)
    assert [stage.sizes for stage in seen.stages] == [stage.sizes for stage in known.stages]
    modules = [[site.module for site in stage.sites] for stage in seen.stages]
    assert modules == [[site.module for site in stage.sites] for stage in known.stages]


@pytest.mark.parametrize("name", ["attnres3", "attnres_block3"])
def test_attention_residuals_are_found_by_observation(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_model(name, vocab_size=11, dim=16, heads=2).eval()
    tokens = torch.randint(11, (2, 6))
    known = discover(model)
    monkeypatch.setattr("ela_probe.discovery.discover.adapter_for", lambda model: None)
    assert [s.sizes for s in discover(model, tokens).stages] == [s.sizes for s in known.stages]


NOT_WRITTEN_OUT: dict[str, Callable[[Tensor], Tensor]] = {
    "another sum": lambda x: x.exp() / (x + 1).exp().sum(-1, keepdim=True),
    "no exp": lambda x: x / x.sum(-1, keepdim=True),
    "the whole sum": lambda x: x.exp() / x.exp().sum(),
    "transposed": lambda x: F.log_softmax(x, -1).transpose(0, 1).exp(),
    "another logsumexp": lambda x: (x - (2 * x).logsumexp(-1, keepdim=True)).exp(),
    "length 2": lambda x: F.normalize(x.exp(), dim=-1),
}


@pytest.mark.parametrize("case", NOT_WRITTEN_OUT)
def test_what_sums_to_something_else_is_no_softmax(case: str) -> None:
    class Once(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return NOT_WRITTEN_OUT[case](x)

    with pytest.raises(ModelError, match="what attends: nothing"):
        discover(Once(), torch.randn(3, 5))
