"""Analysis: the redundancy of a model as matrices, fits and data frames, and its files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, field_validator

from ela_probe.analysis.analysis_folder import read_folder, write_folder
from ela_probe.analysis.beta_fit import (
    BINS,
    BetaFit,
    BetaStatistics,
    fit_beta,
    mean_quantile,
)
from ela_probe.analysis.damage import MEASURED, StageDamage
from ela_probe.analysis.ebqm import Target, skip_scores
from ela_probe.analysis.measures import DISTANCES, MEASURES, newest_share
from ela_probe.analysis.views import StageViews
from ela_probe.errors import AnalysisError
from ela_probe.evaluation.average_precision import Precisions
from ela_probe.sites import Kind, Site, Stage, has_divergences
from ela_probe.system.accessors import Accessor
from ela_probe.system.arrays import Floats
from ela_probe.system.csv_files import csv_text
from ela_probe.system.numbers import counted
from ela_probe.system.reading import refusing
from ela_probe.system.validation import Finite, Name, Strict, check_name

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

DIVERGENCES = (*(name for m in MEASURES for name in (m, f"{m}_se")), "kl_of_means")
OF_MIXED_VALUES = tuple(name for m in DISTANCES for name in (m, f"{m}_se"))
ROUNDING = 1e-9
COUNTS = ("samples", "rows", "histogram", "zeros")
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class StageAnalysis:
    """The redundancy of one stage of T sites with at most S sources.

    weights: [T, S] mean weights. divergences: by name (kl, shape, mass, js, each with a `_se`,
    and kl_of_means) [T, T] means over samples in nats, upper triangle; of `signed` weights, which
    have none, the distances between mixed values (l2, cosine, each with a `_se`) in their place.
    beta: [T] statistics of each site's adjacent u = 1 − exp(−kl(t−1, t)); empty for the first site,
    and for `signed` weights. samples: how many were recorded; 1 for `static` weights, which no
    sample changes. damage: what each
    action at each site would add to the loss; None where it was not measured. entropy, entropy_se:
    [T] mean over samples of the entropy of each site's weights in nats, and its standard error; NaN
    where an analysis of an older version did not measure it. A single NaN stands for T of them.
    views: divergences by head and class, and the most unusual samples; None where an older version
    or training with ELA did not record them.

    Raises AnalysisError if a weight, a divergence or a sum is NaN or infinite. A standard error is
    NaN where it is unknown, as for a single sample.
    """

    stage: Stage
    samples: int
    rows: int
    weights: Floats
    divergences: dict[str, Floats]
    beta: tuple[BetaStatistics, ...]
    damage: StageDamage | None = None
    entropy: Floats = field(default_factory=lambda: np.array(np.nan))
    entropy_se: Floats = field(default_factory=lambda: np.array(np.nan))
    views: StageViews | None = None

    def __repr__(self) -> str:
        what = f"{counted(len(self.stage.sites), 'site')}, {self.stage.kind} weights"
        return f"StageAnalysis({self.stage.name}: {what}, {counted(self.samples, 'sample')})"

    def _repr_html_(self) -> str:
        from ela_probe.analysis.rich_display import stage_html

        return stage_html(self)

    def __post_init__(self) -> None:
        for name in ("entropy", "entropy_se"):
            values = np.broadcast_to(getattr(self, name), len(self.stage.sites))
            object.__setattr__(self, name, values.copy())
        arrays = {name: a for name, a in self.divergences.items() if not name.endswith("_se")}
        arrays["weights"] = self.weights
        arrays["entropy"] = np.where(np.isnan(self.entropy), 0.0, self.entropy)
        arrays["beta sums"] = np.array([[b.log_u, b.log_1mu, b.u, b.uu] for b in self.beta])
        for name, values in arrays.items():
            broken = np.argwhere(~np.isfinite(values))
            if len(broken):
                site = self.stage.sites[broken[0][-1 if name in self.divergences else 0]].name
                raise AnalysisError(
                    f"{self.stage.name}: {name} of {site} is {values[tuple(broken[0])]}; expected "
                    "finite numbers; run `ela-probe analyze` again, on a model without NaN weights"
                )

    @classmethod
    def from_metric(cls, stage: Stage, computed: dict[str, Tensor]) -> StageAnalysis:
        """From what `RedundancyMetric.compute` returns for this stage."""
        arrays = {name: value.cpu().numpy() for name, value in computed.items()}
        return cls.from_arrays(stage, arrays)

    @classmethod
    def from_arrays(cls, stage: Stage, arrays: dict[str, NDArray[Any]]) -> StageAnalysis:
        """A stage from the arrays that `arrays` gives.

        Raises:
            AnalysisError: one has no numbers, or counts or divergences that can't be.
        """
        if other := [name for name, array in arrays.items() if array.dtype.kind not in "iuf"]:
            raise AnalysisError(
                f"{stage.name}: {other[0]} is {arrays[other[0]].dtype}, expected real numbers; run "
                "`ela-probe analyze` again"
            )
        counts = [arrays[name] for name in COUNTS if name in arrays]
        if int(arrays["samples"]) < 1 or any((count < 0).any() for count in counts):
            raise AnalysisError(
                f"{stage.name}: got {int(arrays['samples'])} samples, or counts below 0; expected "
                "the counts of at least one sample; run `ela-probe analyze` again"
            )
        sites = len(stage.sites)
        # torchmetrics squeezes tensors of a single element, as of a stage with one site
        no_u = np.zeros((sites, BINS), np.int64), np.zeros(sites), np.zeros((4, sites))
        histogram, zeros, sums = (
            arrays.get(name, empty).reshape(empty.shape)
            for name, empty in zip(("histogram", "zeros", "beta_sums"), no_u, strict=True)
        )
        measured = DIVERGENCES if has_divergences(stage.kind) else OF_MIXED_VALUES
        js = arrays.get("js", np.zeros(1))
        if (js < -ROUNDING).any() or (js > math.log(2) + ROUNDING).any():
            raise AnalysisError(
                f"{stage.name}: js has values from {js.min():g} to {js.max():g}; expected 0 to "
                "log 2; run `ela-probe analyze` again"
            )
        beta = tuple(
            BetaStatistics(
                n=int(histogram[t].sum()),
                zeros=int(zeros[t]),
                log_u=float(sums[0, t]),
                log_1mu=float(sums[1, t]),
                u=float(sums[2, t]),
                uu=float(sums[3, t]),
                histogram=histogram[t],
            )
            for t in range(sites)
        )
        unknown = np.full(sites, np.nan)
        return cls(
            stage,
            int(arrays["samples"]),
            int(arrays["rows"]),
            arrays["weights"].reshape(sites, stage.sizes[-1]),
            {name: arrays[name].reshape(sites, sites).astype(np.float64) for name in measured},
            beta,
            StageDamage.from_arrays(arrays, sites),
            entropy=arrays.get("entropy", unknown).reshape(sites),
            entropy_se=arrays.get("entropy_se", unknown).reshape(sites),
            views=StageViews.from_arrays(arrays, sites),
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The inverse of `from_arrays`."""
        return {
            "samples": np.array(self.samples),
            "rows": np.array(self.rows),
            "weights": self.weights,
            **(self._beta_arrays() if has_divergences(self.stage.kind) else {}),
            **self.divergences,
            "entropy": self.entropy,
            "entropy_se": self.entropy_se,
            **({} if self.damage is None else self.damage.arrays()),
            **({} if self.views is None else self.views.arrays()),
        }

    def _beta_arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "beta_sums": np.array([[b.log_u, b.log_1mu, b.u, b.uu] for b in self.beta]).T,
            "zeros": np.array([b.zeros for b in self.beta]),
            "histogram": np.stack([b.histogram for b in self.beta]),
        }

    @property
    def measures(self) -> tuple[str, ...]:
        """What is measured of every pair, the most important first: kl or l2, then others."""
        return MEASURES if has_divergences(self.stage.kind) else DISTANCES

    @cached_property
    def pooled(self) -> BetaStatistics:
        """The adjacent u of all sites together."""
        total = self.beta[0]
        for statistics in self.beta[1:]:
            total = total + statistics
        return total

    @cached_property
    def fit(self) -> BetaFit | None:
        """The Beta fit of the stage; None for a degenerate sample."""
        return fit_beta(self.pooled)

    @cached_property
    def site_fits(self) -> tuple[BetaFit | None, ...]:
        """The Beta fit of each site; None where there is none."""
        return tuple(fit_beta(statistics) for statistics in self.beta)

    @cached_property
    def quantiles(self) -> Floats:
        """[T] q_t: the chance that a random retrieval of the stage is less divergent than site t's.

        NaN for the first site, and for all sites if the stage has no fit.
        """
        if self.fit is None:
            return np.full(len(self.beta), np.nan)
        histograms = np.stack([b.histogram for b in self.beta]).astype(np.float64)
        return mean_quantile(self.fit, histograms)

    def adjacent(self, measure: str) -> Floats:
        """[T] a measure of each site from the one before it.

        NaN for the first site, and where the stage's kind of weights has another measure.
        """
        if measure not in self.divergences and measure in (*DIVERGENCES, *OF_MIXED_VALUES):
            return np.full(len(self.stage.sites), np.nan)
        return np.concatenate([[np.nan], np.diagonal(self.divergences[measure], offset=1)])


class StoredStage(BaseModel):
    """What analysis.json says of a stage and is read again. Names can be printed."""

    name: Name
    kind: Kind
    sites: tuple[Site, ...] = Field(min_length=1)
    carried_over: bool = False

    @field_validator("sites", mode="before")
    @classmethod
    def _of_earlier_versions(cls, sites: Any) -> Any:
        """`module` was called `tap` at first."""
        is_old = isinstance(sites, list) and all(isinstance(site, dict) for site in sites)
        if not is_old:
            return sites
        return [{**({"module": site["tap"]} if "tap" in site else {}), **site} for site in sites]

    @field_validator("sites")
    @classmethod
    def _named(cls, sites: tuple[Site, ...]) -> tuple[Site, ...]:
        for site in sites:
            check_name(site.name)
            if not 1 <= site.sources <= sites[-1].sources:
                raise ValueError(
                    f"{site.name} has {site.sources} sources, expected 1 to {sites[-1].sources}, "
                    "as many as the last site of its stage"
                )
        return sites


class Provenance(Strict):
    """What an analysis was made from.

    samples: how many were run. sampling: empty if all of them were recorded, else the options
    (every, max_batches, max_tokens) and the numbers of `batches` that were run and `recorded`.
    precision: of a detector.
    limit: the most samples that were asked for; None: all. classes: the names of the data's
    classes. notes: reservations, in sentences.
    """

    model: Name | None = None
    model_args: dict[str, Any] = Field(default_factory=dict)
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    data: str | None = None
    split: str | None = None
    limit: int | None = None
    classes: tuple[str, ...] = ()
    samples: int = 0
    accuracy: Finite | None = None
    loss: Finite | None = None
    perplexity: Finite | None = None
    precision: Precisions | None = None
    seconds: Finite | None = None
    device: str | None = None
    seed: int | None = None
    sampling: dict[str, int] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Analysis:
    """The redundancy of a model's layer attention, stage by stage.

        analysis = Analysis.load("runs/digits/analysis")
        analysis.pairs.query("kl < 0.05")
        analysis.plot.heatmap("stages.0")

    plot: the figures, as methods (`report.accessors.AnalysisPlots`).
    """

    stages: tuple[StageAnalysis, ...]
    provenance: Provenance
    target: Target = field(default_factory=Target)
    plot: ClassVar[Accessor] = Accessor()

    def __repr__(self) -> str:
        source = self.provenance
        retrievals = counted(sum(len(part.stage.sites) for part in self.stages), "retrieval")
        return (
            f"Analysis({source.model or 'a model'} on {source.data or 'data'}: {retrievals} in "
            f"{counted(len(self.stages), 'stage')}, {counted(source.samples, 'sample')})"
        )

    def _repr_html_(self) -> str:
        from ela_probe.analysis.rich_display import analysis_html

        return analysis_html(self)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """One row for every pair i < j of a stage: divergences in nats with standard errors.

        Of stages with `signed` weights, l2 and cosine of the mixed values; a column is there if any
        stage has its measure, and NaN for the others.
        """
        import pandas as pd

        rows = []
        for part in self.stages:
            sites = part.stage.sites
            for j in range(1, len(sites)):
                for i in range(j):
                    row: dict[str, Any] = {
                        "stage": part.stage.name,
                        "kind": part.stage.kind,
                        "i": i,
                        "j": j,
                        "site_i": sites[i].name,
                        "site_j": sites[j].name,
                    }
                    row |= {name: float(m[i, j]) for name, m in part.divergences.items()}
                    rows.append(row)
        known = self.measures
        figures = [n for n in (*DIVERGENCES, *OF_MIXED_VALUES) if n.partition("_")[0] in known]
        names = ["stage", "kind", "i", "j", "site_i", "site_j", *figures]
        return pd.DataFrame(rows, columns=names)

    @cached_property
    def sites(self) -> pd.DataFrame:
        """One row a site: its divergence from the one before it, fit, quantile, score, damage.

        Of `signed` weights l2 and cosine in place of a divergence, as in `pairs`.
        """
        import pandas as pd

        rows = []
        for part in self.stages:
            scores, newest = skip_scores(part.quantiles, self.target), newest_share(part)
            for t, site in enumerate(part.stage.sites):
                fit = part.site_fits[t]
                row: dict[str, Any] = {
                    "stage": part.stage.name,
                    "kind": part.stage.kind,
                    "t": t,
                    "site": site.name,
                    "sources": site.sources,
                }
                row |= {m: part.adjacent(m)[t] for m in self.measures}
                row |= {
                    f"{m}_se": part.adjacent(f"{m}_se")[t]
                    for m in ("kl", "l2")
                    if m in self.measures
                }
                row |= {
                    "entropy": part.entropy[t],
                    "entropy_se": part.entropy_se[t],
                    "newest_share": newest[t],
                    "n": part.beta[t].n,
                    "alpha": fit.alpha if fit else np.nan,
                    "beta": fit.beta if fit else np.nan,
                    "ks": fit.ks if fit else np.nan,
                    "fit": fit.method if fit else ("none" if t else "first site"),
                    "quantile": part.quantiles[t],
                    "score": scores[t],
                }
                if self.has_damage:
                    row |= _damage_columns(part.damage, t)
                rows.append(row)
        return pd.DataFrame(rows)

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures of its stages: kl, shape, mass and js, or l2 and cosine, or all of them."""
        found = {measure for part in self.stages for measure in part.measures}
        return tuple(measure for measure in (*MEASURES, *DISTANCES) if measure in found)

    @property
    def has_damage(self) -> bool:
        """Whether the damage of any site was measured."""
        return any(part.damage is not None for part in self.stages)

    def stage(self, name: str) -> StageAnalysis:
        """A stage by name. Raises AnalysisError, which lists the stages, if none is called so."""
        for part in self.stages:
            if part.stage.name == name:
                return part
        names = ", ".join(part.stage.name for part in self.stages)
        raise AnalysisError(f"no stage is called {name!r}; this analysis has {names}")

    def save(self, directory: str | Path) -> Path:
        """Write arrays.npz, pairs.csv, sites.csv and, last, analysis.json. Raises OutputError.

        analysis.json has the SHA-256 of the others: `load` refuses files of two analyses.
        """
        arrays = {
            f"{s}/{name}": value
            for s, part in enumerate(self.stages)
            for name, value in part.arrays().items()
        }
        tables = {
            "pairs.csv": csv_text(self.pairs),
            "sites.csv": csv_text(self.sites),
        }
        return write_folder(directory, document=self.summary(), arrays=arrays, tables=tables)

    def summary(self) -> dict[str, Any]:
        """The analysis without its arrays, as plain values for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "provenance": self.provenance.model_dump(),
            "target": self.target.model_dump(),
            "stages": [
                {
                    "name": part.stage.name,
                    "kind": part.stage.kind,
                    "carried_over": part.stage.carried_over,
                    "samples": part.samples,
                    "rows": part.rows,
                    "fit": None if part.fit is None else vars(part.fit),
                    "sites": [vars(site) for site in part.stage.sites],
                }
                for part in self.stages
            ],
        }

    @classmethod
    def load(cls, directory: str | Path) -> Analysis:
        """Read a folder that `save` wrote.

        Raises:
            AnalysisError: no analysis is there, it has another version, a file is broken, or
                its files don't belong together.
        """
        directory = Path(directory)
        damaged = f"the analysis in {directory} is damaged"
        with refusing(AnalysisError, damaged, "run `ela-probe analyze` again"):
            document, arrays = read_folder(directory, version=SCHEMA_VERSION, wanted=_is_of_a_stage)
            stages = []
            for index, entry in enumerate(document["stages"]):
                stored = StoredStage.model_validate(entry)
                stage = Stage(stored.name, stored.kind, stored.sites, stored.carried_over)
                of_stage = {
                    name.partition("/")[2]: value
                    for name, value in arrays.items()
                    if name.startswith(f"{index}/")
                }
                stages.append(StageAnalysis.from_arrays(stage, of_stage))
            return cls(
                tuple(stages),
                Provenance.model_validate(document["provenance"]),
                Target.model_validate(document["target"]),
            )


def _is_of_a_stage(name: str) -> bool:
    """Whether an array in the file belongs to a stage, as `0/kl` does."""
    return name.partition("/")[0].isdecimal()


def _damage_columns(damage: StageDamage | None, t: int) -> dict[str, float]:
    """The damage of site t by action, in nats, and the relative norm of its retrieval."""
    row = {"norm": math.nan if damage is None else float(damage.norms[t])}
    for action in MEASURED:
        found = None if damage is None else damage.of(t, action)
        row[f"damage_{action}"] = math.nan if found is None else found.mean
        row[f"damage_{action}_se"] = math.nan if found is None else found.se
    return row
