"""Checkpoints: one format, written by train, prune and finetune; read without running code.

A file is a state dict and a JSON header. `.safetensors` keeps the header in its metadata, any
other suffix is a torch zip file of {"ela_probe": header, "state_dict": ...}.
"""

import hashlib
import io
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from ela_probe.data.opening import AnySpec
from ela_probe.errors import CheckpointError
from ela_probe.models.published import from_published
from ela_probe.models.registry import ModelSpec
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.prune import prune
from ela_probe.system.messages import first_line
from ela_probe.system.restricted_load import Unpacked, load_restricted, unpack
from ela_probe.system.storage import replacing
from ela_probe.system.validation import Strict, explain
from ela_probe.system.versions import versions

KEY = "ela_probe"
WRAPPERS = ("module.", "_orig_mod.")


class Header(Strict):
    """What a checkpoint says of itself. The plans were applied in this order."""

    format_version: Literal[1] = 1
    model: ModelSpec
    plans: tuple[SkipPlan, ...] = ()
    data: AnySpec | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def skipped(self) -> int:
        """How many retrievals the plans removed."""
        return sum(len(plan.skipped) for plan in self.plans)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory. Verbs pass it on, so that its file is read once.

    Attributes:
        path: its file.
        model: built, pruned as the plans say, with its weights, on the CPU, in eval mode.
        header: what the file says of itself.
        sha256: of the file.
        note: what a user should know of how a foreign file was read, if anything.
    """

    path: Path
    model: nn.Module
    header: Header
    sha256: str
    note: str | None = None


def save_checkpoint(
    path: str | Path,
    model: nn.Module | Mapping[str, Tensor],
    *,
    spec: ModelSpec,
    plans: Sequence[SkipPlan] = (),
    data: AnySpec | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """Write a model, or its state dict. `spec` builds it unpruned; `plans` were applied in turn.

    Raises:
        OutputError: the place can't be written to; an existing file stays as it was.
    """
    header = Header(
        model=spec,
        plans=tuple(plans),
        data=data,
        metrics=dict(metrics or {}),
        versions=versions(),
    )
    tensors = model.state_dict() if isinstance(model, nn.Module) else model
    state = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = header.model_dump_json()
    if Path(path).suffix == ".safetensors":
        content = safetensors.torch.save(state, {KEY: text})
    else:
        buffer = io.BytesIO()
        torch.save({KEY: text, "state_dict": state}, buffer)
        content = buffer.getvalue()
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def load_checkpoint(path: str | Path, *, spec: ModelSpec | None = None) -> nn.Module:
    """The model of a checkpoint, ready in eval mode on the CPU, pruned as it was saved.

    Args:
        spec: how to build the model of a bare state dict; a checkpoint of ours carries its own,
            and only a factory (`package.module:function`) must be named again, because calling
            it runs code.

    Raises:
        CheckpointError: missing, empty, damaged, foreign, refused, or doesn't fit the model.
        ModelError: the model can't be built.
    """
    return read_checkpoint(path, spec=spec).model


def read_checkpoint(path: str | Path, *, spec: ModelSpec | None = None) -> Checkpoint:
    """Like `load_checkpoint`, with all that the file tells."""
    path = Path(path)
    content = _read_bytes(path)
    found = _decode(path, content)
    state = found.state
    if found.header is not None:
        header = _parse_header(path, found.header)
        if header.model.is_factory and (spec is None or spec.name != header.model.name):
            raise CheckpointError(
                f"{path}: its model is built by the code {header.model.name!r}, which is not run "
                f"unasked; pass --factory {header.model.name} if you trust it"
            )
        if spec is not None and not spec.is_factory and spec != header.model:
            raise CheckpointError(
                f"{path} says itself that it is a {header.model.name}; leave out --model"
            )
    elif spec is None:
        named = "" if found.arch is None else f" of a network that it calls {found.arch!r}"
        raise CheckpointError(
            f"{path} is a bare state dict{named}; say which model it belongs to with --model NAME "
            f"(see `ela-probe models`) or --factory package.module:{found.arch or 'function'} "
            "--path DIR, the folder of its code"
        )
    else:
        header = Header(model=spec)
        state = state if spec.is_factory else from_published(state)
    if spec is not None:
        header = header.model_copy(update={"model": header.model.found_in(spec.path)})
    model = header.model.build()
    for plan in header.plans:
        model = prune(model, plan)
    _load_state(path, model, state, arch=found.arch)
    return Checkpoint(path, model.eval(), header, hashlib.sha256(content).hexdigest(), found.note)


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"cannot read the checkpoint {path}: {error.strerror}; expected a file written by "
            "`ela-probe train`, or a state dict"
        ) from error
    if not content:
        raise CheckpointError(f"the checkpoint {path} is empty (0 bytes); write it again")
    return content


def _decode(path: Path, content: bytes) -> Unpacked:
    """The state dict without wrappers' prefixes, and what else the file tells."""
    if path.suffix == ".safetensors":
        try:
            state: Any = safetensors.torch.load(content)
            length = int.from_bytes(content[:8], "little")
            stored = _metadata(content[8 : 8 + length])
        except (safetensors.SafetensorError, ValueError) as error:
            raise CheckpointError(
                f"{path} is no safetensors file, or a damaged one ({first_line(error)}); "
                "write it again"
            ) from error
        return Unpacked(_clean(state), stored)
    try:
        found = unpack(load_restricted(content), KEY)
    except pickle.UnpicklingError as error:
        refused = "Weights only load failed" in str(error) and "GLOBAL" in str(error)
        if refused:
            raise CheckpointError(
                f"{path} is refused: it holds pickled Python objects, which run code on loading "
                f"({_refused_global(str(error))}). Where it was made, save the weights alone: "
                "torch.save(model.state_dict(), PATH)"
            ) from error
        raise CheckpointError(_damaged(path)) from error
    except Exception as error:  # on foreign bytes the unpickler fails in any way
        raise CheckpointError(_damaged(path)) from error
    return replace(found, state=_clean_checked(path, found.state))


def _metadata(header: bytes) -> str | None:
    """Our header's text inside a safetensors header. Raises ValueError."""
    metadata = json.loads(header).get("__metadata__") or {}
    value = metadata.get(KEY)
    return value if isinstance(value, str) else None


def _clean_checked(path: Path, state: Any) -> dict[str, Tensor]:
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    ):
        what = type(state).__name__
        raise CheckpointError(
            f"{path} holds a {what} that is no state dict; expected a dict of tensors by name, "
            "or one under 'state_dict'"
        )
    return _clean(state)


def _clean(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that DataParallel, DDP and torch.compile add."""
    cleaned = {}
    for name, value in state.items():
        while name.startswith(WRAPPERS):
            name = name.partition(".")[2]
        cleaned[name.replace("._orig_mod.", ".")] = value
    return cleaned


def _parse_header(path: Path, text: Any) -> Header:
    try:
        return Header.model_validate_json(text)
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: its header is not one that this version reads ({explain(error, 2)})"
        ) from error


def _load_state(
    path: Path, model: nn.Module, state: Mapping[str, Tensor], *, arch: str | None = None
) -> None:
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is unknown to the model" for name in state if name not in expected]
    problems += [
        f"{name} is {list(state[name].shape)}, the model has {list(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        named = "" if arch is None else f"; the file calls its network {arch!r}"
        raise CheckpointError(
            f"{path} does not fit the model {type(model).__name__}: {'; '.join(problems[:3])}"
            f"{more}{named}. Check the model's name and arguments (depth, num_classes, in_channels)"
        )
    broken = [n for n, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{path}: {broken[0]} holds NaN or infinite values"
            + (f" (and {len(broken) - 1} more tensors)" if len(broken) > 1 else "")
            + "; the training diverged, use an earlier checkpoint"
        )
    model.load_state_dict(state)


def _damaged(path: Path) -> str:
    return (
        f"{path} is no PyTorch checkpoint, or a truncated one; expected a file written by "
        "`ela-probe train` or torch.save(model.state_dict(), PATH)"
    )


def _refused_global(message: str) -> str:
    for line in message.splitlines():
        if "GLOBAL" in line:
            return line.strip().split("GLOBAL", 1)[1].split(" was not", 1)[0].strip()
    return "a pickled object"
