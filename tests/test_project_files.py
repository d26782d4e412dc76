"""The files around the code: one version, a changelog in form, hooks that run, a citation."""

import re
import shutil
import subprocess
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml

import ela_probe

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[import-not-found, no-redef, unused-ignore]

ROOT = Path(__file__).parents[1]
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = CONFIGURATION["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text("utf-8")
SECTIONS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def test_the_version_stands_in_one_place():
    """pyproject.toml has it; the code reads the installed package's metadata."""
    assert ela_probe.__version__ == metadata("ela-probe")["Version"] == PROJECT["version"]
    sources = [*(ROOT / "ela_probe").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]
    assert not [path for path in sources if PROJECT["version"] in path.read_text("utf-8")]


def test_the_wheel_has_every_folder():
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("ela_probe/**/*.py")}
    packages = {".".join(folder.parts) for folder in folders} | {"ela_probe_cli"}
    assert set(CONFIGURATION["tool"]["setuptools"]["packages"]) == packages


def test_the_changelog_keeps_its_form():
    """Keep a Changelog: the newest release first, below what is unreleased; known sections."""
    releases = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)
    assert releases[0] == "[Unreleased]"
    assert all(
        re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", name) for name in releases[1:]
    )
    for release in re.split(r"^## .+$", CHANGELOG, flags=re.MULTILINE)[1:]:
        found = re.findall(r"^### (.+)$", release, re.MULTILINE)
        assert found == [name for name in SECTIONS if name in found]


def test_the_hooks_are_local_and_their_tools_are_development_tools():
    """Nothing is fetched at a commit: each hook runs a tool that `make .venv/ready` installs."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    tools = {re.split(r"[^\w-]", name)[0] for name in PROJECT["optional-dependencies"]["dev"]}
    for repository in hooks["repos"]:
        assert repository["repo"] == "local"
        for hook in repository["hooks"]:
            assert Path(hook["entry"].split()[0]).parts[:2] == (".venv", "bin")
            assert Path(hook["entry"].split()[0]).name in tools


def test_the_citation_agrees_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["title"] == PROJECT["name"]
    assert citation["license"] == PROJECT["license"]
    assert citation["abstract"].rstrip(".") == PROJECT["description"]
    assert "version" not in citation, "the version stands in pyproject.toml"
    [paper] = citation["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]
    assert f"Paper, {paper['url']}" in (metadata("ela-probe").get_all("Project-URL") or [])


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("script", sorted((ROOT / ".ci").iterdir()), ids=lambda path: path.name)
def test_the_scripts_of_ci_are_valid_bash(script):
    assert script.stat().st_mode & 0o100
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_what_other_versions_run_exists():
    part = re.findall(r"tests/test_\w+\.py", (ROOT / ".ci/other-versions").read_text("utf-8"))
    assert part
    assert all((ROOT / name).is_file() for name in part)


def test_every_dependency_has_its_reason():
    text = (ROOT / "docs" / "dependencies.md").read_text("utf-8").lower()
    extras = PROJECT["optional-dependencies"].values()
    lines = [line for lines in (PROJECT["dependencies"], *extras) for line in lines]
    names = {re.split(r"[^\w-]", line)[0] for line in lines} - {PROJECT["name"]}
    assert not {name for name in names if not re.search(rf"\b{name}\b", text)}
