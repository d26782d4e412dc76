"""RecordedPass: runs a model again after a site, with what came before from a recorded pass."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.discovery.hooks import Hooks
from ela_probe.forward import call
from ela_probe.system.nested_tensors import leaves_of, with_first_tensor


@dataclass
class Call:
    """One call of a module: its output, and when it ended (counted in calls that ended)."""

    ended: int
    output: Any
    versions: tuple[int, ...]

    def is_intact(self, *, but_first: bool = False) -> bool:
        """Whether no tensor of the output was overwritten later."""
        return versions_of(self.output)[but_first:] == self.versions[but_first:]


def versions_of(output: Any) -> tuple[int, ...]:
    """How often each tensor of an output was overwritten in place."""
    return tuple(leaf._version for leaf in leaves_of(output) if isinstance(leaf, Tensor))


Put = Callable[[Any, Tensor], Any]


def put_first(returned: Any, new: Tensor) -> Any:
    """What a module returned, with another first tensor."""
    return with_first_tensor(returned, lambda _: new)


class RecordedPass:
    """One forward pass of a model, of which later passes reuse what lies before a site.

    A module that had ended when the site's module ended isn't run again: it returns its recorded
    output, unless that was overwritten in place. For this, the state that a model passes along its
    layers must be in the outputs of its modules, not in an object that they change. A module whose
    attribute `is_stateful` is True is run again in any case, and what it contains is not.

    Args:
        model: unwrapped, in eval mode. inputs: of the pass.
        sites: the qualified names of the modules after which to run again; each runs once in a
            pass, and its first output tensor is what is replaced.

    Attributes:
        output: of the recorded pass.
    """

    def __init__(self, model: nn.Module, inputs: Any, sites: Sequence[str]) -> None:
        self._model, self._inputs = model, inputs
        frames = {""}  # the model, and all modules that contain a site's module
        for site in sites:
            parts = site.split(".")
            frames |= {".".join(parts[:count]) for count in range(1, len(parts))}
        self._names = [
            name
            for name, _ in model.named_modules()
            if name and (name in frames or caller(model, name) in frames)
        ]
        self._calls: dict[str, list[Call]] = defaultdict(list)
        self._ended = 0
        hooks = Hooks()
        try:
            for name in self._names:
                hooks.after(model.get_submodule(name), partial(self._record, name))
            with torch.no_grad():
                self.output = call(model, inputs)
        finally:
            hooks.remove()

    def _record(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self._ended += 1
        self._calls[name].append(Call(self._ended, output, versions_of(output)))

    def run_after(self, site: str, new: Tensor, put: Put = put_first) -> Any:
        """The model's output for the same inputs, with `new` as a module's first output tensor.

        put: how `new` is put into what the module returns, if it is more than that tensor.
        """
        with self._reused(site, new, put), torch.no_grad():
            return call(self._model, self._inputs)

    @contextmanager
    def _reused(self, site: str, new: Tensor, put: Put) -> Iterator[None]:
        end = self._calls[site][0].ended
        numbers: Counter[str] = Counter()

        def forward(name: str, original: Any, *args: Any, **kwargs: Any) -> Any:
            number, numbers[name] = numbers[name], numbers[name] + 1
            calls = self._calls[name]
            done = calls[number] if number < len(calls) and calls[number].ended <= end else None
            if name == site and done is not None and done.is_intact(but_first=True):
                return put(done.output, new.clone())
            if name == site:
                return put(original(*args, **kwargs), new.clone())
            is_stateful = getattr(self._model.get_submodule(name), "is_stateful", False)
            if done is not None and done.is_intact() and not is_stateful:
                for part in self._names:  # these don't run now: their next call is a later one
                    if part.startswith(f"{name}."):
                        ended = [one for one in self._calls[part] if one.ended <= done.ended]
                        numbers[part] = len(ended)
                return done.output
            return original(*args, **kwargs)

        patched: list[tuple[nn.Module, Any]] = []
        try:
            for name in self._names:
                if any(one.ended <= end for one in self._calls[name]):
                    module = self._model.get_submodule(name)
                    patched.append((module, vars(module).get("forward")))
                    instead = partial(forward, name, module.forward)
                    module.forward = instead
            yield
        finally:
            for module, own in reversed(patched):
                del module.forward
                if own is not None:
                    module.forward = own


def caller(model: nn.Module, name: str) -> str:
    """The name of the module that calls this one: what contains it, past lists of modules."""
    parent = name.rpartition(".")[0]
    while parent and isinstance(model.get_submodule(parent), nn.ModuleList | nn.ModuleDict):
        parent = parent.rpartition(".")[0]
    return parent
