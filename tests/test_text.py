"""Text: windows, specs, errors, and the whole chain on a language model by the command line."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from ela_probe_cli import main
from torch import nn

from ela_probe.checkpoint import Header, read_checkpoint
from ela_probe.data.opening import data_from_spec, open_data
from ela_probe.data.spec import DataSpec
from ela_probe.data.split_data import Split
from ela_probe.data.text import TextData, TextSpec
from ela_probe.errors import DataError
from ela_probe.evaluation.comparison import Comparison
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.models.registry import ModelSpec, create_model
from ela_probe.training.config import TrainConfig
from ela_probe.training.module import ClassificationModule

SMALL = json.dumps({"dim": 16, "heads": 2, "kv_heads": 1})


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "poem.txt"
    path.write_bytes(b"".join(b"%d green bottles, hanging on the wall. " % n for n in range(150)))
    return path


@pytest.fixture
def data(text: Path) -> TextData:
    opened = open_data(f"text:{text}", context=16)
    assert isinstance(opened, TextData)
    return opened


def test_splits_are_contiguous_and_windows_lie_end_to_end(data: TextData, text: Path) -> None:
    content = text.read_bytes()
    read = []
    splits: list[tuple[Split, float]] = [("train", 0.9), ("val", 0.05), ("test", 0.05)]
    for split, share in splits:
        batches = list(data.loader(split, batch_size=7))
        tokens = torch.cat([b[0] for b in batches])
        following = torch.cat([b[1] for b in batches])
        assert tokens.dtype == following.dtype == torch.int64
        assert tokens.shape == (data.size(split), 16)
        assert torch.equal(tokens.flatten()[1:], following.flatten()[:-1])
        assert abs(len(tokens) * 16 - share * len(content)) <= 18
        assert bytes(tokens.flatten().tolist()) in content
        read.append(content.index(bytes(tokens.flatten().tolist())))
    assert read[0] == 0
    assert read == sorted(read)


def test_training_windows_follow_from_seed_and_epoch(data: TextData) -> None:
    def epoch(seed: int, number: int) -> list[torch.Tensor]:
        loader = data.loader("train", batch_size=32, shuffle=True, augment=True, seed=seed)
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        return [tokens for tokens, _ in loader]

    assert all(map(torch.equal, epoch(1, 0), epoch(1, 0)))
    assert not torch.equal(epoch(1, 0)[0], epoch(1, 1)[0])
    assert not torch.equal(epoch(1, 0)[0], epoch(2, 0)[0])
    for tokens, following in data.loader("train", shuffle=True, augment=True):
        assert torch.equal(tokens[:, 1:], following[:, :-1])


def test_limits_are_drawn_once(data: TextData, text: Path) -> None:
    few = open_data(f"text:{text}", context=16, limit=9)
    assert few.size("train") == 9
    assert few.size("val") == data.size("val")
    drawn = next(iter(data.loader("test", limit=3)))[0]
    assert drawn.shape == (3, 16)
    assert torch.equal(drawn, next(iter(data.loader("test", limit=3)))[0])


def test_a_spec_travels(data: TextData) -> None:
    header = Header(model=ModelSpec(name="attnres2"), data=data.spec)
    again = Header.model_validate_json(header.model_dump_json()).data
    assert isinstance(again, TextSpec)
    assert again == data.spec
    assert data_from_spec(again).size("train") == data.size("train")
    with pytest.raises(DataError, match="is no text, but"):
        again.with_source("digits")
    images = DataSpec(
        source="digits", image_size=8, channels=1, mean=(0.0,), std=(1.0,), classes=("a", "b")
    )
    header = Header(model=ModelSpec(name="resnet8"), data=images)
    assert Header.model_validate_json(header.model_dump_json()).data == images
    with pytest.raises(DataError, match="is text, but"):
        images.with_source("text:/a")


def test_perplexity_of_a_uniform_guess_is_the_vocabulary(data: TextData) -> None:
    model = create_model("attnres1", dim=8, heads=2, kv_heads=1).double()
    nn.init.zeros_(model.final.body.weight)  # type: ignore[arg-type]
    result = evaluate(model, data.loader("test", batch_size=4), progress=False)
    assert result["perplexity"] == pytest.approx(256, rel=1e-12)
    assert result["samples"] == data.size("test")


def test_the_mean_is_over_tokens_whatever_the_batches(data: TextData) -> None:
    torch.manual_seed(0)
    model = create_model("attnres1", dim=8, heads=2, kv_heads=1).double()
    one, many = (
        evaluate(model, data.loader("test", batch_size=n), progress=False) for n in (1000, 3)
    )
    tokens, following = next(iter(data.loader("test", batch_size=1000)))
    with torch.no_grad():
        loss = F.cross_entropy(model(tokens).transpose(1, 2), following)
    for result in (one, many):
        assert result["loss"] == pytest.approx(float(loss), rel=1e-12)
        assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
        assert result["accuracy"] == one["accuracy"]


def test_adamw_leaves_vectors_undecayed() -> None:
    model = create_model("attnres1", dim=8, heads=2, kv_heads=1)
    config = TrainConfig.for_task("tokens")
    assert (config.optimizer, config.gradient_clip) == ("adamw", 1.0)
    module = ClassificationModule(model, config, num_classes=256, steps_per_epoch=1)
    groups = module.configure_optimizers()["optimizer"].param_groups
    decayed = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decayed == {id(p): 0.1 if p.dim() > 1 else 0.0 for p in model.parameters()}


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, {}, "cannot read the text"),
        (b"", {}, "is empty"),
        (b"to be", {}, "expected at least 129"),
        (b"\xff\xfe" * 3000, {"context": 0}, "context 0 is out of range"),
        (b"\xff\xfe" * 3000, {"val_fraction": 0.95}, "validation fraction"),
        (b"\xff\xfe" * 3000, {"image_size": 8}, "image_size=8 doesn't apply"),
    ],
)
def test_texts_that_do_not_work(
    content: bytes | None, options: dict[str, int], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_data(f"text:{path}", **options)  # type: ignore[arg-type]


def test_any_bytes_are_tokens(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff\xfe" * 3000)
    opened = open_data(f"text:{tmp_path / 'a'}", val_fraction=0)
    assert opened.size("val") == 0
    assert next(iter(opened.loader("test")))[0].max() == 255


def test_the_chain_on_a_language_model(
    text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def run(*words: object) -> dict:
        capsys.readouterr()
        assert main([*map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    folder, best = tmp_path, tmp_path / "run" / "best.pt"
    trained = run(
        "train", "--model", "attnres2", "--model-args", SMALL, "--data", f"text:{text}",
        "--context", 16, "--epochs", 2, "-o", folder / "run", "--device", "cpu",
    )  # fmt: skip
    assert trained["val_perplexity"] == pytest.approx(math.exp(trained["best"]["val_loss"]))
    assert trained["val_perplexity"] < 200
    an = run("analyze", best, "-o", folder / "an", "--limit", 50, "--no-figures", "--device", "cpu")
    assert an["provenance"]["samples"] == 50
    assert an["stages"][0]["rows"] == 50 * 16
    assert an["provenance"]["perplexity"] > 1
    assert len(an["sites"]) == 5
    sampled = run(
        "analyze", best, "-o", folder / "few", "--limit", 50, "--max-tokens", 4, "--no-figures",
        "--device", "cpu",
    )  # fmt: skip
    assert sampled["stages"][0]["rows"] == 50 * 4
    assert sampled["provenance"]["perplexity"] == an["provenance"]["perplexity"]
    run("plan", folder / "an", "--skip", 0.4, "-o", folder / "plan.json")
    pruned = run("prune", best, "--plan", folder / "plan.json", "-o", folder / "pruned.pt")
    assert pruned["parameters"]["before"] - pruned["parameters"]["after"] == 2 * 16
    tuned = run("finetune", folder / "pruned.pt", "-o", folder / "tuned.pt", "--device", "cpu")
    assert tuned["epochs"] == 1
    compared = run(
        "compare", best, folder / "pruned.pt", folder / "tuned.pt", "--repeats", 3,
        "--batch-size", 4, "--device", "cpu",
    )  # fmt: skip
    first, second, third = compared["models"]
    assert (first["kept"], second["kept"], second["skipped"]) == (5, 3, 2)
    assert all(m["perplexity"] == pytest.approx(math.exp(m["loss"])) for m in (first, third))
    assert isinstance(read_checkpoint(folder / "tuned.pt").header.data, TextSpec)

    assert main(["compare", str(best), "--repeats", "3", "--device", "cpu"]) == 0
    assert "sequences; time and" in capsys.readouterr().out
    headings, rows = Comparison.model_validate(compared).table()
    assert "perplexity" in headings
    assert len(headings) == len(rows[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "attnres2", "--data", "digits"], "is for text, but digits holds images"),
        (["--model", "resnet8", "--data", "text:{text}"], "is for images to classify, but text:"),
        (["--model", "attnres2", "--data", "text:/none"], "cannot read the text /none"),
        (["--model", "attnres2", "--data", "text:"], "has no path"),
        (
            ["--model", "resnet8", "--data", "digits", "--context", "8"],
            "got --context without --data text:FILE",
        ),
    ],
)
def test_bad_input_gets_one_clear_line(
    words: list[str], message: str, text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [word.replace("{text}", str(text)) for word in words]
    assert main(["train", *words, "-o", str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "run").exists()
