"""Runs files of published code, unmodified, from checkouts that the user gives."""

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated
from unittest import mock

import torch
import typer
from torch import Tensor

from ela_probe.errors import OptionError

Checkouts = Annotated[
    list[Path],
    typer.Option("--checkout", help="A checkout of one of the repositories; may be repeated."),
]
References = Annotated[
    list[Path] | None,
    typer.Option(
        "--reference", help="A checkout of bgx666/KCLA or joyfang1106/MRLA; may be repeated."
    ),
]


def checkout_of(repository: str, checkouts: Sequence[Path]) -> Path | None:
    """The checkout of `owner/name`, which is known by its folder: `name` or `owner+name`."""
    owner, _, name = repository.partition("/")
    names = (name, f"{owner}+{name}", f"{owner}-{name}")
    return next((folder for folder in checkouts if folder.resolve().name in names), None)


def run_file(checkout: Path, file: str) -> ModuleType:
    """The module that the checkout's file of this name (without `.py`) defines.

    Imports from the file's own package (`models`, or its folder by relative names) are resolved
    file by file, without the package's `__init__`: one of them names a function that it lacks.
    Imports from beside the file work too. These modules are forgotten afterwards, because
    checkouts use the same names; installed packages stay imported.

    Raises:
        OptionError: there is no such file. ImportError: it needs a package that is missing.
    """
    found = sorted(checkout.rglob(f"{file}.py"))
    found.sort(key=lambda path: "models" not in path.parts[:-1])
    if not found:
        raise OptionError(f"{checkout} has no file {file}.py; is it a checkout of that repository?")
    path = found[0]
    folder = path.parent
    models = [p / "models" for p in path.parents if (p / "models").is_dir()][:1]
    known = {"models": package("models", models), folder.name: package(folder.name, [folder])}
    spec = importlib.util.spec_from_file_location(f"{folder.name}.{file}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    known[spec.name] = module
    search = [str(folder), *sys.path]
    with mock.patch.dict(sys.modules, known), mock.patch.object(sys, "path", search):
        spec.loader.exec_module(module)
        installed = {
            name: imported
            for name, imported in sys.modules.items()
            if name.partition(".")[0] not in known and not is_inside(imported, checkout)
        }
    sys.modules.update(installed)
    return module


def package(name: str, folders: list[Path]) -> ModuleType:
    """An empty package whose submodules are the files of these folders."""
    module = ModuleType(name)
    module.__path__ = [str(folder) for folder in folders]
    return module


def is_inside(module: ModuleType, checkout: Path) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and Path(file).resolve().is_relative_to(checkout.resolve())


@contextmanager
def on_cpu() -> Iterator[None]:
    """Everything stays on the CPU: `Tensor.cuda`, which DIA and DLA call, does nothing."""

    def stay(self: Tensor, *args: object, **options: object) -> Tensor:
        return self

    with mock.patch.object(torch.Tensor, "cuda", stay):
        yield


@contextmanager
def in_precision(dtype: torch.dtype) -> Iterator[None]:
    """New tensors have this type, since some forwards create states; all stays on the CPU."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with on_cpu():
            yield
    finally:
        torch.set_default_dtype(before)
