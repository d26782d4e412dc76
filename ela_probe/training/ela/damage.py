"""What the actions at sites do to the loss while a network trains: to come, and carried out.

`TrainingDamage` is about sites that still retrieve, `StandInGradients` about those that don't.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.adapters.handover import Handover
from ela_probe.analysis.damage import StageDamage
from ela_probe.analysis.damage_probe import DamageProbe
from ela_probe.analysis.stand_ins import NormalEquations, slices
from ela_probe.discovery.hooks import Hooks
from ela_probe.forward import logits_of
from ela_probe.models.detection import Detector
from ela_probe.models.stand_in import StandIn
from ela_probe.sites import Stage
from ela_probe.system.processes import all_gather
from ela_probe.training.ela.clock import Clock


class TrainingDamage(DamageProbe):
    """Damage from the gradients of training: one inner product more for each site and action.

    The network is in train mode, so these are estimates: a batch norm lets the samples of a batch
    read each other. Stand-ins are fitted to the batches so far, the current one included.

    Where the parameters up to a site are frozen, the graph begins at the site, so that its damage
    is measured too; the gradients of the parameters are the same. A site that no gradient comes to,
    as in a part that runs without gradients, has no damage: it is not measured, and not 0.

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
        # of a sample of the current batch: the tokens of a sequence, the objects of an image
        self._predictions: int | Tensor = 1

    def __enter__(self) -> "TrainingDamage":
        self._hooks.__enter__()
        self._after = self._model.register_forward_hook(self._returned)
        return self

    def __exit__(self, *exception: object) -> None:
        self._after.remove()
        super().__exit__(*exception)

    def _returned(self, model: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(model, Detector):
            self._predictions = model.predictions()
            return
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
                each = torch.as_tensor(self._predictions, device=changes.device).expand(samples)
                self._add(each, scale * samples)

    def compute(self, stages: Sequence[Stage]) -> dict[str, StageDamage]:
        """As `DamageProbe.compute`, with stand-ins fitted to the batches of all processes."""
        parts, self._fits = all_gather(self._fits), {}
        for part in parts:
            for site, sums in part.items():
                self._fits[site] = self._fits[site] + sums if site in self._fits else sums
        for site in self._fits:
            self._stand_ins[site] = self._solved(site)
        self.reached = set().union(*all_gather(self.reached))
        return super().compute(stages)

    def _measures(self, site: str, action: str) -> bool:
        return site in self.reached and super()._measures(site, action)

    def _solved(self, site: str) -> Tensor:
        return self._fits[site].solve(has_shift=self._handovers[site].has_shift)

    def _arrive(self, site: str, tensors: Sequence[Tensor], y: Tensor) -> Tensor | None:
        handover = self._handovers[site]
        if not torch.is_grad_enabled():
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


class StandInGradients:
    """A context manager: how strongly the loss of a sample depends on each stand-in.

    It is the norm of the gradient of the sample's loss by the stand-in's parameters, as a mean over
    the samples of all passes.

    Args:
        stand_ins: by site name. clock: counts the time that this takes.
    """

    def __init__(self, stand_ins: Mapping[str, StandIn], *, clock: Clock) -> None:
        self._stand_ins, self._clock, self._hooks = dict(stand_ins), clock, Hooks()
        self._found: dict[str, tuple[float, int]] = {}  # of the current pass: sum and samples
        self._sums: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> "StandInGradients":
        for site, stand_in in self._stand_ins.items():
            self._hooks.after(stand_in, partial(self._ran, site))
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.remove()
        self._found.clear()

    def _ran(self, site: str, stand_in: nn.Module, terms: Sequence[Tensor], output: Tensor) -> None:
        if output.requires_grad:
            read = [term.detach() for term in terms]
            output.register_hook(partial(self._differentiated, site, read))

    def _differentiated(self, site: str, terms: Sequence[Tensor], gradient: Tensor) -> None:
        with self._clock, torch.no_grad():
            stand_in = self._stand_ins[site]
            parts = [gradient * term for term in terms]
            parts += [] if stand_in.shift is None else [gradient]
            squares = sum(_by_channel(p, stand_in.channel_axis).square().sum(dim=1) for p in parts)
            assert isinstance(squares, Tensor)
            # of a mean over samples: the gradient of a sample's loss is so many times larger
            total = len(gradient) * float(squares.double().sqrt().sum())
            self._found[site] = total, len(gradient)

    def add(self, scale: float) -> None:
        """Add the pass whose loss was differentiated last; `scale` as in `TrainingDamage.add`."""
        for site, (total, samples) in self._found.items():
            if math.isfinite(total):
                before = self._sums.get(site, (0.0, 0))
                self._sums[site] = before[0] + scale * total, before[1] + samples
        self._found.clear()

    def compute(self) -> dict[str, float]:
        """The means by site, over the samples of all processes; empty where nothing was added."""
        parts = all_gather(self._sums)
        sites = dict.fromkeys(site for part in parts for site in part)
        found = {site: [part[site] for part in parts if site in part] for site in sites}
        return {s: sum(t for t, _ in each) / sum(n for _, n in each) for s, each in found.items()}


def _by_channel(values: Tensor, channel_axis: int) -> Tensor:
    """Sums over all axes but the first and that of the channels: [samples, channels]."""
    kept = {0, values.ndim + channel_axis}
    summed = [axis for axis in range(values.ndim) if axis not in kept]
    return values.sum(dim=summed) if summed else values
