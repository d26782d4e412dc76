"""What needs a package that is not installed says so, and what to type."""

import sys

import pytest

from ela_probe.errors import OptionError
from ela_probe.system.extras import accelerate, transformers
from tests.support.commands import run


def test_a_missing_package_is_one_line_with_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(OptionError, match=r"pip install 'ela-probe\[hf\]'"):
        transformers()
    (tmp_path / "config.json").write_text("{}")
    assert "pip install transformers" in run(capsys, "discover", f"hf:{tmp_path}", code=2)


def test_spreading_a_model_needs_accelerate(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(OptionError, match=r"pip install 'ela-probe\[hf\]', or pip install accel"):
        accelerate()
