"""AttentionProbe: reads a model's retrievals while the model runs, and adds them up."""

from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.adapters.registry import HeadedAdapter
from ela_probe.analysis.ebqm import Target
from ela_probe.analysis.metric import RedundancyMetric
from ela_probe.analysis.mixing_metric import MixingMetric
from ela_probe.analysis.result import Analysis, Provenance, StageAnalysis
from ela_probe.analysis.sample_views import Known, one_class_each
from ela_probe.discovery.capture import Capture
from ela_probe.discovery.discover import Discovery, discover
from ela_probe.discovery.sampling import Sampling, positions, token_axis, without_padding
from ela_probe.errors import ProbeError
from ela_probe.forward import check_has_values, uncompiled, unwrap
from ela_probe.sites import Stage, has_divergences
from ela_probe.system.processes import is_first


class AttentionProbe:
    """A context manager that streams a model's layer-attention weights into metrics.

    Every forward pass of the model inside the `with` block counts, and no batch is stored. Tokens
    that the model's `attention_mask` [samples, tokens] calls padding are left out. The model's
    modes, parameters, outputs and random state don't change. When the block ends, also by an error,
    the probe removes its own hooks and no others.

        with AttentionProbe(model) as probe:
            for images, _ in loader:
                model(images)
        plan = make_plan(probe.analysis(), skip=0.3)

    Args:
        model: a model with layer attention, plain or inside DataParallel, DistributedDataParallel
            or torch.compile. A compiled model, or part of it, runs uncompiled inside the block.
        example_inputs: a small batch, for a model that no adapter knows (see `discover`).
        discovery: what `discover` found, when it was called already.
        every: record the first of every `every` forward passes; the others run without hooks on
            the sites.
        max_batches: stop recording after this many passes.
        max_tokens: of a sequence model, record at most this many token positions of a sample. They
            are evenly spaced (`sampling.positions`) and the same for all sites.
        by_sample: also record divergences by class and the most unusual samples; call `expect`
            before each pass.

    Attributes:
        stages: the stages found, in forward order.
        metrics: one metric for each stage, by its name: a RedundancyMetric, or for `signed`
            weights a MixingMetric.
        sampling: which passes and positions are recorded.
        passes: the number of recorded forward passes.
        seen: the number of forward passes, recorded or not.

    Raises:
        ModelError: no layer attention found, or the model was scripted; (on leaving the block) it
            is on the meta device.
        OptionError: `every`, `max_batches` or `max_tokens` below 1.
        ProbeError: (from the model's forward pass) a site did not fire, or fired twice, or with
            weights of an unexpected shape or value, or without a token axis for `max_tokens`;
            (on leaving the block) no pass was seen, or weights on an accelerator were broken.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        example_inputs: Any = None,
        discovery: Discovery | None = None,
        every: int = 1,
        max_batches: int | None = None,
        max_tokens: int | None = None,
        by_sample: bool = False,
    ) -> None:
        self.sampling = Sampling(every, max_batches, max_tokens)
        self._model = unwrap(model)
        discovery = discovery or discover(self._model, example_inputs)
        self.stages = discovery.stages
        self.metrics = {
            stage.name: self._metric(discovery, stage, by_sample=by_sample) for stage in self.stages
        }
        self._capture = Capture(
            self._model,
            discovery.adapter,
            stages=self.stages,
            receive=self._add,
            sampling=self.sampling,
        )
        self._positions: dict[tuple[int, torch.device], Tensor] = {}
        self._known = Known()

    @property
    def passes(self) -> int:
        """The number of recorded forward passes."""
        return self._capture.passes

    @property
    def seen(self) -> int:
        """The number of forward passes, recorded or not."""
        return self._capture.seen

    def expect(self, samples: int, *, labels: Any = None, positions: Tensor | None = None) -> None:
        """Tell what is known of the samples of the next forward pass.

        Args:
            samples: how many there are. labels: [samples] classes; anything else tells nothing.
            positions: [samples] where each is in the data set.
        """
        self._known = Known(one_class_each(labels, samples), positions)

    def __enter__(self) -> "AttentionProbe":
        self._capture.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._capture.__exit__()
        if kind is not None:
            return
        if not self.passes:
            raise ProbeError(
                "sites fired, but the model's own forward was never called; call the model itself"
                if self._capture.stray
                else "no forward pass was seen inside the probe; run the probed model on a batch"
            )
        check_has_values(self._model)
        for metric in self.metrics.values():
            metric.check()

    def analysis(
        self, *, provenance: Provenance | None = None, target: Target | None = None
    ) -> Analysis:
        """What was recorded, as an Analysis: it can be saved, drawn and planned with.

            plan = make_plan(probe.analysis(), skip=0.3)

        Args:
            provenance: what is known of the model and the data; by default the number of samples.
            target: of the skip scores.

        Raises:
            AnalysisError: nothing was recorded.
        """
        stages = tuple(
            StageAnalysis.from_metric(stage, self.metrics[stage.name].compute())
            for stage in self.stages
        )
        if provenance is None:
            provenance = Provenance(samples=max(part.samples for part in stages))
        return Analysis(stages, provenance, target or Target())

    def _metric(
        self, discovery: Discovery, stage: Stage, *, by_sample: bool
    ) -> RedundancyMetric | MixingMetric:
        names = [site.name for site in stage.sites]
        if not has_divergences(stage.kind):
            return MixingMetric(stage.sizes, names=names)
        return RedundancyMetric(
            stage.sizes,
            names=names,
            heads=self._heads(discovery, stage),
            by_sample=by_sample and stage.kind != "static",
        )

    def _heads(self, discovery: Discovery, stage: Stage) -> int:
        adapter = discovery.adapter
        if not isinstance(adapter, HeadedAdapter):
            return 1
        with uncompiled(self._model):
            return adapter.heads(self._model, stage)

    def _add(self, weights: list[list[Tensor]]) -> None:
        known, self._known = self._known, Known()
        for stage, retrievals in zip(self.stages, weights, strict=True):
            metric = self.metrics[stage.name]
            device = retrievals[0].device
            mask = self._capture.mask
            is_static, most = stage.kind == "static", self.sampling.max_tokens
            if is_static and (metric.update_count or not is_first()):
                if metric.device != device and device.type != "mps":  # where sums are gathered
                    metric.to(device)
                continue  # the same row in every pass and process
            if most is not None and mask is not None:
                mask = mask[:, positions(mask.shape[1], most)]
            if isinstance(metric, MixingMetric):
                self._add_mixed(metric, retrievals, self._capture.mixed[stage.name], mask)
                continue
            if most is not None and not is_static:
                retrievals = self._thinned(retrievals, most)
            if device.type == "mps":  # it has no float64
                retrievals, device = [w.cpu() for w in retrievals], torch.device("cpu")
            if metric.device != device:
                metric.to(device)
            samples = len(retrievals[0])
            for rows, part in without_padding(retrievals, None if is_static else mask):
                metric.update(part, known.of(rows, samples))

    def _add_mixed(
        self, metric: MixingMetric, weights: list[Tensor], values: list[Tensor], mask: Tensor | None
    ) -> None:
        if self.sampling.max_tokens is not None:
            values = self._thinned(values, self.sampling.max_tokens)
        device = values[0].device
        if device.type == "mps":  # it has no float64
            weights, values = [w.cpu() for w in weights], [v.cpu() for v in values]
            device = torch.device("cpu")
        if metric.device != device:
            metric.to(device)
        metric.update(weights, values, None if mask is None else mask.to(device))

    def _thinned(self, retrievals: list[Tensor], count: int) -> list[Tensor]:
        shape, device = retrievals[0].shape, retrievals[0].device
        axis = token_axis(shape, self._capture.input_shape)
        if shape[axis] <= count:
            return retrievals
        key = shape[axis], device
        if key not in self._positions:  # copied to an accelerator once
            self._positions[key] = torch.tensor(positions(shape[axis], count), device=device)
        return [w.index_select(axis, self._positions[key]) for w in retrievals]
