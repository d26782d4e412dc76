"""What a site hands on to the network after it, and what other actions would hand on."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from ela_probe.models.stand_in import MAPS
from ela_probe.sites import Action
from ela_probe.system.nested_tensors import leaves_of, tensors_of, with_first_tensor


class Tensors(Sequence[Tensor]):
    """The tensors in nested containers, detached, in order; found when they are asked for.

    A module of a deep stack passes on all earlier outputs, and a site reads one or two of them.
    """

    def __init__(self, value: Any) -> None:
        self._rest, self._found = tensors_of(value), list[Tensor]()

    def _find(self, count: int | None) -> None:
        """Find the first `count` of them; None: all."""
        missing = None if count is None else max(0, count - len(self._found))
        self._found += islice(self._rest, missing)

    def __len__(self) -> int:
        self._find(None)
        return len(self._found)

    @overload
    def __getitem__(self, at: int) -> Tensor: ...
    @overload
    def __getitem__(self, at: slice) -> list[Tensor]: ...
    def __getitem__(self, at: int | slice) -> Tensor | list[Tensor]:
        last = at.stop if isinstance(at, slice) else at + 1 or None
        self._find(None if last is None or last < 0 else last)
        return self._found[at]


class Passed(NamedTuple):
    """The tensors that went into a module and came out of it, in one pass.

    arguments: those of the inputs that are positional arguments by themselves, not parts of one.
    """

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    arguments: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Alternatives:
    """The output of a site, and what other actions would hand on from the same inputs.

    Attributes:
        output: y, what the site hands on, [samples, ...].
        terms: tensors of y's shape. Their sum is what the site hands on without its retrieval
            (`skip`); a stand-in (`affine`) scales each of them by channel.
        recurred: what it hands on under `recur`; None where the adapter does not offer that.
    """

    output: Tensor
    terms: tuple[Tensor, ...]
    recurred: Tensor | None = None

    @property
    def skipped(self) -> Tensor:
        """The sum of the terms."""
        total = self.terms[0]
        for term in self.terms[1:]:
            total = total + term
        return total


@dataclass(frozen=True)
class Handover:
    """Where a site hands on its output, and how to know what other actions would hand on.

    Attributes:
        module: the qualified name of the module whose first output tensor is y.
        actions: the actions other than `keep` whose effect on y is known here, and that pruning
            can carry out if an adapter knows the model. `drop` is one of them only where no later
            site reads the source.
        reads: the qualified names of all modules that `tensors` needs.
        tensors: from what passed through these modules to the tensors [samples, ...] that
            `alternatives` takes. Each module runs once in a pass.
        alternatives: from these tensors, or the same samples of each, to what is handed on.
        channel_axis: the axis of y that runs over channels, from the end.
        has_shift: whether a stand-in also has a shift.
        within: opens a block in which the model has the module; None where it always has. Equal
            values are opened once.
        outputs: how many of the module's output tensors y is; several are joined along the last
            axis. They may also be one tensor, stacked along its first axis.
    """

    module: str
    actions: tuple[Action, ...]
    reads: tuple[str, ...]
    tensors: Callable[[Mapping[str, Passed]], Sequence[Tensor]]
    alternatives: Callable[..., Alternatives]
    channel_axis: int = MAPS
    has_shift: bool = True
    within: Callable[[nn.Module], AbstractContextManager[None]] | None = None
    outputs: int = 1

    def output_of(self, returned: Any) -> Tensor:
        """y, from what the module returned."""
        if self.outputs == 1:
            return next(leaf for leaf in leaves_of(returned) if isinstance(leaf, Tensor))
        return torch.cat(tuple(returned[: self.outputs]), dim=-1)

    def with_output(self, returned: Any, y: Tensor) -> Any:
        """What the module returned, with another y."""
        if self.outputs == 1:
            return with_first_tensor(returned, lambda _: y)
        parts = y.chunk(self.outputs, dim=-1)
        return (
            torch.stack(parts)
            if isinstance(returned, Tensor)
            else (*parts, *returned[self.outputs :])
        )


def input_and_output(
    module: str, *, actions: tuple[Action, ...], channel_axis: int = MAPS
) -> Handover:
    """Of a module that hands on its first input where it retrieves nothing."""
    return Handover(
        module,
        actions,
        (module,),
        lambda passed: (passed[module].inputs[0], passed[module].outputs[0]),
        lambda x, y: Alternatives(y, (x,)),
        channel_axis,
    )


def added_retrieval(block: str, layer: str, *, channel_axis: int = MAPS) -> Handover:
    """Of a block that ends with x + (what a layer retrieves); x is the layer's first input."""
    return Handover(
        block,
        ("skip", "affine"),
        (block, layer),
        lambda passed: (passed[layer].inputs[0], passed[block].outputs[0]),
        lambda x, y: Alternatives(y, (x,)),
        channel_axis,
    )
