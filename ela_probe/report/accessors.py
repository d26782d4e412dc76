"""`analysis.plot` and `plan.plot`: the figures of `report.plots` as methods.

Each method returns the figure and its axes, and draws into `ax` if one is given.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ela_probe.analysis.result import Analysis, StageAnalysis
from ela_probe.errors import OptionError
from ela_probe.pruning.ablation import Ablation
from ela_probe.pruning.plan import SkipPlan
from ela_probe.report import plots
from ela_probe.report.view_plots import Samples
from ela_probe.sites import Action


class AnalysisPlots:
    """The figures of an analysis. A stage is given by its name or its position."""

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis

    def __repr__(self) -> str:
        return (
            "plot.adjacent(), .distance(), .scores(), .damage(), .damage_against_divergence(), "
            ".heatmap(stage), .weights(stage), .dendrogram(stage), .beta(stage), "
            ".quantiles(stage), .heads(stage), .classes(stage), .unusual(stage), .save(folder)"
        )

    def adjacent(self, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Every retrieval's divergence from the one before it (`plots.adjacent_divergence`)."""
        return plots.adjacent_divergence(self._analysis, ax=ax)

    def distance(self, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """How far mixed values are from those before (`plots.adjacent_distance`)."""
        return plots.adjacent_distance(self._analysis, ax=ax)

    def scores(
        self, *, plan: SkipPlan | None = None, ax: Axes | None = None
    ) -> tuple[Figure, Axes]:
        """The skip score of every site along depth (`plots.skip_scores`)."""
        return plots.skip_scores(self._analysis, plan=plan, ax=ax)

    def damage(
        self, *, ablation: Ablation | None = None, ax: Axes | None = None
    ) -> tuple[Figure, Axes]:
        """What each action adds to the loss (`plots.damage_along_depth`)."""
        return plots.damage_along_depth(self._analysis, ablation=ablation, ax=ax)

    def damage_against_divergence(
        self,
        action: Action = "skip",
        *,
        ablation: Ablation | None = None,
        ax: Axes | None = None,
    ) -> tuple[Figure, Axes]:
        """Every site by its divergence and its damage (`plots.damage_against_divergence`)."""
        return plots.damage_against_divergence(
            self._analysis, action=action, ablation=ablation, ax=ax
        )

    def heatmap(
        self,
        stage: str | int = 0,
        measure: str | None = None,
        *,
        plan: SkipPlan | None = None,
        ax: Axes | None = None,
    ) -> tuple[Figure, Axes]:
        """The divergence (or distance) of a stage's pairs (`plots.divergence_heatmap`)."""
        return plots.divergence_heatmap(self._part(stage), measure, plan=plan, ax=ax)

    def weights(self, stage: str | int = 0, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """The mean weights of a stage (`plots.weights_heatmap`)."""
        return plots.weights_heatmap(self._part(stage), ax=ax)

    def dendrogram(
        self, stage: str | int = 0, *, plan: SkipPlan | None = None, ax: Axes | None = None
    ) -> tuple[Figure, Axes]:
        """Which sites of a stage retrieve alike (`plots.site_dendrogram`)."""
        return plots.site_dendrogram(self._part(stage), plan=plan, ax=ax)

    def beta(self, stage: str | int = 0, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """The u of neighbours and the Beta fit of a stage (`plots.beta_histogram`)."""
        return plots.beta_histogram(self._part(stage), ax=ax)

    def quantiles(self, stage: str | int = 0, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """The u of neighbours against the Beta fit of a stage (`plots.beta_quantiles`)."""
        return plots.beta_quantiles(self._part(stage), ax=ax)

    def heads(self, stage: str | int = 0, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """The divergence of neighbours, head by head (`plots.head_divergence`)."""
        return plots.head_divergence(self._part(stage), ax=ax)

    def classes(self, stage: str | int = 0, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """The divergence of neighbours, class by class (`plots.class_divergence`)."""
        names = self._analysis.provenance.classes
        return plots.class_divergence(self._part(stage), names=names, ax=ax)

    def unusual(
        self, stage: str | int = 0, *, samples: Samples | None = None, ax: Axes | None = None
    ) -> tuple[Figure, Axes]:
        """The samples that are farthest from the mean (`plots.unusual_samples`)."""
        names = self._analysis.provenance.classes
        return plots.unusual_samples(self._part(stage), samples=samples, names=names, ax=ax)

    def save(self, folder: str | Path) -> list[Path]:
        """Write every figure as PNG and SVG, and return the paths (`plots.save_figures`)."""
        return plots.save_figures(self._analysis, folder)

    def _part(self, stage: str | int) -> StageAnalysis:
        if isinstance(stage, str):
            return self._analysis.stage(stage)
        stages = self._analysis.stages
        if not -len(stages) <= stage < len(stages):
            raise OptionError(f"got stage {stage}; expected a position from 0 to {len(stages) - 1}")
        return stages[stage]


class PlanPlots:
    """The figure of a skip plan."""

    def __init__(self, plan: SkipPlan) -> None:
        self._plan = plan

    def __repr__(self) -> str:
        return "plot.actions()"

    def actions(self, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """The action of every site, a row for each stage (`plots.skip_plan`)."""
        return plots.skip_plan(self._plan, ax=ax)
