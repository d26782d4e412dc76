"""One recommended share: computed once, said once, and carried into the printed command."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ela_probe.analysis.findings import findings, next_command, recommended_share, verdicts
from ela_probe.analysis.result import Analysis, Provenance
from ela_probe.pruning.planners import make_plan
from ela_probe.report.page import write_report
from tests.support.synthetic_analyses import make_analysis


@given(st.lists(st.integers(2, 9), min_size=1, max_size=4), st.integers(0, 2**16))
def test_a_plan_of_the_share_skips_as_many_as_repeat(sizes: list[int], seed: int) -> None:
    analysis = make_analysis(sizes, samples=60, seed=seed)
    near = sum(verdicts(part).count("repeats") for part in analysis.stages)
    share = recommended_share(analysis)
    assert (share is None) == (near == 0)
    if share is not None:
        assert len(make_plan(analysis, skip=share).skipped) == near
        assert len(f"{share:g}") <= 4


def test_the_summary_and_the_command_agree(tmp_path: Path) -> None:
    analysis = make_analysis((5, 5, 5))
    share = recommended_share(analysis)
    assert share is not None
    summary = findings(analysis)[0].text
    assert re.findall(r"\b0\.\d+", summary) == [f"{share:g}"]
    assert "%" not in summary
    assert next_command(analysis, "runs/a") == f"ela-probe plan runs/a --skip {share:g}"
    assert next_command(analysis, "my runs/a") == f'ela-probe plan "my runs/a" --skip {share:g}'


@pytest.mark.parametrize("samples", [2, 200])
def test_without_a_repetition_nothing_is_recommended(tmp_path: Path, samples: int) -> None:
    """Neither where retrievals differ for certain nor where too few samples leave it open."""
    analysis = make_analysis((4,), pattern=("new",), samples=samples)
    assert next_command(analysis, tmp_path) is None
    summary = findings(analysis)[0].text
    assert "first share" not in summary
    assert "No share to skip is recommended" in summary or "analyse more samples" in summary
    page = write_report(analysis, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "--skip" not in page


def test_the_page_prints_the_commands_with_the_real_places(tmp_path: Path) -> None:
    known = Provenance(model="m", checkpoint="runs/best.pt", samples=200)
    analysis = Analysis(make_analysis((5, 5)).stages, known)
    share = recommended_share(analysis)
    page = write_report(analysis, tmp_path / "r.html", folder="runs/analysis").read_text("utf-8")
    assert f"<code>ela-probe plan runs/analysis --skip {share:g}</code>" in page
    assert "<code>ela-probe prune runs/best.pt --plan runs/analysis/plan.json</code>" in page
    assert " DIR " not in page
    beside = write_report(analysis, tmp_path / "r.html").read_text(encoding="utf-8")
    assert f"ela-probe plan {tmp_path} --skip" in beside
