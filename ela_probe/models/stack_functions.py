"""The functions behind `Stack`, with their hand-written backward pass.

The gradient of a source is a sum over its readers, Σ_t c_t(s) x_t: for a sum c_t is its weights
and x_t its gradient, for logits c_t is their gradient and x_t the query. In the example of `stack`,
with the gradients g_1 and g_2 of the two sums, that of `first` is 1 g_1 + 1/4 g_2. Each reader
notes its c_t and x_t; when all readers of a source have done so, one matrix product gives the
gradient.

The notes are the gradients of two zeros that every function takes and returns beside the sources,
so they travel with the backward pass, which comes to a source only when all who read it have had
their turn. Where plain operations are asked for, the gradient of the sources is passed on instead;
the true gradient is always the sum of both.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ela_probe.models.hand_written import plain_backward
from ela_probe.models.rows import Rows

Notes = tuple[Tensor | None, Tensor | None]  # x of all readers, and c; see Place.notes


@dataclass
class Memory:
    """A block [rows, capacity, numbers], of which the first `filled` sources are written."""

    block: Tensor
    filled: int = 0


class Place(NamedTuple):
    """The next free place of a stack: the number of its source, and of the reader that comes."""

    rows: Rows
    source: int
    reader: int
    capacity: int
    readers: int

    def store(self, source: Tensor, memory: Memory) -> Tensor:
        """Write a source; returns the sources with it, [rows, count, numbers]."""
        # .data: earlier reads have saved the block, and none of them needs this part of it
        block = memory.block.data
        self.rows.block(block[:, self.source]).copy_(self.rows.split(source))
        memory.filled = self.source + 1
        return block[:, : self.source + 1]

    def notes(self, stacked: Tensor) -> tuple[Tensor, Tensor]:
        """Two zeros without memory, of the shapes of x and c of all readers.

        [rows, readers, numbers] and [capacity, rows, readers], in the precision of the sources.
        """
        zero = stacked.new_zeros(())
        rows = self.rows.count
        return (
            zero.expand(rows, self.readers, self.rows.numbers),
            zero.expand(self.capacity, rows, self.readers),
        )


def note(place: Place, term: Tensor | None, factors: Tensor | None, notes: Notes) -> Notes:
    """Write down a reader's x, of the rows' shape, and c [rows, sources]; None: no gradient."""
    terms, noted = notes
    if term is None or factors is None:
        if terms is not None:
            terms[:, place.reader].zero_()
        return notes
    if terms is None or noted is None:  # the last reader
        rows = place.rows.count
        terms = factors.new_empty(rows, place.readers, place.rows.numbers)
        terms[:, place.reader + 1 :].zero_()
        noted = factors.new_zeros(place.capacity, rows, place.readers)
    place.rows.block(terms[:, place.reader]).copy_(place.rows.split(term))
    noted[: factors.shape[1], :, place.reader] = factors.T
    return terms, noted


def of_source(place: Place, by_stacked: Tensor | None, notes: Notes) -> Tensor | None:
    """The gradient of the source at a place, which the readers from `place.reader` on read."""
    terms, noted = notes
    row = None if by_stacked is None else by_stacked[:, place.source]
    if terms is not None and noted is not None:
        factors = noted[place.source, :, None, place.reader :]
        total = torch.bmm(factors, terms[:, place.reader :]).squeeze(1)
        row = total if row is None else row + total
    return None if row is None else place.rows.join(row)


def of_all(by_stacked: Tensor | None, notes: Notes, *, sources: int, reader: int) -> Tensor | None:
    """The gradient of the first sources, which the readers from this one on read."""
    terms, noted = notes
    if terms is None or noted is None:
        return by_stacked
    total = torch.bmm(noted[:sources, :, reader:].transpose(0, 1), terms[:, reader:])
    return total if by_stacked is None else by_stacked + total


def before(place: Place, by_stacked: Tensor | None, notes: Notes) -> tuple[Tensor | None, ...]:
    """The gradients of the tensors of the stack before this place, of the place, and its memory."""
    if place.source == 0:
        return None, None, None, None, None
    return None if by_stacked is None else by_stacked[:, : place.source], *notes, None, None


def plainly(
    place: Place, factors: Tensor, term: Tensor, by_stacked: Tensor | None, notes: Notes
) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
    """The gradient of a source, and those of `before`, by operations that can be differentiated.

    Args:
        factors: c, [rows, sources]. term: x, [rows, numbers].
    """
    total = factors.unsqueeze(2) * term.unsqueeze(1)
    later = of_all(by_stacked, notes, sources=place.source + 1, reader=place.reader + 1)
    total = total if later is None else total + later
    return of_source(place, total, (None, None)), before(place, total, (None, None))


def read_back(
    place: Place, x: Tensor, factors: Tensor, by_stacked: Tensor | None, notes: Notes
) -> tuple[Tensor, Tensor | None, tuple[Tensor | None, ...]]:
    """What a reader's backward pass comes to: its x as rows, the gradient of the source, `before`.

    Args:
        x: of the rows' shape. factors: c, [rows, sources].
    """
    if plain_backward():
        term = place.rows.flat(x).to(factors.dtype)
        return term, *plainly(place, factors, term, by_stacked, notes)
    terms, noted = note(place, x, factors, notes)
    assert terms is not None
    own: Notes = terms, noted
    return terms[:, place.reader], of_source(place, by_stacked, own), before(place, by_stacked, own)


class _Append(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        stacked: Tensor | None,
        terms: Tensor | None,
        noted: Tensor | None,
        place: Place,
        memory: Memory,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.place = place
        return place.store(source, memory), *place.notes(source)

    @staticmethod
    def backward(ctx: Any, by_stacked: Tensor | None, *notes: Tensor | None) -> Any:
        both: Notes = notes[0], notes[1]
        by_source = of_source(ctx.place, by_stacked, both)
        return by_source, *before(ctx.place, by_stacked, both)


class _AppendAndSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        weights: Tensor,
        stacked: Tensor | None,
        terms: Tensor | None,
        noted: Tensor | None,
        place: Place,
        memory: Memory,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.place = place
        stacked = place.store(source, memory)
        ctx.save_for_backward(weights, stacked)
        flat = weights.reshape(stacked.shape[:2]).to(stacked.dtype)
        total = torch.bmm(flat.unsqueeze(1), stacked)
        return place.rows.join(total), stacked, *place.notes(stacked)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, by_stacked: Tensor | None, *notes: Any) -> Any:
        weights, stacked = ctx.saved_tensors
        place: Place = ctx.place
        if grad is None:
            return without_gradient(place, by_stacked, notes)
        flat = weights.reshape(stacked.shape[:2]).to(stacked.dtype)
        term, by_source, others = read_back(place, grad, flat, by_stacked, notes)
        by_weight = torch.bmm(term.unsqueeze(1), stacked.transpose(1, 2)).view(weights.shape)
        return by_source, by_weight, *others


class _AppendAndDot(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        query: Tensor,
        stacked: Tensor | None,
        terms: Tensor | None,
        noted: Tensor | None,
        place: Place,
        memory: Memory,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.place = place
        stacked = place.store(source, memory)
        ctx.save_for_backward(query, stacked)
        flat = place.rows.flat(query).unsqueeze(1).to(stacked.dtype)
        logits = torch.bmm(flat, stacked.transpose(1, 2))
        return logits.view(*query.shape[:-1], stacked.shape[1]), stacked, *place.notes(stacked)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, by_stacked: Tensor | None, *notes: Any) -> Any:
        query, stacked = ctx.saved_tensors
        place: Place = ctx.place
        if grad is None:
            return without_gradient(place, by_stacked, notes)
        flat = grad.reshape(stacked.shape[:2]).to(stacked.dtype)
        _, by_source, others = read_back(place, query, flat, by_stacked, notes)
        by_query = torch.bmm(flat.unsqueeze(1), stacked).view(query.shape).to(query.dtype)
        return by_source, by_query, *others


def without_gradient(
    place: Place, by_stacked: Tensor | None, notes: Notes
) -> tuple[Tensor | None, ...]:
    """What a reader returns of which nothing was used."""
    notes = note(place, None, None, notes)
    return of_source(place, by_stacked, notes), None, *before(place, by_stacked, notes)


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stacked: Tensor, place: Place, memory: Memory) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.place = place
        copy = memory.block.data[:, : place.source]
        copy.copy_(stacked)
        return copy, *place.notes(stacked)

    @staticmethod
    def backward(ctx: Any, by_stacked: Tensor | None, *notes: Tensor | None) -> Any:
        place: Place = ctx.place
        both: Notes = notes[0], notes[1]
        return of_all(by_stacked, both, sources=place.source, reader=place.reader), None, None


# Of a source, a reader where there is one, the tensors of the stack, and a place. Each returns the
# result of the reader and the tensors of the longer stack.
append = _Append.apply
append_and_sum = _AppendAndSum.apply
append_and_dot = _AppendAndDot.apply
copied = _Copy.apply  # of the sources alone, into the memory of the place
