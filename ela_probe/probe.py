"""AttentionProbe: hooks in, sums out. It reads a model's retrievals while the model runs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ela_probe.adapters import adapter_for, unwrap
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

    Attributes:
        stages: the stages found, in forward order.
        metrics: one RedundancyMetric a stage, by its name.
        passes: how many forward passes were recorded.

    Raises:
        ModelError: no layer attention found, or the model was compiled.
        ProbeError: (from the model's forward pass) a site did not fire, or fired twice, or with
            weights of an unexpected shape or value; (on leaving the block) no pass was seen.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = unwrap(model)
        self._adapter = adapter_for(self._model)
        self.stages = self._adapter.stages(self._model)
        self.metrics = {
            stage.name: RedundancyMetric(stage.sizes, names=[site.name for site in stage.sites])
            for stage in self.stages
        }
        self.passes = 0
        self._captured: dict[str, list[tuple[Tensor, ...]]] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "AttentionProbe":
        if self._handles:
            raise ProbeError("this probe is active already; leave its `with` block first")
        try:
            for stage in self.stages:
                for site in stage.sites:
                    tap = self._model.get_submodule(site.tap)
                    self._handles.append(tap.register_forward_hook(self._reader(site.tap)))
            self._handles.append(self._model.register_forward_pre_hook(self._begin))
            self._handles.append(self._model.register_forward_hook(self._end))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        fired = bool(self._captured)
        self._remove()
        if kind is None and not self.passes:
            raise ProbeError(
                "sites fired, but the model's own forward was never called; call the model itself"
                if fired
                else "no forward pass was seen inside the probe; run the probed model on a batch"
            )

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._captured.clear()

    def _reader(self, tap: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def read(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._captured.setdefault(tap, []).append(tuple(value.detach() for value in inputs))

        return read

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        self._captured.clear()  # what a pass that raised left behind

    @torch.no_grad()
    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        captured, self._captured = self._captured, {}
        for stage in self.stages:
            taps = []
            for site in stage.sites:
                fired = captured.get(site.tap, [])
                if len(fired) != 1:
                    raise ProbeError(
                        f"{site.name} fired {len(fired)} times in a forward pass; expected once. "
                        "Probe the model after pruning, uncompiled, and call it as a whole"
                    )
                taps.append(fired[0])
            weights = self._adapter.weights(stage, taps)
            metric = self.metrics[stage.name]
            device = weights[0].device
            if device.type == "mps":  # it has no float64
                weights, device = [w.cpu() for w in weights], torch.device("cpu")
            if metric.device != device:
                metric.to(device)
            metric.update(weights)
        self.passes += 1
