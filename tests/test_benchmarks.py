"""The benchmarks on little data: contestants agree, results and figures are written. No times."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from matplotlib.image import imread
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.cases import analysis, breakdown, depth, scale, speed
from benchmarks.support import contestants, figures, results
from benchmarks.support.memory import in_new_process

SMALL = {
    "divergence": "--samples 12 --heads 2 --sites 5 --few 4 --rounds 1",
    "beta": "--values 20000 --batch 100 --rounds 1",
    "analysis": "--model mrla_b_resnet8 --images 8 --batch-size 4 --rounds 1 --long 0",
}


def run(case: str, folder: Path) -> dict[str, Any]:
    out, figure = folder / "out.json", folder / "out.png"
    words = [case, *SMALL[case].split(), "--json", str(out), "--figure", str(figure)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code in (0, 1), result.output  # 1: a requirement of time was not met
    assert imread(figure).shape[0] > 300
    assert result.stdout.startswith(f"### {case}")
    return json.loads(out.read_text())


def test_all_ways_to_the_pairwise_kl_agree(tmp_path: Path) -> None:
    result = run("divergence", tmp_path)
    assert result["verdicts"]["all results agree to 1e-12 nats"]
    ((title, rows),) = result["tables"].items()
    assert "12 samples x 2 heads x 5 sites (10 pairs)" in title
    assert [row["samples timed"] for row in rows] == [12, 12, 4, 12, 4, 12]


def test_the_streamed_fit_finds_what_scipy_finds(tmp_path: Path) -> None:
    result = run("beta", tmp_path)
    assert result["verdicts"]["alpha and beta equal scipy's to 1e-06"]
    ((_, rows),) = result["tables"].items()
    assert [row["values"] for row in rows] == [200, 200, 2000, 2000, 20000, 20000]


def test_what_the_analysis_costs_is_a_ratio_of_medians(tmp_path: Path) -> None:
    ((_, rows),) = run("analysis", tmp_path)["tables"].items()
    assert [row["pass"] for row in rows] == ["evaluate", "analyze, no damage", "analyze"]
    rows = analysis.time_rows({"evaluate": [1.0, 2.0, 4.0], "analyze": [2.0, 3.0, 4.0]})
    assert [row["ratio"] for row in rows] == [1.0, 1.5]


def halfway(path: Path, **_: object) -> None:
    path.write_bytes(b"half")
    raise RuntimeError("halfway")


def test_a_figure_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with figures.panels(2, size=(3.0, 3.0)) as (figure, (left, right)):
        figures.bars(left, {"ours": 1.0, "theirs": 30.0}, label="s", log=True, ours=("ours",))
        figures.spread(right, {"a": [1.0, 2.0], "b": [2.0, 3.0]}, label="s")
        figures.heading(left, "Title", "note")
        figures.save(figure, tmp_path / "f.png")
        assert [p.name for p in tmp_path.iterdir()] == ["f.png"]
        with (
            mock.patch.object(figure, "savefig", halfway),
            pytest.raises(RuntimeError, match="halfway"),
        ):
            figures.save(figure, tmp_path / "g.png")
    assert [p.name for p in tmp_path.iterdir()] == ["f.png"]


def test_an_exponent_is_the_slope_in_logarithms() -> None:
    rows = [{"depth": d, "contestant": "a", "cost": 3.0 * d**2} for d in (20, 56, 110)]
    assert depth.exponent(rows, "a", "cost") == pytest.approx(2.0)
    rows[1]["cost"] = -1.0  # noise
    assert depth.exponent(rows, "a", "cost") == results.NOTHING


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_plan_of_the_contestants_skips_its_share(share: float) -> None:
    network = contestants.Network("resnet", 20, images=2, size=16)
    model = network.ours("mrla_b_")
    for chosen in (
        contestants.spread(model, share, "drop"),
        contestants.largest_first(model, share),
    ):
        assert len(chosen) == min(6, round(share * 9))
        assert not any(".0.retrieval" in name for name in chosen)
        contestants.pruned(model, chosen)(torch.randn(2, 3, 16, 16))


def test_the_floor_counts_each_value_once_a_pass() -> None:
    assert breakdown.passes([1]) == 3 + 1 + 1
    assert breakdown.passes([1, 2, 3]) == 3 * 6 + 3 + 3


def test_speed_is_measured_and_checked_against_the_definitions() -> None:
    network = contestants.Network("resnet", 8, images=4, size=16)
    tables = speed.measure(
        network, [], rounds=1, compiled=False, device=torch.device("cpu"), seed=0
    )
    rows = {row["contestant"]: row for row in tables["training"]}
    assert {"plain", "ours MRLA-B", "ELA, 0.5 dropped", "ours, all recur"} <= rows.keys()
    assert all(row["in float64"] <= 1e-10 for row in rows.values())
    assert rows["ours MRLA-B"]["MiB"] > rows["plain"]["MiB"]
    assert rows.keys() == {row["contestant"] for row in tables["inference"]}


def test_a_deep_stack_is_measured_beside_a_plain_evaluation(tmp_path: Path) -> None:
    out = tmp_path / "scale.json"
    words = "scale --layers 2 --width 64 --tokens 6 --samples 2 --rounds 1 --long 0 --max-tokens 3"
    result = CliRunner().invoke(app, [*words.split(), "--json", str(out)])
    assert result.exit_code == 0, result.output
    document = json.loads(out.read_text())
    assert document["verdicts"] == {"all ways to kl agree to 1e-12 nats": True}
    passes, ways = document["tables"].values()
    assert [row["what"] for row in passes] == [
        "evaluate", "analyze, no damage", "analyze, no damage, 3 tokens a sample", "analyze",
    ]  # fmt: skip
    assert len(ways) == 3
    # A process of its own has no tensors of other tests.
    one = in_new_process(
        scale.memory_run, kind="analyze", samples=4, layers=2, width=64, block=2, tokens=4,
        batch_size=1, seed=0, device="cpu",
    )  # fmt: skip
    assert 0 < one["live tensors MiB"] < 10 < one["resident set MiB"]
