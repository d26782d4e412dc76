"""How the loss of the same samples differs between two models."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from ela_probe.errors import DataError
from ela_probe.evaluation.objectives import Matched, objective_of
from ela_probe.forward import call, eval_mode, inputs_and_labels
from ela_probe.system.memory_format import to_memory_format
from ela_probe.system.nested_tensors import mapped
from ela_probe.system.progress import track


class LossChange(NamedTuple):
    """Mean losses over the samples, in nats; the change with its standard error over samples."""

    samples: int
    before: float
    after: float
    change: float
    se: float


@torch.no_grad()
def loss_change(
    model: nn.Module,
    other: nn.Module,
    batches: Iterable[Any],
    device: torch.device,
    *,
    progress: bool = True,
) -> LossChange:
    """The loss of `other` less that of `model`, in eval mode, sample by sample.

    Raises:
        DataError: batches without integer labels, or a model that returns no logits.
    """
    model.to(device)
    other.to(device)
    pairs: list[torch.Tensor] = []
    with eval_mode(model), eval_mode(other):
        for batch in track(batches, "checking the loss", progress=progress):
            inputs, labels = inputs_and_labels(batch)
            pairs.append(torch.stack([_losses(m, inputs, labels, device) for m in (model, other)]))
    before, after = torch.cat(pairs, dim=1) if pairs else torch.zeros(2, 0).double()
    count = before.numel()
    if not count:
        raise DataError("the loss can't be checked: there is no sample with a label")
    change = after - before
    se = float(change.std() / math.sqrt(count)) if count > 1 else math.nan
    return LossChange(count, float(before.mean()), float(after.mean()), float(change.mean()), se)


def _losses(model: nn.Module, inputs: Any, labels: Any, device: torch.device) -> torch.Tensor:
    """The loss of each sample that counts, float64 on the CPU. Raises DataError."""
    objective = objective_of(model)
    given = mapped(inputs, lambda t: to_memory_format(t.to(device), model))
    matched = objective.matched(call(model, objective.arguments(given, labels)), labels)
    if matched is None:
        raise DataError(
            "the loss can't be checked: it needs integer labels, and a model that returns logits"
        )
    if isinstance(matched.output, torch.Tensor):
        matched = Matched(matched.output.cpu().double(), matched.targets.cpu())
    losses, counted = objective.sample_losses(matched)
    return losses[counted > 0].cpu().double()
