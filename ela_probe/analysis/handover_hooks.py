"""HandoverHooks: reads what the sites of a model hand on, while it runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ela_probe.adapters.handover import Handover, Passed, Tensors
from ela_probe.discovery.hooks import Hooks
from ela_probe.forward import uncompiled

# site, the tensors of its handover (detached), its output y; returns what replaces y, or None
Arrive = Callable[[str, Sequence[Tensor], Tensor], Tensor | None]


@contextmanager
def with_modules_of(model: nn.Module, handovers: Mapping[str, Handover]) -> Iterator[None]:
    """A block in which the model has all modules that these handovers name."""
    with ExitStack() as stack:
        for within in dict.fromkeys(handover.within for handover in handovers.values()):
            if within is not None:
                stack.enter_context(within(model))
        yield


class HandoverHooks:
    """A context manager that calls a function when a site has handed on its output.

    Recomputation in a backward pass and calls of copies of the model are ignored.

    Args:
        model: unwrapped and uncompiled.
        handovers: by site name.
        arrive: called for each site in every pass; it may replace the site's output.
    """

    def __init__(self, model: nn.Module, handovers: Mapping[str, Handover], arrive: Arrive) -> None:
        self._model, self._handovers, self._arrive = model, handovers, arrive
        self._passed: dict[str, Passed] = {}
        self._inside = False
        self._hooks = Hooks()
        self._around = ExitStack()

    def __enter__(self) -> "HandoverHooks":
        try:
            self._around.enter_context(uncompiled(self._model))
            self._around.enter_context(with_modules_of(self._model, self._handovers))
            self._attach()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _attach(self) -> None:
        sites: dict[str, list[str]] = {}
        for site, handover in self._handovers.items():
            for name in (*handover.reads, handover.module):
                sites.setdefault(name, [])
            sites[handover.module].append(site)
        self._hooks.before(self._model, self._begin)
        for name, of_module in sites.items():
            self._hooks.after(self._model.get_submodule(name), partial(self._ran, name, of_module))
        self._hooks.after(self._model, self._end, always=True)

    def __exit__(self, *exception: object) -> None:
        self._hooks.remove()
        self._passed.clear()
        self._around.close()

    def _begin(self, *_: Any) -> None:
        self._passed.clear()
        self._inside = True

    def _end(self, *_: Any) -> None:
        self._passed.clear()
        self._inside = False

    def _ran(
        self, name: str, sites: Sequence[str], module: nn.Module, inputs: Any, output: Any
    ) -> Any:
        if not self._inside:
            return None
        arguments = Tensors([value for value in inputs if isinstance(value, Tensor)])
        self._passed[name] = Passed(Tensors(inputs), Tensors(output), arguments)
        replaced = None
        for site in sites:
            handover = self._handovers[site]
            y = handover.output_of(output)
            new = self._arrive(site, handover.tensors(self._passed), y)
            if new is None and handover.outputs > 1:
                new = y  # it was joined: the graph has to pass through it
            if new is not None:
                output = replaced = handover.with_output(output, new)
        return replaced
