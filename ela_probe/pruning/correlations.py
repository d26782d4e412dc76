"""How well each measure of an analysis ranks what an ablation measured, and how well it scales."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from ela_probe.analysis.result import Analysis
from ela_probe.pruning.ablation import Ablation, Change
from ela_probe.system.arrays import Floats

# Each is expected to rise with the change of the loss.
MEASURES = (
    "damage", "first_order", "square", "norm", "kl", "shape", "mass", "js", "l2", "cosine",
    "quantile", "one_minus_score",
)  # fmt: skip
BETWEEN_SITES = ("kl", "shape", "mass", "js", "l2", "cosine")
RESAMPLES = 2000
FEWEST = 4  # sites, for a correlation


class Correlation(NamedTuple):
    """Spearman's rank correlation of a measure with the measured loss change, over sites.

    low, high: the 95 % interval of a bootstrap over sites; NaN where it can't be formed.
    """

    action: str
    measure: str
    sites: int
    spearman: float
    low: float
    high: float


class Calibration(NamedTuple):
    """The least-squares line of the measured on the predicted loss change, and its R²."""

    action: str
    sites: int
    slope: float
    intercept: float
    r_squared: float


def site_table(analysis: Analysis, ablation: Ablation) -> pd.DataFrame:
    """One row for each site and action: the measured change and what each measure says of it.

    loss_change, loss_change_se: measured, in nats. accuracy_change: of 1; for a detector in its
    place ap_change, of the average precision of boxes. damage, damage_se: the
    predicted change, first_order + square. The other measures don't depend on the action; those of
    divergence are NaN for the first site of a stage.
    """
    sites = analysis.sites.set_index("site")
    damages = {
        site.name: (part.damage, t)
        for part in analysis.stages
        for t, site in enumerate(part.stage.sites)
    }
    rows = []
    for change in ablation.changes:
        damage, t = damages[change.site]
        estimate = None if damage is None else damage.of(t, change.action)
        found = sites.loc[change.site]
        rows.append(
            {
                "site": change.site,
                "action": change.action,
                "loss_change": change.mean(ablation.samples),
                "loss_change_se": change.error(ablation.samples),
                **quality_change(change, ablation),
                "damage": math.nan if estimate is None else estimate.mean,
                "damage_se": math.nan if estimate is None else estimate.se,
                "first_order": math.nan if estimate is None else estimate.first,
                "square": math.nan if estimate is None else estimate.second,
                "norm": found.get("norm", math.nan),
                **{name: found.get(name, math.nan) for name in BETWEEN_SITES},
                "quantile": found["quantile"],
                "one_minus_score": 1 - found["score"],
            }
        )
    return pd.DataFrame(rows)


def quality_change(change: Change, ablation: Ablation) -> dict[str, float]:
    """The change of the accuracy or, where it was measured, of the average precision, by name."""
    if ablation.ap is None:
        return {"accuracy_change": change.accuracy / ablation.samples}
    return {"ap_change": math.nan if change.ap is None else change.ap - ablation.ap}


def correlations(table: pd.DataFrame, *, seed: int = 0) -> list[Correlation]:
    """Of every action and measure, where at least FEWEST sites have it. table: `site_table`."""
    result = []
    for action, own in table.groupby("action", sort=False):
        for measure in MEASURES:
            known = own.reindex(columns=["loss_change", measure]).dropna()
            if len(known) < FEWEST:
                continue
            measured, values = (known[name].to_numpy(float) for name in ("loss_change", measure))
            result.append(
                Correlation(
                    str(action),
                    measure,
                    len(known),
                    spearman(values, measured),
                    *bootstrap(values, measured, seed=seed),
                )
            )
    return result


def spearman(values: Floats, measured: Floats) -> float:
    """The rank correlation; NaN where one of the two does not vary."""
    if np.ptp(values) == 0 or np.ptp(measured) == 0:
        return math.nan
    return float(stats.spearmanr(values, measured).statistic)


def bootstrap(values: Floats, measured: Floats, *, seed: int) -> tuple[float, float]:
    """The 95 % interval of Spearman's correlation over resampled sites."""
    generator = np.random.default_rng(seed)
    chosen = generator.integers(len(values), size=(RESAMPLES, len(values)))
    found = np.array([spearman(values[row], measured[row]) for row in chosen])
    found = found[np.isfinite(found)]
    if not len(found):
        return math.nan, math.nan
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def calibrations(table: pd.DataFrame) -> list[Calibration]:
    """Of every action whose damage was predicted at FEWEST sites or more. table: `site_table`."""
    result = []
    for action, own in table.groupby("action", sort=False):
        known = own[["loss_change", "damage"]].dropna()
        if len(known) < FEWEST or np.ptp(known["damage"]) == 0:
            continue
        line = stats.linregress(known["damage"], known["loss_change"])
        result.append(
            Calibration(
                str(action), len(known), float(line.slope), float(line.intercept),
                float(line.rvalue) ** 2,
            )
        )  # fmt: skip
    return result
