"""Comparisons: noise is marked, files are read, and those of other models are refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from ela_probe.errors import OptionError, PlanError
from ela_probe.evaluation.comparison import (
    Comparison,
    Timing,
    is_noise,
)
from ela_probe.pruning.planners import make_plan
from ela_probe.report.page import write_report
from ela_probe.sites import fingerprint
from tests.support.comparisons import compared, comparison_of, of_analysis
from tests.support.synthetic_analyses import make_analysis


@pytest.mark.parametrize(
    ("below", "rounds", "noise"),
    [(5, 5, True), (6, 6, False), (0, 6, False), (5, 6, True), (9, 10, False), (8, 10, True)],
)
def test_a_ratio_is_noise_by_the_sign_test(below: int, rounds: int, noise: bool) -> None:
    """Two-sided, p = 2 Σ_k C(n, k) / 2ⁿ: 0.0625, 0.03125 (twice), 0.21875, 0.021 and 0.109."""
    assert is_noise([0.9] * below + [1.1] * (rounds - below)) == noise
    assert is_noise([0.9] * below + [1.1] * (rounds - below) + [1.0, 1.0]) == noise


@pytest.mark.parametrize("rounds", [4, 10, 25])
def test_equal_models_on_a_busy_machine_are_rarely_told_apart(rounds: int) -> None:
    """Of 400 pairs with independent heavy-tailed noise, one in 20 at most, and 4 sigma of that."""
    noise = np.random.default_rng(0).lognormal(sigma=1.0, size=(400, 2, rounds))
    marks = [Timing.of(first, second).ratio_is_noise for first, second in noise]
    assert marks.count(False) <= 400 * 0.05 + 4 * (400 * 0.05 * 0.95) ** 0.5


def test_a_clear_difference_is_no_noise_and_the_reference_has_no_mark() -> None:
    faster = Timing.of([0.5, 0.52, 0.51, 0.49, 0.5, 0.5], [1.0, 1.01, 0.99, 1.0, 1.0, 1.0])
    assert faster.ratio_is_noise is False
    assert "noise" not in faster.ratio_in_words
    assert Timing.of([1.0, 2.0], [1.0, 2.0]).ratio_is_noise is None
    assert Timing.of([1.0, 2.0], [1.0, 2.0]).ratio_in_words == "1"


def test_the_table_and_the_file_carry_quartiles_and_marks(tmp_path: Path) -> None:
    busy = compared("b.pt", kept=3, ratios=(0.5, 0.71, 0.9, 1.0, 1.1, 1.3, 1.5, 0.6))
    comparison = comparison_of(compared("a.pt", kept=3), busy)
    headings, rows = comparison.table()
    columns = [n for n, heading in enumerate(headings) if heading == "ratio of it"]
    assert [rows[0][n] for n in columns] == ["1", "1"]
    assert [rows[1][n] for n in columns] == ["0.95 (0.68–1.15) noise"] * 2
    written = json.loads(comparison.save(tmp_path / "c.json").read_text(encoding="utf-8"))
    training = written["models"][1]["latency"]["training"]
    assert training["ratio_is_noise"] is True
    assert training["ratio_lower"] < training["ratio"] < training["ratio_upper"]
    assert Comparison.load(tmp_path / "c.json") == comparison


def test_a_file_of_an_older_version_is_read(tmp_path: Path) -> None:
    analysis = make_analysis((3, 2), samples=20)
    document = comparison_of(compared("a", kept=3, skipped=2)).to_dict()
    del document["schema_version"], document["models"][0]["fingerprints"]
    for kind in ("training", "inference"):
        del document["models"][0]["latency"][kind]["ratio_is_noise"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(document))
    read = Comparison.load(path)
    assert read.models[0].latency.training.ratio_is_noise is None
    read.check_sites([part.stage for part in analysis.stages])
    with pytest.raises(OptionError, match="4 retrievals.*those of a with 5"):
        read.check_sites([part.stage for part in make_analysis((4,), samples=5).stages])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "models: Field required"),
        ('{"models": [], "batch_shape": [1], "machine": {}}', "models.*: .*at least 1 item"),
        ("[]", "holds no comparison"),
        ("", "holds no comparison"),
        ('{"models": [{"accuracy": NaN}]}', "holds no comparison"),
    ],
)
def test_what_is_no_comparison_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(OptionError, match=message) as caught:
        Comparison.load(path)
    assert "\n" not in str(caught.value)
    assert "`ela-probe compare -o`" in str(caught.value)


def test_a_report_takes_only_what_belongs_to_its_analysis(tmp_path: Path) -> None:
    """Another model's plan or comparison is refused with the differences, and no page is left."""
    mine, other = make_analysis((3, 2), samples=20), make_analysis((4, 2), samples=20)
    page = tmp_path / "report.html"
    with pytest.raises(PlanError, match=r"6 sites; the analysis has 5.*stages\.0\.3\.retrieval"):
        write_report(mine, page, plan=make_plan(other, skip=0.3))
    with pytest.raises(OptionError, match=r"with 5 retrievals, .* those of b\.pt with 6; compare"):
        write_report(mine, page, comparison=of_analysis(other, "b.pt"))
    assert not page.exists()
    write_report(mine, page, plan=make_plan(mine, skip=0.3), comparison=of_analysis(mine))
    assert "a.pt" in page.read_text(encoding="utf-8")


def test_a_pruned_model_belongs_to_the_analysis_before_and_after(tmp_path: Path) -> None:
    stages = [part.stage for part in make_analysis((3, 2), samples=5).stages]
    left = [dataclasses.replace(stage, sites=stage.sites[:-1]) for stage in stages]
    row = compared("p", kept=3, skipped=2, fingerprints=(fingerprint(left), fingerprint(stages)))
    for known in (left, stages):
        comparison_of(row).check_sites(known)
    same_number = [part.stage for part in make_analysis((5,), samples=5).stages]
    with pytest.raises(OptionError, match="of other models"):
        comparison_of(row).check_sites(same_number)
