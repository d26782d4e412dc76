"""Resuming a run: what defines it is compared with what defined it when it was saved."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ela_probe.data.opening import Data
from ela_probe.errors import CheckpointError
from ela_probe.system.checkpoint_file import check_records, read_torch
from ela_probe.system.outputs import check_resumable
from ela_probe.system.reading import read_bytes, refusing
from ela_probe.system.validation import differing_settings
from ela_probe.training.config import TrainConfig
from ela_probe.training.detection import DetectionModule
from ela_probe.training.ela.callback import ELA
from ela_probe.training.ela.config import BEFORE
from ela_probe.training.module import ClassificationModule
from ela_probe.training.record import ELA_COLUMNS, SITE_COLUMNS, History
from ela_probe.training.run_folder import LAST, check_whole

Definition = Mapping[str, Mapping[str, Any]]
MISSING_IS_NONE = ("model", "ela")  # sections in which a setting may be left out


def run_definition(
    config: TrainConfig, data: Data, ela: ELA | None, extra: Definition
) -> dict[str, dict[str, Any]]:
    """Everything that defines a run, by section, as plain values.

    The data are identified by kind and name (`npz:cifar10`), normalisation, split, number of
    samples and labels; they may lie in another folder when the run is resumed.

    Args:
        extra: further sections, such as `model` and `start`, from who built the model.
    """
    kind, colon, path = data.spec.source.partition(":")
    return {
        **{section: dict(settings) for section, settings in extra.items()},
        "config": config.result_settings(),
        "data": {
            **data.spec.model_dump(mode="json", exclude={"source", "root"}),
            "source": f"{kind}{colon}{Path(path).name}",
            "training samples": data.size("train"),
            "validation samples": data.size("val"),
            "labels (SHA-256)": data.labels_digest(),
        },
        "ela": {} if ela is None else ela.config.model_dump(mode="json"),
    }


def check_resume(
    path: Path, module: nn.Module, *, definition: Definition, ela: ELA | None
) -> tuple[int, dict[str, str]]:
    """The epochs done in the state at `path`, and the SHA-256 of the weights beside it.

    ELA prunes the module as it was then.

    Raises:
        CheckpointError: there is no state, it is damaged, the weights are those of another state,
            or it belongs to a run that was defined otherwise; all differences are named. More
            epochs are allowed.
    """
    check_resumable(path)
    expected = "the state of a run of `ela-probe train`"
    content = read_bytes(path, what="the state", expected=expected, error=CheckpointError)
    state = read_torch(
        path,
        content,
        damaged=f"{path} is no training state, or a damaged one",
        advice="start again without --resume",
    )
    check_records(path, content)
    saved = saved_definition(state) if isinstance(state, dict) else None
    if saved is None:
        raise CheckpointError(f"{path} is no training state of ela-probe: start without --resume")
    differing = list(differences(saved, definition))
    if differing:
        raise CheckpointError(
            f"{path} belongs to a run with other settings ({'; '.join(differing)}): repeat the "
            "settings that the run was started with, or start again without --resume"
        )
    if has_text(state.get("loops")):
        raise CheckpointError(
            f"{path} is damaged: a counter of its loops is a text, expected numbers; start again "
            "without --resume"
        )
    if ela is not None:
        ela.rebuild(module, state["callbacks"].get(ela.state_key))
    unfit = unfit_tensors(state["state_dict"], module)
    if unfit:
        raise CheckpointError(
            f"{path} belongs to another model: {len(unfit)} tensors differ, the first is "
            f"{unfit[0]}; name the model that the run was started with"
        )
    history = state["callbacks"]["ela_probe.History"]
    digests = dict(history.get("sha256", {}))  # older versions had none
    check_whole(path.parent, digests)
    return len(history["rows"]), digests


def has_text(value: Any) -> bool:
    """Whether a text or bytes are among the values of nested dicts and lists."""
    if isinstance(value, Mapping):
        return any(map(has_text, value.values()))
    if isinstance(value, list | tuple):
        return any(map(has_text, value))
    return isinstance(value, str | bytes)


@contextmanager
def refusing_state(path: Path, history: History) -> Iterator[None]:
    """A block in which Lightning goes on from the state at `path`, and trains.

    Raises:
        CheckpointError: anything was raised before a batch was trained, as of an optimizer's state
            that is another one's.
    """
    try:
        yield
    except Exception:
        if history.has_trained:
            raise
        with refusing(CheckpointError, f"cannot go on from {path}", "start without --resume"):
            raise


def differences(saved: Definition, current: Definition) -> Iterator[str]:
    """The settings in which two definitions of a run differ, each with both values.

    A state that an older version wrote lacks some settings. Of the training they had the values
    that are the defaults now; others are not compared.
    """
    for section, now in current.items():
        then = saved.get(section)
        if then is None:
            continue
        if section == "config":
            then = {**TrainConfig().result_settings(), **then}
            if now["epochs"] > then["epochs"]:
                then = {**then, "epochs": now["epochs"]}
        elif section == "ela" and then:
            then = {**BEFORE, **then}
        elif section not in MISSING_IS_NONE:
            now = {name: value for name, value in now.items() if name in then}
            then = {name: value for name, value in then.items() if name in now}
        prefix = "" if section in ("config", "data") else f"{section} "
        yield from differing_settings(then, now, prefix=prefix)


def saved_definition(state: Mapping[str, Any]) -> Definition | None:
    """What defined the run of a loaded `resume.ckpt`; None if the file is something else."""
    callbacks = state.get("callbacks")
    history = callbacks.get("ela_probe.History") if isinstance(callbacks, Mapping) else None
    if not isinstance(history, Mapping):
        return None
    epochs = [history.get("rows"), [history.get("best")]]
    sites = history.get("site_rows", [])  # older versions had none
    figures = (*ClassificationModule.columns, *DetectionModule.columns)
    columns = ("epoch", "lr", *figures, "seconds", *ELA_COLUMNS)
    if not all(_are_rows(rows, columns, int | float) for rows in epochs):
        return None
    if not _are_rows(sites, SITE_COLUMNS, int | float | str | None):
        return None
    definition, weights = history.get("origin"), state.get("state_dict")
    if not isinstance(definition, dict) or not isinstance(weights, Mapping):
        return None
    is_whole = all(isinstance(section, Mapping) for section in definition.values()) and all(
        isinstance(tensor, Tensor) for tensor in weights.values()
    )
    return definition if is_whole else None


def _are_rows(rows: object, columns: Sequence[str], kinds: Any) -> bool:
    """Whether these are rows of a history: values of these kinds, by the names of columns."""
    return isinstance(rows, list) and all(
        isinstance(row, Mapping)
        and row.keys() <= set(columns)
        and all(isinstance(value, kinds) for value in row.values())
        for row in rows
    )


def unfit_tensors(state: Mapping[str, Tensor], module: nn.Module) -> list[str]:
    """Names of the tensors that are missing, unknown or of another shape, sorted."""
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    found = {name: tensor.shape for name, tensor in state.items()}
    return sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )


def how_to_resume(history: History, config: TrainConfig) -> str:
    """The message after Ctrl-C: what is kept, and how to continue."""
    done = history.saved_epochs
    if not done:
        return "training was interrupted before the first epoch ended: nothing is kept"
    return (
        f"training was interrupted after epoch {done} of {config.epochs}: "
        f"{history.output / LAST} holds its weights; the same command with --resume continues"
    )
