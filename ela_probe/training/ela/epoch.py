"""Epoch: what ELA keeps while an epoch trains, and the time that ELA took in it."""

import time
from typing import Any

import torch

from ela_probe.analysis.probe import AttentionProbe
from ela_probe.system.arrays import Floats
from ela_probe.training.ela.clock import Clock
from ela_probe.training.ela.damage import StandInGradients, TrainingDamage


class Epoch:
    """The clocks, the probe and the random skips of one epoch.

    Attributes:
        start: when the epoch began (`time.perf_counter`).
        validation_seconds: the part of the epoch that was validation.
        overhead: clock of probing and planning.
        step_clocks: of a compiled network, clocks of the probed steps (True) and the others.
        probe: None once the plan is final.
        damage: measures damage with the probe; None where the settings don't need it.
        gradients: those of stand-ins, with the probe; None where no removed site may come back.
        every: batches from one probed batch to the next.
        batches: how many batches there were so far.
        skipped: retrievals skipped, in all batches together.
        first_batches: batches before a first removal within the epoch; None: none comes.
        last_batch: what the last probed batch held, where costs are measured on it.
        scores: see `GradualPruning.scores`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start, self.validation_seconds = time.perf_counter(), 0.0
        self.overhead = Clock(device)
        self.step_clocks = {True: Clock(device), False: Clock(device)}
        self.probe: AttentionProbe | None = None
        self.damage: TrainingDamage | None = None
        self.gradients: StandInGradients | None = None
        self.every, self.batches, self.skipped = 1, 0, 0
        self.first_batches: int | None = None
        self.last_batch: Any = None
        self.scores: list[Floats] = []

    def probe_for(self, batch: int) -> AttentionProbe | None:
        """The probe if this batch is to be probed, else None."""
        return self.probe if batch % self.every == self.every // 2 else None

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def training_seconds(self) -> float:
        """Seconds since the epoch began, without validation."""
        return time.perf_counter() - self.start - self.validation_seconds

    def overhead_seconds(self, *, compiled: bool) -> float:
        """Seconds of probing and planning.

        Probed steps of a compiled network run uncompiled. The time that this adds counts if it is
        more than what the clock measured.
        """
        probed, others = self.step_clocks[True].pieces, self.step_clocks[False]
        added = sum(probed) - len(probed) * others.median if compiled and others.pieces else 0.0
        return max(self.overhead.seconds, added)
