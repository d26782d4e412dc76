"""Numbers that could give a wrong result without a word: each has one outcome.

docs/reliability.md has the table. What other files test already (NaN, infinite and negative
weights, half precision, one sample, NaN in a checkpoint, labels) is not repeated here.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ela_probe import Analysis, SkipPlan, analyze, make_plan
from ela_probe.analysis.metric import RedundancyMetric
from ela_probe.analysis.result import Provenance, StageAnalysis
from ela_probe.data.text import open_text
from ela_probe.errors import AnalysisError, DataError, ProbeError
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.sites import Site, Stage
from tests.support.costs import costs_of, seconds
from tests.support.transformers_models import save_tokenizer
from tests.test_damage import HANDOVERS, additive, measured

FIGURES = ("kl", "shape", "mass", "js")


def computed(weights: list[Tensor], *, batches: int = 1) -> dict[str, Tensor]:
    metric = RedundancyMetric([w.shape[-1] for w in weights])
    for _ in range(batches):
        metric.update(weights)
    return metric.compute()


def analysed(weights: list[Tensor]) -> Analysis:
    stage = Stage(
        "s", "softmax", tuple(Site(f"s.{t}", f"s.{t}.tap", t + 1) for t in range(len(weights)))
    )
    return Analysis((StageAnalysis.from_metric(stage, computed(weights)),), Provenance())


def softmaxed(samples: int, sites: int, *, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(samples, 2, t + 1, generator=generator) for t in range(sites)]
    return [row.to(dtype).softmax(-1) for row in rows]


def test_rows_that_do_not_sum_to_one_are_divided_by_their_sum() -> None:
    """Scaled by powers of two, so that the division is exact."""
    weights = softmaxed(6, 4)
    scaled = [w * 2.0**t for t, w in zip((3, -7, 0, 11), weights, strict=True)]
    for name, value in computed(weights).items():
        assert torch.equal(computed(scaled)[name], value), name


def test_a_row_of_zeros_counts_as_uniform() -> None:
    even = torch.full((3, 1, 4), 0.25, dtype=torch.float64)
    zero, uniform = computed([even, torch.zeros(3, 1, 4)]), computed([even, even])
    for name in FIGURES:
        assert not zero[name].any()
        assert torch.equal(zero[name], uniform[name])


def test_equal_rows_have_no_divergence_no_error_and_no_fit() -> None:
    row = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).expand(9, 2, 3)
    analysis = analysed([row, row, row])
    (part,) = analysis.stages
    table = analysis.pairs
    assert (table[["kl", "shape", "mass"]] == 0).all().all()
    assert (table["kl_se"] == 0).all()
    assert part.fit is None
    assert analysis.sites["score"].isna().all()


def test_a_stage_of_one_site_has_no_pairs_and_nothing_to_skip() -> None:
    analysis = analysed(softmaxed(5, 1))
    assert analysis.pairs.empty
    assert make_plan(analysis, skip=0).skipped == []


def test_of_two_sites_the_second_can_be_skipped() -> None:
    analysis = analysed(softmaxed(5, 2))
    assert len(analysis.pairs) == 1
    assert make_plan(analysis, skip=0.5, planner="budget").skipped == ["s.1"]


def test_one_head_is_as_good_as_none() -> None:
    weights = [w[:, :1] for w in softmaxed(8, 3)]
    with_axis, without = computed(weights), computed([w[:, 0] for w in weights])
    for name, value in with_axis.items():
        assert torch.equal(value, without[name]), name


def test_a_million_samples_have_the_mean_and_the_error_of_their_formula() -> None:
    """Half the rows diverge by log 2 of mass, half by 0: mean ½ log 2, deviation ½ log 2.

    Sums are exact; what is left is the rounding of one logarithm, 1e-16, and that of a difference
    of mean squares, whose root is off by 1e-8 at most.
    """
    count = 10**6
    first = torch.ones(count, 1)
    second = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).repeat(count // 2, 1)
    metric = RedundancyMetric([1, 2])
    for part in range(10):
        at = slice(part * count // 10, (part + 1) * count // 10)
        metric.update([first[at], second[at]])
    result = metric.compute()
    assert int(metric.samples) == count
    kl, error = float(result["kl"].max()), float(result["kl_se"].max())
    half = math.log(2) / 2
    assert kl == pytest.approx(half, rel=1e-12)
    assert error == pytest.approx(half / math.sqrt(count - 1), rel=1e-7)


@pytest.mark.parametrize("value", [1e-45, 1e-310, torch.finfo(torch.float16).smallest_normal / 4])
def test_subnormal_weights_give_finite_divergences(value: float) -> None:
    other = torch.tensor([[1.0 - value, value]], dtype=torch.float64)
    result = computed([torch.tensor([[0.5, 0.5]]), other])
    for name in FIGURES:
        assert result[name].isfinite().all()
        assert (result[name] >= 0).all()


def test_weights_that_overflow_half_precision_are_refused() -> None:
    weights = [torch.ones(2, 1, dtype=torch.float16), torch.full((2, 2), 7e4).half()]
    with pytest.raises(ProbeError, match="NaN, infinite or negative"):
        computed(weights)


def test_an_empty_batch_adds_nothing_and_only_empty_ones_are_refused() -> None:
    weights = softmaxed(4, 3)
    metric = RedundancyMetric([1, 2, 3])
    metric.update([w[:0] for w in weights])
    with pytest.raises(AnalysisError, match="no forward pass"):
        metric.compute()
    metric.update(weights)
    for name, value in computed(weights).items():
        assert torch.equal(metric.compute()[name].nan_to_num(), value.nan_to_num()), name


def test_an_empty_loader_is_refused(mrla_b: nn.Module) -> None:
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(mrla_b, [], progress=False)
    with pytest.raises(DataError, match="nothing to evaluate"):
        analyze(mrla_b, [], progress=False)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_no_number_gives_no_damage_and_says_where(value: float) -> None:
    model = additive()

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                x.register_hook(lambda g: torch.full_like(g, value))
            return x

    whole = nn.Sequential(*model[:3], Broken(), model[3])
    probe = measured(whole, torch.randn(6, 5).double(), torch.arange(6) % 3)
    stage = Stage("s", "softmax", tuple(Site(name, name, 1) for name in HANDOVERS))
    assert probe.compute([stage]) == {}
    assert probe.missing == "the gradient of the loss at 1 is NaN or infinite"


def test_an_analysis_with_a_broken_gradient_says_that_damage_is_missing(
    mrla_b: nn.Module, images: Tensor
) -> None:
    """The weights of retrievals are fine, the classifier's are not."""
    with torch.no_grad():
        mrla_b.get_parameter("fc.weight").fill_(math.inf)
    batch = (images, torch.zeros(len(images), dtype=torch.int64))
    analysis = analyze(mrla_b, [batch], progress=False)
    assert not analysis.has_damage
    assert any("is NaN or infinite" in note for note in analysis.provenance.notes)
    assert np.isfinite(analysis.pairs["kl"]).all()


@pytest.mark.parametrize(
    "changed", [{"samples": 0}, {"rows": -1}, {"zeros": -1}, {"histogram": -1}]
)
def test_an_analysis_of_no_samples_or_with_counts_below_zero_is_refused(changed: dict) -> None:
    (part,) = analysed(softmaxed(6, 4)).stages
    arrays = part.arrays()
    StageAnalysis.from_arrays(part.stage, arrays)
    other = {name: np.full_like(arrays[name], value) for name, value in changed.items()}
    with pytest.raises(AnalysisError, match="counts of at least one sample"):
        StageAnalysis.from_arrays(part.stage, {**arrays, **other})


@pytest.mark.parametrize("js", [-0.1, 0.8, 1e4])
def test_a_jensen_shannon_divergence_out_of_its_range_is_refused(js: float) -> None:
    (part,) = analysed(softmaxed(6, 4)).stages
    arrays = part.arrays()
    arrays["js"][0, 1] = js
    with pytest.raises(AnalysisError, match="expected 0 to log 2"):
        StageAnalysis.from_arrays(part.stage, arrays)


def test_divergences_that_are_no_numbers_are_refused() -> None:
    (part,) = analysed(softmaxed(6, 4)).stages
    arrays = part.arrays()
    with pytest.raises(AnalysisError, match="js is bool, expected real numbers"):
        StageAnalysis.from_arrays(part.stage, {**arrays, "js": arrays["js"] > 0})


def test_costs_whose_sums_are_infinite_or_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="less than or equal to"):
        seconds(1e308)
    with pytest.raises(ValueError, match="takes 0 seconds"):
        costs_of([], base=0.0)


def test_a_plan_without_sites_is_refused() -> None:
    plan = make_plan(analysed(softmaxed(6, 4)), skip=0.3, planner="budget")
    document = plan.model_dump()
    document["stages"] = []
    with pytest.raises(ValueError, match="at least 1 item"):
        SkipPlan.model_validate(document)


def test_all_tokens_of_a_tokenizer_are_below_the_number_of_tokens(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text("utf-8"))
    document["model"]["vocab"]["a"] = 300
    path.write_text(json.dumps(document), encoding="utf-8")
    (tmp_path / "text.txt").write_text("a b c " * 200, encoding="utf-8")
    data = open_text(f"text:{tmp_path / 'text.txt'}", context=8, tokenizer=tmp_path)
    tokens, _ = next(iter(data.loader("train")))
    assert int(tokens.max()) == 300 < data.spec.num_classes == 301
