"""Figures: what is drawn equals the analysis, whatever its size; nothing global changes."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from scipy import integrate, stats

from ela_probe.analysis.beta_fit import BetaFit, BetaStatistics
from ela_probe.analysis.result import MEASURES
from ela_probe.errors import OptionError, OutputError
from ela_probe.pruning.planners import make_plan
from ela_probe.report import plots
from ela_probe.report.figure_style import TICKS, robust_norm, shared_name, short_labels
from ela_probe.report.log_odds import log_odds_density, rebin
from tests.support.synthetic_analyses import make_analysis

ANALYSIS = make_analysis((5, 2, 1), samples=60)


@pytest.mark.parametrize("measure", [*MEASURES, "kl_of_means"])
def test_heatmap_shows_the_pairs_and_masks_the_rest(measure: str) -> None:
    part = ANALYSIS.stages[0]
    figure, ax = plots.divergence_heatmap(part, measure)
    drawn: Any = np.ma.asarray(ax.collections[0].get_array()).reshape(4, 4)
    for row in range(4):
        for column in range(4):
            if column < row:
                assert np.ma.is_masked(drawn[row, column])
            else:
                assert drawn[row, column] == part.divergences[measure][row, column + 1]
    figure.canvas.draw()
    assert len([text for text in ax.texts if text.get_text()]) >= 4 * 5 // 2


def test_heatmap_refuses_an_unknown_measure() -> None:
    with pytest.raises(OptionError, match="'kll'; expected one of kl, shape"):
        plots.divergence_heatmap(ANALYSIS.stages[0], "kll")


def test_weights_are_shown_up_to_each_sites_sources() -> None:
    part = ANALYSIS.stages[0]
    _, ax = plots.weights_heatmap(part)
    drawn: Any = np.ma.asarray(ax.collections[0].get_array()).reshape(part.weights.shape)
    for t, size in enumerate(part.stage.sizes):
        np.testing.assert_array_equal(drawn[t, :size].filled(np.nan), part.weights[t, :size])
        assert np.ma.getmaskarray(drawn)[t, size:].all()


def test_bars_stack_to_kl_and_no_first_site_has_one() -> None:
    _, ax = plots.adjacent_divergence(ANALYSIS)
    heights: dict[int, float] = {}
    for container in ax.containers[:2]:
        for bar in container.patches:  # type: ignore[attr-defined]
            x = round(bar.get_x() + bar.get_width() / 2)
            heights[x] = heights.get(x, 0.0) + bar.get_height()
    kl = ANALYSIS.sites["kl"].to_numpy()
    assert set(heights) == set(np.flatnonzero(np.isfinite(kl)))
    for x, height in heights.items():
        assert height == pytest.approx(kl[x], rel=1e-12)


def test_adjacent_bars_survive_an_outlier() -> None:
    analysis = make_analysis((6,))
    analysis.stages[0].divergences["mass"][2, 3] = 80.0
    _, ax = plots.adjacent_divergence(analysis)
    assert ax.get_ylim()[1] < 10
    assert any("▲ 80" in text.get_text() for text in ax.texts)


@given(st.integers(0, 2**16), st.integers(1, 200), st.integers(1, 300))
def test_histogram_has_area_one(seed: int, step: int, n: int) -> None:
    u = np.random.default_rng(seed).beta(0.3, 2.0, n)
    edges, heights = rebin(BetaStatistics.of(u).histogram, step=step)
    assert (np.diff(edges) * heights).sum() == pytest.approx(1.0)


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 5.0), (0.3, 0.3), (2.0, 0.4), (30.0, 900.0)])
def test_log_odds_density_is_the_betas_without_poles(alpha: float, beta: float) -> None:
    fit = BetaFit(10, alpha, beta, 0.0, 0.0, "mle")
    x = np.linspace(-60, 60, 20001)
    density = log_odds_density(fit, x)
    assert np.isfinite(density).all()
    assert integrate.simpson(density, x=x) == pytest.approx(1.0, abs=1e-4)
    u = np.linspace(0.05, 0.95, 7)
    expected = stats.beta.pdf(u, alpha, beta) * u * (1 - u)
    np.testing.assert_allclose(log_odds_density(fit, np.log(u / (1 - u))), expected, rtol=1e-9)


def test_curve_is_drawn_where_there_is_a_fit_and_a_reason_where_not() -> None:
    _, ax = plots.beta_histogram(ANALYSIS.stages[0])
    assert len(ax.lines) == 1
    for analysis in (make_analysis((2,), constant=True), make_analysis((1,))):
        _, ax = plots.beta_histogram(analysis.stages[0])
        assert not ax.lines
        assert any("no fit: " in text.get_text() for text in ax.texts)


def test_plan_strip_has_a_box_for_every_site() -> None:
    plan = make_plan(ANALYSIS, skip=0.3)
    _, ax = plots.skip_plan(plan)
    assert len(ax.patches) == len(plan.actions)


@pytest.mark.parametrize("sites", [(2,), (54,), (3,) * 9, (1, 1)])
def test_every_size_is_drawn_within_its_figure(sites: tuple[int, ...]) -> None:
    analysis = make_analysis(sites, samples=8)
    drawings = [plots.adjacent_divergence(analysis), plots.divergence_heatmap(analysis.stages[0])]
    for figure, ax in [*drawings, plots.weights_heatmap(analysis.stages[0])]:
        figure.canvas.draw()
        width, height = figure.bbox.size
        box = ax.get_tightbbox()
        assert box is not None
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1
        assert len(ax.get_xticks()) <= max(TICKS, 30)


def test_an_axes_that_is_given_is_used() -> None:
    figure = Figure()
    first, second = figure.subplots(1, 2)
    assert plots.beta_histogram(ANALYSIS.stages[0], ax=first) == (figure, first)
    assert plots.adjacent_divergence(ANALYSIS, ax=second) == (figure, second)


def test_figures_are_saved_and_nothing_global_changes(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    paths = plots.save_figures(make_analysis((3,), samples=20), tmp_path)
    assert dict(matplotlib.rcParams) == before
    assert [path.name for path in paths] == [
        "adjacent.png", "kl-stages.0.png", "weights-stages.0.png", "beta-stages.0.png",
    ]  # fmt: skip
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_unwritable_folder_is_a_plain_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        plots.save_figures(ANALYSIS, blocked)


def test_stage_names_become_safe_file_names() -> None:
    analysis = make_analysis((2, 2), names="../{stage}/x.{site}", samples=8)
    names = [name for name, _ in plots.all_figures(analysis)]
    assert len(set(names)) == len(names)
    assert not any("/" in name for name in names)


def test_colours_are_logarithmic_only_over_decades_and_ignore_outliers() -> None:
    values = np.linspace(0.5, 1.0, 100)
    norm, extend = robust_norm(np.append(values, 80.0))
    assert not isinstance(norm, LogNorm)
    assert norm.vmax is not None
    assert norm.vmax <= 1.1
    assert extend == "max"
    assert isinstance(robust_norm(np.logspace(-5, 0, 50))[0], LogNorm)
    assert robust_norm(np.zeros(3))[0].vmax == 1.0


@pytest.mark.parametrize(
    ("names", "labels", "common"),
    [
        (["s.0.1.retrieval", "s.0.2.retrieval"], ["1", "2"], "s.0.*.retrieval"),
        (["attn@0", "attn@1"], ["0", "1"], "attn*"),
        (["a.b", "a.b.b"], ["b", "b.b"], "a.*"),
        (["alone.0"], ["0"], "alone.0"),
        (["x", "y"], ["x", "y"], "*"),
    ],
)
def test_site_labels_are_what_differs(names: list[str], labels: list[str], common: str) -> None:
    assert (short_labels(names), shared_name(names)) == (labels, common)
