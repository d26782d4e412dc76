"""Comparisons that are written down, not measured."""

from ela_probe.analysis.result import Analysis
from ela_probe.evaluation.comparison import (
    Compared,
    Comparison,
    Latency,
    Machine,
    PeakMemory,
    Timing,
)
from ela_probe.sites import fingerprint

MACHINE = Machine(
    platform="p", cpu="c", cpu_count=2, torch_threads=2, python="3", torch="2", device="cpu",
    device_name="c",
)  # fmt: skip


def compared(
    name: str,
    *,
    kept: int,
    skipped: int = 0,
    fingerprints: tuple[str, ...] = (),
    ratios: tuple[float, ...] = (1.0,) * 8,
) -> Compared:
    timing = Timing.of([0.01 * r for r in ratios], [0.01] * len(ratios))
    return Compared(
        name=name, accuracy=0.5, loss=1.25, samples=8, parameters=10, parameters_ratio=1.0,
        flops=10, flops_ratio=1.0, kept=kept, skipped=skipped, fingerprints=fingerprints,
        latency=Latency(training=timing, inference=timing),
        memory=PeakMemory(training=2**20, inference=2**19),
    )  # fmt: skip


def comparison_of(*models: Compared) -> Comparison:
    return Comparison(models=models, batch_shape=(4, 3, 8, 8), machine=MACHINE)


def of_analysis(analysis: Analysis, name: str = "a.pt") -> Comparison:
    stages = [part.stage for part in analysis.stages]
    count = sum(len(stage.sites) for stage in stages)
    return comparison_of(compared(name, kept=count, fingerprints=(fingerprint(stages),)))
