"""The pages of the documentation site that are made: every command, every error message, links."""

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import typer.main
import yaml
from ela_probe_cli.app import app

from ela_probe import errors

ROOT = Path(__file__).parents[1]


def load_hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs/site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = load_hooks()


def test_every_kind_of_error_has_its_messages() -> None:
    page = hooks.errors_page()
    kinds = [
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.ElaProbeError)
    ]
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == [
        name for name in kinds if name != "ElaProbeError"
    ]


def test_no_message_of_the_code_is_left_out() -> None:
    """Each `raise Kind("...")` with a text is found; the text has … for what is put in."""
    found = list(hooks.messages())
    path = "ela_probe/pruning/planners.py"
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    raised = [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    assert len([1 for _, _, where in found if where == path]) == len(raised) > 3
    assert (
        "PlanError",
        "cannot skip a share of …; expected at least 0 and less than 1",
        path,
    ) in found


def test_a_message_in_several_parts_is_one_text() -> None:
    node = ast.parse("""f"got {x!r}, " "expected " + "a" + f(y)""", mode="eval").body
    assert hooks._text(node) == "got …, expected a…"


def test_every_option_of_every_command_is_on_the_page() -> None:
    page = hooks.commands_page()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert section, name
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert f"`{parameter.opts[0]}`" in section


@pytest.mark.parametrize(
    ("link", "on_the_site"),
    [
        ("[x](docs/guide.md#data)", "[x](guide.md#data)"),
        ("[x](../docs/guide.md)", "[x](guide.md)"),
        ("[x](../CONTRIBUTING.md)", "[x](contributing.md)"),
        ("[x](../README.md#install)", "[x](index.md#install)"),
        ("[x](benchmarks/README.md)", "[x](benchmarks.md)"),
        ("[x](method.md)", "[x](method.md)"),
    ],
)
def test_a_link_fits_the_site(link: str, on_the_site: str) -> None:
    assert hooks.site_links(link) == on_the_site


def test_the_menu_leads_to_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    menu = set(re.findall(r"[\w/-]+\.md", text.partition("\nnav:")[2]))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert menu == pages | set(hooks.OUTSIDE.values()) | {"commands.md", "errors.md"}


def test_the_site_takes_nothing_from_other_hosts() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    settings = yaml.safe_load(re.sub(r"!!python/\S+", "", text))
    assert settings["theme"]["font"] is False
    assert "extra_javascript" not in settings
    assert settings["strict"] is True


def test_what_the_reference_names_exists() -> None:
    import importlib

    names = [
        name
        for path in (ROOT / "docs/reference").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert len(names) > 30
    for name in names:
        module, _, attribute = name.rpartition(".")
        found = importlib.import_module(module)
        assert hasattr(found, attribute), name
        assert getattr(found, attribute).__doc__, name
