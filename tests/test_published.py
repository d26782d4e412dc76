"""Our networks answer as the published ones did, and weigh as the paper says."""

import functools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ela_probe.checkpoint import load_checkpoint
from ela_probe.models.mrla import MRLABase
from ela_probe.models.published import from_published
from ela_probe.models.registry import ModelSpec, parameter_count
from tests import golden
from tests.support.networks import settled

RECORDED = json.loads(golden.PATH.read_text())
NAMED = [entry for entry in RECORDED if "model" in entry]
WITH_RETRIEVALS = [e for e in NAMED if e["model"].startswith(("mrla", "dla"))]


def name_of(entry: dict) -> str:
    return entry["network"].replace(" ", "-")


@functools.cache
def weights_of(place: int) -> dict[str, Tensor]:
    return golden.weights(RECORDED[place]["shapes"])


def published_state(entry: dict) -> dict[str, Tensor]:
    return dict(weights_of(RECORDED.index(entry)))


def ours(entry: dict, state: dict[str, Tensor]) -> nn.Module:
    model = golden.network(entry)
    model.load_state_dict(from_published(state))
    return model


@torch.no_grad()
def logits(model: nn.Module, mode: str, dtype: torch.dtype, entry: dict) -> Tensor:
    model.to(dtype).train(mode == "train")
    return model(golden.images(entry["samples"], entry["size"]).to(dtype)).double()


@pytest.mark.parametrize("entry", RECORDED, ids=name_of)
def test_same_weights_give_the_published_logits(entry: dict) -> None:
    """Up to rounding in float64. These networks enlarge the rounding of float32 to 4e-6."""
    model, state = ours(entry, published_state(entry)), from_published(published_state(entry))
    for mode in ("eval", "train"):
        expected = torch.tensor(entry[mode], dtype=torch.float64)
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-11)):
            model.load_state_dict(state)
            actual = logits(model, mode, dtype, entry)
            scale = max(1.0, float(expected.abs().max()))
            assert float((actual - expected).abs().max()) <= tolerance * scale, (mode, dtype)


@pytest.mark.parametrize("entry", RECORDED, ids=name_of)
def test_counts_and_names_are_the_published_ones(entry: dict) -> None:
    model = golden.network(entry)
    renamed = from_published(published_state(entry))
    assert parameter_count(model) == entry["parameters"]
    assert golden.layer_flops(model, entry["size"]) == pytest.approx(entry["flops"], rel=0.01)
    assert {n: v.shape for n, v in renamed.items()} == {
        n: v.shape for n, v in model.state_dict().items()
    }
    assert from_published(renamed).keys() == renamed.keys()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("entry", NAMED[::3], ids=name_of)
def test_published_state_dict_file_loads(entry: dict, prefix: str, tmp_path) -> None:
    path = tmp_path / "published.pt"
    state = published_state(entry)
    torch.save({"state_dict": {prefix + name: v for name, v in state.items()}}, path)
    spec = ModelSpec(name=entry["model"], args=entry["arguments"])
    model = load_checkpoint(path, spec=spec)
    assert torch.equal(
        logits(model, "eval", torch.float32, entry),
        logits(ours(entry, state), "eval", torch.float32, entry),
    )


@pytest.mark.parametrize("entry", WITH_RETRIEVALS, ids=name_of)
def test_retrievals_matter_in_the_recorded_logits(entry: dict) -> None:
    state = published_state(entry)
    for name in state:
        if ".bn_" in name and name.endswith(("weight", "bias")):
            state[name] = torch.zeros_like(state[name])
    without = logits(ours(entry, state), "eval", torch.float32, entry)
    assert float((without - torch.tensor(entry["eval"])).abs().max()) > 1e-2


@torch.no_grad()
def test_mrla_b_weights_and_outputs_follow_the_paper_over_nine_sources() -> None:
    """arXiv 2302.03985, eq. 6, with all keys and values concatenated anew at every layer."""
    model = settled("mrla_b_resnet56").double()
    for name, parameter in model.named_parameters():
        if "retrieval.query" in name or "retrieval.key" in name:
            parameter.mul_(4.0)
    seen: list[tuple[MRLABase, Tensor, Tensor]] = []
    weights: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, MRLABase):
            module.register_forward_hook(lambda m, inputs, out: seen.append((m, inputs[0], out[0])))
            module.tap.register_forward_hook(lambda m, inputs, out: weights.append(out))
    model(torch.randn(2, 3, 16, 16, dtype=torch.float64))

    assert [w.shape[-1] for w in weights] == [*range(1, 10)] * 3
    spread = 0.0
    for stage in range(3):
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for t in range(9):
            module, x, out = seen[9 * stage + t]
            n, c, h, w = x.shape
            heads, d = c // 16, 16
            pooled = x.flatten(2).mean(dim=2)[:, None]
            keys.append(banded(pooled, module.key.weight))
            values.append(F.conv2d(x, module.value.weight, padding=1, groups=c))
            q = banded(pooled, module.query.weight).view(n, heads, 1, d)
            k = torch.cat(keys, dim=1).view(n, t + 1, heads, d).transpose(1, 2)
            expected = (q @ k.transpose(2, 3) / math.sqrt(d)).softmax(-1)
            torch.testing.assert_close(weights[9 * stage + t], expected[:, :, 0])
            spread = max(spread, float(expected.max() - expected.min()))
            v = torch.stack(values, dim=1).view(n, t + 1, heads, d * h * w).transpose(1, 2)
            retrieved = (expected @ v).view(n, c, h, w)
            torch.testing.assert_close(out, x + module.norm(retrieved).relu())
    assert spread > 0.05  # the weights say something


def banded(pooled: Tensor, weight: Tensor) -> Tensor:
    """A 1-D convolution along channels as a product with a banded matrix. [n, 1, c] each."""
    width, channels = weight.numel(), pooled.shape[-1]
    matrix = torch.zeros(channels, channels, dtype=pooled.dtype)
    for row in range(channels):
        for tap in range(width):
            column = row + tap - width // 2
            if 0 <= column < channels:
                matrix[row, column] = weight.flatten()[tap]
    return pooled @ matrix.T
