"""The weighted sums and logits of layer attention over the growing sources of a stage.

Site t of a stage has a query q, and reads the keys k_s and values V_s of the sources s ≤ t:

    logits q · k_s, weights w = softmax(logits), retrieval Σ_s w(s) V_s

`plain_dot` and `plain_sum` are these two operations in plain PyTorch. `Stack` computes the same
faster and with less memory: it stores every source once, in one block of memory, and its backward
pass is written by hand. An example with two sources of two numbers, batch of 1:

    >>> import torch
    >>> first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> rows = Rows(first.shape)
    >>> total, stack = Stack(capacity=2).append_and_sum(first, torch.tensor([[1.0]]), rows)
    >>> total  # of the first site: one source
    tensor([[1., 0.]])
    >>> total, stack = stack.append_and_sum(second, torch.tensor([[0.25, 0.75]]), rows)
    >>> total  # 1/4 first + 3/4 second
    tensor([[0.2500, 1.5000]])
    >>> plain_sum(torch.tensor([[0.25, 0.75]]), [first, second], rows)
    tensor([[0.2500, 1.5000]])
    >>> plain_dot(torch.tensor([[3.0, 1.0]]), [first, second])  # the logits of a query
    tensor([[3., 2.]])

A stack never changes: `append` returns a longer one. The memory behind them is shared, and each
place in it is written once. Whoever comes second to a place, such as a block that
`torch.utils.checkpoint` runs again, gets a copy of the sources before it.
"""

from dataclasses import dataclass

from torch import Tensor

from ela_probe.models.hand_written import by_hand
from ela_probe.models.rows import Rows
from ela_probe.models.stack_functions import (
    Memory,
    Place,
    append,
    append_and_dot,
    append_and_sum,
    copied,
)
from ela_probe.models.weighted_sum import plain_dot, plain_sum


@dataclass(frozen=True)
class Stack:
    """The sources of a stage in order, all of one shape.

    Args:
        capacity: how many sources are kept; `append` ignores what comes after them.
        readers: how many sums (or logits) are taken; None: one a source.

    Attributes:
        count: the number of sources.
        tensors: under hand-written functions the sources so far, [rows, count, numbers], and two
            that carry what the readers note from one backward pass to the next; elsewhere the
            sources themselves, as they came.
    """

    capacity: int
    readers: int | None = None
    count: int = 0
    reads: int = 0
    rows: Rows | None = None
    memory: Memory | None = None
    tensors: tuple[Tensor, ...] = ()

    def append(self, source: Tensor, rows: Rows) -> "Stack":
        """With one more source; all have the same rows."""
        if self.count >= self.capacity:
            return self
        stack = self._ready(source, rows)
        if stack.memory is None:
            return stack._longer((*stack.tensors, source))
        return stack._longer(append(source, *stack._before(), *stack._place()))

    def append_and_sum(self, source: Tensor, weights: Tensor, rows: Rows) -> tuple[Tensor, "Stack"]:
        """Σ_s w(s) V_s over the sources with this one; weights [*rows, sources]."""
        stack = self._ready(source, rows, reads=True)
        if stack.memory is None:
            longer = stack._longer((*stack.tensors, source))
            return plain_sum(weights, longer.tensors, rows), longer
        total, *tensors = append_and_sum(source, weights, *stack._before(), *stack._place())
        return total, stack._longer(tuple(tensors), reads=1)

    def append_and_dot(self, source: Tensor, query: Tensor, rows: Rows) -> tuple[Tensor, "Stack"]:
        """q · k_s over the sources with this one: [*rows, numbers] each to [*rows, sources]."""
        stack = self._ready(source, rows, reads=True)
        if stack.memory is None:
            longer = stack._longer((*stack.tensors, source))
            return plain_dot(query, longer.tensors), longer
        logits, *tensors = append_and_dot(source, query, *stack._before(), *stack._place())
        return logits, stack._longer(tuple(tensors), reads=1)

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> "Stack":
        """The same stack with other tensors: none, or those that it had."""
        return Stack(
            self.capacity, self.readers, self.count, self.reads, self.rows, self.memory, tensors
        )

    @property
    def width(self) -> int:
        """How many tensors it has."""
        return self.count if self.memory is None else 3

    def _ready(self, source: Tensor, rows: Rows, *, reads: bool = False) -> "Stack":
        """The same sources where one more can be added: in a block of memory, or in a list."""
        if not by_hand(source):
            return self if self.memory is None else self._listed()
        if self.memory is None and self.count:
            return self  # what began in a list stays there
        capacity = max(self.capacity, self.count + 1)
        readers = max(capacity if self.readers is None else self.readers, self.reads + reads)
        memory = self.memory
        if (
            memory is not None
            and memory.filled == self.count < memory.block.shape[1]
            and readers == self.readers
        ):
            return self
        block = source.new_empty(rows.count, capacity, rows.numbers)
        fresh = Stack(capacity, readers, self.count, self.reads, rows, Memory(block, self.count))
        return fresh.with_tensors(copied(self.tensors[0], *fresh._place()) if memory else ())

    def _listed(self) -> "Stack":
        assert self.rows is not None
        stacked = self.tensors[0]
        listed = tuple(self.rows.join(stacked[:, place]) for place in range(self.count))
        return Stack(self.capacity, self.readers, self.count, self.reads, tensors=listed)

    def _before(self) -> tuple[Tensor | None, ...]:
        return self.tensors or (None, None, None)

    def _place(self) -> tuple[Place, Memory]:
        assert self.rows is not None
        assert self.memory is not None
        assert self.readers is not None
        place = Place(self.rows, self.count, self.reads, self.capacity, self.readers)
        return place, self.memory

    def _longer(self, tensors: tuple[Tensor, ...], *, reads: int = 0) -> "Stack":
        return Stack(
            self.capacity,
            self.readers,
            self.count + 1,
            self.reads + reads,
            self.rows,
            self.memory,
            tensors,
        )
