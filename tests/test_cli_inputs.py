"""What a command reads is looked for first: one line says what is wrong, before torch is there."""

import subprocess
import sys
from pathlib import Path

import pytest
from ela_probe_cli import main

ERROR = "error: "
NETWORK = ["--model", "mrla_b_resnet20", "--data", "digits"]
# Words of a command, and what its one line says. {0} is a folder with the files of `given`.
CASES: dict[str, tuple[list[str], str]] = {
    "discover": (["discover", "{0}/nosuch.pt"], "read the checkpoint {0}/nosuch.pt: no such"),
    "analyze": (["analyze", "{0}/nosuch.pt"], "no such file; expected a file written by"),
    "costs": (["costs", "{0}/nosuch.pt"], "no such file"),
    "prune": (["prune", "{0}/nosuch.pt", "--plan", "{0}/plan.json"], "the checkpoint"),
    "plan of prune": (["prune", "{0}/best.pt", "--plan", "{0}/x.json"], "cannot read the plan"),
    "finetune": (["finetune", "{0}/nosuch.pt"], "no such file"),
    "compare": (["compare", "{0}/best.pt", "{0}/nosuch.pt"], "{0}/nosuch.pt"),
    "plan": (["plan", "{0}/nosuch"], "cannot read the analysis {0}/nosuch: no such folder"),
    "costs of plan": (["plan", "{0}/an", "--costs", "{0}/x.json"], "cannot read the costs"),
    "report": (["report", "{0}/nosuch"], "no such folder"),
    "plan of report": (["report", "{0}/an", "--plan", "{0}/x.json"], "cannot read the plan"),
    "comparison": (["report", "{0}/an", "--comparison", "{0}/x"], "cannot read the comparison"),
    "ablation": (["report", "{0}/an", "--ablation", "{0}/x"], "cannot read the ablation"),
    "history": (["report", "{0}/an", "--history={0}/x"], "cannot read the history"),
    "costs of report": (["report", "{0}/an", "--costs", "{0}/x"], "cannot read the costs"),
    "second analysis": (["report", "{0}/an", "{0}/nosuch"], "no such folder"),
    "recipe": (["train", "--recipe", "{0}/x.yaml"], "cannot read the recipe"),
    "sites": (["analyze", "{0}/best.pt", "--sites", "{0}/x.toml"], "cannot read the sites file"),
    "code": (["analyze", "{0}/best.pt", "--path", "{0}/x"], "no such folder"),
    "text": (["analyze", "{0}/best.pt", "--data", "text:{0}/x"], "cannot read the text {0}/x"),
    "a folder as a text": (["costs", "{0}/best.pt", "--data", "text:{0}/an"], "it is a folder"),
    "folder": (["compare", "{0}/best.pt", "--data", "folder:{0}/x"], "{0}/x does not exist"),
    "a file as a folder of images": (
        ["finetune", "{0}/best.pt", "--data", "folder:{0}/best.pt"], "{0}/best.pt is a file"
    ),
    "no train/": (["discover", "{0}/best.pt", "--data", "folder:{0}/an"], "has no folder train/"),
    "imagenet": (["train", "--data", "imagenet:{0}/x", "--model", "m"], "{0}/x does not exist"),
    "npz": (["train", "--data", "npz:{0}/x/set", "--model", "m"], "{0}/x/set-train.npz does not"),
    "no test split": (["train", "--data", "npz:{0}/half", "--model", "m"], "{0}/half-test.npz"),
    "cifar10": (
        ["analyze", "{0}/best.pt", "--data", "cifar10", "--data-root", "{0}/x"],
        "cifar10 is looked for in {0}/x, which is no folder; point --data-root at",
    ),
    "no source": (["costs", "{0}/best.pt", "--data", "cifr10"], "did you mean 'cifar10'?"),
    "no kind": (
        ["analyze", "{0}/best.pt", "--data", "{0}/half-train.npz"], "write npz:{0}/half"
    ),
    "no kind, no file": (["train", "--data", "{0}/y-train.npz", "--model", "m"], "write npz:{0}/y"),
    "no path": (["analyze", "{0}/best.pt", "--data", "npz:"], "write npz:PREFIX"),
    "nothing to resume": (
        ["finetune", "{0}/best.pt", "--resume", "-o", "{0}/new/x.pt"],
        "nothing to resume: {0}/new/x-run/resume.ckpt does not exist; start without --resume",
    ),
    "a nearly right name": (["analyze", "{0}/bset.pt"], "(did you mean {0}/best.pt?)"),
    "a folder, not its checkpoint": (["analyze", "{0}"], "the folder {0} as the checkpoint"),
    "a folder with a checkpoint": (["compare", "{0}"], "did you mean {0}/best.pt?"),
    "an analysis, not a checkpoint": (["discover", "{0}/an"], "got the analysis folder {0}/an"),
    "a checkpoint, not an analysis": (
        ["plan", "{0}/best.pt"],
        "if this is a checkpoint, run `ela-probe analyze \"{0}/best.pt\"` first",
    ),
    "report of a checkpoint": (["report", "{0}/best.pt"], "analyze \"{0}/best.pt\"` first"),
    "a file of the analysis": (["plan", "{0}/an/analysis.json"], "did you mean {0}/an?"),
    "a folder, not its plan": (
        ["prune", "{0}/best.pt", "--plan", "{0}/an"], "did you mean {0}/an/plan.json?"
    ),
    "a file as a folder": (["analyze", "{0}/best.pt/x.pt"], "no such file"),
    "percents": (["plan", "{0}/an", "--skip", "30"], "did you mean 0.3?"),
    "percents of time": (["plan", "{0}/an", "--time", "80"], "did you mean 0.8?"),
    "percents of the demo": (["demo", "--skip", "25"], "did you mean 0.25?"),
}  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given [v2]")  # brackets and a blank, as people have them
    (folder / "an").mkdir()
    for name in ("best.pt", "plan.json", "an/analysis.json", "an/plan.json", "half-train.npz"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_one_line_says_what_is_wrong(
    case: str, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = CASES[case]
    assert main([word.replace("{0}", str(given)) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith(ERROR)
    assert message.replace("{0}", str(given)) in err


PARSED = ("percents", "percents of time", "percents of the demo", "nothing to resume")


def test_no_heavy_module_is_imported_for_that(given: Path) -> None:
    """So the answer comes at once. All cases in one process: an import by any one shows.

    A missing file is found before the command line is parsed: Typer imports pydantic.
    """
    quick = {case: "typer" for case in CASES if case not in PARSED} | dict.fromkeys(PARSED, "torch")
    commands = [
        ([word.replace("{0}", str(given)) for word in CASES[case][0]], lightest)
        for case, lightest in quick.items()
    ]
    code = (
        "import sys; from ela_probe_cli import main\n"
        f"for words, lightest in {commands!r}:\n"
        "    assert main(words) == 2, words\n"
        "    heavy = {'torch', 'numpy', 'pandas', 'scipy', 'matplotlib', 'rich.console'}\n"
        "    heavy = (heavy | {lightest}) & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "--skip", "0.3", "{0}/nosuch"],
        ["analyze", "--limit", "9", "{0}/nosuch"],
        ["prune", "--plan={0}/nosuch", "{0}/best.pt"],
        ["compare", "{0}/best.pt", "--repeats", "3", "{0}/nosuch"],
        ["discover", "{0}/best.pt", "--sites={0}/nosuch"],
    ],
)
def test_a_file_is_looked_for_wherever_it_stands(
    words: list[str], given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.replace("{0}", str(given)) for word in words]) == 2
    assert f"{given}/nosuch: no such" in capsys.readouterr().err


def test_help_and_names_of_no_verb_look_for_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "nosuch", "--help"]) == 0
    assert main(["nosuch", "nosuch.pt"]) == 2
    assert "No such command" in capsys.readouterr().err


# Options of which one makes another useless, and what the line says. No file is read for it.
CONTRADICTIONS: dict[str, tuple[list[str], str]] = {
    "milestones": (["train", *NETWORK, "--milestones", "5"], "milestones need schedule 'step'"),
    "gamma": (["train", *NETWORK, "--schedule", "cosine", "--gamma", "0.5"], "got --gamma without"),
    "momentum": (
        ["train", *NETWORK, "--optimizer", "adamw", "--momentum", "0.8", "--nesterov"],
        "got --momentum and --nesterov without --optimizer sgd",
    ),
    "context": (["train", *NETWORK, "--context", "9"], "got --context without --data text:FILE"),
    "image size": (
        ["train", "--model", "attnres6", "--data", "text:{0}/best.pt", "--image-size", "9"],
        "got --image-size without a --data of images",
    ),
    "task": (["train", "--model", "attnres6", "--data", "digits"], "attnres6 is for text, but"),
    "data": (
        ["analyze", "{0}/best.pt", "--data", "digits", "--input-size", "3,8,8"],
        "got --data and --input-size, expected one of them",
    ),
    "size of no data": (
        ["analyze", "{0}/best.pt", "--image-size", "8", "--input-size", "3,8,8"],
        "got --image-size and --input-size, expected one of them",
    ),
    "root of no data": (
        ["discover", "{0}/best.pt", "--data-root", "{0}", "--example-inputs", "a:b"],
        "got --data-root and --example-inputs",
    ),
    "two inputs": (
        ["discover", "{0}/best.pt", "--input-size", "8", "--example-inputs", "a:b"],
        "got --input-size and --example-inputs",
    ),
    "type of no input": (
        ["analyze", "{0}/best.pt", "--input-dtype", "int64"], "got --input-dtype without"
    ),
    "model and factory": (
        ["analyze", "{0}/best.pt", "--model", "m", "--factory", "a:b"], "both --model and --factory"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_options_that_contradict_each_other_are_refused(
    case: str, given: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a model is built or data are read: the files here hold neither."""
    monkeypatch.chdir(given)
    words, message = CONTRADICTIONS[case]
    assert main([word.replace("{0}", str(given)) for word in words]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith(ERROR)
    assert message in err
    assert not (given / "runs").exists()
