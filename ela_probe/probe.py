"""AttentionProbe: hooks in, sums out. It reads a model's retrievals while the model runs."""

from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.adapters import unwrap
from ela_probe.capture import Capture
from ela_probe.discovery import Discovery, discover
from ela_probe.errors import ProbeError
from ela_probe.redundancy import RedundancyMetric


class AttentionProbe:
    """A context manager that streams a model's layer-attention weights into metrics.

    Every forward pass of the model inside the `with` block counts; no batch is kept. The model's
    modes, parameters, outputs and random state are left alone, and only the probe's own hooks are
    removed when the block ends, however it ends.

        with AttentionProbe(model) as probe:
            for images, _ in loader:
                model(images)
        probe.metrics["stages.0"].compute()

    Args:
        model: a model with layer attention, plain or inside DataParallel or
            DistributedDataParallel.
        example_inputs: a small batch, for a model that no adapter knows (see `discover`).
        discovery: what `discover` found, when it was called already.

    Attributes:
        stages: the stages found, in forward order.
        metrics: one RedundancyMetric a stage, by its name.
        passes: how many forward passes were recorded.

    Raises:
        ModelError: no layer attention found, or the model was compiled.
        ProbeError: (from the model's forward pass) a site did not fire, or fired twice, or with
            weights of an unexpected shape or value; (on leaving the block) no pass was seen.
    """

    def __init__(
        self, model: nn.Module, *, example_inputs: Any = None, discovery: Discovery | None = None
    ) -> None:
        self._model = unwrap(model)
        discovery = discovery or discover(self._model, example_inputs)
        self.stages = discovery.stages
        self.metrics = {
            stage.name: RedundancyMetric(stage.sizes, names=[site.name for site in stage.sites])
            for stage in self.stages
        }
        self._capture = Capture(
            self._model, discovery.adapter, stages=self.stages, receive=self._add
        )

    @property
    def passes(self) -> int:
        return self._capture.passes

    def __enter__(self) -> "AttentionProbe":
        self._capture.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._capture.__exit__()
        if kind is None and not self.passes:
            raise ProbeError(
                "sites fired, but the model's own forward was never called; call the model itself"
                if self._capture.stray
                else "no forward pass was seen inside the probe; run the probed model on a batch"
            )

    def _add(self, weights: list[list[Tensor]]) -> None:
        for stage, retrievals in zip(self.stages, weights, strict=True):
            metric = self.metrics[stage.name]
            device = retrievals[0].device
            if device.type == "mps":  # it has no float64
                retrievals, device = [w.cpu() for w in retrievals], torch.device("cpu")
            if metric.device != device:
                metric.to(device)
            metric.update(retrievals)
