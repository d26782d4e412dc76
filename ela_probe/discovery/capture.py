"""Capture: reads the weights of every site in every forward pass, and hands them on by stage.

It only reads; the receiver decides what to do with the weights (sums, shapes).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.adapters.registry import Adapter, MixingAdapter, ReducingAdapter
from ela_probe.discovery.hooks import Hooks
from ela_probe.discovery.sampling import Sampling
from ela_probe.discovery.watch import Firing, Watch
from ela_probe.errors import ProbeError
from ela_probe.forward import uncompiled
from ela_probe.sites import Reads, Site, Stage, has_divergences
from ela_probe.spreading import with_weights
from ela_probe.system.nested_tensors import tensors_of


class Capture:
    """A context manager that reads a model's sites while it runs.

    What is read is detached and copied at once, so that later in-place operations do not change
    it, and dropped when the pass ends. Recomputation in a backward pass is ignored, and so is
    every call of a copy of the model.

    Args:
        model: unwrapped. It runs uncompiled while it is read.
        adapter: turns the tensors that were read into weights.
        stages: the sites to read.
        receive: called once for each recorded pass, with the weights [samples, ..., sources] of
            each site of each stage.
        sampling: which passes are recorded; the others run without hooks on the sites.

    Attributes:
        passes: the number of recorded forward passes.
        seen: the number of forward passes, recorded or not.
        stray: whether sites fired outside the model's own forward.
        input_shape: the shape of the first input tensor in the current pass.
        mask: of the tokens in the current pass [samples, tokens], False for padding; None where
            the model was called without an `attention_mask` of that shape.
        mixed: by the name of a stage of `signed` weights, the mixed values of its sites in the
            current pass, [samples, ...].
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        *,
        stages: Sequence[Stage],
        receive: Callable[[list[list[Tensor]]], None],
        sampling: Sampling = Sampling(),
    ) -> None:
        self._model, self._adapter, self._stages = model, adapter, tuple(stages)
        self._receive, self._sampling = receive, sampling
        self._points = {(site.module, site.reads) for stage in stages for site in stage.sites}
        self._operands = {
            (site.module, site.call): site.operand
            for stage in stages
            for site in stage.sites
            if site.reads == "sum"
        }
        self._captured: dict[tuple[str, Reads], list[tuple[Tensor, ...]]] = {}
        self._inside = False
        self._hooks = Hooks()
        self._watch: Watch | None = None
        self._around = ExitStack()
        self.passes, self.seen, self.stray = 0, 0, False
        self.input_shape: tuple[int, ...] = ()
        self.mask: Tensor | None = None
        self.mixed: dict[str, list[Tensor]] = {}

    def __enter__(self) -> "Capture":
        if self._hooks:
            raise ProbeError("this probe is active already; leave its `with` block first")
        try:
            self._around.enter_context(uncompiled(self._model))
            seen = {reads for _, reads in self._points}
            if seen & {"softmax", "sum"}:
                watch = Watch(self._model, self._fired, sums="sum" in seen)
                self._watch = self._around.enter_context(watch)
            self._attach(self._sampling.records(self.seen))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._remove()

    def _attach(self, record: bool) -> None:
        """Hook every site, to record the next pass; or only count the next pass."""
        root = self._model
        self._hooks.remove()
        if not record:
            if self._watch is not None:
                self._watch.pause()
            self._hooks.after(root, self._pass_by)
            return
        if self._watch is not None:
            self._watch.resume()
        self._hooks.before(root, self._begin)
        for name, reads in sorted(self._points):
            module = root.get_submodule(name)
            if reads == "inputs":
                self._hooks.before(module, partial(self._read_inputs, name))
            elif reads == "output":
                self._hooks.after(module, partial(self._read_output, name))
        self._hooks.after(root, self._end)
        self._hooks.after(root, self._left, always=True)

    def _remove(self) -> None:
        self._watch = None
        try:
            self._around.close()
        finally:
            self._hooks.remove()
            self._captured.clear()
            self.mixed = {}
            self._inside = False

    def _read_inputs(
        self, name: str, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self._read(name, "inputs", (*inputs, *options.values()))

    def _read_output(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self._read(name, "output", output)

    def _fired(self, firing: Firing) -> None:
        name = firing.modules[-1]
        if firing.what == "softmax" and (name, "softmax") in self._points:
            self._read(name, "softmax", firing.value)
        elif firing.what == "sum" and (name, "sum") in self._points:
            operand = self._operands.get((name, len(self._captured.get((name, "sum"), ()))))
            kept = () if operand is None else (firing.operands[operand], firing.value)
            self._read(name, "sum", kept)

    def _read(self, name: str, reads: Reads, values: Any) -> None:
        if not self._inside:  # recomputed in a backward pass, or a part called by itself
            self.stray = True
            return
        fired = self._captured.setdefault((name, reads), [])
        if isinstance(self._adapter, ReducingAdapter):
            module = self._model.get_submodule(name)
            with torch.no_grad(), with_weights(module):
                read = self._adapter.reduced(
                    self._model, name, len(fired), tuple(tensors_of(values))
                )
        else:
            read = tuple(tensor.clone() for tensor in tensors_of(values))
        fired.append(read)

    def _begin(self, module: nn.Module, inputs: Any, options: Any) -> None:
        self._captured.clear()  # what an interrupted pass left behind
        self._inside = True
        first = next(tensors_of((inputs, options)), None)
        self.input_shape = () if first is None else tuple(first.shape)
        mask = options.get("attention_mask")
        is_mask = isinstance(mask, Tensor) and mask.dim() == 2 and not mask.is_floating_point()
        self.mask = mask.detach() != 0 if is_mask else None

    def _left(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._captured.clear()
        self._inside = False

    @torch.no_grad()
    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        captured, self._captured, self._inside = self._captured, {}, False
        read = [[_fired_at(site, captured) for site in stage.sites] for stage in self._stages]
        device = next((t.device.type for site in read[0] for t in site), "cpu")
        mixed = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            self.mixed = {
                stage.name: self._mixed(stage, sites)
                for stage, sites in zip(self._stages, read, strict=True)
                if not has_divergences(stage.kind)
            }
            self._receive(
                [
                    self._adapter.weights(self._model, stage, sites)
                    for stage, sites in zip(self._stages, read, strict=True)
                ]
            )
        self.mixed = {}
        self.passes += 1
        self._pass_by()

    def _mixed(self, stage: Stage, sites: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
        if not isinstance(self._adapter, MixingAdapter):
            raise ProbeError(
                f"the adapter {self._adapter.name} gives {stage.name} signed weights, but not what "
                "its sites retrieve: it needs the method `mixed` (docs/adapters.md)"
            )
        return self._adapter.mixed(self._model, stage, sites)

    def _pass_by(self, *_: object) -> None:
        recorded = self._sampling.records(self.seen)
        self.seen += 1
        if self._sampling.records(self.seen) != recorded:
            self._attach(not recorded)


def _fired_at(
    site: Site, captured: dict[tuple[str, Reads], list[tuple[Tensor, ...]]]
) -> tuple[Tensor, ...]:
    """The tensors read at a site. Raises ProbeError when its module did not fire as expected."""
    fired = captured.get((site.module, site.reads), [])
    if len(fired) != site.calls:
        times = "once" if site.calls == 1 else f"{site.calls} times"
        raise ProbeError(
            f"{site.name} fired {len(fired)} times in a forward pass; expected {times}. Probe the "
            "model after pruning, and call it as a whole"
        )
    return fired[site.call]
