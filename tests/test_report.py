"""The report: one page that stands alone, where no name can become markup."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ela_probe.analysis.findings import findings
from ela_probe.analysis.result import Analysis, Provenance
from ela_probe.errors import OutputError
from ela_probe.pruning.planners import make_plan
from ela_probe.report.page import write_report
from tests.support.comparisons import of_analysis
from tests.support.synthetic_analyses import make_analysis

EVIL = "<script>alert('x')</script>&\"$body"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and fails on tags that don't balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def evil_analysis() -> Analysis:
    known = Provenance(
        model=EVIL, model_args={EVIL: EVIL}, checkpoint=EVIL, data=EVIL, versions={"a": EVIL}
    )
    return make_analysis(
        (3, 2), samples=20, names=f"st{EVIL}.{{stage}}.{{site}}.r", provenance=known
    )


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with everything in it, from an analysis whose names are hostile."""
    analysis = evil_analysis()
    path = tmp_path_factory.mktemp("report") / "report.html"
    plan = make_plan(analysis, skip=0.4)
    assert write_report(analysis, path, plan=plan, comparison=of_analysis(analysis, EVIL)) == path
    return path.read_text(encoding="utf-8")


def test_tags_balance_and_names_stay_text(full: str) -> None:
    page = Page(full)
    assert "script" not in {tag for tag, _ in page.tags}
    assert EVIL in page.text
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_nothing_is_fetched(full: str) -> None:
    for tag, attrs in Page(full).tags:
        assert tag not in {"link", "iframe", "object", "base"}
        assert "href" not in attrs
        assert "srcset" not in attrs
        assert (attrs.get("src") or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?://", full)


def test_every_site_finding_and_figure_is_there(tmp_path: Path) -> None:
    analysis = make_analysis((3,), samples=30)
    page = Page(write_report(analysis, tmp_path / "r.html").read_text(encoding="utf-8"))
    for part in analysis.stages:
        assert all(site.name in page.text for site in part.stage.sites)
    assert all(finding.text in page.text for finding in findings(analysis))
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 1 + 3 * len(analysis.stages)
    assert all(attrs["alt"] for attrs in images)
    assert "Skip plan" not in page.text
    assert "Comparison" not in page.text


def test_plan_and_comparison_are_tables(full: str) -> None:
    page = Page(full)
    assert [tag for tag, _ in page.tags].count("table") == 3  # comparison, plan, sites
    assert "training MiB" in page.text
    assert "–" in page.text


def test_an_unwritable_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_report(make_analysis((1,), samples=5), tmp_path / "file" / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
