"""The command line: the whole chain verb by verb, JSON on stdout, one clear line on errors."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ela_probe_cli import main

from ela_probe.models.registry import FAMILIES
from tests.support.commands import VERBS, run
from tests.support.image_sets import write_images


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a trained checkpoint of eight layers a stage less than usual."""
    folder = tmp_path_factory.mktemp("chain")
    write_images(folder / "set")
    words = ["train", "--model", "mrla_b_resnet14", "--data", f"npz:{folder / 'set'}"]
    words += ["--epochs", "2", "--batch-size", "16", "--lr", "0.05", "-o", str(folder / "run")]
    assert main([*words, "--device", "cpu"]) == 0
    return folder


@pytest.mark.slow
def test_the_main_job_verb_by_verb(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = chain / "run" / "best.pt"
    analysis = run(capsys, "analyze", best, "-o", chain / "an", "--device", "cpu")
    assert analysis["provenance"]["samples"] == 54  # 60 less the validation images
    assert len(analysis["sites"]) == 6
    names = {p.name for p in (chain / "an").iterdir()}
    assert names == {"analysis.json", "pairs.csv", "sites.csv", "arrays.npz", "figures"}
    assert len(list((chain / "an" / "figures").glob("*.png"))) >= 4

    plan = run(capsys, "plan", chain / "an", "--skip", 0.34, "-o", chain / "plan.json")
    assert plan["share"] == pytest.approx(1 / 3)
    pruned = run(capsys, "prune", best, "--plan", chain / "plan.json", "-o", chain / "pruned.pt")
    assert pruned["parameters"]["after"] < pruned["parameters"]["before"]
    tuned = run(
        capsys, "finetune", chain / "pruned.pt", "-o", chain / "tuned.pt", "--epochs", 1,
        "--batch-size", 16, "--device", "cpu",
    )  # fmt: skip
    assert Path(tuned["checkpoint"]).exists()
    compared = run(
        capsys, "compare", best, chain / "pruned.pt", chain / "tuned.pt", "--repeats", 3,
        "--batch-size", 8, "-o", chain / "comparison.json", "--device", "cpu",
    )  # fmt: skip
    first, second, third = compared["models"]
    assert (first["kept"], second["kept"], second["skipped"]) == (6, 4, 2)
    assert second["parameters"] == third["parameters"] < first["parameters"]
    report = run(
        capsys, "report", chain / "an", "--plan", chain / "plan.json",
        "--comparison", chain / "comparison.json",
    )  # fmt: skip
    assert "tuned.pt" in Path(report["report"]).read_text()

    again = run(capsys, "analyze", chain / "tuned.pt", "--no-figures", "--device", "cpu")
    assert len(again["sites"]) == 4


def test_actions_are_chosen_by_what_they_cost(
    chain: Path, places: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    best, costs = chain / "run" / "best.pt", tmp_path / "costs.json"
    words = ["--rounds", 1, "--batch-size", 4, "--device", "cpu"]
    measured = run(capsys, "costs", best, *words, "-o", costs)
    assert measured["model"] == "mrla_b_resnet14"
    assert measured["batch_shape"] == [4, 3, 16, 16]

    # what a machine adds by itself is not tested: here every later retrieval costs a second
    del measured["path"]
    measured["base"]["value"] = 3.0
    for stage in measured["stages"]:
        stage["keep"]["value"] = 1.0
        stage["recur"] = None
    costs.write_text(json.dumps(measured))
    words = [
        "plan",
        places["{an}"],
        "--planner",
        "cost",
        "--costs",
        costs,
        "-o",
        tmp_path / "p.json",
    ]
    plan = run(capsys, *words, "--time", 0.7)
    assert plan["origin"]["planner"] == "cost"
    assert plan["origin"]["time_budget"] == 0.7
    assert plan["origin"]["predicted_ratio"] == pytest.approx(4 / 6)
    assert plan["share"] == pytest.approx(2 / 6)
    run(capsys, "prune", best, "--plan", tmp_path / "p.json", "-o", tmp_path / "pruned.pt")
    assert "the least is 0.5" in run(capsys, *words, "--time", 0.4, code=2)

    measured["stages"][0]["sites"][1]["sources"] = 5
    measured["fingerprint"] = "0"
    costs.write_text(json.dumps(measured))
    line = run(capsys, *words, "--time", 0.7, code=2)
    assert (
        "the costs were measured on another model (mrla_b_resnet14, 6 sites; the analysis has 6)"
        in line
    )
    assert "stages.0.1.retrieval has softmax, 2 sources in the analysis" in line

    assert main([str(word) for word in ["costs", best, "--rounds", 1, "--batch-size", 4]]) == 0
    assert "what a site adds" in capsys.readouterr().out
    (chain / "run" / "best-costs.json").unlink()


def test_a_sampled_analysis_says_so(
    chain: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["analyze", chain / "run" / "best.pt", "-o", tmp_path / "an", "--no-figures"]
    words += ["--device", "cpu", "--batch-size", 4, "--every", 3, "--max-batches", 4]
    found = run(capsys, *words)
    assert found["provenance"]["sampling"] == {
        "every": 3, "max_batches": 4, "batches": 10, "recorded": 4,
    }  # fmt: skip
    assert found["provenance"]["samples"] == 40
    assert {stage["samples"] for stage in found["stages"]} == {16}
    assert json.loads((tmp_path / "an" / "analysis.json").read_text())["provenance"]["sampling"]
    assert main([str(word) for word in words]) == 0
    assert "4 of the 10 batches" in capsys.readouterr().err
    report = run(capsys, "report", tmp_path / "an")
    assert "every = 3, max_batches = 4" in Path(report["report"]).read_text()


def test_people_see_tables(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["analyze", str(chain / "run" / "last.pt"), "-o", str(chain / "seen"), "--no-figures"]
    assert main(words) == 0
    assert main(["plan", str(chain / "seen"), "--skip", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "stages.1.1.retrieval" in out
    assert ("next: ela-probe plan" in out) != ("analyse more samples" in out or "No share" in out)
    assert "retrievals skipped" in out


def test_train_resumes(chain: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["train", "--model", "mrla_b_resnet8", "--data", f"npz:{chain / 'set'}"]
    words += ["--epochs", "1", "--batch-size", "32", "-o", str(tmp_path / "r"), "--device", "cpu"]
    assert run(capsys, *words)["epochs"] == 1
    line = run(capsys, *words, "--lr", "0.2", "--resume", code=2)
    assert "0.1 then, 0.2 now" in line
    assert run(capsys, *words, "--resume")["epochs"] == 1


def test_models_lists_names_that_build(capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(capsys, "models")["models"]
    by_name = {row["name"]: row["parameters"] for row in rows}
    assert by_name["resnet20"] == 272_474
    assert by_name["mrla_b_resnet20"] == 276_224  # as the published mrla_base has


def test_the_list_of_models_has_a_line_a_family_and_fits_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["models"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "…" not in line]
    assert [line[0] for line in lines if line and line[0] in FAMILIES] == list(FAMILIES)


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches_and_imports_no_torch(verb: str) -> None:
    code = (
        "import sys; from ela_probe_cli import main; main([sys.argv[1], '--help']);"
        "assert not {'torch', 'numpy', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, verb], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


def test_the_installed_command_answers() -> None:
    command = Path(sys.executable).with_name("ela-probe")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ela-probe ")


BAD = {
    "no verb": (["analyse"], "No such command 'analyse'"),
    "no argument": (["analyze"], "Missing argument"),
    "no option": (["models", "--colour"], "No such option"),
    "unknown model": (
        ["train", "--model", "mrla_b_resnt20", "--data", "digits"],
        "did you mean 'mrla_b_resnet20'",
    ),
    "unknown data": (["train", "--model", "mrla_b_resnet8", "--data", "digit"], "'digits'"),
    "no images": (["train", "--model", "mrla_b_resnet8", "--data", "npz:/none/x"], "/none/x"),
    "model args": (
        ["train", "--model", "mrla_b_resnet8", "--data", "digits", "--model-args", "{"],
        "--model-args is no JSON",
    ),
    "device": (["analyze", "{best}", "--device", "tpu"], "unknown device 'tpu'"),
    "missing checkpoint": (["analyze", "none.pt"], "none.pt"),
    "missing analysis": (["plan", "none"], "expected a folder written by `ela-probe analyze`"),
    "missing plan": (["prune", "{best}", "--plan", "none.json"], "cannot read the plan none.json"),
    "too much": (["plan", "{an}", "--skip", "0.9"], "at most"),
    "no threshold": (["plan", "{an}", "--planner", "threshold"], "needs a threshold"),
    "no costs": (["plan", "{an}", "--planner", "cost", "--time", "0.8"], "needs costs"),
    "missing costs": (
        ["plan", "{an}", "--planner", "cost", "--costs", "none.json", "--time", "0.8"],
        "cannot read the costs none.json",
    ),
    "kappa": (["plan", "{an}", "--concentration", "-1"], "concentration"),
    "two models": (["analyze", "{best}", "--model", "a", "--factory", "b:c"], "expected one of"),
    "args alone": (["analyze", "{best}", "--model-args", "{}x"], "no JSON"),
    "bad comparison": (["report", "{an}", "--comparison", "none.json"], "cannot read the compar"),
    "other classes": (["analyze", "{best}", "--data", "npz:{five}"], "classes"),
    "other channels": (["analyze", "{best}", "--data", "npz:{grey}"], "channels"),
    "no layer attention": (["analyze", "{plain}"], "no layer attention found"),
    "every none": (["analyze", "{best}", "--every", "0"], "'--every'"),
    "no batches": (["analyze", "{best}", "--max-batches", "-1"], "'--max-batches'"),
    "no tokens": (["analyze", "{best}", "--max-tokens", "x"], "'--max-tokens'"),
    "no text": (["analyze", "{best}", "--max-tokens", "8"], "no axis runs over tokens"),
}


@pytest.fixture(scope="module")
def places(chain: Path) -> dict[str, str]:
    five = write_images(chain / "five", classes=5, size=20)
    grey = write_images(chain / "grey", channels=1)
    assert main(["analyze", str(chain / "run" / "best.pt"), "-o", str(chain / "bad")]) == 0
    from ela_probe import create_model, save_checkpoint
    from ela_probe.models.registry import ModelSpec

    spec = ModelSpec(name="resnet8", args={"num_classes": 3})
    save_checkpoint(chain / "plain.pt", create_model("resnet8", num_classes=3), spec=spec)
    return {
        "{best}": str(chain / "run" / "best.pt"),
        "{an}": str(chain / "bad"),
        "{five}": str(five),
        "{grey}": str(grey),
        "{plain}": str(chain / "plain.pt"),
    }


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_line(
    case: str,
    places: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(Path(places["{best}"]).parent.iterdir())
    words, message = BAD[case]
    for placeholder, path in places.items():
        words = [word.replace(placeholder, path) for word in words]
    line = run(capsys, *words, code=2)
    assert message in line
    assert sorted(Path(places["{best}"]).parent.iterdir()) == before  # nothing left behind
    assert list(tmp_path.iterdir()) == []


def test_a_plan_for_another_model_is_refused_by_prune(
    chain: Path, places: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(capsys, "plan", places["{an}"], "-o", tmp_path / "plan.json")
    torch.save(
        __import__("ela_probe").create_model("mrla_b_resnet20").state_dict(), tmp_path / "o.pt"
    )
    line = run(
        capsys, "prune", tmp_path / "o.pt", "--model", "mrla_b_resnet20",
        "--plan", tmp_path / "plan.json", "-o", tmp_path / "p.pt", code=2,
    )  # fmt: skip
    assert "the plan was made for another model" in line
    assert not (tmp_path / "p.pt").exists()


@pytest.mark.parametrize("verb", ["analyze", "plan", "prune", "report"])
def test_an_output_that_cannot_be_written_is_said(
    verb: str, chain: Path, places: dict[str, str], capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    run(capsys, "plan", places["{an}"], "-o", tmp_path / "plan.json")
    words = {
        "analyze": [places["{best}"], "-o", blocked / "an", "--no-figures"],
        "plan": [places["{an}"], "-o", blocked / "plan.json"],
        "prune": [places["{best}"], "--plan", tmp_path / "plan.json", "-o", blocked / "p.pt"],
        "report": [places["{an}"], "-o", blocked / "r.html"],
    }[verb]
    line = run(capsys, verb, *words, code=2)
    assert "cannot write" in line
    assert blocked.read_text() == "in the way"


def test_a_verb_reads_its_checkpoint_once(
    chain: Path, places: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from ela_probe.adapters.resnet import ResNetAdapter

    read: list[object] = []
    searched = []
    read_bytes, stages = Path.read_bytes, ResNetAdapter.stages

    def counting(path: Path) -> bytes:
        if path.suffix == ".pt":
            read.append(path)
        return read_bytes(path)

    def searching(self: Any, model: Any) -> Any:
        searched.append(model)
        return stages(self, model)

    run(capsys, "plan", places["{an}"], "-o", tmp_path / "plan.json")
    monkeypatch.setattr(Path, "read_bytes", counting)
    monkeypatch.setattr(ResNetAdapter, "stages", searching)
    best, cpu = chain / "run" / "best.pt", ["--device", "cpu"]
    data = ["--data", f"npz:{chain / 'set'}"]
    pruned = tmp_path / "pruned.pt"
    for words in (
        ["analyze", best, *data, "-o", tmp_path / "an", "--no-figures", *cpu],
        ["discover", best, *data],
        ["prune", best, "--plan", tmp_path / "plan.json", "-o", pruned],
        ["finetune", pruned, *data, "--epochs", 1, "-o", tmp_path / "tuned.pt", *cpu],
    ):
        read.clear()
        searched.clear()
        run(capsys, *words)
        assert read.count(words[1]) == 1  # `prune` also hashes what it wrote
        if words[0] in ("analyze", "discover"):
            assert len(searched) == 1


def test_debug_shows_the_traceback() -> None:
    from ela_probe.errors import ElaProbeError

    with pytest.raises(ElaProbeError):
        main(["plan", "none", "--debug"])
