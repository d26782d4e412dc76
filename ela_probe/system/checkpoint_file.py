"""A checkpoint's file: its bytes, its tensors by name, its header. No code in it is run."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ela_probe.errors import CheckpointError, printable
from ela_probe.system.messages import shortened
from ela_probe.system.reading import read_bytes, refusing
from ela_probe.system.restricted_load import load_restricted, network_name
from ela_probe.system.state_dicts import find_weights, without_wrappers

KEY = "ela_probe"
SMALL_VIEW = 2**20  # so many numbers may be repetitions of a few that are stored


@dataclass(frozen=True)
class StoredFile:
    """What a checkpoint's file holds.

    Attributes:
        state: its tensors by name, without the prefixes of DDP and torch.compile.
        header: the text of our own header; None in a file that we did not write.
        arch: the name that a training script gave to the network, if it left one.
        note: what a user should know of which weights were read.
        sha256: of the file.
    """

    state: Mapping[str, Tensor]
    header: Any = None
    arch: str | None = None
    note: str | None = None
    sha256: str = ""


def read_file(path: Path) -> StoredFile:
    """Read a torch or safetensors file.

    Raises:
        CheckpointError: missing, empty, damaged, without tensors by name, or refused because it
            holds pickled objects.
    """
    content = _read_bytes(path)
    file = _decode(path, content)
    for name, tensor in file.state.items():
        if not _is_plain(tensor):
            raise CheckpointError(
                f"{path}: {shortened(name)} is no plain tensor ({tensor.layout}, on "
                f"{tensor.device}, shape {list(tensor.shape)}); expected dense tensors whose "
                "values are in the file"
            )
    return replace(file, sha256=hashlib.sha256(content).hexdigest())


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, has values, and is not a large view of next to nothing."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return False
    stored = tensor.untyped_storage().nbytes()
    return tensor.numel() <= SMALL_VIEW or tensor.numel() * tensor.element_size() <= stored


def _read_bytes(path: Path) -> bytes:
    content = read_bytes(
        path,
        what="the checkpoint",
        expected="a file written by `ela-probe train`, or a state dict",
        error=CheckpointError,
    )
    if not content:
        raise CheckpointError(f"the checkpoint {path} is empty (0 bytes); write it again")
    return content


def _decode(path: Path, content: bytes) -> StoredFile:
    if path.suffix == ".safetensors":
        damaged = f"{path} is no safetensors file, or a damaged one"
        with refusing(CheckpointError, damaged, "write it again"):
            state = safetensors.torch.load(content)
            length = int.from_bytes(content[:8], "little")
            return StoredFile(without_wrappers(state), _metadata(content[8 : 8 + length]))
    stored = read_torch(
        path,
        content,
        damaged=f"{path} is no PyTorch checkpoint, or a truncated one",
        advice="expected a file that `ela-probe train` wrote; where another was made, save the "
        "weights alone: torch.save(model.state_dict(), PATH)",
    )
    header = stored.get(KEY) if isinstance(stored, dict) else None
    if header is not None:
        check_records(path, content)
    found = find_weights(stored)
    if found is None:
        raise CheckpointError(
            f"{path} holds a {type(stored).__name__} that is no state dict{_keys_of(stored)}, "
            "expected a dict of tensors by name, or one inside dicts or lists"
        )
    return StoredFile(without_wrappers(found.state), header, network_name(stored), found.note)


def read_torch(path: Path, content: bytes, *, damaged: str, advice: str) -> Any:
    """The object in a torch file. Raises CheckpointError: it is damaged, or pickled objects."""
    with refusing(CheckpointError, damaged, advice):
        return load_restricted(content)


def check_records(path: Path, content: bytes) -> None:
    """Raise CheckpointError where a record of a torch file is not what its checksum says.

    PyTorch does not look: a weight with another bit would be read without a word.
    """
    with refusing(CheckpointError, f"{path} is damaged", "write it again, or use another copy"):
        broken = zipfile.ZipFile(io.BytesIO(content)).testzip()
        if broken is not None:
            raise ValueError(f"the record {broken} is not what its checksum says")


def _keys_of(stored: Any) -> str:
    """` (its keys are ...)`, with the first keys of a dict; empty for anything else."""
    if not isinstance(stored, dict) or not stored:
        return ""
    keys = [printable(shortened(str(key), 40)) for key in list(stored)[:8]]
    return f" (its keys are {', '.join(keys)}{', ...' if len(stored) > len(keys) else ''})"


def _metadata(header: bytes) -> str | None:
    """Our header's text inside a safetensors header. Raises ValueError."""
    metadata = json.loads(header).get("__metadata__") or {}
    value = metadata.get(KEY)
    return value if isinstance(value, str) else None
