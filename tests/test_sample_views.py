"""Divergences by head, class and sample: they are those of the samples, and merge exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ela_probe import Analysis, AttentionProbe, analyze, create_model
from ela_probe.analysis import divergence, packing
from ela_probe.analysis.metric import RedundancyMetric
from ela_probe.analysis.result import StageAnalysis
from ela_probe.analysis.sample_views import MOST_CLASSES, UNUSUAL, Known, one_class_each
from ela_probe.analysis.views import StageViews
from ela_probe.discovery.capture import Capture
from ela_probe.discovery.discover import discover
from ela_probe.errors import AnalysisError, ProbeError
from ela_probe.sites import Site, Stage

SITES, HEADS, INNER = 4, 3, 2  # the second axis of the weights holds HEADS x INNER rows

Batch = tuple[list[Tensor], Known]


def batches(count: int, *, samples: int = 7, classes: int = 5, seed: int = 0) -> list[Batch]:
    """Batches of retrievals, with labels (some negative) and positions in another order."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randperm(count * samples, generator=generator).split(samples)
    found: list[Batch] = []
    for own in positions:
        rows = [
            torch.randn(samples, HEADS * INNER, t + 1, generator=generator).softmax(-1)
            for t in range(SITES)
        ]
        labels = torch.randint(-1, classes, (samples,), generator=generator)
        found.append((rows, Known(labels, own)))
    return found


def metric_of(given: list[Batch]) -> RedundancyMetric:
    metric = RedundancyMetric(range(1, SITES + 1), heads=HEADS, by_sample=True)
    for rows, known in given:
        metric.update(rows, known)
    return metric


def by_hand(given: list[Batch]) -> Tensor:
    """kl of neighbours, [samples, heads, SITES − 1] in float64, mean over INNER."""
    whole = [torch.cat([rows[t] for rows, _ in given]) for t in range(SITES)]
    weights = [divergence.normalise(w) for w in whole]
    kl = [divergence.kl(weights[t - 1], weights[t]) for t in range(1, SITES)]
    return torch.stack(kl, dim=-1).unflatten(1, (HEADS, INNER)).mean(2)


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name].nan_to_num(-1), b[name].nan_to_num(-1)), name


def test_each_view_is_the_mean_over_its_samples() -> None:
    given = batches(6)
    result, kl = metric_of(given).compute(), by_hand(given)
    torch.testing.assert_close(result["head_kl"][:, 1:], kl.mean(0), rtol=1e-12, atol=1e-14)
    assert not result["head_kl"][:, 0].any()
    labels = torch.cat([known.labels for _, known in given if known.labels is not None])
    assert result["class_counts"].tolist() == [int((labels == c).sum()) for c in range(5)]
    for c, row in enumerate(result["class_kl"]):
        expected = kl.mean(1)[labels == c].mean(0)
        torch.testing.assert_close(row[1:], expected, rtol=1e-12, atol=1e-14)


def test_the_unusual_samples_are_the_farthest_from_the_mean() -> None:
    given = batches(9)
    result, means = metric_of(given).compute(), by_hand(given).mean((1, 2))
    positions = torch.cat([known.positions for _, known in given if known.positions is not None])
    order = (means - means.mean()).abs().argsort(descending=True)[:UNUSUAL]
    assert result["unusual_positions"].tolist() == positions[order].tolist()
    torch.testing.assert_close(result["unusual_kl"], means[order], rtol=1e-12, atol=1e-14)


@given(st.integers(1, 19), st.integers(0, 100))
def test_merged_halves_equal_the_whole_in_any_order(at: int, seed: int) -> None:
    given = batches(20, samples=3, seed=seed)
    halves = metric_of(given[:at][::-1]), metric_of(given[at:])
    halves[0].merge_state(halves[1])
    assert_equal(metric_of(given).compute(), halves[0].compute())


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given = batches(2)
    whole = metric_of(given).compute()
    monkeypatch.setattr(packing, "CPU_CHUNK", 200)
    assert len(list(packing.chunks(given[0][0]))) > 1
    assert_equal(whole, metric_of(given).compute())


def test_of_equally_far_samples_the_first_positions_are_kept() -> None:
    rows = [torch.ones(40, 1, 1), torch.full((40, 1, 2), 0.5)]
    for order in (torch.arange(40), torch.arange(40).flip(0)):
        metric = RedundancyMetric([1, 2], by_sample=True)
        for start in (0, 20):
            part = slice(start, start + 20)
            metric.update([w[part] for w in rows], Known(positions=order[part]))
        assert metric.compute()["unusual_positions"].tolist() == list(range(UNUSUAL))


def test_the_heads_leave_the_other_results_as_they_are() -> None:
    given = batches(4)
    plain = RedundancyMetric(range(1, SITES + 1))
    for rows, _ in given:
        plain.update(rows)
    found = metric_of(given).compute()
    expected = plain.compute()
    assert_equal(expected, {name: found[name] for name in expected})


def test_too_many_classes_leave_only_the_view_by_class_out() -> None:
    rows = [torch.ones(3, 1, 1), torch.tensor([[[0.5, 0.5]]]).expand(3, 1, 2)]
    metric = RedundancyMetric([1, 2], by_sample=True)
    metric.update(rows, Known(torch.tensor([0, 1, MOST_CLASSES - 1]), torch.arange(3)))
    assert metric.compute()["class_counts"].sum() == 3
    metric.update(rows, Known(torch.tensor([0, 1, MOST_CLASSES]), torch.arange(3, 6)))
    result = metric.compute()
    assert len(result["class_counts"]) == len(result["class_kl"]) == 0
    assert len(result["unusual_positions"]) == 6


def test_weights_without_such_heads_are_refused() -> None:
    metric = RedundancyMetric([1, 2], heads=2)
    with pytest.raises(ProbeError, match=r"multiple of 2, the number of heads"):
        metric.update([torch.ones(3, 5, 1), torch.ones(3, 5, 2)])
    with pytest.raises(ProbeError, match="got heads=0; expected 1 or more"):
        RedundancyMetric([1], heads=0)


@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(3, 4, dtype=torch.int64),  # one for each token, or one-hot
        torch.zeros(3),
        torch.zeros(4, dtype=torch.int64),
        [0.5, 1.0, 2.0],
        None,
        "abc",
    ],
)
def test_other_labels_are_no_classes(labels: object) -> None:
    assert one_class_each(labels, 3) is None


@pytest.mark.parametrize("labels", [[2, 0, 1], torch.tensor([[2], [0], [1]], dtype=torch.uint8)])
def test_a_class_for_each_sample(labels: object) -> None:
    assert one_class_each(labels, 3).tolist() == [2, 0, 1]


def test_what_is_known_follows_the_samples_without_padding() -> None:
    known = Known(torch.tensor([4, 5, 6]), torch.tensor([0, 1, 2]))
    some = known.of(torch.tensor([True, False, True]), 3)
    assert some.labels is not None
    assert some.positions is not None
    assert (some.labels.tolist(), some.positions.tolist()) == ([4, 6], [0, 2])
    assert known.of(slice(None), 1) == Known()  # weights that don't depend on the samples


# In a model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return create_model("mrla_b_resnet20", num_classes=4).eval()


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(24, 3, 16, 16, generator=generator), torch.arange(24) % 3


@pytest.fixture(scope="module")
def analysis(model: nn.Module, images: tuple[Tensor, Tensor]) -> Analysis:
    pairs = list(zip(*(part.split(5) for part in images), strict=True))
    return analyze(model, pairs, damage=False, progress=False)


@pytest.mark.parametrize("name", ["mrla_b_resnet20", "mrla_l_resnet20", "dla_b_resnet20"])
def test_heads_are_those_of_the_layers(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=4).eval()
    batch, captured = torch.randn(6, 3, 16, 16), list[list[list[Tensor]]]()
    with AttentionProbe(model) as probe:
        model(batch)
    found = probe.analysis().stages[2].views
    assert found is not None
    discovery = discover(model)
    receive = captured.append
    with Capture(model, discovery.adapter, stages=discovery.stages, receive=receive):
        model(batch)
    weights = [divergence.normalise(w) for w in captured[0][2]]
    assert len(found.head_kl) == 4  # 64 channels, 16 each
    for t in range(1, len(weights)):
        kl = divergence.kl(weights[t - 1], weights[t]).unflatten(1, (4, -1)).mean((0, 2))
        np.testing.assert_allclose(found.head_kl[:, t], kl.numpy(), rtol=1e-9, atol=1e-14)
    assert np.ptp(found.head_kl.mean(1)) > 1e-3  # heads differ


def test_every_sample_is_named_by_its_place_in_the_data(
    model: nn.Module, images: tuple[Tensor, Tensor], analysis: Analysis
) -> None:
    for part in analysis.stages:
        assert part.views is not None
        assert part.views.class_counts.tolist() == [8, 8, 8]
        mean_of_all = np.average(part.views.class_kl, axis=0, weights=part.views.class_counts)
        np.testing.assert_allclose(mean_of_all[1:], part.adjacent("kl")[1:], rtol=1e-12)
        for position, kl in zip(
            part.views.unusual_positions[:2], part.views.unusual_kl[:2], strict=True
        ):
            with AttentionProbe(model) as probe:
                model(images[0][position : position + 1])
            alone = probe.analysis().stage(part.stage.name).adjacent("kl")[1:].mean()
            assert kl == pytest.approx(alone, rel=1e-4)


def test_given_positions_are_followed(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    batch = torch.randn(4, 3, 16, 16, generator=generator)
    given = [torch.tensor([90, 80, 70, 60])]
    found = analyze(model, [batch], positions=given, damage=False, progress=False)
    views = found.stages[0].views
    assert views is not None
    assert sorted(views.unusual_positions) == [60, 70, 80, 90]
    assert not len(views.class_counts)


def test_views_are_saved_and_old_analyses_load_without(analysis: Analysis, tmp_path: Path) -> None:
    loaded = Analysis.load(analysis.save(tmp_path / "new"))
    for part, again in zip(analysis.stages, loaded.stages, strict=True):
        assert part.views is not None
        assert again.views is not None
        for name, values in part.views.arrays().items():
            np.testing.assert_array_equal(values, again.views.arrays()[name])
            assert values.dtype == again.views.arrays()[name].dtype
    part = analysis.stages[1]
    assert part.views is not None
    old = {n: v for n, v in part.arrays().items() if n not in part.views.arrays()}
    assert StageAnalysis.from_arrays(part.stage, old).views is None
    only_heads = StageViews.from_arrays({"head_kl": part.views.head_kl}, len(part.stage.sites))
    assert only_heads is not None
    assert len(only_heads.head_kl) == 2
    assert not len(only_heads.class_kl)


def test_broken_views_are_refused() -> None:
    with pytest.raises(AnalysisError, match="run `ela-probe analyze` again"):
        StageViews(np.array([[0.0, np.nan]]), np.zeros((0, 2)))
    with pytest.raises(AnalysisError, match="other lengths"):
        StageViews(np.zeros((0, 2)), np.zeros((3, 2)))


def test_a_stage_with_one_site_has_no_views_by_sample() -> None:
    metric = RedundancyMetric([1], by_sample=True)
    metric.update([torch.ones(3, 1, 1)], Known(torch.zeros(3).long(), torch.arange(3)))
    part = StageAnalysis.from_metric(
        Stage("s", "softmax", (Site("s.0", "s.0", 1),)), metric.compute()
    )
    assert part.views is None
