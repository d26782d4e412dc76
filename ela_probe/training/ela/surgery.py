"""Changing a network during its training: the optimizers follow, or the change is undone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ela_probe.adapters.registry import Adapter
from ela_probe.errors import PlanError
from ela_probe.pruning.prune import put_stand_ins
from ela_probe.sites import Action

REGISTRIES = ("_modules", "_parameters", "_buffers")


def prune_in_training(
    model: nn.Module,
    adapter: Adapter,
    actions: Mapping[str, Action],
    *,
    stand_ins: Mapping[str, NDArray[np.float32]] | None = None,
    optimizers: Iterable[torch.optim.Optimizer] = (),
) -> None:
    """Prune a model in place, and remove the removed parameters from the optimizers.

    The order and the state of the remaining parameters stay as they were. The parameters of
    stand-ins join the group that lost most parameters, else the largest one.

    Raises:
        PlanError: the adapter refuses an action, or adds parameters; the model is unchanged.
    """
    before = {id(parameter) for parameter in model.parameters()}
    undo = apply_undoable(model, lambda: adapter.apply(model, actions))
    remaining = {id(parameter) for parameter in model.parameters()}
    removed = before - remaining
    if remaining - before:
        undo()
        raise PlanError(
            f"the adapter {adapter.name!r} adds parameters when it prunes, which no optimizer "
            "holds; prune before training (`ela-probe prune`) instead of with ELA"
        )
    optimizers = list(optimizers)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    home = max(
        groups, default=None,
        key=lambda group: (sum(id(p) in removed for p in group["params"]), len(group["params"])),
    )  # fmt: skip
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            keep = [id(p) not in removed for p in group["params"]]
            for parameter, kept in zip(group["params"], keep, strict=True):
                if not kept:
                    optimizer.state.pop(parameter, None)
                    parameter.grad = None
            for key in ("params", "param_names"):
                if key in group:
                    group[key] = [p for p, kept in zip(group[key], keep, strict=True) if kept]
    put_stand_ins(model, adapter, stand_ins or {})
    if home is not None:
        for name, parameter in model.named_parameters():
            if id(parameter) not in remaining:
                home["params"].append(parameter)
                if "param_names" in home:
                    home["param_names"].append(name)


def apply_undoable(model: nn.Module, change: Callable[[], None]) -> Callable[[], None]:
    """Call `change`, which changes the modules of a model; returns a function that undoes it.

    Undone are modules, parameters and buffers that were added, removed or replaced, and attributes
    that were set. A change that raises is undone at once.
    """
    before = [
        (module, dict(vars(module)), {name: dict(vars(module)[name]) for name in REGISTRIES})
        for module in model.modules()
    ]

    def differences() -> list[tuple[dict[str, Any], dict[str, Any]]]:
        found = []
        for module, attributes, registries in before:
            now = vars(module)
            pairs = [(now, attributes), *((now[n], kept) for n, kept in registries.items())]
            found += [(new, old) for new, old in pairs if not same_items(new, old)]
        return found

    def restore(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        for new, old in pairs:
            new.clear()
            new.update(old)

    try:
        change()
    except BaseException:
        restore(differences())
        raise
    pairs = differences()
    return lambda: restore(pairs)


def same_items(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two dicts hold the same objects in the same order."""
    return [(k, id(v)) for k, v in one.items()] == [(k, id(v)) for k, v in other.items()]


def parameter_names(
    module: nn.Module, optimizers: Iterable[torch.optim.Optimizer]
) -> list[list[list[str]]]:
    """The names of the parameters by optimizer and group; "" for one outside the module."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [
        [[names.get(id(p), "") for p in group["params"]] for group in optimizer.param_groups]
        for optimizer in optimizers
    ]


def restore_parameter_order(
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    names: Sequence[Sequence[Sequence[str]]],
) -> None:
    """Put the parameters of new optimizers into the order of the saved names.

    An optimizer's saved state goes by position, which pruning may have changed. Groups that hold
    other parameters are left alone: loading their state is up to the code that made them.
    """
    parameters = dict(module.named_parameters())
    for optimizer, saved in zip(optimizers, names, strict=False):
        for group, order in zip(optimizer.param_groups, saved, strict=False):
            places = {id(p): place for place, p in enumerate(group["params"])}
            wanted = [places.get(id(parameters.get(name))) for name in order]
            if None not in wanted and len(wanted) == len(places):
                for key in ("params", "param_names"):
                    if key in group:
                        group[key] = [group[key][place] for place in wanted]
