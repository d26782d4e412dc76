"""Copies of the package's notebooks, and Jupyter to open them."""

import importlib.util
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from ela_probe.errors import OptionError
from ela_probe.system.storage import write_text

NOTEBOOKS = files("ela_probe") / "notebooks"
EXPLORE = "01_explore"


def notebook_names() -> list[str]:
    """The names of the notebooks in the package, without `.ipynb`, in their order."""
    return sorted(
        entry.name.removesuffix(".ipynb")
        for entry in NOTEBOOKS.iterdir()
        if entry.name.endswith(".ipynb")
    )


def copy_notebook(name: str, output: Path, **parameters: str) -> Path:
    """Write a copy of a notebook whose cell of parameters has these values, and return its path.

    Args:
        name: of `notebook_names`.
        parameters: by name, as they stand in the cell that is tagged `parameters`.

    Raises:
        OptionError: no such notebook, or it has no such parameter.
        OutputError: the copy can't be written.
    """
    names = notebook_names()
    if name not in names:
        raise OptionError(f"no notebook is called {name!r}; expected one of {', '.join(names)}")
    document = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    for parameter, value in parameters.items():
        _set(document, parameter, value, name)
    return write_text(output, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def open_notebook(path: Path, *, browser: bool = True) -> int:
    """Start JupyterLab on a notebook, wait until it ends, and return its exit status."""
    check_jupyter()
    words = [sys.executable, "-m", "jupyterlab", str(path)]
    return subprocess.run([*words, *([] if browser else ["--no-browser"])], check=False).returncode


def check_jupyter() -> None:
    """Raise OptionError where Jupyter, or what the notebook shows with, is not installed."""
    missing = [name for name in ("jupyterlab", "ipywidgets") if not _is_installed(name)]
    if missing:
        raise OptionError(
            f"the notebook needs {' and '.join(missing)}, not installed here: "
            "pip install 'ela-probe[notebooks]', or only write the copy with --copy"
        )


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _set(document: dict[str, Any], parameter: str, value: str, name: str) -> None:
    """Change the line `parameter = ""` in the cell of parameters, and keep its comment."""
    for cell in document["cells"]:
        if "parameters" in cell["metadata"].get("tags", ()):
            for number, line in enumerate(cell["source"]):
                if line.startswith(f'{parameter} = ""'):
                    cell["source"][number] = line.replace('""', json.dumps(value), 1)
                    return
    raise OptionError(f"the notebook {name} has no parameter {parameter!r}")
