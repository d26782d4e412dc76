"""What the page's pictures are drawn from, as plain values for JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import special

from ela_probe.analysis.damage import MEASURED
from ela_probe.analysis.findings import no_fit_reason, verdicts
from ela_probe.analysis.measures import newest_share, vendi_score
from ela_probe.analysis.result import Analysis, StageAnalysis
from ela_probe.report.log_odds import (
    at_the_ends,
    bin_step,
    log_odds_density,
    log_odds_quantiles,
    rebin,
    view,
)
from ela_probe.report.sample_pictures import data_uri, picture_of
from ela_probe.report.site_labels import short_labels
from ela_probe.report.view_plots import Samples, class_name, shown_classes, stage_mean

# A site is stored with this many digits: more can't be seen, and the page stays small.
DIGITS = 4
# Of every pair; the other standard errors are in pairs.csv.
OF_PAIRS = ("kl", "kl_se", "shape", "mass", "js", "l2", "l2_se", "cosine")


def analysis_data(
    analysis: Analysis, label: str, *, samples: Samples | None = None
) -> dict[str, Any]:
    """An analysis: of every stage its sites, pairs, mean weights, damage, fit and views.

    Args:
        samples: the data set that was analysed, to show the most unusual samples.
    """
    names = analysis.provenance.classes
    stages = [_stage(part) | _views(part, names, samples) for part in analysis.stages]
    return {"label": label, "stages": stages}


def rounded(value: float) -> float | None:
    """A number with DIGITS significant digits; None where it is NaN or infinite."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def script_json(value: Any) -> str:
    """JSON that may stand inside a <script> element: no character of it can end that element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII only
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _stage(part: StageAnalysis) -> dict[str, Any]:
    names = [site.name for site in part.stage.sites]
    # The pairs (earlier, later) in the order (0, 1), (0, 2), (1, 2), (0, 3), ...
    later, earlier = np.tril_indices(len(names), -1)
    return {
        "name": part.stage.name,
        "kind": part.stage.kind,
        "samples": part.samples,
        "sites": names,
        "labels": short_labels(names),
        "sources": list(part.stage.sizes),
        "verdicts": list(verdicts(part)),
        "measures": list(part.measures),
        "pairs": {
            m: _numbers(part.divergences[m][earlier, later])
            for m in OF_PAIRS
            if m in part.divergences
        },
        "weights": [
            _numbers(row[:size]) for row, size in zip(part.weights, part.stage.sizes, strict=True)
        ],
        "entropy": _numbers(np.broadcast_to(part.entropy, len(names))),
        "newest": _numbers(newest_share(part)),
        "distinct": rounded(vendi_score(part, kernel="linear")),
        "damage": _damage(part),
        "fit": _fit(part),
    }


def _views(part: StageAnalysis, names: Sequence[str], samples: Samples | None) -> dict[str, Any]:
    """Divergences by head and by class, without the first site, and the most unusual samples."""
    if part.views is None:
        return {"heads": [], "classes": {"names": [], "kl": []}, "unusual": None}
    chosen = shown_classes(part)
    labels = [class_name(c, names) for c in chosen]
    if len(set(labels)) < len(labels):  # rows are told apart by their names
        labels = [f"{label} ({c})" for label, c in zip(labels, chosen, strict=True)]
    unusual = []
    for position, kl in zip(part.views.unusual_positions, part.views.unusual_kl, strict=True):
        image, words = None, ""
        if samples is not None:
            image, words = picture_of(samples[int(position)], names)
        uri = None if image is None else data_uri(image)
        row = {"position": int(position), "kl": rounded(float(kl)), "words": words, "image": uri}
        unusual.append(row)
    return {
        "heads": [_numbers(row[1:]) for row in part.views.head_kl],
        "classes": {
            "names": labels,
            "kl": [_numbers(row[1:]) for row in part.views.class_kl[chosen]],
        },
        "unusual": {"mean": rounded(stage_mean(part)), "samples": unusual} if unusual else None,
    }


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [rounded(float(value)) for value in values]


def _damage(part: StageAnalysis) -> dict[str, list[tuple[float | None, float | None] | None]]:
    """By action the mean and standard error at every site; None where it was not measured."""
    if part.damage is None:
        return {}
    found = {
        action: [part.damage.of(t, action) for t in range(len(part.stage.sites))]
        for action in MEASURED
    }
    return {
        action: [None if e is None else (rounded(e.mean), rounded(e.se)) for e in estimates]
        for action, estimates in found.items()
        if any(estimates)
    }


def _fit(part: StageAnalysis) -> dict[str, Any]:
    """The histogram of u over its log-odds, the density of the fit there, and equal quantiles."""
    statistics, fit = part.pooled, part.fit
    result: dict[str, Any] = {"reason": no_fit_reason(part), "n": statistics.n}
    if not statistics.n:
        return result
    low, high = view(statistics.histogram)
    edges, heights = rebin(statistics.histogram, step=bin_step(high - low, statistics.n))
    inside = (edges[1:] > low) & (edges[:-1] < high)
    result["ends"] = [rounded(share) for share in at_the_ends(statistics.histogram)]
    result["bars"] = [
        (rounded(a), rounded(b), rounded(h))
        for a, b, h in zip(edges[:-1][inside], edges[1:][inside], heights[inside], strict=True)
    ]
    if fit is not None:
        x = np.linspace(low, high, 120)
        result |= {
            "alpha": rounded(fit.alpha), "beta": rounded(fit.beta), "ks": rounded(fit.ks),
            "curve": list(zip(_numbers(x), _numbers(log_odds_density(fit, x)), strict=True)),
        }  # fmt: skip
        shares = np.linspace(0.02, 0.98, 49)
        observed = log_odds_quantiles(statistics.histogram, shares)
        fitted = special.logit(special.betaincinv(fit.alpha, fit.beta, shares))
        known = np.isfinite(fitted)
        result["quantiles"] = [
            (rounded(p), rounded(f), rounded(o))
            for p, f, o in zip(shares[known], fitted[known], observed[known], strict=True)
        ]
    return result
