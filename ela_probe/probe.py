"""AttentionProbe: hooks in, sums out. It reads a model's retrievals while the model runs."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ela_probe.adapters import unwrap
from ela_probe.discovery import Discovery, discover
from ela_probe.errors import ProbeError
from ela_probe.redundancy import RedundancyMetric
from ela_probe.sites import Reads


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
        self._adapter = discovery.adapter
        self.stages = discovery.stages
        self.metrics = {
            stage.name: RedundancyMetric(stage.sizes, names=[site.name for site in stage.sites])
            for stage in self.stages
        }
        self.passes = 0
        self._captured: dict[tuple[str, Reads], list[tuple[Tensor, ...]]] = {}
        self._inside = self._stray = False
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "AttentionProbe":
        if self._handles:
            raise ProbeError("this probe is active already; leave its `with` block first")
        points = {(site.module, site.reads) for stage in self.stages for site in stage.sites}
        try:
            for name, reads in sorted(points):
                module = self._model.get_submodule(name)
                hook = self._reader(name, reads)
                self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
            self._handles.append(self._model.register_forward_pre_hook(self._begin))
            self._handles.append(self._model.register_forward_hook(self._end))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._remove()
        if kind is None and not self.passes:
            raise ProbeError(
                "sites fired, but the model's own forward was never called; call the model itself"
                if self._stray
                else "no forward pass was seen inside the probe; run the probed model on a batch"
            )

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._captured.clear()
        self._inside = False

    def _reader(self, name: str, reads: Reads) -> Callable[..., None]:
        def read(
            module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any
        ) -> None:
            if not self._inside:  # recomputed for the backward pass, or a part called by itself
                self._stray = True
                return
            values = (*inputs, *options.values()) if reads == "inputs" else output
            self._captured.setdefault((name, reads), []).append(tuple(tensors_of(values)))

        return read

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        self._captured.clear()  # what a pass that raised left behind
        self._inside = True

    @torch.no_grad()
    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        captured, self._captured, self._inside = self._captured, {}, False
        for stage in self.stages:
            read = []
            for site in stage.sites:
                fired = captured.get((site.module, site.reads), [])
                if len(fired) != site.calls:
                    times = "once" if site.calls == 1 else f"{site.calls} times"
                    raise ProbeError(
                        f"{site.name} fired {len(fired)} times in a forward pass; expected "
                        f"{times}. Probe the model after pruning, uncompiled, and call it as a "
                        "whole"
                    )
                read.append(fired[site.call])
            weights = self._adapter.weights(self._model, stage, read)
            metric = self.metrics[stage.name]
            device = weights[0].device
            if device.type == "mps":  # it has no float64
                weights, device = [w.cpu() for w in weights], torch.device("cpu")
            if metric.device != device:
                metric.to(device)
            metric.update(weights)
        self.passes += 1


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts, detached, in order."""
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_of(item)
