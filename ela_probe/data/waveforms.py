"""Sounds in NumPy's `.npz` files, and what a directory of transformers says of how to read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ela_probe.data.labels import class_indices
from ela_probe.data.source_files import audio_files
from ela_probe.errors import DataError
from ela_probe.system.array_files import array_names, read_arrays
from ela_probe.system.extras import transformers
from ela_probe.system.reading import check_regular_files, refusing

EXTRACTOR = "Wav2Vec2FeatureExtractor"  # of wav2vec2, HuBERT, WavLM, UniSpeech, SEW, data2vec
ARRAYS = ("waveforms", "labels", "lengths", "sampling_rate")
EXPECTED = "expected the arrays waveforms (N, length) and labels (N,)"
INT16 = 2**15  # what is 1.0 in sounds of 16 bits


@dataclass(frozen=True)
class Sounds:
    """The sounds of one split.

    Args:
        waveforms: float32 or int16 (N, length), padded at the end.
        lengths: int64 (N,): how many values of each sound are no padding.
        labels: class of each sound, int64 (N,).
    """

    waveforms: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    labels: Tensor

    def sound(self, index: int) -> npt.NDArray[np.float32]:
        """One sound without its padding, float32 in -1 to 1 where it is stored as int16."""
        values = self.waveforms[index, : self.lengths[index]]
        scale = INT16 if values.dtype.kind == "i" else 1
        return values.astype(np.float32) / np.float32(scale)


class AudioConfig(NamedTuple):
    """What the config of a model says of the sounds that it takes.

    classes: their names, in the order of the labels. shortest: the fewest values in a sound.
    shortest_padded: the fewest with padding, which masking (SpecAugment) needs in training.
    """

    classes: tuple[str, ...]
    shortest: int
    shortest_padded: int


def read_sounds(path: str, *, config: AudioConfig, sampling_rate: int) -> dict[str, Sounds]:
    """The sounds of PATH-train.npz, PATH-test.npz and, if there is one, PATH-val.npz, by split.

    Args:
        config: of the model.
        sampling_rate: expected where a file names its own, in Hz.

    Raises:
        DataError: a file is missing or can't be read, its arrays are no sounds with labels, they
            have another sampling rate, or a sound is too short.
    """
    return {split: _read(file, config, sampling_rate) for split, file in audio_files(path).items()}


def _read(file: Path, config: AudioConfig, sampling_rate: int) -> Sounds:
    damaged = f"{file} can't be read as an .npz file of plain arrays"
    with refusing(DataError, damaged, "write it with numpy.savez"), file.open("rb") as stream:
        names = array_names(stream)
        missing = [name for name in ARRAYS[:2] if name not in names]
        if missing:
            raise DataError(
                f"{file} contains no {' and no '.join(missing)} (it contains "
                f"{', '.join(names) or 'nothing'}); {EXPECTED}"
            )
        arrays = read_arrays(stream, ARRAYS.__contains__)
    _check_rate(file, arrays, sampling_rate)
    waveforms = arrays["waveforms"]
    if waveforms.ndim != 2 or waveforms.dtype not in (np.float32, np.int16):
        raise DataError(
            f"waveforms in {file} are {waveforms.dtype} {waveforms.shape}; expected float32 or "
            "int16 of shape (N, length), one channel, shorter sounds padded at the end"
        )
    if not waveforms.size:
        raise DataError(f"waveforms in {file} are empty, shape {waveforms.shape}")
    finite = np.isfinite(waveforms).all(axis=1)
    if not finite.all():
        raise DataError(f"sound {int(finite.argmin())} in {file} holds NaN or infinite values")
    if waveforms.shape[1] < config.shortest_padded:
        raise DataError(
            f"waveforms in {file} have {waveforms.shape[1]} values, but the model needs "
            f"{config.shortest_padded}, where it masks mask_time_length frames in training; pad "
            "them at the end, and give the array lengths"
        )
    classes = len(config.classes)
    labels = class_indices(arrays["labels"], name=f"labels in {file}", num_classes=classes)
    if len(labels) != len(waveforms):
        raise DataError(
            f"{file} has {len(waveforms)} waveforms but {len(labels)} labels; expected equally many"
        )
    return Sounds(waveforms, _lengths(file, arrays, config.shortest), labels)


def _check_rate(file: Path, arrays: Mapping[str, npt.NDArray[Any]], expected: int) -> None:
    if "sampling_rate" not in arrays:
        return
    rates = np.unique(arrays["sampling_rate"]).tolist()
    if rates != [expected]:
        found = ", ".join(map(str, rates[:3])) or "none"
        raise DataError(
            f"{file} has the sampling rate {found} Hz, but the model's feature extractor expects "
            f"{expected} Hz; resample the sounds (torchaudio.functional.resample)"
        )


def _lengths(
    file: Path, arrays: Mapping[str, npt.NDArray[Any]], shortest: int
) -> npt.NDArray[np.int64]:
    count, longest = arrays["waveforms"].shape
    lengths = arrays.get("lengths", np.full(count, longest))
    if lengths.dtype.kind not in "iu" or lengths.shape != (count,):
        raise DataError(
            f"lengths in {file} are {lengths.dtype} {lengths.shape}; expected integers ({count},)"
        )
    wrong = (lengths < shortest) | (lengths > longest)
    if wrong.any():
        first = int(wrong.argmax())
        raise DataError(
            f"length {lengths[first]} of sound {first} in {file} is out of range; expected "
            f"{shortest} (what the model's convolutions read) to {longest}"
        )
    return lengths.astype(np.int64)


def load_feature_extractor(folder: Path) -> Any:
    """The feature extractor for waveforms in a directory of transformers; no code of it is run.

    Raises:
        DataError: there is none, it can't be read, or it is of another kind.
        OptionError: transformers is missing.
    """
    check_regular_files(folder, error=DataError)
    kind = getattr(transformers(), EXTRACTOR)
    problem = f"{folder} has no feature extractor that can be read"
    advice = "save the model's own there: feature_extractor.save_pretrained(DIR)"
    with refusing(DataError, problem, advice):
        settings, _ = kind.get_feature_extractor_dict(str(folder), local_files_only=True)
        named = settings.get("feature_extractor_type", EXTRACTOR)
        if named != EXTRACTOR:
            raise DataError(
                f"the feature extractor in {folder} is a {named}; expected a {EXTRACTOR}: only "
                "models that read waveforms take audio:PREFIX"
            )
        extractor = kind.from_dict(settings)
        rate = extractor.sampling_rate
        if not isinstance(rate, int) or rate < 1:
            raise DataError(f"its sampling rate is {rate!r}; expected Hz, an integer above 0")
    return extractor


def read_audio_config(folder: Path) -> AudioConfig:
    """What the config in a directory of transformers says of sounds; no code of it is run.

    Raises:
        DataError: its config can't be read. OptionError: transformers is missing.
    """
    problem = f"the config in {folder} is not one of an audio classifier"
    with refusing(DataError, problem, "write the directory again with save_pretrained"):
        config = transformers().AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        names = tuple(str(config.id2label[number]) for number in range(len(config.id2label)))
        kernels, strides = (getattr(config, f"conv_{what}", ()) for what in ("kernel", "stride"))
        layers = tuple(zip(kernels, strides, strict=True))
        masks = getattr(config, "apply_spec_augment", False) and config.mask_time_prob > 0
        frames = config.mask_time_length if masks else 1
    return AudioConfig(names, _values_read(1, layers), _values_read(frames, layers))


def _values_read(outputs: int, layers: Sequence[tuple[int, int]]) -> int:
    """How many values so many outputs of convolutions (kernel, stride) in a row depend on."""
    values = outputs
    for kernel, stride in reversed(layers):
        values = (values - 1) * stride + kernel
    return values
