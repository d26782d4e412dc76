"""The weighted sums and logits of layer attention over the growing sources of a stage.

Site t of a stage has a query q, and reads the keys k_s and values V_s of the sources s ≤ t:

    logits q · k_s, weights w = softmax(logits), retrieval Σ_s w(s) V_s

`plain_dot` and `plain_sum` are these two operations in plain PyTorch. `Stack` computes the same
faster and with less memory: it stores every source once, in one block of memory, and its backward
pass is written by hand. An example with two sources of two numbers, batch of 1:

    >>> import torch
    >>> first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> rows = Rows(first.shape)
    >>> stack = Stack(capacity=2)
    >>> stack.append_and_sum(first, torch.tensor([[1.0]]), rows)  # the first site: one source
    tensor([[1., 0.]])
    >>> stack.append_and_sum(second, torch.tensor([[0.25, 0.75]]), rows)  # 1/4 first + 3/4 second
    tensor([[0.2500, 1.5000]])
    >>> plain_sum(torch.tensor([[0.25, 0.75]]), [first, second], rows)
    tensor([[0.2500, 1.5000]])
    >>> plain_dot(torch.tensor([[3.0, 1.0]]), [first, second])  # the logits of a query
    tensor([[3., 2.]])

The backward pass. The gradient of a source is a sum over its readers, Σ_t c_t(s) x_t: for a sum c_t
is its weights and x_t its gradient, for logits c_t is their gradient and x_t the query. In the
example, with the gradients g_1 and g_2 of the two sums, that of `first` is 1 g_1 + 1/4 g_2. Each
reader notes its c_t and x_t; when all readers of a source have done so, one matrix product gives
the gradient.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Rows:
    """How the tensors of a stage are split into rows, one a weight.

    shape: [batch, ..., numbers] tensors have a row for each of their leading axes; feature maps
        [batch, channels, height, width] one for each of the heads of a sample.
    """

    shape: torch.Size
    heads: int | None = None
    channels_last: bool = False

    @classmethod
    def of_maps(cls, maps: Tensor, heads: int) -> "Rows":
        """Of feature maps, in their order in memory."""
        last = not maps.is_contiguous() and maps.is_contiguous(memory_format=torch.channels_last)
        return cls(maps.shape, heads, last)

    @property
    def leading(self) -> tuple[int, ...]:
        if self.heads is None:
            return tuple(self.shape[:-1])
        return self.shape[0], self.heads

    @property
    def count(self) -> int:
        """How many rows there are."""
        return math.prod(self.leading)

    def split(self, x: Tensor) -> Tensor:
        """[*rows, ...], a view."""
        if self.heads is None:
            return x
        x = x.unflatten(1, (self.heads, -1))
        return x.permute(0, 1, 3, 4, 2) if self.channels_last else x

    def flat(self, x: Tensor) -> Tensor:
        """[rows, numbers], a copy where the numbers of a row don't lie together."""
        return self.split(x).reshape(self.count, -1)

    def block(self, x: Tensor) -> Tensor:
        """[*rows, ...] as `split` gives it, of any tensor with as many numbers."""
        if self.heads is None:
            return x.view(self.shape)
        batch, channels, height, width = self.shape
        depth = channels // self.heads
        if self.channels_last:
            return x.view(batch, self.heads, height, width, depth)
        return x.view(batch, self.heads, depth, height, width)

    def join(self, x: Tensor) -> Tensor:
        """Rows, as `split` gives them or flattened, back to the shape and order of the tensors."""
        x = self.block(x)
        if self.heads is None:
            return x
        if not self.channels_last:
            return x.flatten(1, 2)
        maps = x.permute(0, 2, 3, 1, 4).flatten(3, 4)  # a copy where there are several heads
        return maps.permute(0, 3, 1, 2)


def plain_sum(weights: Tensor, sources: Sequence[Tensor], rows: Rows) -> Tensor:
    """Σ_s w(s) V_s, in the precision of the sources.

    Args:
        weights: [*rows, sources].
        sources: tensors of the rows' shape.

    Returns: a tensor of the rows' shape.
    """
    parts = [rows.split(source) for source in sources]
    inner = parts[0].dim() - weights.dim() + 1
    factors = weights.to(parts[0].dtype).unflatten(-1, (*[1] * inner, -1))
    total = parts[0] * factors[..., 0]
    for index, source in enumerate(parts[1:], start=1):
        total = torch.addcmul(total, source, factors[..., index])
    return rows.join(total)


def plain_dot(query: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """q · k_s for every source: [*rows, numbers] each, to [*rows, sources]."""
    return torch.stack([(query * source).sum(dim=-1) for source in sources], dim=-1)


def weighted_sum(weights: Tensor, sources: Sequence[Tensor], rows: Rows) -> Tensor:
    """`plain_sum` over sources that lie in no block, in eager mode differentiated by hand (once).

    Nothing but the weights and the sources themselves is kept for the backward pass.
    """
    if torch.compiler.is_compiling():
        return plain_sum(weights, sources, rows)
    result: Tensor = _WeightedSum.apply(weights, rows, *sources)
    return result


class Stack:
    """The sources of a stage in order, all of one shape.

    In eager mode they are copied into one block [rows, capacity, numbers], and both operations are
    batched matrix products that can be differentiated once. Under torch.compile they are a list.

    Args:
        capacity: how many sources are kept; what is added beyond is read by no one.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count = 0
        self.rows: Rows | None = None
        self._list: list[Tensor] | None = [] if torch.compiler.is_compiling() else None
        self._block: Tensor | None = None
        self._order: Tensor | None = None
        self._gradients: _Gradients | None = None

    def append(self, source: Tensor, rows: Rows) -> None:
        """Add a source; all have the same rows."""
        if self.count == self.capacity:
            return
        if self._begin(source, rows):
            self._order = _Append.apply(source, *self._state())

    def append_and_sum(self, source: Tensor, weights: Tensor, rows: Rows) -> Tensor:
        """Σ_s w(s) V_s over the sources with this one; weights [*rows, sources]."""
        if self._begin(source, rows):
            result, self._order = _AppendAndSum.apply(source, weights, *self._state())
            return result
        assert self._list is not None
        return plain_sum(weights, self._list, rows)

    def append_and_dot(self, source: Tensor, query: Tensor, rows: Rows) -> Tensor:
        """q · k_s over the sources with this one: [*rows, numbers] each to [*rows, sources]."""
        if self._begin(source, rows):
            result, self._order = _AppendAndDot.apply(source, query, *self._state())
            return result
        assert self._list is not None
        return plain_dot(query, self._list)

    def _begin(self, source: Tensor, rows: Rows) -> bool:
        """Whether the source is to be copied into the block, which is made for the first one."""
        self.rows = rows
        self.count += 1
        if self._list is not None:
            self._list.append(source)
            return False
        if self._block is None:
            size = (rows.count, self.capacity, source.numel() // rows.count)
            self._block = source.new_empty(size)
            self._gradients = _Gradients(rows, self.capacity)
        return True

    def _state(self) -> tuple[Any, ...]:
        return self._order, self._block, self.count - 1, self._gradients


class _Gradients:
    """What the gradients of one block's sources are made of, while a backward pass is under way.

    Both operations give source s a gradient of the form Σ_t c_t(s) x_t: of the weighted sums c is
    the weights and x the gradient of the sum; of the logits c is their gradient and x the query.
    """

    def __init__(self, rows: Rows, capacity: int) -> None:
        self.rows, self.capacity = rows, capacity
        self.reads = 0  # of the forward pass
        self._task: int | None = None
        self._noted = 0
        self._terms: Tensor | None = None
        self._factors: Tensor | None = None

    def note(self, term: Tensor, factors: Tensor) -> Tensor:
        """Note x, of the rows' shape, and c [rows, sources]; returns x as [rows, numbers]."""
        task = torch._C._current_graph_task_id()
        if self._terms is None or task != self._task:  # what a partial backward pass left goes
            count = factors.shape[0]
            self._terms = factors.new_empty(count, self.reads, term.numel() // count)
            self._factors = factors.new_zeros(self.capacity, count, self.reads)
            self._task, self._noted = task, 0
        assert self._factors is not None
        place, self._noted = self._noted, self._noted + 1
        slot = self._terms[:, place]
        self.rows.block(slot).copy_(self.rows.split(term))
        self._factors[: factors.shape[1], :, place] = factors.T
        return slot

    def of_source(self, source: int) -> Tensor:
        assert self._terms is not None
        assert self._factors is not None
        factors = self._factors[source, :, None, : self._noted]
        gradient = self.rows.join(torch.bmm(factors, self._terms[:, : self._noted]))
        if source == 0:  # it comes last
            self._terms = self._factors = None
        return gradient


def store(source: Tensor, block: Tensor, place: int, gradients: _Gradients) -> None:
    """Copy a source into its place in a block."""
    # .data: earlier reads have saved the block, and none of them needs this part of it
    rows = gradients.rows
    rows.block(block.data[:, place]).copy_(rows.split(source))


# Each of the three stores a source, and what it returns last, a scalar, goes to the next one as
# `order`: so the backward pass comes to a source only when all who read it have had their turn.


class _Append(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        order: Tensor | None,
        block: Tensor,
        place: int,
        gradients: _Gradients,
    ) -> Tensor:
        store(source, block, place, gradients)
        ctx.gradients, ctx.place = gradients, place
        return source.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, order: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.gradients.of_source(ctx.place), order if ctx.place else None, None, None, None


class _AppendAndSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        weights: Tensor,
        order: Tensor | None,
        block: Tensor,
        place: int,
        gradients: _Gradients,
    ) -> tuple[Tensor, Tensor]:
        store(source, block, place, gradients)
        flat = weights.reshape(block.shape[0], -1).to(block.dtype)
        gradients.reads += 1
        ctx.gradients, ctx.place, ctx.shape = gradients, place, weights.shape
        ctx.save_for_backward(flat, block)
        total = torch.bmm(flat.unsqueeze(1), block[:, : place + 1])
        return gradients.rows.join(total), source.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, order: Tensor) -> tuple[Tensor | None, ...]:
        weights, block = ctx.saved_tensors
        term = ctx.gradients.note(grad, weights)
        by_weight = torch.bmm(term.unsqueeze(1), block[:, : ctx.place + 1].transpose(1, 2))
        by_source = ctx.gradients.of_source(ctx.place)
        before = order if ctx.place else None
        return by_source, by_weight.view(ctx.shape), before, None, None, None


class _AppendAndDot(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        query: Tensor,
        order: Tensor | None,
        block: Tensor,
        place: int,
        gradients: _Gradients,
    ) -> tuple[Tensor, Tensor]:
        store(source, block, place, gradients)
        flat = query.reshape(block.shape[0], 1, -1).to(block.dtype)
        gradients.reads += 1
        ctx.gradients, ctx.place = gradients, place
        ctx.save_for_backward(query, block)
        logits = torch.bmm(flat, block[:, : place + 1].transpose(1, 2))
        return logits.view(*query.shape[:-1], place + 1), source.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, order: Tensor) -> tuple[Tensor | None, ...]:
        query, block = ctx.saved_tensors
        factors = grad.reshape(block.shape[0], -1).to(block.dtype)
        ctx.gradients.note(query, factors)
        by_query = torch.bmm(factors.unsqueeze(1), block[:, : ctx.place + 1])
        by_source = ctx.gradients.of_source(ctx.place)
        before = order if ctx.place else None
        return by_source, by_query.view_as(query).to(query.dtype), before, None, None, None


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, rows: Rows, *sources: Tensor) -> Tensor:
        flat = weights.reshape(rows.count, -1).to(sources[0].dtype)
        ctx.rows, ctx.shape = rows, weights.shape
        ctx.save_for_backward(flat, *sources)
        total = rows.flat(sources[0]) * flat[:, :1]
        for index, source in enumerate(sources[1:], start=1):
            total.addcmul_(rows.flat(source), flat[:, index : index + 1])
        return rows.join(total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, *sources = ctx.saved_tensors
        rows: Rows = ctx.rows
        grad = rows.flat(grad)
        by_weight = [
            torch.bmm(grad[:, None], rows.flat(source)[:, :, None]).flatten() for source in sources
        ]
        by_source = [rows.join(grad * weight[:, None]) for weight in weights.unbind(dim=1)]
        return torch.stack(by_weight, dim=1).view(ctx.shape), None, *by_source
