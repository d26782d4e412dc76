"""Epoch: what ELA holds on to while an epoch trains, and what that cost."""

import time

import torch

from ela_probe.analysis.probe import AttentionProbe
from ela_probe.system.arrays import Floats
from ela_probe.training.ela.clock import Clock


class Epoch:
    """What lasts for an epoch: its clocks, its probe, what it skips at random.

    began: when; elsewhere: seconds of it that were no training. clock: of probing and planning.
    steps: of a compiled network's steps, probed or not. probe: None once the plan is final.
    every: batches from one probed one to the next. scores: see `GradualPruning.scores`.
    skips: retrievals skipped in all `batches` together.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.began, self.elsewhere = time.perf_counter(), 0.0
        self.clock, self.steps = Clock(device), {True: Clock(device), False: Clock(device)}
        self.probe: AttentionProbe | None = None
        self.every, self.batches, self.skips = 1, 0, 0
        self.scores: list[Floats] = []

    def probe_of(self, batch: int) -> AttentionProbe | None:
        """The probe, if it is this batch's turn."""
        return self.probe if batch % self.every == self.every // 2 else None

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def cost(self, *, compiled: bool) -> float:
        """Seconds of probing and planning; also of running probed steps uncompiled, if more."""
        probed, others = self.steps[True].pieces, self.steps[False]
        excess = sum(probed) - len(probed) * others.median if compiled and others.pieces else 0.0
        return max(self.clock.seconds, excess)
