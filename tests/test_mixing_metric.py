"""Distances between mixed values: closed forms, streams, and how results name them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ela_probe import Analysis, AttentionProbe, analyze, make_plan
from ela_probe.analysis.findings import findings, next_command, verdicts
from ela_probe.analysis.mixing_metric import MixingMetric, distances
from ela_probe.errors import AnalysisError, OptionError, ProbeError
from ela_probe.pruning.budgets import plans_by_count
from ela_probe.report import plots
from ela_probe.report.page import write_report
from tests.support import layer_mixing

SITES, SOURCES = 3, (2, 2, 4)


def values(samples: int = 7, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(samples, 5, 4, generator=generator).double() for _ in range(SITES)]


def weights(samples: int = 7, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(samples, 5, size, generator=generator).double() for size in SOURCES]


def metric_of(*batches: tuple[list[Tensor], list[Tensor]]) -> MixingMetric:
    metric = MixingMetric(SOURCES)
    for w, v in batches:
        metric.update(w, v)
    return metric


def test_closed_forms() -> None:
    x = torch.tensor([3.0, 4.0])
    l2, cosine = distances([x, x, 2 * x, -x, torch.tensor([4.0, -3.0])])
    assert l2[0].tolist() == pytest.approx([0, 0, 0.5, 2, 2**0.5])
    assert cosine[0].tolist() == pytest.approx([0, 0, 0, 2, 1], abs=1e-15)


def test_zero_vectors_have_distances_too() -> None:
    zero, x = torch.zeros(3), torch.ones(3)
    l2, cosine = distances([zero, zero, x])
    assert (l2[0, 1], l2[0, 2]) == (0, 1)
    assert (cosine[0, 1], cosine[0, 2]) == (0, 1)


@given(st.integers(0, 2**32 - 1), st.floats(1e-20, 1e20))
def test_distances_do_not_depend_on_scale_and_are_bounded(seed: int, scale: float) -> None:
    found = distances([v[0] for v in values(1, seed)])
    scaled = distances([scale * v[0] for v in values(1, seed)])
    assert torch.allclose(found, scaled, rtol=1e-9, atol=0)
    assert ((found >= 0) & (found <= 2)).all()


def test_means_and_errors_over_samples_equal_those_by_hand() -> None:
    w, v = weights(), values()
    result = metric_of((w, v)).compute()
    for i in range(SITES):
        for j in range(i + 1, SITES):
            a, b = v[i].flatten(1), v[j].flatten(1)
            larger = torch.maximum(a.norm(dim=1), b.norm(dim=1))
            by_hand = {
                "l2": (a - b).norm(dim=1) / larger,
                "cosine": 1 - torch.nn.functional.cosine_similarity(a, b),
            }
            for name, rows in by_hand.items():
                # exact sums keep 2^-60 of each term
                assert float(result[name][i, j]) == pytest.approx(float(rows.mean()), abs=1e-13)
                error = float(rows.std() / len(rows) ** 0.5)
                assert float(result[f"{name}_se"][i, j]) == pytest.approx(error, rel=1e-6)
    for t, size in enumerate(SOURCES):
        assert torch.allclose(result["weights"][t, :size], w[t].mean((0, 1)), atol=1e-13)


def test_merged_halves_equal_the_whole_stream() -> None:
    w, v = weights(), values()
    whole = metric_of((w, v)).compute()
    halves = metric_of(
        ([x[:3] for x in w], [x[:3] for x in v]), ([x[3:] for x in w], [x[3:] for x in v])
    )
    for name, value in halves.compute().items():
        assert torch.equal(value, whole[name])


def test_padding_changes_nothing() -> None:
    w, v = weights(), values()
    padded = [torch.cat([x, 100 * torch.ones(7, 2, 4)], dim=1) for x in v]
    mask = torch.ones(7, 7, dtype=torch.bool)
    mask[:, 5:] = False
    metric = MixingMetric(SOURCES)
    metric.update(w, padded, mask)
    expected = metric_of((w, v)).compute()
    assert torch.allclose(metric.compute()["l2"], expected["l2"], atol=1e-13)


def test_a_sample_of_padding_alone_does_not_count() -> None:
    mask = torch.ones(7, 5, dtype=torch.bool)
    mask[0] = False
    metric = MixingMetric(SOURCES)
    metric.update(weights(), values(), mask)
    assert int(metric.samples) == 6


def test_broken_values_and_other_shapes_are_refused() -> None:
    broken = values()
    broken[1][0, 0, 0] = torch.nan
    with pytest.raises(ProbeError, match="site 1: weights or mixed values are NaN"):
        metric_of((weights(), broken))
    with pytest.raises(ProbeError, match=r"site 2: got mixed values of shape \[7, 5, 3\]"):
        metric_of((weights(), [*values()[:2], values()[2][..., :3]]))
    with (
        pytest.warns(UserWarning, match="was called before the ``update`` method"),
        pytest.raises(AnalysisError, match="no forward pass was recorded"),
    ):
        MixingMetric(SOURCES).compute()


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    model = layer_mixing.denseformer()
    batches = [layer_mixing.batch(20, seed) for seed in range(3)]
    return analyze(model, batches, progress=False)


def test_an_analysis_of_signed_weights_is_written_and_read(
    analysis: Analysis, tmp_path: Path
) -> None:
    loaded = Analysis.load(analysis.save(tmp_path))
    for part in (*analysis.stages, *loaded.stages):
        assert part.measures == ("l2", "cosine")
        assert part.fit is None
        assert np.isnan(part.quantiles).all()
        assert np.isnan(part.adjacent("kl")).all()
    (part,), (again,) = analysis.stages, loaded.stages
    assert np.array_equal(part.divergences["l2"], again.divergences["l2"])
    assert np.array_equal(part.weights, again.weights)
    assert loaded.sites.equals(analysis.sites)


def test_nothing_of_signed_weights_is_called_a_divergence(
    analysis: Analysis, tmp_path: Path
) -> None:
    analysis.save(tmp_path)
    for name in ("pairs.csv", "sites.csv", "analysis.json"):
        text = (tmp_path / name).read_text()
        assert not re.search(r"\b(kl|shape|mass|js)\b", text), name
    assert "l2,l2_se,cosine,cosine_se" in (tmp_path / "pairs.csv").read_text()
    assert not re.search(r"\bkl\b|nats \(", " ".join(f.text for f in findings(analysis)[1:]))
    names = [name for name, _ in plots.all_figures(analysis)]
    assert names == [
        "distance",
        "damage",
        "damage-divergence",
        "l2-dwa",
        "weights-dwa",
        "alike-dwa",
    ]
    with pytest.raises(OptionError, match="no measure is called 'kl'; expected one of l2, cosine"):
        analysis.plot.heatmap("dwa", "kl")
    plan = make_plan(analysis, skip=0.5)
    written = json.loads(plan.model_dump_json())
    sites = written["stages"][0]["sites"]
    assert all(site["kl"] is None for site in sites)
    assert sites[1]["l2"]["mean"] == pytest.approx(analysis.stages[0].divergences["l2"][0, 1])


def test_the_report_names_the_measure(analysis: Analysis, tmp_path: Path) -> None:
    page = write_report(analysis, tmp_path / "report.html", plan=make_plan(analysis, skip=0.5))
    text = page.read_text("utf-8")
    assert 'data-picture="distance"' in text
    assert 'data-picture="divergence"' not in text
    assert "<dt>l2, cosine</dt>" in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    (stage,) = data["analyses"][0]["stages"]
    assert stage["measures"] == ["l2", "cosine"]
    assert set(stage["pairs"]) == {"l2", "l2_se", "cosine"}


def test_a_site_whose_values_barely_change_repeats_the_one_before(analysis: Analysis) -> None:
    model = layer_mixing.denseformer()
    for parameter in model.blocks.parameters():
        parameter.data.mul_(1e-3)  # every source is nearly the embedding
    for alpha in model.dwa.alphas:
        alpha.weight.data.fill_(1.0)
    batch = layer_mixing.batch(60)
    (part,) = analyze(model, [batch], progress=False, damage=False).stages
    assert verdicts(part)[0] == "first"
    # with e the embedding the blocks hand on e, 2e: the sums are e + e and e + e + 2e
    assert part.divergences["l2"][0, 1] == pytest.approx(1 / 2, abs=0.01)
    assert part.divergences["cosine"][0, 1] == pytest.approx(0, abs=1e-3)
    for alpha in model.dwa.alphas:
        alpha.weight.data.fill_(1.0 / alpha.weight.numel())
    near = analyze(model, [batch], progress=False, damage=False)
    assert verdicts(near.stages[0]) == ("first", "repeats", "repeats", "repeats")
    # no planner takes it without damage, so none is recommended
    assert next_command(near, "DIR") is None
    assert list(plans_by_count(near)) == [0]


def test_signed_stages_obey_sampling_of_tokens() -> None:
    model, (inputs, _) = layer_mixing.denseformer(), layer_mixing.batch()
    with torch.no_grad(), AttentionProbe(model, max_tokens=2) as probe:
        model(inputs)
    with torch.no_grad(), AttentionProbe(model) as whole:
        model(inputs)
    few, every = probe.analysis(), whole.analysis()
    assert not np.array_equal(few.stages[0].divergences["l2"], every.stages[0].divergences["l2"])
