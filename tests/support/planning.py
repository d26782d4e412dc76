"""What planners are held against: random charges, the cost of a choice, and which are allowed."""

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st

from ela_probe.analysis.metric import RedundancyMetric
from ela_probe.analysis.result import Analysis, Provenance, StageAnalysis
from ela_probe.pruning.plan import Constraints
from ela_probe.sites import Site, Stage

guards = st.builds(Constraints, max_run=st.none() | st.integers(1, 4), min_keep=st.integers(1, 4))


def cost(charge: np.ndarray, skipped: tuple[int, ...]) -> float:
    """The charge of skipping these sites, each referred to the last kept one before it."""
    total, kept = 0.0, 0
    for t in range(1, len(charge)):
        if t in skipped:
            total += charge[kept, t]
        else:
            kept = t
    return total


def allowed(sites: int, skipped: tuple[int, ...], guards: Constraints) -> bool:
    """Whether the constraints let these sites of a stage be skipped."""
    runs = [len(list(g)) for s, g in itertools.groupby(range(sites), skipped.__contains__) if s]
    return (guards.max_run is None or max(runs, default=0) <= guards.max_run) and (
        sites - len(skipped) >= min(guards.min_keep, sites)
    )


def random_charge(sites: int, seed: int) -> np.ndarray:
    """An upper triangle [sites, sites] of random charges."""
    return np.triu(np.random.default_rng(seed).exponential(size=(sites, sites)), 1)


def without_digests(folder: Path) -> Path:
    """The folder of an analysis as earlier versions wrote it: its document has no digests."""
    path = folder / "analysis.json"
    document = json.loads(path.read_text())
    del document["sha256"]
    path.write_text(json.dumps(document))
    return folder


def analysis_of(sizes: list[int], seed: int = 0) -> Analysis:
    """An analysis of random softmax weights, of stages with these numbers of sites."""
    stages = []
    generator = torch.Generator().manual_seed(seed)
    for s, size in enumerate(sizes):
        sites = tuple(Site(f"s{s}.{t}", f"s{s}.{t}.tap", t + 1) for t in range(size))
        stage = Stage(f"s{s}", "softmax", sites)
        metric = RedundancyMetric(stage.sizes)
        metric.update(
            [torch.randn(20, 2, t + 1, generator=generator).softmax(-1) for t in range(size)]
        )
        stages.append(StageAnalysis.from_metric(stage, metric.compute()))
    return Analysis(tuple(stages), Provenance())
