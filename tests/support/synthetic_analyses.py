"""Synthetic analyses whose redundancy is known: random softmax weights streamed through the metric.

Each stage repeats a pattern of retrievals: `new` (unlike the one before), `repeat` (the same
weights, a new source that is hardly read) and `extend` (the same weights plus a new source).
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice

import numpy as np
import torch
from torch import Tensor

from ela_probe.analysis.damage import StageDamage
from ela_probe.analysis.metric import RedundancyMetric
from ela_probe.analysis.result import Analysis, Provenance, StageAnalysis
from ela_probe.analysis.views import StageViews
from ela_probe.sites import Kind, Site, Stage

# nature: (noise added to the logits of the earlier sources, mean logit of the new source)
NATURES = {"new": (1.2, 1.0), "repeat": (0.05, -6.0), "extend": (0.05, 1.5)}
PATTERN = ("new", "repeat", "extend", "new", "repeat")


def make_analysis(
    sites: Sequence[int] = (5, 5, 5),
    *,
    samples: int = 200,
    kind: Kind = "softmax",
    pattern: Sequence[str] = PATTERN,
    constant: bool = False,
    names: str = "stages.{stage}.{site}.retrieval",
    provenance: Provenance | None = None,
    seed: int = 0,
) -> Analysis:
    """An analysis of len(sites) stages with sites[s] retrievals each.

    Args:
        samples: rows of weights. kind: of every stage.
        pattern: the nature of sites 1, 2, ... of every stage, repeated; see `NATURES`.
        constant: every sample has the same weights, so that no Beta distribution can be fitted.
        names: of the sites; the stage is named by what precedes `.{site}`.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for s, count in enumerate(sites):
        stage = Stage(
            names.partition(".{site}")[0].format(stage=s),
            kind,
            tuple(
                Site(name, f"{name}.tap", t + 1)
                for t, name in ((t, names.format(stage=s, site=t)) for t in range(count))
            ),
        )
        weights = random_weights(count, samples, pattern, generator)
        if constant:
            weights = [row[:1].expand(samples, -1) for row in weights]
        metric = RedundancyMetric(stage.sizes, names=[site.name for site in stage.sites])
        metric.update(weights)
        parts.append(StageAnalysis.from_metric(stage, metric.compute()))
    known = provenance or Provenance(
        model="mrla_b_resnet32", data="digits", split="test", samples=samples, accuracy=0.97,
        device="cpu", seconds=1.5, versions={"ela-probe": "0.1.0"},
    )  # fmt: skip
    return Analysis(tuple(parts), known)


def with_damage(
    analysis: Analysis, *, channels: int = 8, seed: int = 0, recur: bool = False
) -> Analysis:
    """The analysis with a random damage of `skip` and `affine` at every site, and stand-ins.

    recur: whether also of `recur`, at all sites but the first of a stage.
    """
    generator = np.random.default_rng(seed)
    parts = []
    for part in analysis.stages:
        sites, n = len(part.stage.sites), part.samples
        c = generator.exponential(0.05, (sites, 1, n)) * np.array([1.0, 0.2, np.nan])[:, None]
        c += generator.normal(0, 0.02, c.shape)
        if recur:
            c[1:, 2] = 0.5 * c[1:, 0]
        d = c + c**2 / 2
        sums = np.stack([c, c**2, d, d**2], axis=-1).sum(axis=2)
        stand_ins = tuple(
            generator.normal(size=(2, channels)).astype(np.float32) for _ in range(sites)
        )
        damage = StageDamage(n, sums, generator.random(sites), stand_ins)
        parts.append(replace(part, damage=damage))
    return replace(analysis, stages=tuple(parts))


def with_views(analysis: Analysis, *, heads: int = 2, classes: int = 3, seed: int = 0) -> Analysis:
    """The analysis with random divergences by head and class, and unusual samples 0, 3, 6, ...

    Class 1 does not occur.
    """
    generator = np.random.default_rng(seed)
    parts = []
    for part in analysis.stages:
        kl = np.nan_to_num(part.adjacent("kl"))
        by_head, by_class = (kl * generator.uniform(0.5, 2, (n, 1)) for n in (heads, classes))
        counts = np.full(classes, 7, dtype=np.int64)
        counts[1:2], by_class[1:2] = 0, 0
        unusual = kl[1:].mean() * generator.uniform(0.1, 3, 8) if len(kl) > 1 else np.zeros(0)
        places = 3 * np.arange(len(unusual))
        views = StageViews(by_head, by_class, counts, places, unusual)
        parts.append(replace(part, views=views))
    return replace(analysis, stages=tuple(parts))


def random_weights(
    sites: int, samples: int, pattern: Sequence[str], generator: torch.Generator
) -> list[Tensor]:
    """The retrievals of a stage: `sites` tensors [samples, t + 1] of rows that sum to 1."""
    logits = torch.randn(samples, 1, generator=generator)
    retrievals = [logits.softmax(-1)]
    for nature in islice(cycle(pattern), sites - 1):
        noise, fresh = NATURES[nature]
        # Samples differ in how far they drift, as images do.
        drift = noise * torch.rand(samples, 1, generator=generator)
        logits = logits + drift * torch.randn(logits.shape, generator=generator)
        new = fresh + 0.5 * torch.randn(samples, 1, generator=generator)
        logits = torch.cat([logits, logits.logsumexp(-1, keepdim=True) + new - 1.5], dim=-1)
        retrievals.append(logits.softmax(-1))
    return retrievals
