"""`.plot` and short representations: what a person sees of an analysis and a plan in a notebook."""

import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import ela_probe
from ela_probe.analysis.result import Analysis
from ela_probe.errors import AnalysisError, OptionError
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.planners import make_plan
from ela_probe.report import plots
from ela_probe.system.accessors import Accessor
from ela_probe.system.html import ROWS
from tests.support.costs import PRICES, costs_of, priced
from tests.support.synthetic_analyses import make_analysis, with_damage


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return make_analysis((4, 3), samples=60)


@pytest.mark.parametrize("stage", [0, 1, -1, "stages.1"])
@pytest.mark.parametrize("name", ["heatmap", "weights", "dendrogram", "beta", "quantiles"])
def test_a_stage_is_drawn_by_position_or_name(
    analysis: Analysis, name: str, stage: str | int
) -> None:
    figure, axes = getattr(analysis.plot, name)(stage)
    assert isinstance(figure, Figure)
    assert isinstance(axes, Axes)
    drawn = "stages.0" if stage == 0 else "stages.1"
    assert axes.get_title(loc="left").startswith(drawn)


def test_the_methods_draw_what_the_functions_draw(analysis: Analysis) -> None:
    plan = make_plan(analysis, skip=0.3)
    pairs = [
        (analysis.plot.adjacent, lambda ax: plots.adjacent_divergence(analysis, ax=ax)),
        (analysis.plot.scores, lambda ax: plots.skip_scores(analysis, ax=ax)),
        (plan.plot.actions, lambda ax: plots.skip_plan(plan, ax=ax)),
    ]
    for method, function in pairs:
        mine, theirs = Figure().add_subplot(), Figure().add_subplot()
        assert method(ax=mine)[1] is mine
        function(theirs)
        assert mine.get_title(loc="left") == theirs.get_title(loc="left")
        assert len(mine.patches) == len(theirs.patches) > 0


def test_all_figures_are_saved(analysis: Analysis, tmp_path: Path) -> None:
    paths = analysis.plot.save(tmp_path)
    assert sorted(path.name for path in paths) == sorted(p.name for p in tmp_path.iterdir())
    assert len(paths) == 2 * (2 + 5 * len(analysis.stages))  # as PNG and as SVG


def test_a_stage_that_is_not_there_is_named(analysis: Analysis) -> None:
    with pytest.raises(AnalysisError, match=r"no stage is called 'x'; this analysis has stages\.0"):
        analysis.plot.heatmap("x")
    with pytest.raises(OptionError, match="got stage 2; expected a position from 0 to 1"):
        analysis.plot.heatmap(2)


def test_the_class_itself_has_only_the_place(analysis: Analysis) -> None:
    assert isinstance(Analysis.plot, Accessor)
    assert isinstance(SkipPlan.plot, Accessor)
    assert "heatmap" in dir(analysis.plot)
    assert "plot" not in SkipPlan.model_fields


def test_matplotlib_is_imported_on_first_use_only() -> None:
    code = (
        "import sys; from ela_probe.analysis.result import Analysis;"
        "from ela_probe.pruning.plan import SkipPlan; print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_representations_are_one_short_line(analysis: Analysis) -> None:
    plan = make_plan(make_analysis((20, 20), samples=9), skip=0.5, planner="alternate")
    unchanged = SkipPlan.for_actions([part.stage for part in analysis.stages], {})
    for shown in (analysis, analysis.stages[0], plan, unchanged):
        assert repr(shown) == str(shown)
        assert len(repr(shown)) < 220
        assert "\n" not in repr(shown)
    assert repr(analysis) == (
        "Analysis(mrla_b_resnet32 on digits: 7 retrievals in 2 stages, 60 samples)"
    )
    assert (
        repr(analysis.stages[0]) == "StageAnalysis(stages.0: 4 sites, softmax weights, 60 samples)"
    )
    assert repr(plan).startswith("SkipPlan(alternate: 20 of 40 retrievals not formed; stages.0.1")
    assert repr(plan).endswith("and 16 more)")
    assert repr(unchanged) == "SkipPlan(manual: 0 of 7 retrievals not formed; all are kept)"


def test_a_notebook_shows_tables_in_which_names_are_escaped() -> None:
    analysis = with_damage(make_analysis((3, 2), samples=30, names="<b>{stage}.{site}"))
    plan = make_plan(analysis, skip=0.3, action="skip")
    stages = [part.stage for part in analysis.stages]
    costs = costs_of([priced(stage, PRICES) for stage in stages], of=stages)
    for shown, rows in ((analysis, 2), (analysis.stages[0], 3), (plan, 2), (costs, 2)):
        text = shown._repr_html_()
        assert text.count("<tr>") == rows + 1
        assert "&lt;b&gt;0" in text
        assert "<b>0" not in text
        text.encode("utf-8")
    long = make_analysis((40,), samples=3).stages[0]._repr_html_()
    assert long.count("<tr>") == ROWS + 1
    assert "10 more rows" in long


def test_a_spec_for_save_checkpoint_is_exported(tmp_path: Path) -> None:
    spec = ela_probe.ModelSpec(name="mrla_b_resnet8")
    model = ela_probe.create_model("mrla_b_resnet8")
    path = ela_probe.save_checkpoint(tmp_path / "a.pt", model, spec=spec)
    assert ela_probe.load_checkpoint(path).state_dict().keys() == model.state_dict().keys()
