"""The network that ELA prunes in steps: found in a module, its sites at first, what was done."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from ela_probe.adapters.registry import Adapter, adapter_for, cannot_prune
from ela_probe.analysis.result import StageAnalysis
from ela_probe.errors import ModelError
from ela_probe.sites import Action, Stage
from ela_probe.training.ela.moving_averages import StageAverage
from ela_probe.training.ela.surgery import carry_out, changed


class Network:
    """A network with layer attention inside a module that trains it.

    Args:
        module: what trains.
        given: the network; the first part of the module that an adapter knows when None.
        decay: of the averages over epochs.

    Attributes:
        model: the network, not its compiled form. stages: as they were at first. averages: one a
            stage. compiled: whether the network or what trains it was compiled.

    Raises:
        ModelError: there is none, or it has no layer attention.
        PlanError: no adapter can prune the given one.
    """

    def __init__(self, module: nn.Module, given: nn.Module | None, *, decay: float) -> None:
        self.model = first_known(module) if given is None else getattr(given, "_orig_mod", given)
        adapter = adapter_for(self.model)
        if adapter is None:
            raise cannot_prune(self.model)
        self.adapter: Adapter = adapter
        self.stages: tuple[Stage, ...] = tuple(adapter.stages(self.model))
        if not self.stages:
            raise ModelError(
                f"ELA: no layer attention found in this {type(self.model).__name__}; expected a "
                "network whose layers retrieve from earlier layers, such as mrla_b_resnet20"
            )
        self.averages = [StageAverage(stage, decay=decay) for stage in self.stages]
        self.compiled = is_compiled(module)
        self._done: dict[str, Action] = {}

    def is_in(self, module: nn.Module) -> bool:
        """Whether the network is the module or a part of it."""
        return any(part is self.model for part in module.modules())

    def fold(self, found: Iterable[StageAnalysis]) -> None:
        """Take an epoch's analysis into the averages."""
        parts = {part.stage.name: part for part in found}
        for average in self.averages:
            average.fold(parts[average.stage.name])

    @contextmanager
    def uncompiled(self) -> Iterator[nn.Module]:
        """The model; meanwhile everything runs uncompiled, so that hooks fire."""
        with ExitStack() as stack:
            if self.compiled:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
                for part in self.model.modules():
                    if part._compiled_call_impl is not None:
                        compiled, part._compiled_call_impl = part._compiled_call_impl, None
                        stack.callback(setattr, part, "_compiled_call_impl", compiled)
            yield self.model

    def become(
        self, actions: Mapping[str, Action], optimizers: Sequence[torch.optim.Optimizer] = ()
    ) -> None:
        """Prune to these actions, some of which may be carried out already. Raises PlanError."""
        new = {n: a for n, a in actions.items() if a != self._done.get(n, "keep")}
        if not new:
            return
        carry_out(self.model, self.adapter, new, optimizers=optimizers)
        self._done |= new
        if self.compiled:  # also the number of recompilations, which has a limit
            torch.compiler.reset()

    def without(self, names: Iterable[str], action: Action = "skip") -> Callable[[], None]:
        """Skip retrievals until what is returned is called. Raises PlanError."""
        actions = dict.fromkeys(names, action)
        return changed(self.model, lambda: self.adapter.apply(self.model, actions))

    def try_out(self, action: Action) -> None:
        """Skip each site for a moment. Raises PlanError where that can't be done."""
        for stage in self.stages:
            for site in stage.sites[1:]:
                self.without([site.name], action)()


def is_compiled(module: nn.Module) -> bool:
    """Whether a module or a part of it was given to torch.compile."""
    return getattr(module, "_compiler_ctx", None) is not None or any(
        hasattr(part, "_orig_mod") or part._compiled_call_impl is not None
        for part in module.modules()
    )


def first_known(module: nn.Module) -> nn.Module:
    """The first part of a module that an adapter knows, else the module itself if one does.

    Raises:
        ModelError: no adapter does.
    """
    for part in (*list(module.modules())[1:], module):
        if not hasattr(part, "_orig_mod") and adapter_for(part) is not None:
            return part
    raise ModelError(
        f"ELA: no adapter knows any part of this {type(module).__name__}; expected a network with "
        "layer attention that can be pruned (docs/adapters.md says which are known, and how to "
        "make another one known)"
    )
