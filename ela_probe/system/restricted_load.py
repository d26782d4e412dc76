"""Torch files of training scripts, read without running any code that they name.

`torch.load(weights_only=True)` refuses every Python object but tensors and plain containers. The
few harmless ones that scripts add are listed in STAND_INS. Even these are not created: each is
replaced by a stand-in of ours, so that no code of numpy, argparse or pathlib sees the file.
"""

import io
from collections.abc import Mapping
from typing import Any

import torch


def load_restricted(content: bytes) -> Any:
    """The object in a torch file, with stand-ins for the classes that STAND_INS lists.

    Raises:
        pickle.UnpicklingError: the file holds any other Python object.
        Exception: of any kind, if the bytes are no torch file.
    """
    allowed: list[Any] = [(stand_in, name) for name, stand_in in STAND_INS.items()]
    with torch.serialization.safe_globals(allowed):
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def network_name(stored: Any) -> str | None:
    """The name that the training script gave to its network, if it left one.

    That is `arch` beside the weights, or `arch` or `model` among the script's arguments.
    """
    if not isinstance(stored, Mapping):
        return None
    arguments = next(
        (
            stored[key]
            for key in ("args", "config", "opt", "cfg", "hyper_parameters")
            if key in stored
        ),
        None,
    )
    if isinstance(arguments, Namespace):
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
        """Take any arguments and ignore them."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        """Forget the state."""


class Namespace(Ignored):
    """Stands for an argparse.Namespace. Its values are read for the network's name only."""

    values: Mapping[str, Any] = {}

    def __setstate__(self, state: object) -> None:
        """Keep the state if it is a dict of values."""
        self.values = state if isinstance(state, dict) else {}


def empty_dict(*_: object) -> dict[Any, Any]:
    """Stands for a defaultdict, whose factory would be code; its items follow."""
    return {}


def empty_list(*_: object) -> list[Any]:
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
    "argparse.Namespace": Namespace,
    "collections.defaultdict": empty_dict,
    "collections.deque": empty_list,
    **dict.fromkeys(_IGNORED, Ignored),
}
