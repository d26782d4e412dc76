"""Figures of an analysis or a plan, all in one place, and how they are saved.

Every function takes an optional `ax`, draws in the project's theme without changing matplotlib's
global settings, and returns the figure and its axes. None of them shows a figure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from ela_probe.analysis.result import Analysis
from ela_probe.report.depth_plots import (
    adjacent_distance,
    adjacent_divergence,
    damage_against_divergence,
    damage_along_depth,
)
from ela_probe.report.detection_plots import detections_side_by_side, precision_by_size
from ela_probe.report.distribution_plots import beta_histogram, beta_quantiles
from ela_probe.report.figure_style import ACTIONS, FIT, MASS, SHAPE
from ela_probe.report.history_plots import site_history, skipping_history
from ela_probe.report.pair_plots import (
    WORDS,
    divergence_heatmap,
    site_dendrogram,
    weights_heatmap,
)
from ela_probe.report.plan_plots import skip_plan, skip_scores
from ela_probe.report.view_plots import class_divergence, head_divergence, unusual_samples
from ela_probe.system.storage import output_directory, replacing

__all__ = [
    "ACTIONS",
    "FIT",
    "MASS",
    "SHAPE",
    "WORDS",
    "adjacent_distance",
    "adjacent_divergence",
    "all_figures",
    "beta_histogram",
    "beta_quantiles",
    "class_divergence",
    "damage_against_divergence",
    "damage_along_depth",
    "detections_side_by_side",
    "divergence_heatmap",
    "head_divergence",
    "precision_by_size",
    "save_figures",
    "site_dendrogram",
    "site_history",
    "skip_plan",
    "skip_scores",
    "skipping_history",
    "unusual_samples",
    "weights_heatmap",
]


def save_figures(analysis: Analysis, directory: str | Path) -> list[Path]:
    """Write every figure as PNG and as SVG, and return the paths.

    `adjacent`, `scores`, where damage was measured also `damage` and `damage-divergence`, and for
    each stage `kl-<stage>`, `weights-<stage>`, `alike-<stage>`, `beta-<stage>` and
    `quantiles-<stage>`; where they were recorded also `heads-<stage>`, `classes-<stage>` and
    `samples-<stage>`. For stages of `signed` weights `distance`, and for each `l2-<stage>`,
    `weights-<stage>` and `alike-<stage>`.

    Raises:
        OutputError: the folder can't be written to.
    """
    directory = output_directory(directory)
    paths = []
    for name, figure in all_figures(analysis):
        for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            path = directory / f"{name}.{ending}"
            with replacing(path) as temporary, rc_context({"svg.fonttype": "none"}):
                figure.savefig(temporary, format=ending, dpi=150, metadata=metadata)
            figure.set_layout_engine("none")  # the second file keeps the layout of the first
            paths.append(path)
    return paths


def all_figures(analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    """Every figure of an analysis, one at a time, with its file name without its ending."""
    if "kl" in analysis.measures:
        yield "adjacent", adjacent_divergence(analysis)[0]
        yield "scores", skip_scores(analysis)[0]
    if "l2" in analysis.measures:
        yield "distance", adjacent_distance(analysis)[0]
    if analysis.has_damage:
        yield "damage", damage_along_depth(analysis)[0]
        yield "damage-divergence", damage_against_divergence(analysis)[0]
    taken: set[str] = set()
    for index, part in enumerate(analysis.stages):
        safe = re.sub(r"[^\w.-]+", "_", part.stage.name) or "stage"
        safe = f"{safe}-{index}" if safe in taken else safe
        taken.add(safe)
        yield f"{part.measures[0]}-{safe}", divergence_heatmap(part)[0]
        yield f"weights-{safe}", weights_heatmap(part)[0]
        yield f"alike-{safe}", site_dendrogram(part)[0]
        if part.measures[0] != "kl":
            continue
        yield f"beta-{safe}", beta_histogram(part)[0]
        yield f"quantiles-{safe}", beta_quantiles(part)[0]
        if part.views is None:
            continue
        if len(part.views.head_kl):
            yield f"heads-{safe}", head_divergence(part)[0]
        if part.views.class_counts.any():
            names = analysis.provenance.classes
            yield f"classes-{safe}", class_divergence(part, names=names)[0]
        if len(part.views.unusual_kl):
            yield f"samples-{safe}", unusual_samples(part)[0]
