"""docs/architecture.md is true: the import rule, the folders' docstrings, the way of a batch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOC = (ROOT / "docs/architecture.md").read_text("utf-8")
# The parts, in the order of imports: the first column of the map.
PARTS = re.findall(r"^\| `([a-z.]+)` \|", DOC.partition("## The map")[2], re.MULTILINE)
# The public face imports on first use, and is imported by no part; `__main__` runs the cli.
ABOVE_ALL = ("ela_probe", "ela_probe.__main__")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("ela_probe", "cli")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
FOLDERS = sorted(
    name
    for name, path in FILES.items()
    if path.name == "__init__.py" and name.startswith("ela_probe.")
)


def part_of(module: str) -> str:
    """The part of the map that a module of ours belongs to.

    The longest name wins: `training.ela` before `training`.
    """
    name = module.removeprefix("ela_probe.")
    return max((p for p in PARTS if f"{name}.".startswith(f"{p}.")), key=len, default=module)


def imports(module: str, source: str) -> set[str]:
    """The modules of ours that a module imports anywhere, also in functions."""
    is_package = FILES[module].name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                names.add(full if full in FILES else base)
    ours = {re.sub(r"^ela_probe_cli\b", "cli", name) for name in names}
    return {name for name in ours if name.split(".")[0] in ("ela_probe", "cli")} - {module}


IMPORTS = {name: imports(name, path.read_text("utf-8")) for name, path in FILES.items()}


def test_every_file_belongs_to_one_part_of_the_map():
    parts = {part_of(name) for name in FILES if name not in ABOVE_ALL}
    assert parts == set(PARTS)
    assert len(PARTS) == len(set(PARTS))


def test_a_module_imports_only_from_its_own_part_and_those_above():
    wrong = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        if module not in ABOVE_ALL
        for other in others
        if other != "ela_probe" and PARTS.index(part_of(other)) > PARTS.index(part_of(module))
    ]
    assert not wrong


def test_only_the_command_line_imports_the_public_face():
    face = {part_of(module) for module, others in IMPORTS.items() if "ela_probe" in others}
    assert face <= {"cli"}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f():\n    from ela_probe.pipeline import train", "ela_probe.pipeline.train"),
        ("if TYPE_CHECKING:\n    import ela_probe.pipeline", "ela_probe.pipeline"),
        ("from ela_probe import pipeline", "ela_probe.pipeline"),
        ("from ela_probe import prune", "ela_probe"),
        ("from .. import pipeline", "ela_probe.pipeline"),
        ("from .plan import SkipPlan", "ela_probe.pruning.plan"),
        ("from ela_probe_cli.app import app", "cli.app"),
    ],
)
def test_no_way_of_importing_is_overlooked(source, found):
    assert imports("ela_probe.pruning.prune", source) == {found}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_says_in_three_lines_what_comes_in_goes_out_and_may_be_imported(folder):
    docstring = ast.get_docstring(ast.parse(FILES[folder].read_text("utf-8")))
    assert docstring is not None
    title, _, rest = docstring.partition("\n\n")
    assert "\n" not in title
    lines = " ".join(rest.split())
    found = re.fullmatch(r"In: (.+\.) Out: (.+\.) May import: (.+)\.", lines)
    assert found, f"expected the lines In, Out and May import, got {rest!r}"
    allowed = found[3].split(", ")
    own = part_of(folder)
    assert [part for part in PARTS if part in allowed] == allowed, "in the order of the map"
    assert all(PARTS.index(part) < PARTS.index(own) for part in allowed)
    used = {
        part_of(other)
        for module, others in IMPORTS.items()
        if part_of(module) == own
        for other in others
    }
    assert used - {own} <= set(allowed)


@pytest.mark.parametrize("module", [*FOLDERS, "cli"])
def test_an_init_holds_no_logic(module):
    for statement in ast.parse(FILES[module].read_text("utf-8")).body:
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        is_all = isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == (
            "__all__"
        )
        assert isinstance(statement, ast.Import | ast.ImportFrom) or is_docstring or is_all


def test_the_face_names_what_is_there():
    """The lazy table, the names for type checkers and `__all__` are the same."""
    import ela_probe

    tree = ast.parse(FILES["ela_probe"].read_text("utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = {name: f"ela_probe.{module}" for name, module in ela_probe._MODULES.items()}
    assert typed == lazy
    assert set(ela_probe.__all__) == set(lazy)
    assert all(getattr(ela_probe, name) is not None for name in lazy)


def named_functions() -> list[tuple[str, str]]:
    """The pairs of a file and a function that the doc names in a row or a sentence."""
    rows = re.findall(r"\| \d+ \| `([\w/]+\.py)` \| `([\w.]+)` \|", DOC)
    sentences = re.findall(r"`(\w+)`\s+in\s+`(ela_probe/[\w/]+\.py)`", DOC)
    return rows + [(file, name) for name, file in sentences]


@pytest.mark.parametrize(("file", "name"), named_functions())
def test_a_stop_of_the_batch_is_where_the_doc_says(file, name):
    body: list[ast.stmt] = ast.parse((ROOT / file).read_text("utf-8")).body
    for word in name.split("."):
        [found] = [
            node
            for node in body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == word
        ]
        body = found.body


def test_the_batch_makes_every_stop():
    assert re.findall(r"^\| (\d+) \|", DOC, re.MULTILINE) == [str(n) for n in range(1, 21)]
    assert len(named_functions()) >= 20


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:ela_probe|cli)/[\w/.]+)`", DOC))))
def test_every_path_in_the_doc_exists(path):
    assert (ROOT / path).exists()


def test_python_m_runs_the_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "ela_probe", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ela-probe ")
