"""What training scripts write around a state dict, read without running any of it.

`torch.load(weights_only=True)` refuses every Python object but tensors and plain containers. The
few harmless ones that scripts add are listed in STAND_INS, and even these are never made: for each
a stand-in of ours takes its place, so that no code of numpy, argparse or pathlib sees the file.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

WEIGHTS = ("state_dict", "model", "model_state_dict", "net")
AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")


@dataclass(frozen=True)
class Unpacked:
    """A file taken apart.

    state: what should be a state dict. header: our own header's text, None in a foreign file.
    arch: the name that the training script gave to the network, if it left one. note: what a
    user should know of the choice of the weights.
    """

    state: Any
    header: Any = None
    arch: str | None = None
    note: str | None = None


def load_restricted(content: bytes) -> Any:
    """The object in a torch file, with stand-ins for what STAND_INS lists.

    Raises:
        pickle.UnpicklingError: it holds any other Python object.
        Exception: of any kind, on bytes that are no torch file.
    """
    allowed: list[Any] = [(stand_in, name) for name, stand_in in STAND_INS.items()]
    with torch.serialization.safe_globals(allowed):
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def unpack(stored: Any, header_key: str) -> Unpacked:
    """Find the state dict in what a training script saved.

    The plain weights win over averaged ones (`model_ema`): the scripts measure and choose their
    best epoch on those. Averaged ones are read where there are no others, and a note says so.
    """
    if not isinstance(stored, dict):
        return Unpacked(stored)
    plain = [key for key in WEIGHTS if isinstance(stored.get(key), dict)]
    averaged = [key for key in AVERAGED if isinstance(stored.get(key), dict)]
    note = None
    if plain and averaged:
        note = f"the weights under {plain[0]!r} are read, not the averaged ones ({averaged[0]!r})"
    elif averaged:
        note = f"the averaged weights under {averaged[0]!r} are read; there are no others"
    chosen = (plain + averaged)[:1]
    state = stored[chosen[0]] if chosen else stored
    return Unpacked(state, stored.get(header_key), _arch(stored), note)


def _arch(stored: Mapping[str, Any]) -> str | None:
    """The `arch` beside the weights, or the arch or model among the script's arguments."""
    arguments = next((stored[key] for key in ("args", "config", "opt") if key in stored), None)
    if isinstance(arguments, Settings):
        arguments = arguments.values
    if not isinstance(arguments, Mapping):
        arguments = {}
    for name in (stored.get("arch"), arguments.get("arch"), arguments.get("model")):
        if isinstance(name, str) and 0 < len(name) <= 80 and name.isprintable():
            return name
    return None


class Ignored:
    """Stands for an object that is not needed: takes any arguments and state, keeps nothing."""

    def __new__(cls, *_: object) -> "Ignored":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class Settings(Ignored):
    """Stands for an argparse.Namespace: its values, read only for the network's name."""

    values: Mapping[str, Any] = {}

    def __setstate__(self, state: object) -> None:
        self.values = state if isinstance(state, dict) else {}


def a_dict(*_: object) -> dict[Any, Any]:
    """Stands for a defaultdict, whose factory would be code; its items follow."""
    return {}


def a_list(*_: object) -> list[Any]:
    """Stands for a deque; its items follow."""
    return []


_IGNORED = (
    *("numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.multiarray.{what}" for core in ("core", "_core") for what in (
        "scalar", "_reconstruct",
    )),
    *(f"pathlib.{name}" for name in (
        "Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath",
        "_local.Path", "_local.PosixPath", "_local.WindowsPath",
    )),
    *(f"builtins.{name}" for name in ("int", "float", "str", "bool", "list", "dict", "tuple")),
    *("datetime.datetime", "datetime.date", "datetime.timedelta"),
)  # fmt: skip

STAND_INS: dict[str, Any] = {
    "argparse.Namespace": Settings,
    "collections.defaultdict": a_dict,
    "collections.deque": a_list,
    **dict.fromkeys(_IGNORED, Ignored),
}
