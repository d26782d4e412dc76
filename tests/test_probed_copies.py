"""Copies of a probed model are models of their own; and a probe in one's own loop gives a plan."""

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ela_probe import (
    Analysis,
    AttentionProbe,
    analyze,
    discover,
    make_plan,
    measure_costs,
    prune,
)
from ela_probe.errors import DataError, ModelError
from ela_probe.evaluation.compare import CompareEntry, compare
from tests.support.foreign_models import OnAxisZero
from tests.support.identities import ROUNDING
from tests.support.networks import hooks


def pickled(model: nn.Module) -> nn.Module:
    loaded: nn.Module = pickle.loads(pickle.dumps(model))
    return loaded


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": pickled,
    "averaged": AveragedModel,
    "twice": lambda model: copy.deepcopy(copy.deepcopy(model)),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("known", [True, False])
def test_a_copy_made_inside_a_probe_is_a_model_of_its_own(
    known: bool, way: str, mrla_b: nn.Module, images: Tensor
) -> None:
    model = mrla_b if known else OnAxisZero(4, 2, 3, 3).eval()
    inputs = images if known else torch.randn(2, 3, 4)
    found = discover(model, inputs)
    with torch.no_grad():
        expected = model(inputs)
        with AttentionProbe(model, discovery=found) as probe:
            made = COPIES[way](model)
            assert torch.equal(made(inputs), expected)
            assert probe.seen == 0
            model(inputs)
            made(inputs)
        assert (probe.seen, probe.passes) == (1, 1)
        assert hooks(model) == []
        assert torch.equal(made(inputs), expected)
        inner: Any = made.module if way == "averaged" else made
        with AttentionProbe(inner, example_inputs=inputs) as again:
            made(inputs)
    assert again.passes == 1
    for name, metric in probe.metrics.items():
        a, b = metric.compute(), again.metrics[name].compute()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_whole_model_saved_inside_a_probe_loads(
    mrla_b: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    with AttentionProbe(mrla_b), torch.no_grad():
        expected = mrla_b(images)
        torch.save(mrla_b, tmp_path / "whole.pt")
    loaded = torch.load(tmp_path / "whole.pt", weights_only=False)
    with torch.no_grad():
        assert torch.equal(loaded(images), expected)


def test_a_probe_in_a_loop_of_ones_own_gives_an_analysis_and_a_plan(
    mrla_b: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    mrla_b, images = mrla_b.double(), images.double()
    with AttentionProbe(mrla_b) as probe, torch.no_grad():
        mrla_b(images[:4])
        mrla_b(images[4:])
    analysis = probe.analysis()
    assert analysis.provenance.samples == len(images)
    expected = analyze(mrla_b, [images], progress=False)
    pd.testing.assert_frame_equal(analysis.pairs, expected.pairs, rtol=1e-9, atol=ROUNDING)
    analysis.save(tmp_path / "analysis")
    assert Analysis.load(tmp_path / "analysis").pairs.equals(analysis.pairs)
    plan = make_plan(analysis, skip=0.3)
    left = discover(prune(mrla_b, plan)).stages
    assert sum(len(stage.sites) for stage in left) == 15 - len(plan.skipped) < 15


MEASURED: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "analyze": lambda model, images: analyze(model, [images], progress=False),
    "costs": lambda model, images: measure_costs(
        model, (images, torch.zeros(len(images), dtype=torch.long)), progress=False
    ),
    "compare": lambda model, images: compare(
        [CompareEntry("one", model)], [(images, torch.zeros(len(images)))], progress=False
    ),
}


@pytest.mark.parametrize("verb", MEASURED)
@pytest.mark.parametrize("part", ["parameters", "one buffer"])
def test_a_model_on_the_meta_device_is_refused(
    verb: str, part: str, mrla_b: nn.Module, images: Tensor
) -> None:
    if part == "parameters":
        mrla_b.to("meta")
    else:
        mrla_b.fc.register_buffer("scale", torch.empty(1, device="meta"))
    name = "conv" if part == "parameters" else r"fc\.scale"
    with pytest.raises(ModelError, match=rf"{name}.* of this model is on the meta device: .*load"):
        MEASURED[verb](mrla_b, images)


class Named(nn.Module):
    """Takes keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.body = OnAxisZero(4, 2, 3, 3)

    def forward(self, tokens: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.body(tokens if scale is None else tokens * scale)


WRONG: dict[str, tuple[Any, str]] = {
    "key": ({"token": torch.randn(2, 3, 4)}, "a batch with the keys token,"),
    "one too many": (
        {"tokens": torch.randn(2, 3, 4), "labels": torch.zeros(2)},
        "a batch with the keys tokens, labels,",
    ),
    "arguments": ((torch.randn(2, 3, 4),) * 3, "a batch of 3 arguments,"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_batch_of_other_arguments_is_an_error_that_names_those_of_the_model(
    case: str, wrapped: bool
) -> None:
    batch, got = WRONG[case]
    plain = Named().eval()
    model = nn.DataParallel(plain) if wrapped else plain
    message = f"got {re.escape(got)} but the model's forward takes tokens, scale \\(optional\\)"
    found = discover(plain, {"tokens": torch.randn(2, 3, 4)})
    with pytest.raises(DataError, match=message):
        discover(model, batch)
    with pytest.raises(DataError, match=message):
        analyze(model, [batch], labelled=False, discovery=found, progress=False)
    assert hooks(plain) == []


def test_an_error_inside_the_model_is_not_blamed_on_the_arguments() -> None:
    model = Named().eval()
    found = discover(model, torch.randn(2, 3, 4))
    with pytest.raises(TypeError, match="^(?!got a batch)"):
        analyze(
            model,
            [{"tokens": torch.randn(2, 3, 4), "scale": "no tensor"}],
            discovery=found,
            progress=False,
        )
