"""Figures: what is drawn equals the analysis; nothing global changes."""

import dataclasses
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy import integrate, stats

from ela_probe.analysis.beta_fit import BetaFit, BetaStatistics
from ela_probe.analysis.findings import NEAR
from ela_probe.analysis.measures import MEASURES
from ela_probe.errors import OptionError, OutputError
from ela_probe.pruning.ablation import Ablation, Change
from ela_probe.pruning.planners import make_plan
from ela_probe.report import plots
from ela_probe.report.log_odds import log_odds_density, rebin
from ela_probe.report.site_labels import shared_name, short_labels
from tests.support.synthetic_analyses import make_analysis, with_damage

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


def test_a_saturated_pair_leaves_the_other_bars_visible() -> None:
    analysis = make_analysis((6,))
    for name in ("kl", "mass"):
        analysis.stages[0].divergences[name][2, 3] = 87.3
    _, ax = plots.adjacent_divergence(analysis)
    low, high = ax.transAxes.transform([(0, 0), (0, 1)])[:, 1]
    kl = analysis.stages[0].adjacent("kl")[1:]
    places = (ax.transData.transform([(0, y) for y in kl])[:, 1] - low) / (high - low)
    assert (places <= 1).all()
    assert np.median(places) > 0.25


def test_a_divergence_of_zero_is_a_dot_and_a_first_site_is_a_band() -> None:
    analysis = make_analysis((4, 3), samples=30)
    for name in ("kl", "mass", "shape", "kl_se"):
        analysis.stages[0].divergences[name][1, 2] = 0.0
    _, ax = plots.adjacent_divergence(analysis)
    near = next(line for line in ax.lines if str(line.get_label()).startswith(f"below {NEAR}"))
    assert [2.0, 0.0] in np.asarray(near.get_xydata()).tolist()
    kl = analysis.sites["kl"].to_numpy()
    assert len(near.get_xdata()) == (kl < NEAR).sum()  # type: ignore[arg-type]
    bands = [p for p in ax.patches if p not in {b for c in ax.containers[:2] for b in c}]
    assert [round(p.get_x() + p.get_width() / 2) for p in bands] == [0, 4]  # type: ignore[attr-defined]


def test_damage_is_drawn_for_every_action_and_beside_what_was_measured() -> None:
    analysis = with_damage(ANALYSIS, recur=True)
    names = [site.name for part in analysis.stages for site in part.stage.sites]
    changes = tuple(Change(site=name, action="skip", loss=3.0, square=5.0) for name in names[1:])
    ablation = Ablation(samples=10, changes=changes)
    _, ax = plots.damage_along_depth(analysis, ablation=ablation)
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["skip, predicted", "skip, measured", "affine, predicted", "recur, predicted"]
    drawn: list[Any] = list(ax.containers[:2])
    predicted, measured = (np.asarray(bars.lines[0].get_ydata()) for bars in drawn)
    expected = [p.damage.of(t, "skip").mean for p in analysis.stages for t in range(len(p.beta))]
    np.testing.assert_allclose(predicted, expected)
    assert np.isnan(measured[0])
    np.testing.assert_allclose(measured[1:], 0.3)
    _, ax = plots.damage_along_depth(ANALYSIS)
    assert "damage was not measured" in [text.get_text() for text in ax.texts]


def test_every_site_but_the_first_is_a_point_of_damage_against_divergence() -> None:
    analysis = with_damage(ANALYSIS, recur=True)
    _, ax = plots.damage_against_divergence(analysis, action="recur")
    offsets = np.asarray(ax.collections[1].get_offsets())
    kl = analysis.sites["kl"].to_numpy()
    np.testing.assert_allclose(offsets[:, 0], kl[np.isfinite(kl)])


def test_a_heatmap_with_a_plan_has_a_box_for_every_row_and_column() -> None:
    plan = make_plan(ANALYSIS, skip=0.3)
    _, ax = plots.divergence_heatmap(ANALYSIS.stages[0], plan=plan)
    boxes = [a for a in ax.get_children() if isinstance(a, Rectangle) and a is not ax.patch]
    colours = [to_hex(box.get_facecolor()) for box in boxes]
    actions = [plan.actions[site.name] for site in ANALYSIS.stages[0].stage.sites]
    assert colours == [plots.ACTIONS[a] for a in [*actions[1:], *actions[:-1]]]


def test_a_dendrogram_joins_at_the_root_of_js_and_the_closest_first() -> None:
    part = ANALYSIS.stages[0]
    _, ax = plots.site_dendrogram(part)
    js = part.divergences["js"]
    joins = sorted(float(np.max(np.asarray(line.get_xdata()))) for line in ax.lines)
    assert len(joins) == len(js) - 1
    upper = js[np.triu_indices(len(js), 1)]
    assert joins[0] == pytest.approx(np.sqrt(upper.min()))
    assert joins[-1] <= np.sqrt(upper.max()) + 1e-12
    closest = {str(k) for k in np.argwhere(js == upper.min())[0]}
    labels = [text.get_text() for text in ax.get_yticklabels()]
    places = sorted(labels.index(name) for name in closest)
    assert places[1] - places[0] == 1  # neighbours in the order of the leaves
    assert sorted(labels) == [str(t) for t in range(len(js))]


def test_scores_have_the_colours_of_the_plan_and_a_line_where_skipping_begins() -> None:
    plan = make_plan(ANALYSIS, skip=0.3, planner="score")
    _, ax = plots.skip_scores(ANALYSIS, plan=plan)
    drawn: dict[str, int] = {}
    for line in ax.lines:
        label = str(line.get_label())
        if label in plots.ACTIONS:
            drawn[label] = len(np.asarray(line.get_xdata()))
    scored = ANALYSIS.sites.loc[ANALYSIS.sites["score"].notna(), "site"]
    actions = [plan.actions[name] for name in scored]
    assert drawn == {action: actions.count(action) for action in set(actions)}
    assert any(text.get_text().startswith("skipped from") for text in ax.texts)
    assert not any(
        text.get_text().startswith("skipped from") for text in plots.skip_scores(ANALYSIS)[1].texts
    )


def test_quantiles_of_a_beta_sample_lie_on_the_diagonal_and_in_the_band() -> None:
    u = np.random.default_rng(3).beta(0.7, 3.0, 4000)
    first = ANALYSIS.stages[0].beta[0]
    part = dataclasses.replace(ANALYSIS.stages[0], beta=(first, BetaStatistics.of(u)))
    _, ax = plots.beta_quantiles(part)
    expected, observed = (np.asarray(data) for data in ax.lines[1].get_data())
    assert len(observed) == 99
    assert np.abs(expected - observed)[10:].max() < 0.3
    assert plots.beta_quantiles(make_analysis((1,)).stages[0])[1].texts


def test_the_history_of_sites_has_a_cell_for_every_epoch_and_frames_what_was_removed() -> None:
    table = pd.DataFrame(
        [
            {"epoch": e, "stage": "s", "site": f"s.{t}", "kl": None if t == 0 else 0.1 * t + e,
             "action": "skip" if t == 2 and e > 3 else "keep", "damage": None}
            for e in range(1, 6) for t in range(3)
        ]
    )  # fmt: skip
    _, ax = plots.site_history(table)
    drawn: Any = np.ma.asarray(ax.collections[0].get_array()).reshape(3, 5)
    np.testing.assert_allclose(drawn[2], [0.2 + e for e in range(1, 6)])
    assert np.ma.getmaskarray(drawn)[0].all()
    (frame,) = ax.patches
    assert isinstance(frame, Rectangle)
    assert (round(frame.get_x()), round(frame.get_y()), round(frame.get_width())) == (3, 2, 2)
    assert "damage was not measured" in [
        text.get_text() for text in plots.site_history(table, "damage")[1].texts
    ]
    with pytest.raises(OptionError, match="'loss'; expected one of kl"):
        plots.site_history(table, "loss")
    with pytest.raises(OptionError, match=r"without kl; expected the rows of ela\.csv"):
        plots.site_history(table.drop(columns="kl"))


def test_exact_zeros_and_saturated_values_are_a_note_and_no_spikes() -> None:
    u = np.concatenate([np.zeros(30), np.random.default_rng(0).beta(2, 3, 60), np.ones(10) - 1e-17])
    own = BetaStatistics.of(np.minimum(u, np.nextafter(1, 0)))
    part = dataclasses.replace(ANALYSIS.stages[0], beta=(ANALYSIS.stages[0].beta[0], own))
    _, ax = plots.beta_histogram(part)
    note = " ".join(text.get_text() for text in ax.texts)
    assert "30 % have u = 0; 10 % have u = 1" in note
    values, edges, _ = ax.patches[0].get_data()  # type: ignore[attr-defined]
    assert (values * np.diff(edges)).sum() == pytest.approx(0.6)
    low, high = ax.get_xlim()
    assert -12 < low < high < 12


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
    assert [str(line.get_label())[:5] for line in ax.lines] == ["Beta(", "_chil"]  # and 0.05 nats
    for analysis in (make_analysis((2,), constant=True), make_analysis((1,))):
        _, ax = plots.beta_histogram(analysis.stages[0])
        assert not any(str(line.get_label()).startswith("Beta") for line in ax.lines)
        assert any("no fit: " in text.get_text() for text in ax.texts)


def test_plan_strip_has_a_box_for_every_site() -> None:
    plan = make_plan(ANALYSIS, skip=0.3)
    _, ax = plots.skip_plan(plan)
    assert len(ax.patches) == len(plan.actions)


def test_an_axes_that_is_given_is_used() -> None:
    figure = Figure()
    first, second = figure.subplots(1, 2)
    assert plots.beta_histogram(ANALYSIS.stages[0], ax=first) == (figure, first)
    assert plots.adjacent_divergence(ANALYSIS, ax=second) == (figure, second)


def test_figures_are_saved_and_nothing_global_changes(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    paths = plots.save_figures(make_analysis((3,), samples=20), tmp_path)
    assert dict(matplotlib.rcParams) == before
    names = ["adjacent", "scores"]
    names += [f"{what}-stages.0" for what in ("kl", "weights", "alike", "beta", "quantiles")]
    assert [path.name for path in paths] == [f"{n}.{e}" for n in names for e in ("png", "svg")]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[::2])
    assert all("<svg" in path.read_text("utf-8") for path in paths[1::2])


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
