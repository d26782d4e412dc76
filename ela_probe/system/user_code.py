"""Functions that the user names as `package.module:function`, in code in any folder."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ela_probe.errors import ModelError
from ela_probe.system.messages import class_and_first_line, first_line


@contextmanager
def importable(folder: Path | None) -> Iterator[None]:
    """A block in which a folder is first on sys.path.

    Modules that are imported in the block stay imported. None changes nothing.

    Raises:
        ModelError: `folder` is no folder.
    """
    if folder is None:
        yield
        return
    if not folder.is_dir():
        raise ModelError(f"--path {folder} is no folder; expected the folder that holds the code")
    entry = str(folder.absolute())
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(entry)


def load_function(name: str, *, path: Path | None = None) -> Callable[..., Any]:
    """Import `package.module:function`, which runs the module's code.

    Args:
        name: `package.module:function`.
        path: the folder that was made `importable` for it. A module of the same name that was
            imported from elsewhere is an error.

    Raises:
        ModelError: the name is malformed, there is no such function, or the module raises.
    """
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise ModelError(f"got {name!r}, expected package.module:function")
    if path is not None:
        _refuse_shadowed(module_name.partition(".")[0], path)
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise ModelError(
                f"cannot find the module of {name!r} ({first_line(error)}); expected "
                "package.module:function, importable from here or from --path DIR"
            ) from error
        raise ModelError(
            f"{module_name} needs a module that is not installed here: {first_line(error)}; "
            "install it, or put its folder on PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise ModelError(
            f"cannot find {name!r} ({first_line(error)}); expected package.module:function"
        ) from error
    except Exception as error:  # the user's code may raise anything
        raise ModelError(
            f"importing {module_name} failed: {class_and_first_line(error)}; try it in Python"
        ) from error
    if not callable(found):
        raise ModelError(f"{name} is a {type(found).__name__}; expected a function or a class")
    return found


def _refuse_shadowed(package: str, folder: Path) -> None:
    """Raise ModelError if a package imported from elsewhere hides the one in the folder."""
    known = sys.modules.get(package)
    if known is None:
        return
    if (folder / package).is_dir():
        home = folder / package
    elif (folder / f"{package}.py").is_file():
        home = folder
    else:
        return
    origin = getattr(known, "__file__", None)
    places = list(getattr(known, "__path__", [])) or ([Path(origin).parent] if origin else [])
    if home.resolve() not in [Path(place).resolve() for place in places]:
        raise ModelError(
            f"a module {package!r} was already imported from "
            f"{', '.join(map(str, places)) or 'elsewhere'}, which hides the one in {folder}; use a "
            "fresh Python process for it"
        )
