"""Checkpoints: one format, written by train, prune and finetune; read without running code.

A file is a state dict and a JSON header. `.safetensors` keeps the header in its metadata, any
other suffix is a torch zip file of {"ela_probe": header, "state_dict": ...}. A directory that
transformers wrote (`ela_probe.pretrained`) is read as a checkpoint too, and stays a directory.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor, nn

from ela_probe import pretrained
from ela_probe.data.opening import AnySpec
from ela_probe.errors import CheckpointError, ModelError
from ela_probe.forward import without_compile
from ela_probe.models.bounded_build import check_size
from ela_probe.models.published import from_published
from ela_probe.models.registry import ModelSpec
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.prune import prune
from ela_probe.spreading import Spread, describe_spread
from ela_probe.system.checkpoint_file import KEY, StoredFile, read_file
from ela_probe.system.messages import shortened
from ela_probe.system.reading import refuse_many, refusing
from ela_probe.system.state_dicts import Fit, fit_names
from ela_probe.system.storage import replacing
from ela_probe.system.validation import Strict
from ela_probe.system.versions import versions

CLASSES = "num_classes"
LONGEST_NOTE = 400  # characters
PREFIX = "hf:"  # of a directory of transformers


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

    @property
    def unpruned(self) -> str | None:
        """The fingerprint of the sites before any plan was applied; None without plans."""
        return self.plans[0].fingerprint if self.plans else None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory. Verbs pass it on, so that its file is read once.

    Attributes:
        path: its file, or its directory.
        model: built, pruned as the plans say, with its weights, on the CPU, in eval mode.
        header: what the file says of itself.
        sha256: of the file, or of the config and weights in the directory.
        note: what a user should know of how a foreign file was read, if anything.
    """

    path: Path
    model: nn.Module
    header: Header
    sha256: str
    note: str | None = None

    @property
    def is_directory(self) -> bool:
        """Whether it was read from a directory of transformers."""
        return self.path.is_dir()


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
    header = _new_header(spec, plans, data, metrics)
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


def _new_header(
    spec: ModelSpec,
    plans: Sequence[SkipPlan],
    data: AnySpec | None,
    metrics: Mapping[str, float] | None,
) -> Header:
    """What a checkpoint of today says beside its weights."""
    return Header(
        model=spec,
        plans=tuple(plans),
        data=data,
        metrics=dict(metrics or {}),
        versions=versions(),
    )


def save_beside(
    checkpoint: Checkpoint,
    output: Path,
    model: nn.Module,
    *,
    plans: Sequence[SkipPlan],
    data: AnySpec | None,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Write a model that was made from a checkpoint, as a directory where that is one.

    Returns: its SHA-256.

    Raises:
        OutputError: the place can't be written to.
    """
    spec = checkpoint.header.model
    if not checkpoint.is_directory:
        save_checkpoint(output, model, spec=spec, plans=plans, data=data, metrics=metrics)
        return hashlib.sha256(output.read_bytes()).hexdigest()
    header = _new_header(spec, plans, data, metrics)
    document = header.model_dump(mode="json")
    pretrained.write_directory(output, model, source=checkpoint.path, header=document)
    return pretrained.digest(output)


def load_checkpoint(path: str | Path, *, spec: ModelSpec | None = None) -> nn.Module:
    """The model of a checkpoint, ready in eval mode on the CPU, pruned as it was saved.

    Args:
        path: a file, or a directory of transformers (also as `hf:DIR`).
        spec: how to build the model of a bare state dict; a checkpoint of ours carries its own,
            and only a factory (`package.module:function`) must be named again, because calling
            it runs code.

    Raises:
        CheckpointError: missing, empty, damaged, foreign, refused, or doesn't fit the model.
        ModelError: the model can't be built.
    """
    return read_checkpoint(path, spec=spec).model


def read_checkpoint(
    path: str | Path,
    *,
    spec: ModelSpec | None = None,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    spread: Spread | None = None,
) -> Checkpoint:
    """Like `load_checkpoint`, with all that the file tells.

    Args:
        dtype, trust_remote_code, spread: for a directory, as `pretrained.read_network` takes them.
    """
    is_named, path = str(path).startswith(PREFIX), Path(str(path).removeprefix(PREFIX))
    if is_named or (path / pretrained.CONFIG).is_file():
        return _read_directory(path, dtype, trust_remote_code=trust_remote_code, spread=spread)
    file = read_file(path)
    header = _header(path, file, spec)
    if spec is not None:
        header = header.model_copy(update={"model": header.model.found_in(spec.path)})
    if file.header is not None:
        _check_header_size(path, header.model, file.state)
    model = without_compile(header.model.build())
    for plan in header.plans:
        model = prune(model, plan)
    notes = [file.note]
    if file.header is not None:
        state = dict(file.state)
        problems = tuple(_differences(state, model.state_dict()))
    else:
        rename = dict if header.model.is_factory else from_published
        fit = fit_names(file.state, model.state_dict(), rename=rename)
        resized = _with_classes_of_file(header.model, fit)
        if resized is not None:
            model = resized.build()
            fit = fit_names(file.state, model.state_dict(), rename=rename)
            notes.append(f"num_classes={resized.args[CLASSES]}, as the file has it")
            header = header.model_copy(update={"model": resized})
        state, problems = fit.state, fit.problems
        notes.append(fit.note)
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        named = f"; the file calls its network {file.arch!r}" if file.arch is not None else ""
        raise CheckpointError(
            f"{path} does not fit the model {type(model).__name__}: "
            f"{'; '.join(map(shortened, problems[:3]))}{more}{named}. Check the model's name and "
            "arguments (depth, num_classes, in_channels)"
        )
    _check_finite(path, state)
    _load(model, state)
    note = "; ".join(shortened(note, LONGEST_NOTE) for note in notes if note) or None
    return Checkpoint(path, model.eval(), header, file.sha256, note)


def _read_directory(
    path: Path, dtype: torch.dtype | None, *, trust_remote_code: bool, spread: Spread | None
) -> Checkpoint:
    """The checkpoint in a directory of transformers. Raises CheckpointError, PlanError."""
    stored = pretrained.read_config(path).get(KEY)
    header = None if stored is None else _parse_header(path, json.dumps(stored))
    if spread is not None and header is not None and header.plans:
        raise CheckpointError(
            f"{path} was pruned, and a pruned model is put together in memory; leave out "
            "--device-map, or spread the directory that it was pruned from"
        )
    model, missing = pretrained.read_network(
        path, dtype=dtype, trust_remote_code=trust_remote_code, spread=spread
    )
    header = header or Header(model=ModelSpec(name=type(model).__name__))
    for plan in header.plans:
        model = prune(model, plan)
    state, stand_ins = model.state_dict(), pretrained.read_stand_ins(path)
    problems = [f"{name} is missing" for name in missing if name in state]
    expected = {name: state[name] for name in state if "stand_in" in name.split(".")}
    problems += _differences(stand_ins, expected)
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{path} does not fit the model {type(model).__name__}: "
            f"{'; '.join(map(shortened, problems[:3]))}{more}"
        )
    if spread is None:
        _load(model, {**state, **stand_ins})
        _check_finite(path, model.state_dict())
        return Checkpoint(path, model.eval(), header, pretrained.digest(path))
    if (broken := pretrained.broken_weight(path)) is not None:
        raise _not_finite(path, [broken])
    note = f"the weights are spread: {describe_spread(model)}"
    return Checkpoint(path, model.eval(), header, pretrained.digest(path), note)


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a model the values of a state dict; one on the meta device, which has none, its tensors.

    `copy_` into a meta tensor does nothing but warn.
    """
    expected = model.state_dict()
    if any(tensor.is_meta for tensor in expected.values()):
        typed = {name: value.to(expected[name].dtype) for name, value in state.items()}
        model.load_state_dict(typed, assign=True)
    else:
        model.load_state_dict(state)


def _check_header_size(path: Path, spec: ModelSpec, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where a header asks for a model that the file can't fill."""
    try:
        check_size(spec, state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _header(path: Path, file: StoredFile, spec: ModelSpec | None) -> Header:
    """The file's own header, or one of the model that the user names for a bare state dict."""
    if file.header is None:
        if spec is not None:
            return Header(model=spec)
        named = "" if file.arch is None else f" of a network that it calls {file.arch!r}"
        raise CheckpointError(
            f"{path} is a bare state dict{named}; say which model it belongs to with --model NAME "
            f"(see `ela-probe models`) or --factory package.module:{file.arch or 'function'} "
            "--path DIR, the folder of its code"
        )
    header = _parse_header(path, file.header)
    named = shortened(header.model.name)
    if header.model.is_factory and (spec is None or spec.name != header.model.name):
        raise CheckpointError(
            f"{path}: its model is built by the code {named!r}, which is not run "
            f"unasked; pass --factory {named} if you trust it"
        )
    if spec is not None and spec.name != header.model.name:
        option = "--factory" if spec.is_factory else "--model"
        raise CheckpointError(
            f"got {option} {spec.name}, but {path} names its model itself, {named}; "
            f"leave out {option}"
        )
    if spec is not None and spec.args and spec.args != header.model.args:
        raise CheckpointError(
            f"got the model arguments {spec.args}, but {path} names its own, "
            f"{shortened(str(header.model.args))}; "
            "leave out --model-args"
        )
    return header


def _with_classes_of_file(spec: ModelSpec, fit: Fit) -> ModelSpec | None:
    """The model with as many classes as the file's, where only its classifier differs in that.

    None where something else differs too, or the user has said how many classes there are.
    """
    modules = {name.rpartition(".")[0] for name in fit.resized}
    sizes = {stored[:1] for stored, _ in fit.resized.values()}
    others_agree = all(stored[1:] == built[1:] for stored, built in fit.resized.values())
    only_these = len(fit.problems) == len(fit.resized)
    if len(modules) != 1 or len(sizes) != 1 or not (others_agree and only_these):
        return None
    (size,) = sizes
    if not size or CLASSES in spec.args:
        return None
    resized = spec.model_copy(update={"args": {**spec.args, CLASSES: size[0]}})
    try:
        rebuilt = resized.build().state_dict()
    except ModelError:  # the model takes no such argument
        return None
    fits = all(tuple(rebuilt[name].shape) == stored for name, (stored, _) in fit.resized.items())
    return resized if fits else None


def _differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """How a state dict that should be the model's own differs from it."""
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is unknown to the model" for name in state if name not in expected]
    problems += [
        f"{name} is {list(state[name].shape)}, the model has {list(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    return problems


def _parse_header(path: Path, text: Any) -> Header:
    problem = f"{path}: its header is not one that this version reads"
    with refusing(CheckpointError, problem, model=Header, limit=2):
        refuse_many(text if isinstance(text, str) else "")
        return Header.model_validate_json(text)


def _check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    broken = [n for n, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise _not_finite(path, broken)


def _not_finite(path: Path, names: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        f"{path}: {names[0]} holds NaN or infinite values"
        + (f" (and {len(names) - 1} more tensors)" if len(names) > 1 else "")
        + "; the training diverged, use an earlier checkpoint"
    )
