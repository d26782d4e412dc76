"""Network: the network that ELA prunes in steps, its first sites, and the actions so far."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ela_probe.adapters.handover import Handover
from ela_probe.adapters.registry import Adapter, StandInAdapter, adapter_for, cannot_prune
from ela_probe.analysis.damage_probe import handovers_of
from ela_probe.analysis.result import StageAnalysis
from ela_probe.discovery.discover import Discovery
from ela_probe.errors import ModelError, PlanError
from ela_probe.forward import is_compiled_form, uncompiled, without_compile
from ela_probe.models.stand_in import StandIn
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.prune import actions_of, put_stand_ins
from ela_probe.sites import OPTIONAL, Action, Stage
from ela_probe.training.ela.moving_averages import StageAverage
from ela_probe.training.ela.surgery import (
    Change,
    Groups,
    apply_undoable,
    follow,
    prune_in_training,
)

REMOVES: dict[Action, int] = {"keep": 0, "recur": 1, "skip": 2, "affine": 2, "drop": 3}


class Network:
    """A network with layer attention inside a module that trains it.

    Args:
        module: the module that trains the network.
        given: the network; None: the first part of the module that an adapter supports.
        decay: weight of the past epochs in the averages.
        keep_removed: keep removed retrievals aside, so that they can come back.

    Attributes:
        model: the network, not its compiled form.
        stages: its stages before pruning.
        averages: one per stage.
        compiled: whether the network, or the module that trains it, was compiled.
        stand_ins: the stand-ins in place of removed retrievals, by site name.

    Raises:
        ModelError: there is no such network, or it has no layer attention.
        PlanError: no adapter can prune the given network.
    """

    def __init__(
        self,
        module: nn.Module,
        given: nn.Module | None,
        *,
        decay: float,
        keep_removed: bool = False,
    ) -> None:
        self.model = first_supported(module) if given is None else without_compile(given)
        with self.uncompiled() as model:
            adapter = adapter_for(model)
            if adapter is None:
                raise cannot_prune(model)
            self.adapter: Adapter = adapter
            self.stages: tuple[Stage, ...] = tuple(adapter.stages(model))
        if not self.stages:
            raise ModelError(
                f"ELA: no layer attention found in this {type(self.model).__name__}; expected a "
                "network whose layers retrieve from earlier layers, such as mrla_b_resnet20"
            )
        optional = [stage for stage in self.stages if stage.kind in OPTIONAL]
        if optional:
            raise ModelError(
                f"ELA: {optional[0].name} has {optional[0].kind} weights; expected softmax, "
                "unrolled or channel weights, whose divergences are averaged over epochs. Train "
                "without ELA, then analyze, plan and prune"
            )
        self.averages = [StageAverage(stage, decay=decay) for stage in self.stages]
        self.compiled = is_compiled(module)
        self.stand_ins: dict[str, StandIn] = {}
        self._applied: dict[str, Action] = {}
        self._keep_removed = keep_removed
        self._changes: list[Change] = []  # from the unpruned network to this one, if it can go back
        self._homes: Groups = {}  # of removed parameters

    def is_in(self, module: nn.Module) -> bool:
        """Whether the network is the module or a part of it."""
        return any(part is self.model for part in module.modules())

    def average(self, found: Iterable[StageAnalysis]) -> None:
        """Add the analysis of an epoch, by stage, to the averages."""
        parts = {part.stage.name: part for part in found}
        for average in self.averages:
            average.update(parts[average.stage.name])

    def handovers(self) -> dict[str, Handover]:
        """Where the remaining sites hand on, by name.

        Raises:
            PlanError: the adapter doesn't say.
        """
        with self.uncompiled() as model:
            stages = tuple(self.adapter.stages(model))
            found = handovers_of(model, Discovery(stages, self.adapter))
        if not found:
            raise PlanError(
                f"ELA: damage can't be measured, since the adapter {self.adapter.name} does not "
                "say what a site hands on; choose the planner score or budget, and another action "
                "than affine"
            )
        return found

    @contextmanager
    def uncompiled(self) -> Iterator[nn.Module]:
        """A block in which everything runs uncompiled, so that hooks fire; yields the model."""
        with uncompiled(self.model):
            yield self.model

    def prune_to(self, plan: SkipPlan, optimizers: Sequence[torch.optim.Optimizer] = ()) -> None:
        """Carry out what was not carried out before. Raises PlanError.

        With `keep_removed` a retrieval that the plan keeps again comes back with the parameters
        that it had.
        """
        actions = actions_of(plan, self.stages)
        returns = any(REMOVES[actions[n]] < REMOVES[done] for n, done in self._applied.items())
        if returns:
            self._return_to(plan, actions, optimizers)
        new = {n: a for n, a in actions.items() if a != self._applied.get(n, "keep")}
        if new:
            self._remove(plan, new, optimizers)
        if self.compiled and (new or returns):  # also resets the number of recompilations
            torch.compiler.reset()

    def _remove(
        self,
        plan: SkipPlan,
        new: Mapping[str, Action],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        """Carry out new actions of a plan."""
        stand_ins = {
            name: coefficients
            for name, coefficients in plan.stand_ins.items()
            if self._applied.get(name, "keep") == "keep"
        }
        with self.uncompiled() as model:
            before = dict(model.named_parameters())
            changes = [prune_in_training(model, self.adapter, new)]
            changes.append(apply_undoable(model, lambda: self._put(stand_ins)))
            self._changes += changes if self._keep_removed else []
            self._homes |= follow(model, before, optimizers)
        self._applied |= new

    def _put(self, stand_ins: Mapping[str, NDArray[np.float32]]) -> None:
        """Put stand-ins, and remember them by site."""
        for site, coefficients in stand_ins.items():
            known = {id(part) for part in self.model.modules()}
            put_stand_ins(self.model, self.adapter, {site: coefficients})
            self.stand_ins[site] = next(
                part
                for part in self.model.modules()
                if isinstance(part, StandIn) and id(part) not in known
            )

    def _return_to(
        self,
        plan: SkipPlan,
        actions: Mapping[str, Action],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        """Carry out only the actions that were carried out already, with the trained stand-ins."""
        kept = {n: actions[n] for n, done in self._applied.items() if actions[n] != "keep"}
        trained = {n: part for n, part in self.stand_ins.items() if n in plan.stand_ins}
        with self.uncompiled() as model:
            before = dict(model.named_parameters())
            device = next(iter(before.values())).device
            for change in reversed(self._changes):
                change.undo()
            model.to(device)  # what was removed on another device, while a run was resumed
            self._changes, self.stand_ins = [prune_in_training(model, self.adapter, kept)], {}

            def put() -> None:
                self._put({n: plan.stand_ins[n] for n in trained})
                for name, part in trained.items():
                    self.stand_ins[name]._parameters.update(part._parameters)

            self._changes.append(apply_undoable(model, put))
            self._homes |= follow(model, before, optimizers, homes=self._homes)
        self._applied = kept

    def forget_removed(self) -> None:
        """Let go of all that was removed: from now on nothing comes back."""
        self._keep_removed, self._changes = False, []

    def removed_tensors(self) -> dict[str, Tensor]:
        """The removed parameters and buffers, by their names in the unpruned network."""
        present = {id(tensor) for _, tensor in named_tensors(self.model)}
        for change in reversed(self._changes):
            change.undo()
        try:
            return {n: t for n, t in named_tensors(self.model) if id(t) not in present}
        finally:
            for change in self._changes:
                change.redo()

    def state_dict(self) -> dict[str, Any]:
        """What a network that is pruned by the same plan lacks: the removed tensors."""
        removed = {name: tensor.detach().clone() for name, tensor in self.removed_tensors().items()}
        return {"kept": self._keep_removed, "removed": removed, "homes": dict(self._homes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the result of `state_dict`, after the same plan was carried out."""
        self._homes = {name: tuple(home) for name, home in state["homes"].items()}
        if not state["kept"]:
            self.forget_removed()
        with torch.no_grad():
            for name, tensor in self.removed_tensors().items():
                tensor.copy_(state["removed"][name])

    def without(self, names: Iterable[str], action: Action = "skip") -> Callable[[], None]:
        """Skip retrievals; call the returned function to undo that. Raises PlanError."""
        actions = dict.fromkeys(names, "skip" if action == "affine" else action)
        return apply_undoable(self.model, lambda: self.adapter.apply(self.model, actions)).undo

    def check_action(self, action: Action) -> None:
        """Carry the action out at each site and undo it. Raises PlanError if it is refused."""
        if action == "affine" and not isinstance(self.adapter, StandInAdapter):
            raise PlanError(
                f"ELA: got the action 'affine', but the adapter {self.adapter.name} has no "
                "stand-ins; choose skip or drop"
            )
        with self.uncompiled():
            for stage in self.stages:
                for site in stage.sites[1:]:
                    self.without([site.name], action)()


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a model, with their names."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def is_compiled(module: nn.Module) -> bool:
    """Whether a module or a part of it was given to torch.compile."""
    return getattr(module, "_compiler_ctx", None) is not None or any(
        is_compiled_form(part) or part._compiled_call_impl is not None for part in module.modules()
    )


def first_supported(module: nn.Module) -> nn.Module:
    """The first part of a module that an adapter supports, else the module itself if one does.

    Raises:
        ModelError: no adapter supports any part.
    """
    for part in (*list(module.modules())[1:], module):
        if not is_compiled_form(part):
            with uncompiled(part):
                if adapter_for(part) is not None:
                    return part
    raise ModelError(
        f"ELA: no adapter knows any part of this {type(module).__name__}; expected a network with "
        "layer attention that can be pruned (docs/adapters.md lists them, and says how to add one)"
    )
