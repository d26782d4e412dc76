"""A call of a forward pass that attends."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ela_probe.sites import Reads


@dataclass(frozen=True)
class Call:
    """One softmax call of a forward pass.

    order: its number among all calls. module: the module to read. starred_name: that name with `*`
    for numbers; the caller's name where the module is an nn.Softmax. owner: the class of that
    module. index: the number of this call among those with the same (module, reads). node: of its
    result in the lineage. lines: the places in the module's code that led to the call, innermost
    first. batch_axis: None where no axis grows with the batch. batch_axis_guessed: nothing showed
    which one it is. source_follows_batch: the softmax runs over samples. readable: False for a
    fused attention, which shows no weights; shape is then that which its weights would have.
    """

    order: int
    module: str
    starred_name: str
    owner: str
    function: str
    reads: Reads
    index: int
    axis: int
    shape: tuple[int, ...]
    node: int = 0
    lines: tuple[Any, ...] = ()
    batch_axis: int | None = 0
    batch_axis_guessed: bool = False
    source_follows_batch: bool = False
    readable: bool = True

    @property
    def length(self) -> int:
        """How many things are attended over."""
        return self.shape[self.axis]

    @cached_property
    def rows(self) -> tuple[Any, ...]:
        """What all calls of a stage have in common: everything but the number of sources."""
        others = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        return self.axis, self.batch_axis, others


@dataclass(frozen=True)
class Sum(Call):
    """A weighted sum over a joined list: axis and shape are those of its weights.

    pieces: the nodes of the list. operand: which operand the weights are. weights: their node.
    result: the shape of the sum. values_axis: its axis that grows with the batch; None for none.
    """

    pieces: tuple[int, ...] = ()
    operand: int = 0
    weights: int = 0
    result: tuple[int, ...] = ()
    values_axis: int | None = 0


def starred(name: str) -> str:
    """A module's name with `*` in place of each number.

    >>> starred("blocks.3.attn")
    'blocks.*.attn'
    """
    return re.sub(r"\d+", "*", name)
