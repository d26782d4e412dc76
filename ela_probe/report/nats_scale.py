"""The one scale of all figures in nats, for colours and for axes: symmetric-logarithmic.

Divergences and damages span many decades, and hold exact zeros. The scale is linear around 0 and
logarithmic beyond, so that neither zeros nor a single saturated pair (87 nats) flatten the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import SymLogNorm
from numpy.typing import ArrayLike

from ela_probe.analysis.findings import NEAR
from ela_probe.report.figure_style import POINTS, axes_inches
from ela_probe.system.arrays import Floats
from ela_probe.system.numbers import readable

# Values within two decades are shown linearly.
DECADES = 100.0
# The narrowest linear part, as a share of the largest value.
FINEST = 1e-6
# How far apart labels must be: above each other on a colour bar, as a share of it; and on an axis y
# or x, in points.
GAP = 0.06
SPACING = {"y": 1.4 * POINTS, "x": 3.5 * POINTS}


@dataclass(frozen=True)
class NatsScale:
    """From `bottom` to `top` nats: linear up to ± `linear`, logarithmic beyond.

    bottom: 0 for what is never negative, as a divergence. room: how much of the scale the linear
    part gets on each side of 0, in decades. mark: a value that must be visible; None for none.
    """

    bottom: float
    top: float
    linear: float
    room: float
    mark: float | None = None

    @classmethod
    def of(cls, values: Floats, *, mark: float | None = NEAR, finest: float = 0.0) -> NatsScale:
        """The scale that holds all values.

        Where the 2nd and 98th percentiles of the sizes are at most two decades apart it is linear
        up to the 98th, so that only outliers meet its logarithmic part. Else it is linear up to the
        power of ten below the 2nd percentile.

        Args:
            values: of any shape, in nats; NaN is ignored. mark: lies inside the scale in any case.
            finest: the narrowest linear part, in nats, such as the errors of the values.
        """
        values = np.asarray(values, dtype=np.float64)
        values = values[np.isfinite(values)]
        largest = max(float(values.max(initial=0.0)), 1.2 * (mark or 0.0))
        least = min(float(values.min(initial=0.0)), 0.0)
        sizes = np.abs(values[values != 0])
        if not sizes.size:
            return cls(0.0, largest or 1.0, largest or 1.0, 3.0, mark)
        low, high = map(float, np.quantile(sizes, [0.02, 0.98], method="closest_observation"))
        low = min(low, mark or low)
        reach = max(largest, -least)
        if high <= DECADES * low:
            linear, room = high, 3.0
        else:
            linear, room = 10.0 ** math.floor(math.log10(low)), 1.0
        return cls(least, largest, max(linear, finest, FINEST * reach), room, mark)

    def positions(self, values: ArrayLike) -> Floats:
        """Where values lie on the scale, from 0 at its bottom to 1 at its top."""
        low, high, found = (self._decades(x) for x in (self.bottom, self.top, values))
        return (found - low) / (high - low)

    def norm(self) -> SymLogNorm:
        """As a scale of colours."""
        return SymLogNorm(
            self.linear, linscale=self._linscale, vmin=self.bottom, vmax=self.top, clip=True
        )

    def apply(self, axes: Axes, axis: str = "y", *, margin: float = 0.04) -> None:
        """As the scale of an axis, x or y, with its ticks, and a dashed line at `mark`.

        Args:
            margin: the free part beyond the largest value, and below the least negative one.
        """
        scale = {"linthresh": self.linear, "linscale": self._linscale}
        low, high = self.inverse(-margin if self.bottom < 0 else 0.0), self.inverse(1 + margin)
        length = 72 * 0.75 * axes_inches(axes)[axis == "y"]  # a layout engine may make it shorter
        places, labels = self.ticks(SPACING[axis] / length)
        if axis == "x":
            axes.set_xscale("symlog", **scale)
            axes.set_xlim(low, high)
            axes.set_xticks(places, labels)
            axes.set_xticks([], minor=True)
        else:
            axes.set_yscale("symlog", **scale)
            axes.set_ylim(low, high)
            axes.set_yticks(places, labels)
            axes.set_yticks([], minor=True)
        if self.mark is not None:
            line = axes.axvline if axis == "x" else axes.axhline
            line(self.mark, color="#666666", linewidth=1, linestyle=(0, (4, 3)), zorder=0)

    def label(self, bar: Colorbar) -> None:
        """The ticks of a colour bar that has this norm, and a line at `mark`."""
        places, labels = self.ticks()
        bar.set_ticks(places, labels=labels)
        bar.minorticks_off()
        if self.mark is not None:
            bar.ax.axhline(self.mark, color="white", linewidth=3)
            bar.ax.axhline(self.mark, color="#222222", linewidth=1.2)

    def ticks(self, gap: float = GAP) -> tuple[list[float], list[str]]:
        """Places and labels of ticks that are at least `gap` of the scale apart."""
        chosen: list[float] = []
        for value in self._candidates():
            if not self.bottom <= value <= self.top:
                continue
            places = self.positions(np.array([value, *chosen]))
            if (np.abs(places[1:] - places[0]) >= gap).all():
                chosen.append(value)
        chosen.sort()
        return chosen, [readable(value, digits=2).replace("-", "−") for value in chosen]

    def _candidates(self) -> Sequence[float]:
        """Values worth a label, the most important first."""
        powers = [10.0**k for k in range(math.ceil(math.log10(self.linear)), 4)]
        found = [0.0, *powers[::-1]]
        if self.room > 1:  # mostly linear: even steps
            step = 10.0 ** math.floor(math.log10(self.linear))
            step *= next(x for x in (0.1, 0.2, 0.5, 1.0, 2.0) if self.linear / (x * step) <= 6)
            found = [0.0, *(step * n for n in range(1, 7)), *powers[::-1]]
        last = max((x for x in powers if x <= self.top), default=self.linear)
        found += [5 * last, 2 * last]
        negative = [-x for x in found if x]
        mark = [] if self.mark is None else [self.mark]
        return [*mark, *found, *negative, self.top, self.bottom]

    @property
    def _linscale(self) -> float:
        """`room` as matplotlib counts it: times 1 − 1/base."""
        return 0.9 * self.room

    def _decades(self, values: ArrayLike) -> Floats:
        """The distance from 0 on the scale, in decades."""
        values = np.asarray(values, dtype=np.float64)
        sizes = np.abs(values) / self.linear
        beyond = self.room + np.log10(np.maximum(sizes, 1.0))
        return np.asarray(np.sign(values) * np.where(sizes <= 1, self.room * sizes, beyond))

    def inverse(self, position: float) -> float:
        """The value at a position of the scale, which may lie beyond its ends."""
        low, high = (float(self._decades(x)) for x in (self.bottom, self.top))
        decades = low + position * (high - low)
        size = abs(decades)
        size = size / self.room if size <= self.room else 10.0 ** (size - self.room)
        return math.copysign(size * self.linear, decades)
