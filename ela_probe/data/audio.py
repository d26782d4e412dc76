"""Sounds to classify: sources `audio:PREFIX`, normalised as a model of transformers needs them."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from ela_probe.data.batches import Batch
from ela_probe.data.source_names import absolute_source
from ela_probe.data.split_data import SplitData
from ela_probe.data.stratified import stratified_order, train_and_val_indices
from ela_probe.data.waveforms import (
    Sounds,
    load_feature_extractor,
    read_audio_config,
    read_sounds,
)
from ela_probe.errors import DataError
from ela_probe.system.validation import Strict

Inputs = dict[str, Tensor]

VAL_FRACTION = 0.1


class AudioSpec(Strict):
    """Where sounds come from, and how they become training, validation and test sounds."""

    source: str = Field(pattern="^audio:.", description="audio:PREFIX, the path absolute")
    sampling_rate: int = Field(ge=1, description="of the model's feature extractor, in Hz")
    length: int = Field(ge=1, description="values in a padded training sound")
    attention_mask: bool = Field(description="whether the model is told what is padding")
    classes: tuple[str, ...] = Field(min_length=1, description="names in the model's config")
    val_fraction: float = Field(VAL_FRACTION, ge=0, lt=1, description="of the training sounds")
    seed: int = Field(0, ge=0, description="of the limited subset and the validation split")
    limit: int | None = Field(None, ge=1, description="training sounds used, validation included")

    @property
    def task(self) -> Literal["audio"]:
        """What a model for this data reads."""
        return "audio"

    @property
    def num_classes(self) -> int:
        """Number of classes K; labels are 0..K-1."""
        return len(self.classes)

    @property
    def sample(self) -> str:
        """One sample in words."""
        return f"sounds of {self.length} values at {self.sampling_rate} Hz"

    def model_arguments(self) -> dict[str, int]:
        """Arguments that a model of the zoo needs to fit this data."""
        return {"num_classes": self.num_classes}

    def example(self) -> tuple[Inputs, Tensor]:
        """A blank batch of one: a silent sound, and its label, int64 (1,)."""
        inputs = {"input_values": torch.zeros(1, self.length)}
        if self.attention_mask:
            inputs["attention_mask"] = torch.ones(1, self.length, dtype=torch.int32)
        return inputs, torch.zeros(1, dtype=torch.int64)

    def with_source(self, source: str, *, root: object = None) -> "AudioSpec":
        """The same classes and split of other sounds. Raises DataError: other data."""
        moved = absolute_source(source)
        if not moved.startswith("audio:"):
            raise DataError(
                f"{source} has no sounds, but the model was trained on sounds; expected "
                "audio:PREFIX"
            )
        return self.model_copy(update={"source": moved})


class AudioData(SplitData["SoundDataset"]):
    """The splits of an `audio:` source. Made by `open_audio`, or from a spec.

    Sounds are normalised and padded, and never augmented.

    Args:
        directory: of the model, with its feature extractor.

    Raises:
        DataError: no directory is given, a file is missing or broken, or sounds have another
            sampling rate than the feature extractor expects, or are too short for the model.
    """

    spec: AudioSpec
    SAMPLES = "sounds"

    def __init__(self, spec: AudioSpec, *, directory: Path | None = None) -> None:
        folder = _required(directory, spec.source)
        self.extractor = load_feature_extractor(folder)
        sounds = read_sounds(
            spec.source.partition(":")[2],
            config=read_audio_config(folder),
            sampling_rate=self.extractor.sampling_rate,
        )
        length = sounds["train"].waveforms.shape[1]
        self.spec = spec.model_copy(update={"length": length})
        own = sounds.get("val")
        train, val = train_and_val_indices(
            sounds["train"].labels,
            None if own is None else own.labels,
            limit=spec.limit,
            val_fraction=spec.val_fraction,
            seed=spec.seed,
        )
        test = sounds["test"]
        self._parts: dict[str, tuple[Sounds, Tensor]] = {
            "train": (sounds["train"], train),
            "val": (own or sounds["train"], val),
            "test": (test, torch.arange(len(test.labels))),
        }

    @property
    def hears_padding(self) -> bool:
        """Whether there is padding, and the model is not told where."""
        parts = (sounds for sounds, _ in self._parts.values())
        padded = any((s.lengths < s.waveforms.shape[1]).any() for s in parts)
        return padded and not self.spec.attention_mask

    def labels_digest(self) -> str:
        """SHA-256 of the labels for training and validation, in order."""
        digest = hashlib.sha256()
        for split in ("train", "val"):
            sounds, indices = self._parts[split]
            digest.update(sounds.labels[indices].numpy().tobytes())
        return digest.hexdigest()

    def _indices(self, split: str) -> Tensor:
        return self._parts[split][1]

    def _order(self, split: str, indices: Tensor) -> Tensor:
        return stratified_order(self._parts[split][0].labels[indices], seed=self.spec.seed)

    def _dataset(self, split: str, indices: Tensor, *, augment: bool) -> "SoundDataset":
        return SoundDataset(self._parts[split][0], indices, self.extractor)


class SoundDataset(Dataset[Any]):
    """Sounds with labels, by position or by Batch, as the model's feature extractor makes them.

    The inputs are `input_values`, float32 [samples, length], and `attention_mask`, int32 of the
    same shape, if the extractor makes one: 1 for sound, 0 for padding. All sounds of a split are
    padded to one length, so that no result depends on the batch.
    """

    def __init__(self, sounds: Sounds, indices: Tensor, extractor: Any) -> None:
        self.sounds = sounds
        self.indices = indices
        self.labels = sounds.labels[indices]
        self.extractor = extractor

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int | Batch) -> Any:
        """Inputs [length] and label () for a position; [B, length] and [B] for a Batch."""
        if isinstance(index, Batch):
            return self._batch(index.positions)
        if not 0 <= index < len(self):
            raise IndexError(f"position {index} is out of range: there are {len(self)} sounds")
        inputs, labels = self._batch(torch.tensor([index]))
        return {name: value[0] for name, value in inputs.items()}, labels[0]

    def _batch(self, positions: Tensor) -> tuple[Inputs, Tensor]:
        inputs = self.extractor(
            [self.sounds.sound(index) for index in self.indices[positions].tolist()],
            sampling_rate=self.extractor.sampling_rate,
            padding="max_length",
            max_length=self.sounds.waveforms.shape[1],
            return_tensors="pt",
        )
        return dict(inputs), self.labels[positions]


def open_audio(
    source: str,
    *,
    directory: Path | None,
    limit: int | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
) -> AudioData:
    """Open `audio:PREFIX` for the audio classifier in a directory of transformers.

    Args:
        directory: of the model, with its config and feature extractor.
        limit: use this many training sounds, validation included, a random subset with the classes
            in proportion.
        val_fraction: share of the training sounds for validation, 0.1 when None; 0 for none.

    Raises:
        DataError: files are missing or broken, or an argument is out of range.
    """
    fraction = VAL_FRACTION if val_fraction is None else val_fraction
    for name, value, valid, expected in (
        ("validation fraction", fraction, 0 <= fraction < 1, "0 to 0.9"),
        ("limit", limit, limit is None or limit >= 1, "1 or more"),
        ("seed", seed, seed >= 0, "0 or more"),
    ):
        if not valid:
            raise DataError(f"{name} {value} is out of range: expected {expected}")
    folder = _required(directory, source)
    extractor = load_feature_extractor(folder)
    spec = AudioSpec(
        source=absolute_source(source),
        sampling_rate=extractor.sampling_rate,
        length=1,
        attention_mask=bool(extractor.return_attention_mask),
        classes=read_audio_config(folder).classes,
        val_fraction=fraction,
        seed=seed,
        limit=limit,
    )
    return AudioData(spec, directory=folder)


def _required(directory: Path | None, source: str) -> Path:
    if directory is None:
        raise DataError(
            f"{source} is read with the feature extractor of a model's directory; expected an "
            "audio classifier of transformers as hf:DIR, or other data with --data"
        )
    return directory
