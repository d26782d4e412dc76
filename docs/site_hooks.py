"""Pages of the documentation site that are made from the code and from files beside docs/.

MkDocs calls these functions (`hooks` in mkdocs.yml). README.md, CONTRIBUTING.md, CHANGELOG.md,
SECURITY.md and benchmarks/README.md become pages, so that each text stands in one place; the
commands are described by their own help, and the error messages are read from the source code.
"""

import ast
import html
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from ela_probe_cli.app import VERBS, app
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Files outside docs/, and the pages that they become.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "SECURITY.md": "security.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    made = {page: (ROOT / source).read_text("utf-8") for source, page in OUTSIDE.items()}
    made["commands.md"] = commands_page()
    made["errors.md"] = errors_page()
    for name, text in made.items():
        files.append(File.generated(config, name, content=site_links(text)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Make links that fit the repository fit the site, and take test options from code blocks."""
    return re.sub(r"^```python skip$", "```python", site_links(markdown), flags=re.MULTILINE)


def site_links(text: str) -> str:
    """The text with links to pages, whether they start in docs/ or beside it."""
    for source, page in OUTSIDE.items():
        text = re.sub(rf"\]\((?:\.\./)*{re.escape(source)}(?=[)#])", f"]({page}", text)
    return re.sub(r"\]\((?:\.\./)?docs/", "](", text)


def commands_page() -> str:
    """Every command with its description, examples and options, from its help."""
    group = typer.main.get_command(app)
    parts = ["# Commands", "Every command takes `--json`, and `--debug` for tracebacks."]
    for module in VERBS:
        name = module.__name__.rpartition(".")[2].replace("_", "-")
        command = group.commands[name]  # type: ignore[attr-defined]
        parts += [f"## {name}", inspect.cleandoc(module.command.__doc__ or "")]
        rows = ["| option | what |", "|---|---|"]
        for parameter in command.params:
            argument = parameter.param_type_name == "argument"
            names = [parameter.name.upper()] if argument else parameter.opts
            shown = ", ".join(f"`{name}`" for name in (*names, *parameter.secondary_opts))
            text = " ".join((getattr(parameter, "help", "") or "").split())
            rows.append(f"| {shown} | {_cell(text)} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def errors_page() -> str:
    """Every error message in the code, under the kind of mistake that it tells of."""
    import ela_probe.errors as errors

    parts = [
        "# Error messages",
        "A mistake in what you give ends in one line on stderr and exit code 2. The line says what "
        "was given, what was expected, and what to do. These are all of them, from the source "
        "code; … stands for a name or a number. In Python each is an exception of the class in the "
        "heading, a child of `ElaProbeError`. The [FAQ](faq.md) answers common questions.",
    ]
    found = list(messages())
    for name, kind in vars(errors).items():
        own = sorted({(text, where) for error, text, where in found if error == name})
        if own:
            items = [
                f"<li>{html.escape(text)} <small>({html.escape(where)})</small></li>"
                for text, where in own
            ]
            parts += [f"## {name}", inspect.getdoc(kind) or "", "<ul>", *items, "</ul>"]
    return "\n\n".join(parts[:2]) + "\n\n" + "\n".join(_spaced(parts[2:])) + "\n"


def messages() -> Iterator[tuple[str, str, str]]:
    """The errors that are raised in the code: class, message, file. … stands for a value."""
    for path in sorted([*(ROOT / "ela_probe").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]):
        where = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                text = re.sub("…+", "…", " ".join(_text(node.exc.args[0]).split()))
                if re.search(r"\w\w", text):
                    yield ast.unparse(node.exc.func), text, where


def _text(node: ast.expr) -> str:
    """A string expression as a reader sees it, with … for what is known only when it runs."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "…"


def _spaced(parts: list[str]) -> Iterator[str]:
    """Lines, with a blank one around all that is no item of a list."""
    for part in parts:
        yield part if part.startswith("<li>") else f"\n{part}"


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("*", "\\*")
