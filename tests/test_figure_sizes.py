"""Figures at every size: within their figure, no label over another, no name read as markup."""

import itertools
from collections.abc import Callable

import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text

from ela_probe.analysis.result import Analysis
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.planners import make_plan
from ela_probe.report import plots
from ela_probe.report.figure_style import TICKS
from tests.support.synthetic_analyses import make_analysis, with_damage

Draw = Callable[[Analysis, SkipPlan], tuple[Figure, Axes]]
LONG = "net.$x{stage}_$y.block[/red]_$\\frac{{$.{site}.a_name_of_some_length_{site}.retrieval"

# Stages by a name, samples, and the names of the sites.
SIZES: dict[str, tuple[tuple[int, ...], int, str]] = {
    "2": ((2,), 20, "stages.{stage}.{site}.retrieval"),
    "3": ((3,), 20, "stages.{stage}.{site}.retrieval"),
    "3 x 18": ((18, 18, 18), 8, "stages.{stage}.{site}.retrieval"),
    "54": ((54,), 6, "layers.{stage}.{site}"),
    "110": ((110,), 3, "layers.{stage}.{site}"),
    "187": ((187,), 2, "layers.{stage}.{site}"),
    "many stages": ((3,) * 9 + (9, 9), 6, "stages.{stage}.{site}.retrieval"),
    "long names": ((12, 4), 6, LONG),
}
FIGURES: dict[str, Draw] = {
    "adjacent": lambda a, _: plots.adjacent_divergence(a),
    "damage": lambda a, _: plots.damage_along_depth(a),
    "damage and divergence": lambda a, _: plots.damage_against_divergence(a),
    "scores": lambda a, plan: plots.skip_scores(a, plan=plan),
    "plan": lambda _, plan: plots.skip_plan(plan),
    "heatmap": lambda a, plan: plots.divergence_heatmap(a.stages[0], plan=plan),
    "weights": lambda a, _: plots.weights_heatmap(a.stages[0]),
    "dendrogram": lambda a, plan: plots.site_dendrogram(a.stages[0], plan=plan),
}


@pytest.fixture(scope="module", params=SIZES)
def sized(request: pytest.FixtureRequest) -> tuple[Analysis, SkipPlan]:
    sites, samples, names = SIZES[request.param]
    analysis = with_damage(make_analysis(sites, samples=samples, names=names))
    return analysis, make_plan(analysis, skip=0.3, planner="alternate")


def covering(axis: Axis) -> list[tuple[str, str]]:
    """Neighbouring tick labels of an axis that overlap."""
    labels = [t for t in axis.get_ticklabels() if t.get_text() and t.get_visible()]
    boxes = [label.get_window_extent() for label in labels]
    return [
        (labels[k].get_text(), labels[k + 1].get_text())
        for k, (one, next_) in enumerate(itertools.pairwise(boxes))
        if one.overlaps(next_)
    ]


@pytest.mark.parametrize("name", FIGURES)
def test_every_size_is_readable(sized: tuple[Analysis, SkipPlan], name: str) -> None:
    figure, axes = FIGURES[name](*sized)
    figure.draw_without_rendering()
    box = axes.get_tightbbox()
    assert box is not None
    assert box.x0 >= -1
    assert box.y0 >= -1
    assert box.x1 <= figure.bbox.width + 1
    assert box.y1 <= figure.bbox.height + 1
    for each in figure.axes:
        for axis in (each.xaxis, each.yaxis):
            assert covering(axis) == []
            assert len(axis.get_ticklabels()) <= TICKS
    legend = axes.get_legend()
    if legend is not None and name != "plan":
        under = axes.xaxis.get_tightbbox(figure.canvas.get_renderer())  # type: ignore[attr-defined]
        assert legend.get_window_extent().y1 <= under.y0 + 1
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert not any(text.get_parse_math() for text in texts if "$" in text.get_text())


def test_a_dollar_sign_stays_one_in_axes_made_without_the_theme() -> None:
    figure = Figure()
    first, second = figure.subplots(1, 2)
    analysis = make_analysis((3, 3), samples=8, names=LONG)
    plots.adjacent_divergence(analysis, ax=first)
    plots.divergence_heatmap(analysis.stages[0], ax=second)
    figure.draw_without_rendering()  # matplotlib raises ValueError where it reads `$\frac{$`
    assert "$" in second.get_title(loc="left")
