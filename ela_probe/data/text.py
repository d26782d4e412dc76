"""Text: a plain file as tokens, split by position, in windows for next-token prediction.

Tokens are bytes, or those of the tokenizer in a model's directory.
"""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from ela_probe.data.batches import Batch
from ela_probe.data.source_files import check_text
from ela_probe.data.source_names import absolute_source
from ela_probe.data.split_data import SplitData
from ela_probe.data.tokens import read_tokens, token_count
from ela_probe.errors import DataError
from ela_probe.system.reading import refusing
from ela_probe.system.validation import Strict

CONTEXT = 128
VAL_FRACTION = 0.05
TEST_FRACTION = 0.05


class TextSpec(Strict):
    """Where text comes from and how it becomes training, validation and test windows.

    The last 5 % of the tokens are the test split; the `val_fraction` before them is the validation
    split.
    """

    source: str = Field(pattern="^text:.", description="text:FILE, the path absolute")
    context: int = Field(CONTEXT, ge=1, description="tokens in a window")
    tokens: Literal["bytes", "tokenizer"] = Field(
        "bytes", description="bytes, or tokens of the tokenizer in the model's directory"
    )
    vocab_size: int = Field(256, ge=1, description="number of tokens")
    val_fraction: float = Field(VAL_FRACTION, ge=0, lt=0.9, description="of the file")
    seed: int = Field(0, ge=0, description="of the limited subset")
    limit: int | None = Field(None, ge=1, description="training windows used")

    @property
    def task(self) -> Literal["images", "tokens"]:
        """What a model for this data reads."""
        return "tokens"

    @property
    def num_classes(self) -> int:
        """Number of tokens; labels are less."""
        return self.vocab_size

    @property
    def sample(self) -> str:
        """One sample in words."""
        return f"sequences of {self.context} {'byte ' if self.tokens == 'bytes' else ''}tokens"

    def model_arguments(self) -> dict[str, int]:
        """Arguments that a model of the zoo needs to fit this data."""
        return {"vocab_size": self.num_classes}

    def example(self) -> tuple[Tensor, Tensor]:
        """A blank batch of one: tokens and next tokens, int64 (1, context) each."""
        blank = torch.zeros(1, self.context, dtype=torch.int64)
        return blank, blank

    def with_source(self, source: str, *, root: object = None) -> "TextSpec":
        """The same windows of another file. Raises DataError when the source is not text."""
        moved = absolute_source(source)
        if not moved.startswith("text:"):
            raise DataError(
                f"{source} is no text, but the model was trained on text; expected text:FILE"
            )
        return self.model_copy(update={"source": moved})


class TextData(SplitData["Windows"]):
    """The splits of one text file. Made by `open_text` or from a spec.

    A sample is a window: its tokens, and their next tokens, both int64 (context,). Windows are
    adjacent and don't overlap; augmented, every window of a batch is shifted forward by a random
    part of its length.

    Args:
        tokenizer: the directory of the tokenizer, where the spec's tokens are those of one.

    Raises:
        DataError: the file is missing or empty, or a split is shorter than a window.
    """

    spec: TextSpec
    SAMPLES = "windows"

    def __init__(self, spec: TextSpec, *, tokenizer: Path | None = None) -> None:
        self.spec = spec
        path = Path(spec.source.partition(":")[2])
        if spec.tokens == "tokenizer":
            if tokenizer is None:
                raise DataError(
                    f"{spec.source} was read with the tokenizer of a model's directory, which is "
                    "not at hand; give the model as hf:DIR, or other data with --data"
                )
            content = read_tokens(path, tokenizer)
        else:
            content = _read(path)
        test = round(len(content) * TEST_FRACTION)
        val = round(len(content) * spec.val_fraction)
        train = len(content) - test - val
        self._parts = dict(
            zip(("train", "val", "test"), content.split([train, val, test]), strict=True)
        )
        unit = self._unit
        for split, part in self._parts.items():
            if len(part) <= spec.context and (split != "val" or spec.val_fraction):
                raise DataError(
                    f"{spec.source}: the {split} split has {len(part)} of {len(content)} {unit}, "
                    f"expected at least {spec.context + 1}, a window and the {unit[:-1]} after it; "
                    "use a longer file or a shorter context"
                )

    @property
    def _unit(self) -> str:
        return "bytes" if self.spec.tokens == "bytes" else "tokens"

    def labels_digest(self) -> str:
        """SHA-256 of the tokens for training and validation, which are their own labels."""
        digest = hashlib.sha256()
        for split in ("train", "val"):
            digest.update(self._parts[split].numpy().tobytes())
        return digest.hexdigest()

    def _indices(self, split: str) -> Tensor:
        windows = torch.arange(max(0, (len(self._parts[split]) - 1) // self.spec.context))
        if split == "train" and self.spec.limit is not None:
            windows = windows[self._order(split, windows)[: self.spec.limit].sort().values]
        return windows

    def _dataset(self, split: str, indices: Tensor, *, augment: bool) -> "Windows":
        context = self.spec.context
        return Windows(self._parts[split], indices * context, context=context, shift=augment)

    def _described(self) -> str:
        return f" windows of {self.spec.context} {self._unit}"


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Windows of a text by position: tokens and next tokens, int64.

    Args:
        text: integers (N,).
        starts: first token of each window, int64.
        context: tokens in a window.
        shift: shift each window of a batch forward by 0 to context - 1 tokens, which follow the
            batch's seed; a window at the end stays within the text.
    """

    def __init__(self, text: Tensor, starts: Tensor, *, context: int, shift: bool) -> None:
        self.text = text
        self.starts = starts
        self.context = context
        self.shift = shift

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int | Batch) -> tuple[Tensor, Tensor]:
        """(context,) each for a position; (B, context) each for a Batch."""
        if not isinstance(index, Batch):
            if not 0 <= index < len(self):
                raise IndexError(f"position {index} is out of range: there are {len(self)} windows")
            return self._read(self.starts[index])
        starts = self.starts[index.positions]
        if self.shift:
            generator = torch.Generator().manual_seed(index.seed)
            shifted = starts + torch.randint(self.context, starts.shape, generator=generator)
            starts = shifted.clamp(max=len(self.text) - self.context - 1)
        return self._read(starts[:, None])

    def _read(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        window = self.text[starts + torch.arange(self.context + 1)].long()
        return window[..., :-1], window[..., 1:]


def open_text(
    source: str,
    *,
    limit: int | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    context: int | None = None,
    tokenizer: Path | None = None,
) -> TextData:
    """Open `text:FILE` as byte tokens, or as those of a tokenizer.

    Args:
        tokenizer: a directory of transformers with a tokenizer.
        limit: use this many training windows, a random subset that follows `seed`.
        val_fraction: share of the file for validation, 0.05 when None; 0 for none.
        context: tokens in a window, 128 when None.

    Raises:
        DataError: the file is missing, empty or too short, or an argument is out of range.
    """
    context = CONTEXT if context is None else context
    fraction = VAL_FRACTION if val_fraction is None else val_fraction
    for name, value, valid, expected in (
        ("context", context, context >= 1, "1 or more"),
        ("validation fraction", fraction, 0 <= fraction < 0.9, "0 to less than 0.9"),
        ("limit", limit, limit is None or limit >= 1, "1 or more"),
        ("seed", seed, seed >= 0, "0 or more"),
    ):
        if not valid:
            raise DataError(f"{name} {value} is out of range: expected {expected}")
    spec = TextSpec(
        source=absolute_source(source),
        context=context,
        val_fraction=fraction,
        seed=seed,
        limit=limit,
    )
    if tokenizer is not None:
        size = token_count(tokenizer)
        spec = spec.model_copy(update={"tokens": "tokenizer", "vocab_size": size})
    return TextData(spec, tokenizer=tokenizer)


def _read(path: Path) -> Tensor:
    """The file's bytes, uint8 (N,)."""
    check_text(path)
    with refusing(DataError, f"cannot read the text {path}", "check its permissions"):
        content = np.fromfile(path, np.uint8)
    if not len(content):
        raise DataError(f"the text {path} is empty (0 bytes); expected a plain text file")
    return torch.from_numpy(content)
