"""Directories of transformers as checkpoints: read, analysed, pruned, tuned and compared."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ela_probe_cli import main

pytest.importorskip("transformers.models.inkling2", reason="needs transformers with inkling2")

from ela_probe import SkipPlan, load_checkpoint, prune
from ela_probe.checkpoint import read_checkpoint
from ela_probe.data.opening import open_data
from ela_probe.data.text import TextData
from ela_probe.errors import CheckpointError, OutputError
from ela_probe.pipeline.prune import prune_checkpoint
from tests.support.commands import run
from tests.support.transformers_models import (
    LETTERS,
    inkling,
    inkling_config,
    save_model,
    token_ids,
)

TEXT = "Now is the winter of our discontent, made glorious summer by this sun of York.\n" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("pretrained")
    (place / "text.txt").write_text(TEXT)
    save_model(place / "model", inkling(std=0.1))
    return place


@pytest.fixture(scope="module")
def analysed(folder: Path) -> Path:
    """The folder, with an analysis, a plan and the pruned directory."""
    text = f"text:{folder / 'text.txt'}"
    words: list[list[Any]] = [
        ["analyze", f"hf:{folder / 'model'}", "--data", text, "--context", "16", "--limit", "16",
         "--no-figures"],
        ["plan", folder / "model-analysis", "--skip", "0.4", "--action", "affine"],
        ["prune", f"hf:{folder / 'model'}", "--plan", folder / "model-analysis" / "plan.json"],
    ]  # fmt: skip
    for line in words:
        assert main([*map(str, line), "--json"]) == 0
    return folder


def outputs(path: Path, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        return read_checkpoint(path, **options).model(token_ids()).logits


def test_the_model_of_a_directory_is_the_one_that_was_saved(folder: Path) -> None:
    with torch.no_grad():
        expected = inkling(std=0.1)(token_ids()).logits
    assert torch.equal(outputs(folder / "model"), expected)
    again: Any = load_checkpoint(f"hf:{folder / 'model'}")
    assert not again.training
    assert not again.config.use_cache


def test_discover_needs_no_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = run(capsys, "discover", f"hf:{folder / 'model'}")
    (stage,) = document["stages"]
    assert document["adapter"] == "inkling"
    assert [site["sources"] for site in stage["sites"]] == [2, 2, 2, 2, 3, 3, 3, 3]
    assert stage["sites"][0]["shape"] == [2, 16, 2]
    assert any("self_attn" in other["name"] for other in document["bystanders"])


def test_a_pruned_directory_is_loaded_in_one_call_and_names_its_plan(analysed: Path) -> None:
    plan = SkipPlan.load(analysed / "model-analysis" / "plan.json")
    pruned = analysed / "model-pruned"
    with torch.no_grad():
        expected = prune(load_checkpoint(analysed / "model"), plan)(token_ids()).logits
    assert torch.equal(outputs(pruned), expected)
    config = json.loads((pruned / "config.json").read_text())
    actions = [s["action"] for stage in config["ela_probe"]["plans"][0]["stages"]
               for s in stage["sites"]]  # fmt: skip
    assert actions == list(plan.actions.values())
    assert (pruned / "tokenizer.json").read_bytes() == (
        analysed / "model" / "tokenizer.json"
    ).read_bytes()
    own = json.loads((analysed / "model" / "config.json").read_text())
    assert own == {name: config[name] for name in own}
    assert read_checkpoint(pruned).header.skipped == len(plan.skipped) == 3


def test_a_pruned_directory_is_analysed_pruned_and_compared(
    analysed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, pruned = f"text:{analysed / 'text.txt'}", f"hf:{analysed / 'model-pruned'}"
    document = run(capsys, "analyze", pruned, "--data", text, "--context", "16", "--limit", "16",
                   "--no-figures")  # fmt: skip
    assert len(document["sites"]) == 5
    plan = analysed / "again.json"
    run(capsys, "plan", document["directory"], "--skip", "0.2", "--action", "skip", "-o", plan)
    twice = analysed / "twice"
    run(capsys, "prune", pruned, "--plan", plan, "-o", twice)
    assert len(read_checkpoint(twice).header.plans) == 2
    compared = run(capsys, "compare", f"hf:{analysed / 'model'}", pruned, f"hf:{twice}",
                   "--data", text, "--context", "16", "--limit", "4", "--repeats", "3")  # fmt: skip
    assert [m["kept"] for m in compared["models"]] == [8, 5, 4]
    assert [m["skipped"] for m in compared["models"]] == [0, 3, 4]
    assert all(1 < m["perplexity"] < 200 for m in compared["models"])


def test_finetune_writes_a_directory_with_better_weights(
    analysed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, pruned = f"text:{analysed / 'text.txt'}", analysed / "model-pruned"
    run(capsys, "finetune", f"hf:{pruned}", "--data", text, "--context", "16", "--epochs", "1",
        "--lr", "0.01", "--batch-size", "8")  # fmt: skip
    tuned = read_checkpoint(analysed / "model-pruned-tuned")
    assert tuned.header.plans == read_checkpoint(pruned).header.plans
    before, after = read_checkpoint(pruned).model.state_dict(), tuned.model.state_dict()
    stand_ins = [name for name in after if "stand_in" in name]
    assert stand_ins
    assert all(not torch.equal(before[name], after[name]) for name in stand_ins)
    compared = run(capsys, "compare", f"hf:{pruned}", f"hf:{tuned.path}", "--data", text,
                   "--context", "16", "--repeats", "3")  # fmt: skip
    losses = [m["loss"] for m in compared["models"]]
    assert losses[1] < losses[0]
    # it names its data, and its own tokenizer reads them
    assert tuned.header.data.tokens == "tokenizer"
    assert run(capsys, "compare", f"hf:{tuned.path}", "--repeats", "3")["models"][0]["loss"] == (
        pytest.approx(losses[1])
    )


def test_text_is_read_by_the_tokenizer_of_the_model(folder: Path) -> None:
    source = f"text:{folder / 'text.txt'}"
    data = open_data(source, context=16, directory=folder / "model")
    tokens, following = data.dataset("train")[2]
    start = 2 * 16
    assert "".join(LETTERS[t] for t in tokens) == TEXT[start : start + 16]
    assert torch.equal(tokens[1:], following[:-1])
    assert data.spec.num_classes == len(LETTERS)
    assert isinstance(data, TextData)
    assert sum(len(part) for part in data._parts.values()) == len(TEXT)


def test_dtype(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = read_checkpoint(folder / "model", dtype=torch.bfloat16)
    weights = dict(loaded.model.named_parameters())
    assert weights["model.layers.1.self_attn.o_proj.linear.weight"].dtype == torch.bfloat16
    assert weights["model.layers.1.mlp_input.query"].dtype == torch.float32  # kept by inkling2
    exact, rounded = outputs(folder / "model"), outputs(folder / "model", dtype=torch.bfloat16)
    assert torch.nn.functional.cosine_similarity(exact, rounded.float(), dim=-1).mean() > 0.99
    document = run(capsys, "analyze", f"hf:{folder / 'model'}", "--dtype", "bfloat16", "--data",
                   f"text:{folder / 'text.txt'}", "--context", "16", "--limit", "8", "--no-figures",
                   "-o", tmp_path / "analysis")  # fmt: skip
    assert all(site["damage_skip"] is not None for site in document["sites"])


def test_a_failed_prune_leaves_nothing(analysed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = json.loads((analysed / "model-analysis" / "plan.json").read_text())
    before = sorted(p.name for p in analysed.iterdir())
    plan["stages"][0]["sites"][1]["action"] = "recur"
    (analysed / "model-analysis" / "recur.json").write_text(json.dumps(plan))
    line = run(capsys, "prune", f"hf:{analysed / 'model'}", "--plan",
               analysed / "model-analysis" / "recur.json", code=2)  # fmt: skip
    assert "recur" in line
    assert sorted(p.name for p in analysed.iterdir()) == before


def test_mistakes_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    model = f"hf:{folder / 'model'}"
    text = f"text:{folder / 'text.txt'}"
    for words, expected in (
        (("discover", f"hf:{folder / 'empty'}"), "no config.json in it"),
        (("discover", f"hf:{folder / 'nowhere'}"), "no such folder"),
        (("discover", f"hf:{folder / 'text.txt'}"), "a checkpoint is named by its path alone"),
        (("discover", folder / "model"), f"write hf:{folder / 'model'}"),
        (("analyze", model), "name it with --data"),
        (("analyze", model, "--data", text, "--context", "5000"), "shorter context"),
        (("analyze", model, "--data", "digits", "--context", "16"), "context"),
        (("discover", model, "--model", "attnres6"), "names its model itself"),
        (("prune", model, "--plan", folder / "text.txt", "-o", folder / "empty"), "directory"),
    ):
        assert expected in run(capsys, *words, code=2)


def test_code_in_a_directory_is_not_run_unasked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "model_type": "own",
        "architectures": ["Own"],
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Own"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')\n")
    line = run(capsys, "discover", f"hf:{tmp_path}", code=2)
    assert "--trust-remote-code if you trust it" in line


def test_missing_weights_are_an_error(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in (folder / "model").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state[next(name for name in state if "norm" in name)]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="norm.* is missing"):
        read_checkpoint(tmp_path)


def test_an_output_of_that_name_is_kept_under_a_number(
    analysed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("prune", f"hf:{analysed / 'model'}", "--plan",
             analysed / "model-analysis" / "plan.json", "-o", analysed / "out")  # fmt: skip
    run(capsys, *words)
    run(capsys, *words)
    kept, new = analysed / "out-1", analysed / "out"
    assert {p.name for p in kept.iterdir()} == {p.name for p in new.iterdir()}
    assert torch.equal(outputs(kept), outputs(new))


def test_the_next_command_names_the_directory(
    analysed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = analysed / "model-analysis" / "plan.json"
    words = ["prune", f"hf:{analysed / 'model'}", "--plan", str(plan), "-o", str(analysed / "new")]
    assert main(words) == 0
    assert f"next: ela-probe finetune hf:{analysed / 'new'}" in capsys.readouterr().out


def test_from_python_a_model_of_that_name_is_replaced_and_nothing_else(
    analysed: Path, tmp_path: Path
) -> None:
    plan = SkipPlan.load(analysed / "model-analysis" / "plan.json")
    checkpoint = read_checkpoint(analysed / "model")
    output = tmp_path / "model"
    for _ in range(2):
        pruned = prune_checkpoint(checkpoint, plan, output=output)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert read_checkpoint(output).sha256 == pruned.sha256
    (tmp_path / "notes").mkdir()
    with pytest.raises(OutputError, match="expected a directory to write"):
        prune_checkpoint(checkpoint, plan, output=tmp_path / "notes")
    assert not list((tmp_path / "notes").iterdir())


def test_the_small_config_is_the_saved_one(folder: Path) -> None:
    saved = json.loads((folder / "model" / "config.json").read_text())
    assert all(saved[name] == value for name, value in inkling_config().items())
