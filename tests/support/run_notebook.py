"""Runs a notebook's cells in this process: `python -m tests.support.run_notebook SOURCE RESULT`.

RESULT is a JSON file with the outputs of every code cell: what it displayed, by MIME type, and what
it printed. There is no Jupyter kernel, and so no client that waits for one: messages between the
two were now and then missed on a busy machine, and the client waited until its time was up. Widgets
have no browser to talk to; what they would show is displayed in the cell's output.
"""

import json
import sys
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.displayhook import DisplayHook
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from IPython.utils.capture import capture_output
from traitlets import Type


class Results(DisplayHook):
    """Displays the value of a cell's last line, as a notebook does, in place of printing it."""

    def __call__(self, result: Any = None) -> None:
        if result is not None and not self.quiet():
            display(result)


class Shell(InteractiveShell):
    """A shell without windows, in which `%matplotlib inline` finds nothing to start."""

    displayhook_class = Type(Results)

    def enable_gui(self, gui: Any = None) -> None:
        pass


def run_cells(path: Path) -> list[dict[str, Any]]:
    """The outputs of every code cell, in order.

    Raises:
        Exception: what a cell raised.
    """
    shell = Shell.instance()
    notebook = nbformat.read(path, as_version=4)
    outputs = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        with capture_output() as captured:
            result = shell.run_cell(cell.source)
        result.raise_error()
        outputs.append(
            {
                "displayed": [sorted(output.data) for output in captured.outputs],
                "printed": captured.stdout + captured.stderr,
            }
        )
    return outputs


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run_cells(Path(sys.argv[1]))))
