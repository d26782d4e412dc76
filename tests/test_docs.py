"""The docs are true: command lines in them and in the help texts parse, links lead somewhere.

A command line is parsed with all its options, as when it is run, and nothing is run.
"""

import inspect
import json
import re
import shlex
from pathlib import Path

import pytest
import typer.main
from ela_probe_cli.app import VERBS, app

from benchmarks.__main__ import app as benchmarks

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "ela_probe/notebooks").glob("*.ipynb"))
PROGRAMS = {"ela-probe": app, "python -m benchmarks": benchmarks}
# What stands for a verb, and for more words than are shown.
PLACEHOLDERS = ("VERB", "CASE", "...")


def command_lines(text: str) -> list[str]:
    """The command lines in a page: in blocks of code, and in code within a sentence.

    A block's line may continue on the next one, start with a prompt and end with a comment.
    """
    text = text.replace("$(which ela-probe)", "ela-probe")
    code = re.sub(r"\\\n\s*", " ", text)
    code = re.sub(r"^```.*$", "", code, flags=re.MULTILINE)
    lines = [re.sub(r"\s+# .*$", "", line) for line in code.splitlines()]
    sentences = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", sentences)]
    found = []
    for line in [*lines, *spans]:
        command = re.match(
            r"(?:\s{4,}|\$ |)(?:(?:torchrun|srun) .*? |[A-Z_]+=\S+ )?"
            rf"(({'|'.join(PROGRAMS)}) [a-z-].*)$",
            line,
        )
        if command is not None and (line.startswith(("    ", "$ ")) or line in spans):
            found.append(" ".join(command[1].split()))
    return list(dict.fromkeys(found))


def parse(line: str) -> None:
    """Parse a command line without running it. Raises the usage error that a user would see."""
    program = next(name for name in PROGRAMS if line.startswith(f"{name} "))
    verb, *words = shlex.split(line.removeprefix(program))
    group = typer.main.get_command(PROGRAMS[program])
    if verb.startswith("-") or verb in PLACEHOLDERS:
        return
    command = group.commands[verb]  # type: ignore[attr-defined]
    for parameter in command.params:  # some look whether a file exists
        parameter.callback = None
    words = [word for word in words if word not in (*PLACEHOLDERS, "--help")]
    if words:  # a verb alone is its name, in a sentence
        command.make_context(verb, ["1" if word == "N" else word for word in words])


@pytest.mark.parametrize(
    ("page", "line"),
    [
        (page, line)
        for page in PAGES
        for line in command_lines((ROOT / page).read_text(encoding="utf-8"))
    ],
)
def test_a_command_line_of_a_page_parses(page, line):
    parse(line)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_command_lines_of_a_notebook_parse(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for line in command_lines("".join(cell["source"])):
            parse(line)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_the_examples_of_a_help_text_parse(verb):
    examples = command_lines(inspect.cleandoc(verb.command.__doc__))
    for line in examples:
        parse(line)


def test_the_pages_hold_the_command_lines_that_people_start_with():
    readme = command_lines((ROOT / "README.md").read_text(encoding="utf-8"))
    shown = {line.split()[1] for line in readme if line.startswith("ela-probe ")}
    assert {"train", "analyze", "plan", "prune", "finetune", "compare", "report"} <= shown


@pytest.mark.parametrize(
    "text",
    [
        "```console\n$ ela-probe plan DIR --skip 0.3  # a share\n```",
        "    ela-probe plan \\\n        DIR --skip 0.3\n",
        "see `ela-probe plan\nDIR --skip 0.3`, and so on",
        "    torchrun --nnodes 2 ... $(which ela-probe) plan DIR --skip 0.3",
        "    OMP_NUM_THREADS=1 ela-probe plan DIR --skip 0.3",
    ],
)
def test_a_command_line_is_found_in_every_form(text):
    assert command_lines(text) == ["ela-probe plan DIR --skip 0.3"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("ela-probe plan DIR --skp 0.3", "--skp"),
        ("ela-probe plan --skip 0.3", "(?i)missing"),
        ("ela-probe plan DIR --planner best", "best"),
        ("python -m benchmarks plans --random x", "integer"),
    ],
)
def test_a_line_with_a_mistake_does_not_parse(line, says):
    with pytest.raises(Exception, match=says):
        parse(line)


def heading_anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and most viewers form them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_a_link_within_the_repository_leads_somewhere(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text("utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in heading_anchors(target), link
