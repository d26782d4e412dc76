"""DamageProbe: what each action at each site of a model would add to the loss, in one pass."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ela_probe.adapters.handover import Alternatives, Handover
from ela_probe.adapters.registry import DamageAdapter
from ela_probe.analysis.damage import MEASURED, StageDamage
from ela_probe.analysis.damage_metric import DamageMetric
from ela_probe.analysis.exact_sums import in_float64
from ela_probe.analysis.handover_hooks import HandoverHooks
from ela_probe.analysis.stand_ins import slices
from ela_probe.discovery.discover import Discovery
from ela_probe.discovery.sampling import Sampling
from ela_probe.errors import ProbeError
from ela_probe.forward import uncompiled, unwrap
from ela_probe.models.stand_in import affine
from ela_probe.sites import Stage
from ela_probe.system.processes import all_gather


def handovers_of(model: nn.Module, discovery: Discovery) -> dict[str, Handover]:
    """Where the sites of a model hand on, by site name; empty if its adapter doesn't say."""
    adapter = discovery.adapter
    if not isinstance(adapter, DamageAdapter):
        return {}
    model = unwrap(model)
    with uncompiled(model):
        return {
            site: handover
            for stage in discovery.stages
            for site, handover in adapter.handovers(model, stage).items()
        }


class DamageProbe:
    """A context manager: every forward pass with gradients, followed by `backward`, is added.

        with DamageProbe(model, handovers, stand_ins) as probe:
            for images, labels in loader:
                losses = cross_entropy(model(images), labels, reduction="none")
                probe.backward(losses)

    Inside the block no parameter requires a gradient, and the graph begins at the first site. Every
    `requires_grad` is restored afterwards. The model must be in eval mode: in train mode a batch
    norm lets the samples of a batch read each other.

    Args:
        model: unwrapped and uncompiled.
        handovers: by site name, as `DamageAdapter.handovers` returns them for every stage.
        stand_ins: by site name the coefficients that `fit_stand_ins` returned; without them
            `affine` is not measured.
        sampling: which passes `wants` names.

    Attributes:
        metric: the sums so far.
        reached: the sites that a gradient has come to.
        missing: after `compute` returned nothing, why.
    """

    def __init__(
        self,
        model: nn.Module,
        handovers: Mapping[str, Handover],
        stand_ins: Mapping[str, Tensor] | None = None,
        *,
        sampling: Sampling = Sampling(),
    ) -> None:
        self._model, self._handovers = model, dict(handovers)
        self._stand_ins = dict(stand_ins or {})
        self.metric = DamageMetric(list(handovers))
        self._hooks = HandoverHooks(model, handovers, self._arrive)
        self.reached: set[str] = set()
        self._found: dict[str, tuple[Tensor, Tensor]] = {}  # of the current pass: c and norms
        self._learned: list[nn.Parameter] = []
        self._sampling, self._asked = sampling, 0
        self.missing = "it needs labels, and a model that returns logits"

    def __enter__(self) -> "DamageProbe":
        self._learned = [p for p in self._model.parameters() if p.requires_grad]
        for parameter in self._learned:
            parameter.requires_grad_(False)
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__()
        for parameter in self._learned:
            parameter.requires_grad_(True)
        self._found.clear()

    def wants(self) -> bool:
        """Whether the next pass is to be differentiated; ask once before each pass."""
        self._asked += 1
        return self._sampling.records(self._asked - 1)

    def backward(self, losses: Tensor, predictions: Tensor | None = None) -> None:
        """Differentiate the loss of each sample of the last pass, and add its loss changes.

        Args:
            losses: [samples] in nats. predictions: [samples], how many predictions each of them is
                the mean of; a sample with 0 doesn't count. None: one each.

        Raises:
            ProbeError: a tensor of a site was overwritten after it passed through.
        """
        if losses.requires_grad:
            torch.autograd.backward(losses, torch.ones_like(losses))
        self._add(torch.ones_like(losses) if predictions is None else predictions)

    def _add(self, predictions: Tensor, scale: float = 1.0) -> None:
        """Add what the last backward pass has found.

        Args:
            predictions: as `backward` takes them. scale: of every first-order change.
        """
        keep = predictions > 0
        empty = in_float64(torch.zeros(keep.shape, device=keep.device)).expand(len(MEASURED), -1)
        found = [self._found.get(site, (empty, empty[0])) for site in self._handovers]
        self._found = {}
        if found and bool(keep.any()):
            changes = torch.stack([c for c, _ in found])[..., keep] * scale
            norms = torch.stack([norm for _, norm in found])[..., keep]
            if self.metric.device != changes.device:
                self.metric.to(changes.device)
            self.metric.update(changes, norms, predictions[keep])

    def compute(self, stages: Sequence[Stage]) -> dict[str, StageDamage]:
        """By stage name the damage at its sites; a stage without any handover is left out.

        Empty where nothing was added, or where a gradient was NaN or infinite; `missing` says why.
        """
        if not sum(all_gather(int(self.metric.samples))):
            return {}
        computed = {name: value.cpu().numpy() for name, value in self.metric.compute().items()}
        broken = computed["broken"].reshape(len(self._handovers)) > 0
        if broken.any():
            site = list(self._handovers)[int(broken.argmax())]
            self.missing = f"the gradient of the loss at {site} is NaN or infinite"
            return {}
        order = {site: place for place, site in enumerate(self._handovers)}
        sums = computed["sums"].reshape(len(order), len(MEASURED), -1)
        norms = computed["norms"].reshape(len(order))
        result = {}
        for stage in stages:
            names = [site.name for site in stage.sites]
            if not any(name in order for name in names):
                continue
            of_stage = torch.full((len(names), *sums.shape[1:]), torch.nan).double().numpy()
            of_norms = torch.full((len(names),), torch.nan).double().numpy()
            for t, name in enumerate(names):
                if name not in order:
                    continue
                of_norms[t] = norms[order[name]]
                for a, action in enumerate(MEASURED):
                    if self._measures(name, action):
                        of_stage[t, a] = sums[order[name], a]
            stand_ins = [self._stand_ins.get(name) for name in names]
            result[stage.name] = StageDamage(
                int(computed["samples"]),
                of_stage,
                of_norms,
                tuple(None if s is None else s.numpy() for s in stand_ins),
            )
        return result

    def _measures(self, site: str, action: str) -> bool:
        offered = action in self._handovers[site].actions
        return offered and (action != "affine" or site in self._stand_ins)

    def _arrive(self, site: str, tensors: Sequence[Tensor], y: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        new = None
        if not y.requires_grad:  # the graph begins here; a clone, since blocks may overwrite it
            y = new = y.detach().requires_grad_().clone()
        versions = [tensor._version for tensor in tensors]
        y.register_hook(partial(self._differentiated, site, list(tensors), versions))
        return new

    @torch.no_grad()
    def _differentiated(
        self, site: str, tensors: list[Tensor], versions: list[int], gradient: Tensor
    ) -> None:
        """Form ⟨g, δ⟩ of every sample and action, a few samples at a time."""
        if [tensor._version for tensor in tensors] != versions:
            raise ProbeError(
                f"{site}: a tensor was overwritten after it passed through the site, so its "
                "damage can't be measured; leave the damage out (--no-damage)"
            )
        self.reached.add(site)
        handover = self._handovers[site]
        parts = [
            self._changes(site, handover, handover.alternatives(*own), g)
            for *own, g in slices([_full(tensor) for tensor in (*tensors, gradient)])
        ]
        self._found[site] = (
            torch.cat([c for c, _ in parts], dim=-1),
            torch.cat([norm for _, norm in parts], dim=-1),
        )

    def _changes(
        self, site: str, handover: Handover, given: Alternatives, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """c [actions, samples] and the relative norms [samples], float64."""
        skipped = given.skipped
        retrieval = skipped - given.output
        changes = {"skip": _inner(gradient, retrieval)}
        if site in self._stand_ins:
            a = self._stand_ins[site].to(gradient)
            shift = a[-1] if handover.has_shift else None
            count = len(given.terms)
            stood_in = affine(given.terms, a[:count], shift, channel_axis=handover.channel_axis)
            changes["affine"] = _inner(gradient, stood_in.sub_(given.output))
        if given.recurred is not None:
            changes["recur"] = _inner(gradient, given.recurred - given.output)
        norms = _norm(retrieval) / _norm(skipped).clamp_min(torch.finfo(torch.float32).tiny)
        zero = torch.zeros_like(norms)  # of an action that is not measured here
        return torch.stack([changes.get(action, zero) for action in MEASURED]), norms


def _full(values: Tensor) -> Tensor:
    """Half precision as float32, since a change is a difference of numbers close to each other."""
    return values.float() if values.itemsize < 4 else values


def _inner(gradient: Tensor, change: Tensor) -> Tensor:
    """⟨g, δ⟩ of every sample: [samples, ...] to [samples] in float64."""
    return in_float64(_by_sample(gradient * change))


def _norm(values: Tensor) -> Tensor:
    return in_float64(_by_sample(values.square()).sqrt())


def _by_sample(values: Tensor) -> Tensor:
    """Σ over all axes but the first, in any memory format without a copy."""
    return values.sum(dim=tuple(range(1, values.ndim)))
