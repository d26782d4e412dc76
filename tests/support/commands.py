"""Running the command line inside the test's process."""

import json
from typing import Any

import pytest
from ela_probe_cli import main

VERBS = (
    "demo", "train", "analyze", "costs", "plan", "prune", "finetune", "compare", "report",
    "compare-analyses", "models", "recipes", "notebook",
)  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> Any:
    """Run a command with --json and return its document, or its error line."""
    capsys.readouterr()
    result = main([str(word) for word in words] + (["--json"] if code == 0 else []))
    out, err = capsys.readouterr()
    assert result == code, err
    if code == 0:
        return json.loads(out)
    assert out == ""
    line = err.splitlines()[-1]
    assert line.startswith("error: ")
    assert "Traceback" not in err
    return line
