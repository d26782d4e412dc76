"""Changing a network during its training: the optimizers follow, or the change is undone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from ela_probe.adapters.registry import Adapter
from ela_probe.errors import PlanError
from ela_probe.sites import Action

REGISTRIES = ("_modules", "_parameters", "_buffers")

Groups = dict[str, tuple[int, int]]  # by a parameter's name: which optimizer, which of its groups


def prune_in_training(
    model: nn.Module,
    adapter: Adapter,
    actions: Mapping[str, Action],
    *,
    optimizers: Iterable[torch.optim.Optimizer] = (),
) -> "Change":
    """Prune a model in place, and remove the removed parameters from the optimizers.

    The order and the state of the remaining parameters stay as they were.

    Raises:
        PlanError: the adapter refuses an action, or adds parameters; the model is unchanged.
    """
    before = dict(model.named_parameters())

    def carry_out() -> None:
        adapter.apply(model, actions)
        if ids(dict(model.named_parameters())) - ids(before):
            raise PlanError(
                f"the adapter {adapter.name!r} adds parameters when it prunes, which no optimizer "
                "holds; prune before training (`ela-probe prune`) instead of with ELA"
            )

    change = apply_undoable(model, carry_out)
    follow(model, before, optimizers)
    return change


def follow(
    model: nn.Module,
    before: Mapping[str, nn.Parameter],
    optimizers: Iterable[torch.optim.Optimizer],
    *,
    homes: Mapping[str, tuple[int, int]] = MappingProxyType({}),
) -> Groups:
    """Let optimizers hold the parameters that a model has now, not those that it had before.

    Args:
        before: the model's parameters before it changed, by name.
        homes: the groups of new parameters, by name. Others join the group that lost most
            parameters, else the largest one.

    Returns: the groups that removed parameters were in, by name.
    """
    optimizers = list(optimizers)
    now = dict(model.named_parameters())
    new = ids(now) - ids(before)
    removed = {id(p): name for name, p in before.items() if id(p) not in ids(now)}
    groups = {(o, g): group for o, optimizer in enumerate(optimizers)
              for g, group in enumerate(optimizer.param_groups)}  # fmt: skip
    left: Groups = {}
    lost = dict.fromkeys(groups, 0)
    for (o, g), group in groups.items():
        keep = [id(p) not in removed for p in group["params"]]
        for parameter, kept in zip(group["params"], keep, strict=True):
            if not kept:
                left[removed[id(parameter)]] = (o, g)
                optimizers[o].state.pop(parameter, None)
                parameter.grad = None
        lost[o, g] = keep.count(False)
        for key in ("params", "param_names"):
            if key in group:
                group[key] = [p for p, kept in zip(group[key], keep, strict=True) if kept]
    usual = max(groups, default=None, key=lambda key: (lost[key], len(groups[key]["params"])))
    for name, parameter in now.items():
        home = groups.get(homes.get(name, usual))  # type: ignore[arg-type]
        if id(parameter) in new and home is not None:
            home["params"].append(parameter)
            if "param_names" in home:
                home["param_names"].append(name)
    return left


def ids(parameters: Mapping[str, nn.Parameter]) -> set[int]:
    """The identities of parameters."""
    return {id(parameter) for parameter in parameters.values()}


class Change:
    """A change of the modules of a model, which can be undone and done again.

    It holds the modules, parameters and buffers of each module that it added to, removed from or
    replaced in, and the attributes that it set. Later changes must be undone first.
    """

    def __init__(self, differences: Sequence["Difference"]) -> None:
        self._differences = differences

    def undo(self) -> None:
        """Give the modules what they had before."""
        for difference in self._differences:
            difference.restore(difference.old)

    def redo(self) -> None:
        """After `undo`, give them again what the change gave them."""
        for difference in self._differences:
            difference.restore(difference.new)


class Difference(NamedTuple):
    """What a change made of the items of a dict.

    ordered: whether `old` and `new` are all items, in order, as in a registry of modules; else they
    are the items that changed.
    """

    items: dict[str, Any]
    old: dict[str, Any]
    new: dict[str, Any]
    ordered: bool

    def restore(self, to: Mapping[str, Any]) -> None:
        """Give the dict the items of one side."""
        for name in list(self.items) if self.ordered else {**self.old, **self.new}:
            if self.ordered or name not in to:
                self.items.pop(name, None)
        self.items.update(to)


def apply_undoable(model: nn.Module, change: Callable[[], None]) -> Change:
    """Call `change`, which changes the modules of a model; returns what undoes it.

    Undone are modules, parameters and buffers that were added, removed or replaced, and attributes
    that were set. A change that raises is undone at once.
    """
    before = [
        (module, dict(vars(module)), {name: dict(vars(module)[name]) for name in REGISTRIES})
        for module in model.modules()
    ]

    def changed() -> Change:
        found = []
        for module, attributes, registries in before:
            now = vars(module)
            old, new = unlike(attributes, now), unlike(now, attributes)
            if old or new:
                found.append(Difference(now, old, new, ordered=False))
            found += [
                Difference(now[name], items, dict(now[name]), ordered=True)
                for name, items in registries.items()
                if not same_items(now[name], items)
            ]
        return Change(found)

    try:
        change()
    except BaseException:
        changed().undo()
        raise
    return changed()


def unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The items of one dict that the other has not, or with another object."""
    return {k: v for k, v in one.items() if k not in other or other[k] is not v}


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
