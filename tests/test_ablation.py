"""Ablation: the loss with a site changed is that of the pruned model, however it is reached."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ela_probe import ModelSpec, discover, prune
from ela_probe.analysis.damage_probe import handovers_of
from ela_probe.analysis.result import Analysis
from ela_probe.analysis.stand_ins import fit_stand_ins
from ela_probe.checkpoint import save_checkpoint
from ela_probe.data.opening import open_data
from ela_probe.pruning.ablation import Ablation, ablate_sites
from ela_probe.pruning.correlations import calibrations, correlations
from ela_probe.pruning.replay import RecordedPass
from tests.support.commands import run
from tests.support.costs import PRICES, costs_of, priced, seconds
from tests.support.damage_networks import NETWORKS, batch, network, only
from tests.support.image_sets import write_images
from tests.support.networks import settled

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_measured_loss_is_that_of_the_pruned_model(name: str) -> None:
    model, (inputs, labels) = network(name), batch(name)
    found = discover(model)
    handovers = handovers_of(model, found)
    stand_ins = fit_stand_ins(model, handovers, [(inputs, labels)], progress=False)
    [result] = ablate_sites(model, handovers, stand_ins, [(inputs, labels)], Ablation(), device=CPU)
    assert {change.site for change in result.changes} == set(handovers)
    firsts = {stage.sites[0].name for stage in found.stages}
    for change in result.changes:
        if change.site in firsts and change.action != "affine":
            continue  # no plan does this
        pruned = prune(model, only(model, change.site, change.action, stand_ins.get(change.site)))
        with torch.no_grad():
            loss = F.cross_entropy(pruned(inputs).flatten(0, -2), labels.flatten())
        total = (result.loss + change.loss) / result.samples
        assert total == pytest.approx(float(loss), rel=1e-10)


def test_what_comes_before_a_site_is_not_computed_again() -> None:
    model, (inputs, _) = network("mrla_b"), batch("mrla_b")
    sites = [f"stages.{s}.{t}.retrieval" for s in range(3) for t in range(3)]
    with torch.no_grad():
        expected = model(inputs)
    recorded = RecordedPass(model, inputs, sites)
    assert torch.equal(recorded.output, expected)
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        model(inputs)
    with FlopCounterMode(display=False) as part:
        recorded.run_after("stages.2.0.retrieval", torch.zeros(len(inputs), 64, 4, 4).double())
    last = [part.get_total_flops(), whole.get_total_flops()]
    # of ten blocks' worth of convolutions: two blocks, and the body that its block overwrites
    assert 0 < last[0] < 0.35 * last[1]
    assert "forward" not in vars(model.get_submodule("stages.0.0"))
    with torch.no_grad():
        assert torch.equal(model(inputs), expected)


def test_a_run_that_was_interrupted_goes_on_to_the_same_result(tmp_path: Path) -> None:
    model = network("mrla_b")
    handovers = handovers_of(model, discover(model))
    batches = [batch("mrla_b", samples) for samples in (3, 4, 2)]
    *_, whole = ablate_sites(model, handovers, {}, batches, Ablation(), device=CPU)
    first = next(iter(ablate_sites(model, handovers, {}, batches, Ablation(), device=CPU)))
    saved = Ablation.load(first.save(tmp_path / "ablation.json"))
    *_, resumed = ablate_sites(model, handovers, {}, batches, saved, device=CPU)
    assert resumed == whole
    assert whole.samples == 9


def test_correlations_and_calibrations_of_known_numbers() -> None:
    damage = np.array([0.1, 0.2, 0.4, 0.8, 1.6])
    table = pd.DataFrame(
        {
            "action": ["skip"] * 5,
            "loss_change": 2 * damage + 0.5,
            "damage": damage,
            "kl": -damage,
            "norm": [1.0] * 5,
        }
    )
    for name in ("first_order", "square", "shape", "mass", "js", "quantile", "one_minus_score"):
        table[name] = math.nan
    found = {entry.measure: entry for entry in correlations(table)}
    assert set(found) == {"damage", "kl", "norm"}
    assert found["damage"].spearman == pytest.approx(1)
    assert found["damage"].low == pytest.approx(1)
    assert found["kl"].spearman == pytest.approx(-1)
    assert math.isnan(found["norm"].spearman)
    [line] = calibrations(table)
    assert (line.slope, line.intercept, line.r_squared) == pytest.approx((2, 0.5, 1))


def test_the_command_measures_sites_and_plans(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "set")
    data = open_data(f"npz:{tmp_path / 'set'}")
    args = data.spec.model_arguments()
    model = settled("mrla_b_resnet14", **args)
    best = tmp_path / "best.pt"
    save_checkpoint(best, model, spec=ModelSpec(name="mrla_b_resnet14", args=args), data=data.spec)
    run(capsys, "analyze", best, "-o", tmp_path / "an", "--device", "cpu", "--no-figures")
    words = ["ablate", best, "--analysis", tmp_path / "an", "--device", "cpu", "--batch-size", 8]
    words += ["--skip", 0.5, "--random", 1, "-o", tmp_path / "ab"]
    result = run(capsys, *words)
    actions = {(entry["site"], entry["action"]) for entry in result["sites"]}
    assert len(actions) == 6 * 2 + 3  # skip and affine everywhere, recur at each second site
    assert {"damage", "damage-affine", "random-skip-0"} <= {p["name"] for p in result["plans"]}
    assert all(plan["skipped"] == 3 for plan in result["plans"] if plan["name"] != "unpruned")
    unpruned = next(plan for plan in result["plans"] if plan["name"] == "unpruned")
    assert unpruned["loss"] == pytest.approx(result["loss"], rel=1e-5)
    stages = [part.stage for part in Analysis.load(tmp_path / "an").stages]
    priced_stages = [priced(stage, PRICES, affine=seconds(0.02)) for stage in stages]
    costs_of(priced_stages, of=stages).save(tmp_path / "c.json")
    timed = ["ablate", best, "--analysis", tmp_path / "an", "--device", "cpu", "--random", 1]
    timed += ["--costs", tmp_path / "c.json", "-o", tmp_path / "timed"]
    assert "expected both" in run(capsys, *timed, code=2)
    names = [p["name"] for p in run(capsys, *timed, "--time", 0.9)["plans"]]
    assert names == ["damage-time", "random-skip-time-0", "random-affine-time-0"]
    plan = tmp_path / "plan.json"
    run(capsys, "plan", tmp_path / "an", "--skip", 0.5, "-o", plan)
    words_of_rounds = ["--rounds", 3, "--checkpoint", best, "--device", "cpu"]
    rounds = run(
        capsys, "plan", tmp_path / "an", "--skip", 0.5, *words_of_rounds,
        "-o", tmp_path / "rounds.json",
    )  # fmt: skip
    assert rounds["origin"]["rounds"] == 3
    assert rounds["share"] == 0.5
    run(capsys, "prune", best, "--plan", tmp_path / "rounds.json", "-o", tmp_path / "r.pt")
    pruned = run(
        capsys, "prune", best, "--plan", plan, "--check", 50, "--device", "cpu",
        "-o", tmp_path / "pruned.pt",
    )  # fmt: skip
    assert pruned["checked"]["samples"] == 6  # the validation images
    assert pruned["checked"]["change"] == pytest.approx(
        pruned["checked"]["after"] - pruned["checked"]["before"]
    )
    page = ["report", tmp_path / "an", "-o", tmp_path / "page.html", "--checkpoint"]
    assert run(capsys, *page, best)["report"] == str(tmp_path / "page.html")
    assert "data:image/png;base64" in (tmp_path / "page.html").read_text(encoding="utf-8")
    line = run(capsys, *page, tmp_path / "pruned.pt", code=2)
    assert "is not the checkpoint that was analysed" in line
    files = {path.name for path in (tmp_path / "ab").iterdir()}
    assert files == {"ablation.json", "sites.csv", "plans.csv"}
    again = run(capsys, *words, "--resume")
    assert again["sites"] == result["sites"]
    line = run(capsys, *words, "--resume", "--limit", 3, code=2)
    assert "limit is None, got 3" in line
