"""Files and folders that a command reads are looked for before torch is imported.

`look_for_files` does that before Typer is imported too; Typer calls `check` while it parses the
options. Where a file of another kind was given, the message says what to type instead.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from ela_probe.errors import OptionError
from ela_probe.system.messages import quoted, shortened

CHECKPOINTS = (".pt", ".pth", ".tar", ".safetensors", ".ckpt", ".bin")
ANALYSIS = "analysis.json"


@dataclass(frozen=True)
class Kind:
    """A kind of file or folder that a command reads.

    name: in messages. expected: what it is. inside: names that such a file has in a folder.
    """

    name: str
    expected: str
    inside: Sequence[str] = ()
    is_folder: bool = False

    def check(self, given: Any) -> Any:
        """Raise OptionError where a path is missing or of another kind. For Typer's `callback`."""
        for path in given if isinstance(given, list) else [given]:
            if path is not None:
                self._check(path)
        return given

    def _check(self, path: Path) -> None:
        try:
            exists = path.exists()
        except OSError as error:  # a name that is too long, a folder that can't be looked into
            raise OptionError(
                f"cannot read the {self.name} {shortened(str(path))}: {error.strerror}; expected "
                f"{self.expected}"
            ) from error
        if not exists:
            what = "folder" if self.is_folder else "file"
            raise OptionError(
                f"cannot read the {self.name} {path}: no such {what}{_similar(path)}; "
                f"expected {self.expected}"
            )
        if self.is_folder and not path.is_dir():
            raise OptionError(self._instead_of_folder(path))
        if not self.is_folder and path.is_dir():
            raise OptionError(self._instead_of_file(path))

    def _instead_of_file(self, path: Path) -> str:
        """The message where a folder came in place of a file."""
        found = next((path / name for name in self.inside if (path / name).is_file()), None)
        what = "analysis folder" if (path / ANALYSIS).is_file() else "folder"
        hint = f"; did you mean {found}?" if found is not None else ""
        return f"got the {what} {path} as the {self.name}, expected {self.expected}{hint}"

    def _instead_of_folder(self, path: Path) -> str:
        """The message where a file came in place of a folder."""
        message = f"got the file {path} as the {self.name}, expected {self.expected}"
        if self is not ANALYSIS_FOLDER:
            return message
        if path.name == ANALYSIS:
            return f"{message}; did you mean {path.parent}?"
        if path.suffix in CHECKPOINTS:
            return (
                f"{message}; if this is a checkpoint, run `ela-probe analyze {quoted(path)}` first"
            )
        return message


def _similar(path: Path) -> str:
    """A question about the most similar name in the same folder, if there is one."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.8)
    return f" (did you mean {path.with_name(near[0])}?)" if near else ""


@dataclass(frozen=True)
class CheckpointKind(Kind):
    """A file, or `hf:DIR`: a directory that transformers wrote."""

    def check(self, given: Any) -> Any:
        """The paths, of `hf:DIR` the directory. Raises OptionError as `Kind.check`."""
        if isinstance(given, list):
            return [self.check(path) for path in given]
        if given is None or not str(given).startswith(PRETRAINED):
            return super().check(given)
        folder = Path(str(given).removeprefix(PRETRAINED)).expanduser()
        if folder.is_file():
            raise OptionError(
                f"got the file {folder} after {PRETRAINED}, expected a directory that "
                f"save_pretrained of transformers wrote; a checkpoint is named by its path alone: "
                f"{folder}"
            )
        if not (folder / CONFIG).is_file():
            what = f"no {CONFIG} in it" if folder.is_dir() else f"no such folder{_similar(folder)}"
            raise OptionError(
                f"cannot read the model {given}: {what}; expected a directory that "
                "save_pretrained of transformers wrote"
            )
        return folder if folder.name not in ("", "..") else folder.resolve()

    def _instead_of_file(self, path: Path) -> str:
        message = super()._instead_of_file(path)
        if (path / CONFIG).is_file():
            return f"{message}; for a directory of transformers write {PRETRAINED}{path}"
        return message


PRETRAINED, CONFIG = "hf:", "config.json"
CHECKPOINT = CheckpointKind(
    "checkpoint",
    "a file written by `ela-probe train`, a state dict, or hf:DIR",
    ("best.pt", "train/best.pt", "last.pt"),
)
ANALYSIS_FOLDER = Kind("analysis", "a folder written by `ela-probe analyze`", is_folder=True)
PLAN = Kind("plan", "a file written by `ela-probe plan`", ("plan.json",))
COSTS = Kind("costs", "a file written by `ela-probe costs`", ("costs.json", "best-costs.json"))
SITES = Kind("sites file", "a TOML file (docs/adapters.md)", ("sites.toml",))
COMPARISON = Kind("comparison", "JSON written by `ela-probe compare -o`", ("comparison.json",))
ABLATION = Kind("ablation", "JSON written by `ela-probe ablate`", ("ablation.json",))
HISTORY = Kind("history", "the metrics.csv of a run of `ela-probe train`", ("metrics.csv",))
CODE_FOLDER = Kind("--path", "the folder of the code", is_folder=True)
RECIPE = Kind("recipe", "a YAML file, or a name that `ela-probe recipes` lists")


# What the first word after a verb names, and the word after an option.
FIRST_WORDS = {
    **dict.fromkeys(("discover", "analyze", "costs", "prune", "finetune", "compare"), CHECKPOINT),
    **dict.fromkeys(("plan", "report", "compare-analyses", "notebook"), ANALYSIS_FOLDER),
}
# The verbs whose first words are all of that kind.
SEVERAL = ("compare", "report", "compare-analyses")
OPTIONS = {
    "--plan": PLAN,
    "--costs": COSTS,
    "--sites": SITES,
    "--comparison": COMPARISON,
    "--ablation": ABLATION,
    "--history": HISTORY,
    "--path": CODE_FOLDER,
}


def look_for_files(words: Sequence[str]) -> None:
    """Raise ElaProbeError where a file that a command line plainly names does not exist.

    Before Typer is imported, which takes longer than that. Of `analyze --limit 9 X.pt` only Typer
    knows what X.pt is: it checks every path again.

    Args:
        words: of the command line, the verb first.
    """
    verb, *rest = words or [""]
    if (verb not in FIRST_WORDS and verb != "train") or not {"-h", "--help"}.isdisjoint(rest):
        return
    first = [*takewhile(lambda word: not word.startswith("-"), rest)]
    if verb in FIRST_WORDS:
        for word in first if verb in SEVERAL else first[:1]:
            FIRST_WORDS[verb].check(Path(word))
    given = {option: value for option, value in pairwise(rest) if not value.startswith("-")}
    for word in rest:
        option, equals, value = word.partition("=")
        if equals and option.startswith("--"):
            given[option] = value
    for option, kind in OPTIONS.items():
        if option in given:
            kind.check(Path(given[option]))
    check_recipe(given.get("--recipe"))
    root = given.get("--data-root")
    check_data(
        given.get("--data"),
        root=None if root is None else Path(root),
        download="--download" in rest,
    )


def files_of(analysis: Path) -> list[Path]:
    """The files of an analysis folder that other commands read."""
    return [analysis / name for name in (ANALYSIS, "arrays.npz", "pairs.csv", "sites.csv")]


def names_of(first: Path, second: Path) -> tuple[str, str]:
    """What two analyses are called: their folders, with as much of the paths as tells them apart.

    >>> names_of(Path("runs/seed0/analysis"), Path("runs/seed1/analysis"))
    ('seed0/analysis', 'seed1/analysis')
    """
    for length in range(1, max(len(first.parts), len(second.parts)) + 1):
        names = ["/".join(path.parts[-length:]) for path in (first, second)]
        if names[0] != names[1]:
            return names[0], names[1]
    return str(first), f"{second} (again)"


def check_recipe(name: str | None) -> str | None:
    """Raise OptionError where a recipe's file is missing; a plain name is looked up later."""
    if name is not None and (Path(name).suffix in (".yaml", ".yml") or Path(name).parent.name):
        RECIPE.check(Path(name))
    return name


def check_data(source: str | None, *, root: Path | None = None, download: bool = False) -> None:
    """Raise DataError where the source of --data is unknown, or a file of it does not exist."""
    if source is not None:
        from ela_probe.data.source_files import check_source

        check_source(source, root=root, download=download)


def path_of(recipe: str | None) -> Path | None:
    """The file of a recipe that is one."""
    return Path(recipe) if recipe is not None and Path(recipe).is_file() else None


def path_of_data(source: str | None) -> Path | None:
    """The file of `text:FILE`."""
    kind, _, name = (source or "").partition(":")
    return Path(name).expanduser() if kind == "text" else None


def share_of(option: str) -> Callable[[float | None], float | None]:
    """A callback that raises OptionError where a share looks like a percentage."""

    def check(share: float | None) -> float | None:
        if share is not None and 1 < share <= 100:
            raise OptionError(
                f"got {option} {share:g}, expected a share, where 1 is all; "
                f"did you mean {share / 100:g}?"
            )
        return share

    return check
