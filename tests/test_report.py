"""The report: one page that stands alone, where no name can become markup."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ela_probe.analysis.findings import findings
from ela_probe.analysis.result import Analysis, Provenance
from ela_probe.errors import OptionError, OutputError, PlanError
from ela_probe.pruning.ablation import Ablation, Change
from ela_probe.pruning.budgets import plans_by_count
from ela_probe.pruning.planners import make_plan
from ela_probe.pruning.stability import plan_stability
from ela_probe.report.history import History
from ela_probe.report.page import SCRIPTS, write_report
from ela_probe.report.page_data import script_json
from ela_probe.report.page_plans import plan_of, plans_data
from tests.support.comparisons import of_analysis
from tests.support.synthetic_analyses import make_analysis, with_damage

EVIL = "<script>alert('x')</script>&\"{{ 7 * 7 }}"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects tags, attributes, text and scripts, and fails on tags that don't balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
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
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.text += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def evil_analysis() -> Analysis:
    known = Provenance(
        model=EVIL, model_args={EVIL: EVIL}, checkpoint=EVIL, data=EVIL, versions={"a": EVIL}
    )
    return make_analysis(
        (3, 2), samples=20, names=f"st{EVIL}.{{stage}}.{{site}}.r", provenance=known
    )


def an_ablation(analysis: Analysis) -> Ablation:
    names = [site.name for part in analysis.stages for site in part.stage.sites]
    changes = (Change(site=n, action="skip", loss=k, square=2 * k) for k, n in enumerate(names))
    return Ablation(samples=10, changes=tuple(changes), complete=True)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with everything in it, from an analysis whose names are hostile."""
    analysis = with_damage(evil_analysis())
    path = tmp_path_factory.mktemp("report") / "report.html"
    written = write_report(
        analysis,
        path,
        other=analysis,
        names=(EVIL, EVIL),
        plan=make_plan(analysis, skip=0.4),
        comparison=of_analysis(analysis, EVIL),
        ablation=an_ablation(analysis),
        history=History([{"epoch": 0, "train_loss": 1.0, "skipped": 0.5}]),
    )
    assert written == path
    return path.read_text(encoding="utf-8")


def test_tags_balance_and_names_stay_text(full: str) -> None:
    page = Page(full)
    assert len(page.attributes("script")) == len(page.scripts) == 1 + len(SCRIPTS)
    assert EVIL in page.text
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_nothing_is_fetched_and_only_its_own_scripts_run(full: str) -> None:
    page = Page(full)
    for tag, attrs in page.tags:
        assert tag not in {"link", "iframe", "object", "base", "embed"}
        assert not {"src", "srcset", "action", "style"} & set(attrs)
        assert (attrs.get("href") or "#").startswith("#")
    [policy] = [a["content"] for a in page.attributes("meta") if "http-equiv" in a]
    rules = dict(rule.strip().split(" ", 1) for rule in (policy or "").split(";"))
    assert rules["default-src"] == "'none'"
    ours = {
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in page.scripts[1:]
    }
    assert set(rules["script-src"].split()) == ours
    assert not re.search(r"url\(|@import", full.partition("</style>")[0])


def test_every_table_has_a_caption_and_headings_with_a_scope(full: str) -> None:
    page = Page(full)
    # changes, plan, sites, ranks of the ablation, comparison
    assert len(page.attributes("table")) == len(page.attributes("caption")) == 5
    assert all(a.get("scope") in ("row", "col") for a in page.attributes("th"))


def test_every_site_and_finding_is_there(tmp_path: Path) -> None:
    analysis = make_analysis((3,), samples=30)
    page = Page(write_report(analysis, tmp_path / "r.html").read_text(encoding="utf-8"))
    for part in analysis.stages:
        assert all(site.name in page.text for site in part.stage.sites)
    assert all(finding.text.replace("`", "") in page.text for finding in findings(analysis))
    headings = {"Skip plan", "Comparison", "Training", "Measured against predicted"}
    assert not [heading for heading in headings if heading in page.text]


@given(st.recursive(st.text() | st.floats(allow_nan=False, allow_infinity=False) | st.none(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
                    max_leaves=8))  # fmt: skip
def test_data_in_a_script_are_the_same_and_cannot_end_it(value: object) -> None:
    text = script_json(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_lone_surrogates_and_separators_of_lines_do_no_harm(tmp_path: Path) -> None:
    known = Provenance(model="m", checkpoint="a\u2028b.pt", data="npz:d\udcff", samples=5)
    analysis = make_analysis((2,), samples=5, names="s.{stage}.{site}", provenance=known)
    text = write_report(analysis, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "npz:d\ufffd" in text
    assert json.loads(Page(text).scripts[0])["analyses"][0]["stages"][0]["name"] == "s.0"


@pytest.mark.parametrize("damage", [False, True])
def test_the_plans_in_the_page_are_those_of_the_planner(damage: bool) -> None:
    analysis = make_analysis((5, 4), samples=40)
    plans = plans_by_count(with_damage(analysis) if damage else analysis)
    data = json.loads(script_json(plans_data(plans)))
    assert [budget["count"] for budget in data["budgets"]] == list(plans)
    for index, plan in enumerate(plans.values()):
        assert plan_of(data, index) == plan


def test_a_page_of_110_sites_is_small(tmp_path: Path) -> None:
    analysis = with_damage(make_analysis((110,), samples=20), channels=64)
    path = write_report(analysis, tmp_path / "r.html", ablation=an_ablation(analysis))
    assert path.stat().st_size < 2e6


def test_the_page_says_how_stable_its_plan_is(tmp_path: Path) -> None:
    analysis = with_damage(make_analysis((4, 3), samples=40))
    path = write_report(
        analysis, tmp_path / "r.html", plan=make_plan(analysis, skip=0.3), resamples=9
    )
    page = Page(path.read_text("utf-8"))
    assert "the plan for 2 retrievals is: made again on 9 resampled analyses" in page.text
    data = json.loads(page.scripts[0])
    expected = plan_stability(analysis, make_plan(analysis, skip=2 / 7), resamples=9)
    assert data["stability"] == expected
    assert data["plans"]["budgets"][data["start"]]["count"] == 2


def test_an_unwritable_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_report(make_analysis((1,), samples=5), tmp_path / "file" / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_ablation_of_another_model_is_refused(tmp_path: Path) -> None:
    other = an_ablation(make_analysis((4,), samples=5, names="other.{stage}.{site}"))
    with pytest.raises(PlanError, match="another model"):
        write_report(make_analysis((4,), samples=5), tmp_path / "r.html", ablation=other)


@pytest.mark.parametrize(
    ("text", "says"),
    [("a,b\n1,2\n", "no column"), ("epoch,x\n1\n", "too short"), ("epoch\none\n", "no history")],
)
def test_a_history_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(OptionError, match=says):
        History.load(tmp_path / "metrics.csv")
    with pytest.raises(OptionError, match="no such file"):
        History.load(tmp_path / "none.csv")


def test_a_history_keeps_what_is_missing_missing(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,val_loss,skipped\n0,1.5,\n1,nan,0.25\n")
    history = History.load(tmp_path / "metrics.csv")
    assert history.rows == [
        {"epoch": 0.0, "val_loss": 1.5, "skipped": None},
        {"epoch": 1.0, "val_loss": None, "skipped": 0.25},
    ]
    assert history.skips
    assert not history.sites
    assert not history.measured
    (tmp_path / "ela.csv").write_text("epoch,site,action,kl,damage\n1,a.0,keep,0.5,\n")
    with_sites = History.load(tmp_path / "metrics.csv")
    assert with_sites.sites == [
        {"epoch": 1.0, "site": "a.0", "action": "keep", "kl": 0.5, "damage": None}
    ]
    assert with_sites.measured == ["kl"]
