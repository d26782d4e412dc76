"""Inputs for models without a data source: random tensors, or batches from a user's function."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ela_probe.errors import DataError, ModelError, OptionError
from ela_probe.forward import first_samples, inputs_and_labels, sample_count
from ela_probe.system.messages import class_and_first_line
from ela_probe.system.nested_tensors import fields_of
from ela_probe.system.user_code import importable, load_function

InputType = Literal["float32", "float64", "float16", "bfloat16", "int64", "int32"]


@dataclass(frozen=True)
class RandomInputs:
    """Seeded random batches [n, *size].

    Standard normal for a float `dtype`, else integers below `high`. The samples don't depend on
    the batch size.

    Raises:
        OptionError: a size is below 1, integers have no upper bound, or floats have one.
    """

    labelled: ClassVar[bool] = False

    size: tuple[int, ...]
    dtype: InputType = "float32"
    high: int | None = None
    samples: int = 256
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.size or min(self.size) < 1:
            raise OptionError(
                f"got input size {self.size}, expected positive numbers, e.g. 3,32,32"
            )
        if self.is_integer and (self.high is None or self.high < 1):
            raise OptionError(
                f"got upper bound {self.high} for {self.dtype} inputs, expected 1 or more, e.g. "
                "the size of the vocabulary; set --input-high"
            )
        if not self.is_integer and self.high is not None:
            raise OptionError(
                f"--input-high is for integers, not {self.dtype}; choose an integer --input-dtype"
            )

    @property
    def note(self) -> str:
        """A note for the provenance of an analysis."""
        return (
            f"the inputs are random ({self.samples} samples): the divergences describe the model "
            "on noise, not on its task"
        )

    @property
    def is_integer(self) -> bool:
        """Whether the samples are integers, such as token ids."""
        return self.dtype.startswith("int")

    def __str__(self) -> str:
        below = f" below {self.high}" if self.is_integer else ""
        shape = " x ".join(map(str, self.size))
        return f"random inputs ({shape}, {self.dtype}{below}, seed {self.seed})"

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        remaining = self.samples
        while remaining > 0:
            count = min(remaining, self.batch_size)
            yield torch.stack([self._sample(generator) for _ in range(count)])
            remaining -= count

    def _sample(self, generator: torch.Generator) -> Tensor:
        dtype: torch.dtype = getattr(torch, self.dtype)
        if self.high is not None:
            return torch.randint(self.high, self.size, generator=generator, dtype=dtype)
        return torch.randn(self.size, generator=generator).to(dtype)


def parse_batch_keys(text: str) -> tuple[str | tuple[str, ...] | None, str | None]:
    """The fields in `INPUTS:LABELS`, for `ExampleInputs`; either side may be left out.

        >>> parse_batch_keys("image:label")
        ('image', 'label')
        >>> parse_batch_keys("input_ids,attention_mask")
        (('input_ids', 'attention_mask'), None)
        >>> parse_batch_keys(":labels")
        (None, 'labels')

    Raises:
        OptionError: no field is named, a name is empty, or several are to be the labels.
    """
    given, colon, labels = text.partition(":")
    names = tuple(name.strip() for name in given.split(",")) if given.strip() else ()
    labels = labels.strip()
    wrong = not (names or labels) or (colon and not labels) or "" in names
    if wrong or "," in labels or ":" in labels:
        raise OptionError(
            f"got batch keys {text!r}, expected INPUTS or INPUTS:LABELS, such as image:label or "
            "input_ids,attention_mask:labels"
        )
    return (names[0] if len(names) == 1 else names or None), labels or None


class ExampleInputs:
    """Batches of model inputs, returned by a function of the user.

    The function takes no arguments. It returns one batch (a tensor, an array, a dict, a data
    class) or an iterable of batches (these, or tuples of arguments). Importing its module runs the
    module's code. With `labels` every batch is a pair of inputs and labels.

    Args:
        name: `package.module:function`.
        path: folder of the function's code.
        limit: use at most this many samples.
        inputs, labels: the fields of a batch that the model is called with, and the field of its
            labels; as in `forward.inputs_and_labels`.

    Raises:
        ModelError: the function can't be found, or raises.
        DataError: (on iterating) it returned something else, or a field is not there.
    """

    note = None

    def __init__(
        self,
        name: str,
        *,
        path: Path | None = None,
        limit: int | None = None,
        inputs: str | Sequence[str] | None = None,
        labels: str | None = None,
    ) -> None:
        self.name, self._path, self._limit = name, path, limit
        self._inputs, self._labels = inputs, labels
        with importable(path):
            self._function = load_function(name, path=path)

    def __str__(self) -> str:
        return f"the batches of {self.name}"

    @property
    def labelled(self) -> bool:
        """Whether every batch is a pair of inputs and labels."""
        return self._labels is not None

    def __iter__(self) -> Iterator[Any]:
        remaining = self._limit
        named = self._inputs is not None or self._labels is not None
        for whole in self._batches():
            given, labels = inputs_and_labels(
                whole, labelled=named, inputs=self._inputs, labels=self._labels
            )
            batch = given if labels is None else (given, labels)
            count = sample_count(batch)
            yield batch if remaining is None else first_samples(batch, remaining)
            if remaining is not None:
                remaining -= count
                if remaining <= 0:
                    return

    def _batches(self) -> Iterable[Any]:
        with importable(self._path):
            try:
                returned = self._function()
            except Exception as error:
                raise ModelError(
                    f"{self.name}() failed: {class_and_first_line(error)}; it is called "
                    "without arguments"
                ) from error
        if isinstance(returned, Tensor | np.ndarray | PackedSequence) or fields_of(returned):
            return [returned]
        if not isinstance(returned, Iterable) or isinstance(returned, str | bytes):
            raise DataError(
                f"{self.name}() returned a {type(returned).__name__}, expected a batch (tensor, "
                "dict or data class) or an iterable of batches"
            )
        return returned
