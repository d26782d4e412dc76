"""Network: the network that ELA prunes in steps, its first sites, and the actions so far."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ela_probe.adapters.handover import Handover
from ela_probe.adapters.registry import Adapter, StandInAdapter, adapter_for, cannot_prune
from ela_probe.analysis.damage_probe import handovers_of
from ela_probe.analysis.result import StageAnalysis
from ela_probe.discovery.discover import Discovery
from ela_probe.errors import ModelError, PlanError
from ela_probe.forward import is_compiled_form, uncompiled, without_compile
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.prune import actions_of
from ela_probe.sites import OPTIONAL, Action, Stage
from ela_probe.training.ela.moving_averages import StageAverage
from ela_probe.training.ela.surgery import apply_undoable, prune_in_training


class Network:
    """A network with layer attention inside a module that trains it.

    Args:
        module: the module that trains the network.
        given: the network; None: the first part of the module that an adapter supports.
        decay: weight of the past epochs in the averages.

    Attributes:
        model: the network, not its compiled form.
        stages: its stages before pruning.
        averages: one per stage.
        compiled: whether the network, or the module that trains it, was compiled.

    Raises:
        ModelError: there is no such network, or it has no layer attention.
        PlanError: no adapter can prune the given network.
    """

    def __init__(self, module: nn.Module, given: nn.Module | None, *, decay: float) -> None:
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
        self._applied: dict[str, Action] = {}

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
        """Carry out what was not carried out before. Raises PlanError."""
        actions = actions_of(plan, self.stages)
        new = {n: a for n, a in actions.items() if a != self._applied.get(n, "keep")}
        if not new:
            return
        stand_ins = {
            name: coefficients
            for name, coefficients in plan.stand_ins.items()
            if self._applied.get(name, "keep") == "keep"
        }
        with self.uncompiled() as model:
            prune_in_training(model, self.adapter, new, stand_ins=stand_ins, optimizers=optimizers)
        self._applied |= new
        if self.compiled:  # this also resets the number of recompilations, which is limited
            torch.compiler.reset()

    def without(self, names: Iterable[str], action: Action = "skip") -> Callable[[], None]:
        """Skip retrievals; call the returned function to undo that. Raises PlanError."""
        actions = dict.fromkeys(names, "skip" if action == "affine" else action)
        return apply_undoable(self.model, lambda: self.adapter.apply(self.model, actions))

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
