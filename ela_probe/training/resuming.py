"""Going on with a run: is its state whole, of this model and of these settings?"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.errors import CheckpointError
from ela_probe.system.messages import first_line
from ela_probe.training.config import TrainConfig
from ela_probe.training.ela.callback import ELA
from ela_probe.training.record import LAST, RESUME, History


def check_resume(path: Path, module: nn.Module, *, origin: dict[str, Any], ela: ELA | None) -> int:
    """Number of epochs done in the state at `path`; ELA prunes the module as it was then.

    Raises:
        CheckpointError: it can't go on.
    """
    if not path.is_file():
        raise CheckpointError(f"nothing to resume: {path} does not exist; start without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch each have their own
        raise CheckpointError(
            f"{path} can't be read ({first_line(error)}): start again without --resume"
        ) from error
    kept = origin_of(state) if isinstance(state, dict) else None
    if kept is None:
        raise CheckpointError(f"{path} is no training state of ela-probe: start without --resume")
    # a run of before a setting was added had what is its default now
    kept = {**kept, "config": {**TrainConfig().decisive(), **kept["config"]}}
    differing = [
        f"{'ela ' * (part == 'ela')}{name} {then.get(name)!r} then, {now.get(name)!r} now"
        for part, then, now in ((p, kept.get(p, {}), origin[p]) for p in ("config", "data", "ela"))
        for name in (then | now if part == "ela" else now)
        if plain(then.get(name)) != plain(now.get(name))
    ]
    if differing:
        raise CheckpointError(
            f"{path} is of a run with other settings ({'; '.join(differing)}): repeat the ones "
            "it was started with, or start again without --resume"
        )
    if ela is not None:
        ela.rebuild(module, state["callbacks"].get(ela.state_key))
    unfit = fitting_shapes(state["state_dict"], module)
    if unfit:
        raise CheckpointError(
            f"{path} is of another model: {len(unfit)} tensors differ, the first is {unfit[0]}; "
            "name the model that the run was started with"
        )
    return len(state["callbacks"]["ela_probe.History"]["rows"])


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def how_to_go_on(history: History, config: TrainConfig) -> str:
    """What to tell who pressed Ctrl-C."""
    done = len(history.rows)
    state = history.output / RESUME
    if not done or not state.exists():
        return "training was interrupted before an epoch ended: nothing is kept"
    return (
        f"training was interrupted after epoch {done} of {config.epochs}: "
        f"{history.output / LAST} holds it; the same command with --resume goes on from there"
    )


def origin_of(state: dict[str, Any]) -> dict[str, Any] | None:
    """What the run was started with, from a loaded `resume.ckpt`; None if it is another's."""
    kept = state.get("callbacks", {}).get("ela_probe.History", {})
    origin = kept.get("origin")
    return origin if isinstance(origin, dict) and "state_dict" in state else None


def fitting_shapes(state: dict[str, Tensor], module: nn.Module) -> list[str]:
    """Names of the tensors that are missing, foreign or of another shape."""
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    found = {name: tensor.shape for name, tensor in state.items()}
    return sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
