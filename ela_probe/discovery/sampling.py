"""Sampling: which forward passes of a large model are recorded, and which token positions.

Nothing is chosen at random: a run can be repeated, and the random state stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ela_probe.errors import OptionError, ProbeError


@dataclass(frozen=True)
class Sampling:
    """What a probe records.

    every: record the first of every `every` forward passes. max_batches: stop after this many
    recorded passes. max_tokens: at most this many token positions of a sample, evenly spaced, the
    same for all sites.

    Raises:
        OptionError: a number below 1.
    """

    every: int = 1
    max_batches: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                option = name.replace("_", "-")
                raise OptionError(f"{name} is {value}; expected 1 or more (--{option})")

    @property
    def passes(self) -> int | None:
        """The number of passes after which nothing more is recorded; None if there is no limit."""
        return None if self.max_batches is None else (self.max_batches - 1) * self.every + 1

    def records(self, number: int) -> bool:
        """Whether pass `number` (from 0) is recorded."""
        return number % self.every == 0 and (self.passes is None or number < self.passes)


def positions(length: int, count: int) -> list[int]:
    """The middles of `count` equal parts of `length`; all positions if there are fewer.

    >>> positions(128, 4)
    [16, 48, 80, 112]
    """
    if count >= length:
        return list(range(length))
    return [(2 * k + 1) * length // (2 * count) for k in range(count)]


def token_axis(weights: Sequence[int], inputs: Sequence[int]) -> int:
    """The axis of weights [samples, ..., sources] that runs over the tokens of the inputs.

    It is as long as the sequences are: inputs are (samples, tokens) or (samples, tokens,
    features), or have the tokens first.

    Args:
        weights, inputs: shapes.

    Raises:
        ProbeError: there is no such axis.
    """
    if len(inputs) in (2, 3):
        length = inputs[1] if inputs[0] == weights[0] else inputs[0]
        found = [axis for axis in range(1, len(weights) - 1) if weights[axis] == length]
        if found:
            return found[-1]
    raise ProbeError(
        f"got weights of shape {list(weights)} for inputs of shape {list(inputs)}: no axis runs "
        "over tokens, so that max_tokens (--max-tokens) has nothing to choose from; leave it out, "
        "and record fewer batches instead (every, max_batches)"
    )


def without_padding(
    retrievals: list[Tensor], mask: Tensor | None
) -> list[tuple[Tensor | slice, list[Tensor]]]:
    """The retrievals of a stage without padded tokens, for each number of real tokens apart.

    So every sample keeps its own tokens only, and its mean stays one observation.

    Args:
        retrievals: per site [samples, tokens, ..., sources].
        mask: [samples, tokens], whether a token is real; None: all are.

    Returns: pairs of the samples, as an index of their axis, and their retrievals; the retrievals
        as they are where nothing is padded, or the mask has another shape.
    """
    if mask is None or retrievals[0].shape[:2] != mask.shape or bool(mask.all()):
        return [(slice(None), retrievals)]
    mask = mask.to(retrievals[0].device)
    counts = mask.sum(dim=1)
    parts: list[tuple[Tensor | slice, list[Tensor]]] = []
    for count in counts.unique().tolist():
        rows = counts == count
        if count:
            real = [w[rows][mask[rows]].unflatten(0, (-1, count)) for w in retrievals]
            parts.append((rows, real))
    return parts
