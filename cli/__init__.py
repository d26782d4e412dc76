"""The command `ela-probe`. Installed as `ela_probe_cli`; imports no torch until a verb runs."""

from .entry import main, run

__all__ = ["main", "run"]
