"""TrainingDamage: what each action at each site would add to the loss, while the network trains."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.adapters.handover import Handover
from ela_probe.analysis.damage import StageDamage
from ela_probe.analysis.damage_probe import DamageProbe
from ela_probe.analysis.stand_ins import NormalEquations, slices
from ela_probe.forward import logits_of
from ela_probe.sites import Stage
from ela_probe.system.processes import all_gather
from ela_probe.training.ela.clock import Clock


class TrainingDamage(DamageProbe):
    """Damage from the gradients of training: one inner product more for each site and action.

    The network is in train mode, so these are estimates: a batch norm lets the samples of a batch
    read each other. Stand-ins are fitted to the batches so far, the current one included.

    Args:
        model, handovers: as `DamageProbe` takes them.
        clock: counts the time that this takes.
    """

    def __init__(
        self, model: nn.Module, handovers: Mapping[str, Handover], *, clock: Clock
    ) -> None:
        super().__init__(model, handovers)
        self._fits: dict[str, NormalEquations] = {}
        self._clock = clock
        self._predictions = 1  # of a sample of the current batch, as of the tokens of a sequence

    def __enter__(self) -> "TrainingDamage":
        self._hooks.__enter__()
        self._after = self._model.register_forward_hook(self._returned)
        return self

    def __exit__(self, *exception: object) -> None:
        self._after.remove()
        super().__exit__(*exception)

    def _returned(self, model: nn.Module, inputs: Any, output: Any) -> None:
        logits = logits_of(output)
        self._predictions = 1 if logits is None else max(1, math.prod(logits.shape[1:-1]))

    def add(self, scale: float) -> None:
        """Add the pass whose loss was differentiated last; nothing where there was none.

        Args:
            scale: what the loss was divided by, besides the number of samples of the batch: the
                loss that was differentiated is a mean over these.
        """
        with self._clock:
            if self._found:
                changes, _ = next(iter(self._found.values()))
                samples = changes.shape[-1]
                each = torch.full((samples,), self._predictions, device=changes.device)
                self._add(each, scale * samples)

    def compute(self, stages: Sequence[Stage]) -> dict[str, StageDamage]:
        """As `DamageProbe.compute`, with stand-ins fitted to the batches of all processes."""
        parts, self._fits = all_gather(self._fits), {}
        for part in parts:
            for site, sums in part.items():
                self._fits[site] = self._fits[site] + sums if site in self._fits else sums
        for site in self._fits:
            self._stand_ins[site] = self._solved(site)
        return super().compute(stages)

    def _solved(self, site: str) -> Tensor:
        return self._fits[site].solve(has_shift=self._handovers[site].has_shift)

    def _arrive(self, site: str, tensors: Sequence[Tensor], y: Tensor) -> Tensor | None:
        handover = self._handovers[site]
        if not (torch.is_grad_enabled() and y.requires_grad):
            return None
        if "affine" in handover.actions:
            with self._clock, torch.no_grad():
                for part in slices(tensors):
                    found = NormalEquations.of(handover.alternatives(*part), handover.channel_axis)
                    self._fits[site] = self._fits[site] + found if site in self._fits else found
        return super()._arrive(site, tensors, y)

    def _differentiated(
        self, site: str, tensors: list[Tensor], versions: list[int], gradient: Tensor
    ) -> None:
        with self._clock:
            if site in self._fits:
                self._stand_ins[site] = self._solved(site)
            super()._differentiated(site, tensors, versions, gradient)
