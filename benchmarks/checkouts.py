"""Functions of published code, run from a checkout that the user gives, unmodified."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor, nn

from ela_probe.errors import OptionError


def published(root: Path, file: str, function: str) -> Callable[..., nn.Module]:
    """The function of the checkout's file of that name; runs the user's copy of it.

    What the file imports from its own package (`models`, or its folder by relative names) is found
    there, file by file and without the package's `__init__` (one of them names a function that it
    lacks), as are the files beside it. Both are forgotten afterwards, as checkouts share their
    names; installed packages stay.

    Raises:
        OptionError: no such file. ImportError: it needs a package that is missing.
    """
    path = next((p for p in sorted(root.rglob(f"{file}.py")) if "models" in p.parts[:-1]), None)
    path = path or next(iter(sorted(root.rglob(f"{file}.py"))), None)
    if path is None:
        raise OptionError(f"{root} has no file {file}.py; is it a checkout of that repository?")
    folder = path.parent
    roots = [p / "models" for p in path.parents if (p / "models").is_dir()][:1]
    known = {"models": package("models", roots), folder.name: package(folder.name, [folder])}
    spec = importlib.util.spec_from_file_location(f"{folder.name}.{file}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    known[spec.name] = module
    search = [str(folder), *sys.path]
    with mock.patch.dict(sys.modules, known), mock.patch.object(sys, "path", search):
        spec.loader.exec_module(module)
        installed = {
            n: m
            for n, m in sys.modules.items()
            if n.partition(".")[0] not in known and not lies_in(m, root)
        }
    sys.modules.update(installed)
    found: Callable[..., nn.Module] = getattr(module, function)
    return found


def package(name: str, folders: list[Path]) -> ModuleType:
    """An empty package whose submodules are the files of these folders."""
    module = ModuleType(name)
    module.__path__ = [str(folder) for folder in folders]
    return module


def belongs(folder: Path, repository: str) -> bool:
    """Whether a checkout is the repository's, by its folder's name."""
    owner, _, name = repository.partition("/")
    return folder.resolve().name in (name, f"{owner}+{name}", f"{owner}-{name}")


def lies_in(module: ModuleType, root: Path) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and Path(file).resolve().is_relative_to(root.resolve())


@contextmanager
def on_this_device() -> Iterator[None]:
    """All stays on the CPU: `Tensor.cuda`, which DIA and DLA call in forward, does nothing."""

    def stay(self: Tensor, *args: object, **options: object) -> Tensor:
        return self

    with mock.patch.object(torch.Tensor, "cuda", stay):
        yield
