"""Two analyses side by side: what changed, in figures and in words."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from ela_probe_cli import main

from ela_probe.analysis.result import Analysis
from ela_probe.errors import AnalysisError
from ela_probe.pruning.changes import compare_analyses
from ela_probe.report.page import write_report
from tests.support.commands import run
from tests.support.synthetic_analyses import make_analysis, with_damage

FIRST = with_damage(make_analysis((4, 3), samples=60), seed=1)
SECOND = with_damage(make_analysis((4, 3), samples=60, seed=5, pattern=("repeat", "new")), seed=2)


def test_an_analysis_does_not_differ_from_itself() -> None:
    changes = compare_analyses(FIRST, FIRST)
    assert all(row.kl.change in (0.0, None) for row in changes.sites)
    assert all(row.damage.change == 0.0 and not row.damage.is_clear for row in changes.sites)
    assert all(row.first_action == row.second_action for row in changes.sites)
    assert changes.kl_ranks == pytest.approx(1.0)
    assert changes.damage_ranks == pytest.approx(1.0)
    assert "the actions are the same" in changes.sentences()[-1]


def test_the_other_order_turns_every_change_round() -> None:
    there, back = compare_analyses(FIRST, SECOND), compare_analyses(SECOND, FIRST)
    assert any(row.kl.is_clear for row in there.sites)
    for one, other in zip(there.sites, back.sites, strict=True):
        for change, opposite in ((one.kl, other.kl), (one.damage, other.damage)):
            assert change.reach == opposite.reach
            assert (change.change is None) == (opposite.change is None)
            assert (change.change or 0.0) == -(opposite.change or 0.0)
        assert (one.first_action, one.second_action) == (other.second_action, other.first_action)


def test_the_figures_are_those_of_the_analyses() -> None:
    changes = compare_analyses(FIRST, SECOND)
    for row, before, after in zip(
        changes.sites, FIRST.sites.to_dict("records"), SECOND.sites.to_dict("records"), strict=True
    ):
        assert row.site == before["site"] == after["site"]
        if row.kl.change is not None:
            assert row.kl.change == after["kl"] - before["kl"]
            errors = math.hypot(before["kl_se"], after["kl_se"])
            assert row.kl.reach == pytest.approx(2 * errors)
        assert row.damage.first is not None
        assert row.damage.first <= before["damage_affine"]


def test_sites_of_one_analysis_only_are_listed() -> None:
    smaller = replace(FIRST, stages=FIRST.stages[:1])
    changes = compare_analyses(smaller, SECOND)
    assert not changes.first_only
    assert changes.second_only == tuple(site.name for site in SECOND.stages[1].stage.sites)
    assert [row.stage for row in changes.sites] == ["stages.0"] * 4


def test_analyses_without_a_common_site_are_refused() -> None:
    other = make_analysis((3,), samples=5, names="blocks.{stage}.{site}")
    with pytest.raises(AnalysisError, match="no retrieval is in both"):
        compare_analyses(FIRST, other)


def test_the_command_and_the_page_say_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [save(tmp_path / name, a) for name, a in (("one", FIRST), ("two", SECOND))]
    expected = compare_analyses(FIRST, SECOND, names=("one", "two"))
    document = run(capsys, "compare-analyses", *folders)
    assert document["kl_ranks"] == expected.kl_ranks
    assert [row["site"] for row in document["sites"]] == [row.site for row in expected.sites]
    assert main(["compare-analyses", *map(str, folders)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    page = Path(run(capsys, "report", *folders, "-o", tmp_path / "r.html")["report"])
    text = page.read_text("utf-8")
    direct = write_report(FIRST, tmp_path / "d.html", other=SECOND, names=("one", "two"))
    assert "Two analyses: one and two" in direct.read_text("utf-8")
    for sentence in expected.sentences():
        assert sentence in printed
        assert sentence in text


def save(folder: Path, analysis: Analysis) -> Path:
    """The analysis, saved."""
    return analysis.save(folder)


@pytest.mark.parametrize("verb", ["report", "compare-analyses"])
def test_a_second_folder_that_is_none_is_refused(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "an", FIRST)
    line = run(capsys, verb, folder, tmp_path / "nosuch", code=2)
    assert "no such folder" in line
