"""Changing a network in the middle of its training: the optimizers follow, or all is undone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ela_probe.adapters.registry import Adapter
from ela_probe.errors import PlanError
from ela_probe.sites import Action

REGISTRIES = ("_modules", "_parameters", "_buffers")


def carry_out(
    model: nn.Module,
    adapter: Adapter,
    actions: Mapping[str, Action],
    *,
    optimizers: Iterable[torch.optim.Optimizer] = (),
) -> None:
    """Prune a model in place; what is gone leaves its parameter group and the optimizer's state.

    The state of what is left, and its order, stay as they were.

    Raises:
        PlanError: the adapter refuses an action, or makes new parameters; the model is as before.
    """
    before = {id(parameter) for parameter in model.parameters()}
    undo = changed(model, lambda: adapter.apply(model, actions))
    left = {id(parameter) for parameter in model.parameters()}
    gone = before - left
    if left - before:
        undo()
        raise PlanError(
            f"the adapter {adapter.name!r} makes new parameters where it prunes, which no "
            "optimizer knows; prune before training (`ela-probe prune`) instead of with ELA"
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            stays = [id(p) not in gone for p in group["params"]]
            for parameter, stay in zip(group["params"], stays, strict=True):
                if not stay:
                    optimizer.state.pop(parameter, None)
                    parameter.grad = None
            for key in ("params", "param_names"):
                if key in group:
                    group[key] = [p for p, stay in zip(group[key], stays, strict=True) if stay]


def changed(model: nn.Module, change: Callable[[], None]) -> Callable[[], None]:
    """Make a change to the modules of a model; returns what undoes just that.

    What is seen are modules, parameters and buffers that come, go or are replaced, and attributes
    that are set. A change that raises is undone at once.
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
            found += [(new, old) for new, old in pairs if not identical(new, old)]
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


def identical(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two dicts hold the same objects in the same order."""
    return [(k, id(v)) for k, v in one.items()] == [(k, id(v)) for k, v in other.items()]


def parameter_names(
    module: nn.Module, optimizers: Iterable[torch.optim.Optimizer]
) -> list[list[list[str]]]:
    """The names of each group's parameters, per optimizer; "" for one that is not the module's."""
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
    """Put the parameters of fresh optimizers into the order that these names were saved in.

    An optimizer's saved state goes by position, and pruning may have changed that. Groups that
    hold other parameters are left alone: to load their state is up to who made them.
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
