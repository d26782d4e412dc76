"""The package `lightning` for tests: the installed one, else a copy made of `pytorch_lightning`.

`lightning.pytorch` is `pytorch_lightning` with other import names, and is published that way. The
copy shares `lightning_fabric` with the original; its Trainer, Callback and strategies are classes
of their own, which is what the tests are about.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytorch_lightning


def import_lightning(folder: Path) -> ModuleType:
    """`lightning.pytorch`; a copy is written into `folder` where the package is not installed."""
    if importlib.util.find_spec("lightning") is None:
        sys.path.insert(0, str(write_copy(folder)))
    return importlib.import_module("lightning.pytorch")


def write_copy(folder: Path) -> Path:
    source = Path(pytorch_lightning.__file__).parent
    target = folder / "lightning" / "pytorch"
    for path in source.rglob("*"):
        if path.suffix not in (".py", ".info") or "__pycache__" in path.parts:
            continue
        copied = target / path.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8")
        copied.write_text(text.replace("pytorch_lightning", "lightning.pytorch"), encoding="utf-8")
    (folder / "lightning" / "__init__.py").write_text("")
    return folder
