"""Comparison: models side by side, as a validated JSON file. It needs no torch.

`evaluation.compare` makes one; `evaluation.profiling` measures its times and memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from ela_probe.errors import OptionError
from ela_probe.evaluation.average_precision import Precisions
from ela_probe.sites import LISTED, Stage, fingerprint
from ela_probe.system.json_documents import JsonDocument
from ela_probe.system.messages import shortened
from ela_probe.system.numbers import readable
from ela_probe.system.validation import Finite, Strict

if TYPE_CHECKING:
    import pandas as pd

HEADINGS = (
    "model", "accuracy", "loss", "parameters", "MFLOPs", "retrievals", "training ms",
    "ratio of it", "inference ms", "ratio of it", "training MiB", "inference MiB",
)  # fmt: skip

# Of the columns of average precision, with the fields that they show.
PRECISION_HEADINGS = {
    "AP": "ap", "AP50": "ap50", "AP75": "ap75", "APs": "small", "APm": "medium", "APl": "large",
}  # fmt: skip

# A ratio is noise unless equal models give rounds that one-sided in fewer than 1 of 20 comparisons.
SIGNIFICANCE = 0.05


def is_noise(ratios: Sequence[float]) -> bool:
    """Whether the ratios of all rounds together can't be told from 1, by a sign test.

    If two models take the same time, a ratio is below 1 in every other round. The test asks how
    likely rounds are of which so many are on one side of 1. It assumes nothing about the noise but
    that rounds are independent. With fewer than six rounds it can't tell any models apart.
    """
    from scipy.stats import binomtest

    below, above = (sum(np.sign(r - 1.0) == side for r in ratios) for side in (-1, 1))
    rounds = below + above
    return rounds == 0 or bool(binomtest(below, rounds).pvalue >= SIGNIFICANCE)


class Timing(Strict):
    """Seconds of one contestant over the rounds of a run, and its ratios to the first one.

    A ratio is taken within each round, between two steps that follow closely. `lower` and `upper`
    are the quartiles over the rounds. ratio_is_noise: whether the ratio can't be told from 1
    (`is_noise`); None for the first contestant, and in files of older versions.
    """

    median: float
    lower: float
    upper: float
    ratio: float
    ratio_lower: float
    ratio_upper: float
    ratio_is_noise: bool | None = None
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float], reference: Sequence[float]) -> Timing:
        """From the seconds of this contestant and of the first one in each round."""
        lower, median, upper = (float(q) for q in np.percentile(seconds, [25, 50, 75]))
        ratios = np.asarray(seconds) / np.asarray(reference)
        ratio_lower, ratio, ratio_upper = (float(q) for q in np.percentile(ratios, [25, 50, 75]))
        return cls(
            median=median,
            lower=lower,
            upper=upper,
            ratio=ratio,
            ratio_lower=ratio_lower,
            ratio_upper=ratio_upper,
            ratio_is_noise=None if list(seconds) == list(reference) else is_noise(ratios),
            rounds=len(seconds),
        )

    @property
    def ratio_in_words(self) -> str:
        """The ratio with its quartiles, marked where it is noise: `0.97 (0.91–1.05) noise`."""
        if (self.ratio, self.ratio_lower, self.ratio_upper) == (1.0, 1.0, 1.0):
            return "1"
        mark = " noise" if self.ratio_is_noise else ""
        return f"{self.ratio:.2f} ({self.ratio_lower:.2f}–{self.ratio_upper:.2f}){mark}"


class Latency(Strict):
    """Seconds per batch of a training step and of inference."""

    training: Timing
    inference: Timing


class PeakMemory(Strict):
    """Bytes that a step allocates at its peak, on top of what was allocated before it.

    The parameters, buffers, momentum and the batch are allocated before. A step adds activations,
    gradients and temporary tensors.
    """

    training: int
    inference: int


class Machine(Strict):
    """The machine, software and device of a measurement."""

    platform: str
    cpu: str
    cpu_count: int
    torch_threads: int
    python: str
    torch: str
    device: str
    device_name: str


class Compared(Strict):
    """How good one model is, and what it costs.

    accuracy: fraction of 1, None for detectors; loss: mean cross entropy in nats, or the mean loss
    of a detector for an image, None if it was NaN or infinite; perplexity: exp(loss), for language
    models only; precision: for detectors only; flops: of one sample's forward pass
    (convolutions and matrix products); kept, skipped: numbers of retrievals that are formed, and
    that were removed; fingerprints: of the model's sites, and of its sites before it was pruned;
    latency: seconds per batch; memory: bytes at the peak of a step.
    """

    name: str
    accuracy: Finite | None
    loss: Finite | None
    perplexity: Finite | None = None
    precision: Precisions | None = None
    samples: int
    parameters: int
    parameters_ratio: float
    flops: int
    flops_ratio: float
    kept: int
    skipped: int
    fingerprints: tuple[str, ...] = ()
    latency: Latency
    memory: PeakMemory


def _quality(row: Compared, *, detection: bool, masks: bool) -> list[str]:
    """The cells of accuracy, or of average precision."""
    if not detection:
        return ["–" if row.accuracy is None else f"{row.accuracy:.2%}"]
    found = row.precision
    parts = [found and found.box, *([found and found.mask] if masks else [])]
    figures = [
        part and getattr(part, name) for part in parts for name in PRECISION_HEADINGS.values()
    ]
    return ["–" if figure is None else f"{figure:.1%}" for figure in figures]


class Comparison(JsonDocument):
    """Models side by side; every ratio is to the first."""

    NAMED = "the comparison"
    EXPECTED = "JSON that `ela-probe compare -o` wrote"
    INVALID = "holds no comparison"
    ERROR = OptionError

    schema_version: Literal[1] = 1
    models: tuple[Compared, ...] = Field(min_length=1)
    batch_shape: tuple[int, ...]
    machine: Machine

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headings and a row of cells for each model, to print.

        Ratios of time carry their quartiles over the rounds, and `noise` where they can't be told
        from 1. Language models have a column of perplexity in place of the loss, detectors
        columns of average precision in place of the accuracy.
        """
        language = any(row.perplexity is not None for row in self.models)
        detection = any(row.precision is not None for row in self.models)
        masks = any(row.precision is not None and row.precision.mask for row in self.models)
        headings = tuple("perplexity" if language and h == "loss" else h for h in HEADINGS)
        if detection:
            kinds = ("box", "mask") if masks else ("box",)
            named = [f"{kind} {figure}" for kind in kinds for figure in PRECISION_HEADINGS]
            headings = (headings[0], *named, *headings[2:])
        rows: list[tuple[str, ...]] = []
        for row in self.models:
            total = row.kept + row.skipped
            rows.append(
                (
                    row.name,
                    *_quality(row, detection=detection, masks=masks),
                    readable(row.loss if row.perplexity is None else row.perplexity, digits=4),
                    f"{row.parameters:,}",
                    f"{row.flops / 1e6:,.1f}",
                    f"{row.kept} of {total}" if row.skipped else str(row.kept),
                    f"{row.latency.training.median * 1e3:,.1f}",
                    row.latency.training.ratio_in_words,
                    f"{row.latency.inference.median * 1e3:,.1f}",
                    row.latency.inference.ratio_in_words,
                    f"{row.memory.training / 2**20:,.1f}",
                    f"{row.memory.inference / 2**20:,.1f}",
                )
            )
        return headings, rows

    def to_frame(self) -> pd.DataFrame:
        """One row for each model, indexed by name; nested figures as `latency.training.median`."""
        import pandas as pd

        return pd.json_normalize([row.model_dump() for row in self.models]).set_index("name")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return self.model_dump(mode="json")

    def check_sites(self, stages: Sequence[Stage], *, model: str | None = None) -> None:
        """Raise OptionError unless one of the models has, or had before pruning, these sites.

        Of a file of an older version, which has no fingerprints, the numbers of retrievals count.

        Args:
            stages: of an analysis. model: its model's name, for the message.
        """
        wanted, count = fingerprint(stages), sum(len(stage.sites) for stage in stages)
        for row in self.models:
            if row.fingerprints:
                if wanted in row.fingerprints:
                    return
            elif count in (row.kept, row.kept + row.skipped):
                return
        listed = ", ".join(
            f"{shortened(row.name)} with {row.kept + row.skipped}" for row in self.models[:LISTED]
        )
        raise OptionError(
            f"the comparison is of other models: the analysis is of {model or 'a model'} with "
            f"{count} retrievals, and none of its sites are those of {listed}; compare the "
            "checkpoint that was analysed, or leave the comparison out"
        )
