"""Sounds for audio classifiers of transformers with a learned layer sum, by every verb."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ela_probe import Analysis
from ela_probe.checkpoint import read_checkpoint
from ela_probe.data.audio import AudioData
from ela_probe.data.opening import open_data
from ela_probe.errors import DataError
from tests.support import layer_mixing
from tests.support.commands import run

transformers = pytest.importorskip("transformers", reason="needs the package transformers")

RATE, LENGTH = 8000, 400  # Hz, values: 50 ms
MISLABELLED = [0, 5]  # of the test sounds, so that a trained network is not always right


def sounds(count: int, *, seed: int) -> dict[str, Any]:
    """Tones of 500 Hz (class 0) and 1500 Hz (class 1) with noise, of different lengths."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    lengths = rng.integers(LENGTH // 2, LENGTH + 1, count)
    time = np.arange(LENGTH) / RATE
    phases = rng.uniform(0, 2 * np.pi, (count, 1))
    tones = np.sin(2 * np.pi * (500 + 1000 * labels[:, None]) * time + phases)
    waves = (0.3 * tones + 0.05 * rng.normal(size=tones.shape) + 0.1).astype(np.float32)
    waves[np.arange(LENGTH) >= lengths[:, None]] = 7  # padding, which nothing may read
    return {"waveforms": waves, "labels": labels, "lengths": lengths, "sampling_rate": RATE}


def save_sounds(prefix: Path, **changes: Any) -> str:
    train, test = sounds(24, seed=0), sounds(12, seed=1)
    test["labels"][MISLABELLED] = 1 - test["labels"][MISLABELLED]
    for split, arrays in (("train", train), ("test", test)):
        kept = {name: value for name, value in (arrays | changes).items() if value is not None}
        np.savez(f"{prefix}-{split}.npz", **kept)
    return f"audio:{prefix}"


def save_extractor(folder: Path, **settings: Any) -> None:
    made = {"sampling_rate": RATE, "return_attention_mask": True, "do_normalize": True} | settings
    transformers.Wav2Vec2FeatureExtractor(**made).save_pretrained(str(folder))


def save_classifier(folder: Path, **settings: Any) -> None:
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
        conv_dim=(8, 8), conv_kernel=(10, 3), conv_stride=(5, 2), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, classifier_proj_size=8, vocab_size=8,
        use_weighted_layer_sum=True, feat_extract_norm="layer", initializer_range=0.2,
        layerdrop=0.5, id2label={0: "low", 1: "high"},
        **{"apply_spec_augment": False} | settings,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Wav2Vec2ForSequenceClassification(config)
        model.layer_weights.data.normal_()
    model.save_pretrained(str(folder))
    save_extractor(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("audio")
    save_classifier(place / "model")
    save_sounds(place / "tones")
    return place


def by_hand(path: Path, source: Path) -> tuple[float, float]:
    """Accuracy and mean loss on test sounds, cut, normalised and classified one by one."""
    model, stored = read_checkpoint(path).model.double(), np.load(f"{source}-test.npz")
    right, losses = 0, []
    for wave, length, label in zip(
        stored["waveforms"], stored["lengths"], stored["labels"], strict=True
    ):
        sound = torch.tensor(wave[:length]).double()
        sound = (sound - sound.mean()) / (sound.var(unbiased=False) + 1e-7).sqrt()
        with torch.no_grad():
            logits = model(sound[None]).logits[0]
        right += int(logits.argmax()) == label
        losses.append(float(-logits.log_softmax(0)[label]))
    return right / len(losses), float(np.mean(losses))


def test_from_discovery_to_the_comparison(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = f"hf:{folder / 'model'}", ("--data", f"audio:{folder / 'tones'}")
    found = run(capsys, "discover", model)
    assert found["adapter"] == "layer_sum"
    assert [s["name"] for s in found["stages"][0]["sites"]] == ["layer_weights"]

    tuned, analysis, pruned = (folder / name for name in ("tuned", "analysis", "pruned"))
    run(capsys, "finetune", model, *data, "--epochs", "10", "--lr", "0.01", "--batch-size", "8",
        "-o", tuned)  # fmt: skip
    # it names its data
    document = run(capsys, "analyze", f"hf:{tuned}", "--split", "test", "--batch-size", "5",
                   "--no-figures", "-o", analysis)  # fmt: skip
    accuracy, loss = by_hand(tuned, folder / "tones")
    assert accuracy == pytest.approx(10 / 12)
    assert document["provenance"]["accuracy"] == pytest.approx(accuracy)
    assert not document["provenance"]["notes"]
    assert document["provenance"]["classes"] == ["low", "high"]
    # float32, and padded keys in the attention, against float64 without padding
    assert document["provenance"]["loss"] == pytest.approx(loss, rel=1e-4)
    learned = read_checkpoint(tuned).model.get_parameter("layer_weights")
    exponentials = learned.detach().double().exp().numpy()
    weights = Analysis.load(analysis).stages[0].weights[0]
    assert weights == pytest.approx(exponentials / exponentials.sum(), rel=1e-6)

    run(capsys, "report", analysis)
    # what the analysis recommends is a command that works
    _, verb, where, *options = document["next"].split()
    assert where == str(analysis)
    run(capsys, verb, analysis, *options)
    run(capsys, "prune", f"hf:{tuned}", "--plan", analysis / "plan.json", "-o", pruned)
    compared = run(capsys, "compare", f"hf:{tuned}", f"hf:{pruned}", "--repeats", "3")["models"]
    assert [m["kept"] for m in compared] == [1, 0]
    assert compared[0]["parameters"] - compared[1]["parameters"] == 4
    for entry, path in zip(compared, (tuned, pruned), strict=True):
        accuracy, loss = by_hand(path, folder / "tones")
        assert entry["accuracy"] == pytest.approx(accuracy)
        assert entry["loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("name", ["WavLM", "Hubert", "UniSpeechSat", "Data2VecAudio"])
def test_other_encoders_without_a_mask(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model = layer_mixing.audio_classifier(name).float()
    model.save_pretrained(str(tmp_path / "model"))
    save_extractor(tmp_path / "model", return_attention_mask=False)
    source = f"audio:{folder / 'tones'}"
    found = run(capsys, "analyze", f"hf:{tmp_path / 'model'}", "--data", source, "--split", "test",
                "--no-figures", "-o", tmp_path / "analysis")  # fmt: skip
    weights = Analysis.load(tmp_path / "analysis").stages[0].weights[0]
    exponentials = model.layer_weights.detach().double().exp().numpy()
    assert weights == pytest.approx(exponentials / exponentials.sum(), rel=1e-6)
    losses = []
    for inputs, label in open_data(source, directory=tmp_path / "model").loader("test"):
        assert list(inputs) == ["input_values"]
        with torch.no_grad():
            logits = model.double()(inputs["input_values"].double()).logits
        losses += (-logits.log_softmax(1)[torch.arange(len(label)), label]).tolist()
    assert len(losses) == found["provenance"]["samples"] == 12
    assert any("heard the padding" in note for note in found["provenance"]["notes"])
    assert found["provenance"]["loss"] == pytest.approx(np.mean(losses), rel=1e-4)  # float32


def test_damage_needs_as_many_frames_in_the_sum_as_the_encoder_hands_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer_mixing.audio_classifier("SEW").float().save_pretrained(str(tmp_path / "model"))
    save_extractor(tmp_path / "model", return_attention_mask=False)
    words = ("analyze", f"hf:{tmp_path / 'model'}", "--data", f"audio:{folder / 'tones'}",
             "--no-figures")  # fmt: skip
    assert "it sums 19 frames, but the encoder hands on 39; analyze" in run(capsys, *words, code=2)
    found = run(capsys, *words, "--no-damage")
    assert [site["site"] for site in found["sites"]] == ["layer_weights"]
    assert "damage_skip" not in found["sites"][0]


def test_the_class_follows_the_type_where_the_config_names_none(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    del config["architectures"]
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    first, second = (read_checkpoint(p / "model").model for p in (folder, tmp_path))
    assert type(first) is type(second)
    expected = second.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in first.state_dict().items())


def test_padding_is_masked_and_normalisation_follows_the_feature_extractor(
    folder: Path, tmp_path: Path
) -> None:
    stored = np.load(folder / "tones-test.npz")
    prefix = f"audio:{folder / 'tones'}"
    data = open_data(prefix, directory=folder / "model", val_fraction=0.25)
    assert isinstance(data, AudioData)
    assert [data.size(split) for split in ("train", "val", "test")] == [18, 6, 12]
    ((inputs, labels),) = data.loader("test", batch_size=12)
    assert labels.tolist() == stored["labels"].tolist()
    mask = inputs["attention_mask"]
    assert mask.sum(1).tolist() == stored["lengths"].tolist()
    values = inputs["input_values"]
    assert not values[mask == 0].any()
    for value, length in zip(values, stored["lengths"], strict=True):
        # the sums of 400 float32 values
        assert value[:length].mean() == pytest.approx(0, abs=1e-5)
        assert value[:length].std(correction=0) == pytest.approx(1, abs=1e-4)
    one, label = data.dataset("test")[3]
    assert torch.equal(one["input_values"], values[3])
    assert label == labels[3]

    shutil.copytree(folder / "model", tmp_path / "plain")
    save_extractor(tmp_path / "plain", do_normalize=False, return_attention_mask=False)
    whole = np.round(stored["waveforms"] * 1000).clip(-999, 999).astype(np.int16)
    save_sounds(tmp_path / "whole", waveforms=whole, labels=stored["labels"], lengths=None)
    data = open_data(f"audio:{tmp_path / 'whole'}", directory=tmp_path / "plain")
    ((inputs, _),) = data.loader("test", batch_size=12)
    assert list(inputs) == ["input_values"]
    assert torch.equal(inputs["input_values"], torch.tensor(whole / 2**15, dtype=torch.float32))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sampling_rate": 16000}, "16000 Hz, but the model's feature extractor expects 8000 Hz"),
        ({"labels": np.full(24, 2)}, "beyond the 2 classes"),
        ({"labels": None}, "contains no labels"),
        ({"lengths": np.full(24, 401)}, "length 401 of sound 0"),
        # three outputs of the first convolution, which reads 10 values and moves by 5
        ({"lengths": np.full(24, 19)}, r"length 19 of sound 0 .* expected 20 \(what"),
        ({"lengths": np.full(3, 400)}, r"expected integers \(24,\)"),
        ({"waveforms": np.zeros((24, 2, 400), np.float32)}, r"of shape \(N, length\)"),
        ({"waveforms": np.full((24, 400), np.nan, np.float32)}, "sound 0 in .* holds NaN"),
    ],
)
def test_broken_sounds_are_one_clear_error(
    folder: Path, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    source = save_sounds(tmp_path / "broken", **changes)
    with pytest.raises(DataError, match=problem):
        open_data(source, directory=folder / "model")


def test_sounds_are_long_enough_for_the_masks_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_classifier(tmp_path / "model", apply_spec_augment=True, mask_time_length=10)
    # 10 frames read 21 outputs of the first convolution, these (21 - 1) * 5 + 10 values
    for length in (109, 110):
        source = save_sounds(tmp_path / "brief", lengths=None)
        for split in ("train", "test"):
            arrays = dict(np.load(tmp_path / f"brief-{split}.npz"))
            arrays["waveforms"] = arrays["waveforms"][:, :length]
            np.savez(tmp_path / f"brief-{split}.npz", **arrays)
        words = ("compare", f"hf:{tmp_path / 'model'}", "--data", source, "--repeats", "3")
        if length == 109:
            assert "have 109 values, but the model needs 110" in run(capsys, *words, code=2)
        else:
            run(capsys, *words)


def test_what_is_missing_is_one_clear_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tones = f"hf:{folder / 'model'}", f"audio:{folder / 'tones'}"
    line = run(capsys, "analyze", model, "--data", f"audio:{tmp_path / 'no'}", code=2)
    assert "no-train.npz does not exist; expected" in line
    line = run(capsys, "analyze", model, "--data", tones, "--dtype", "bfloat16", code=2)
    assert "weights are bfloat16, but the sounds" in line
    line = run(capsys, "train", "--model", "resnet20", "--data", tones, code=2)
    assert "resnet20 is for images to classify, but" in line
    with pytest.raises(DataError, match="expected an audio classifier of transformers as hf:DIR"):
        open_data(tones)
    with pytest.raises(DataError, match="doesn't apply to audio"):
        open_data(tones, directory=folder / "model", context=16)
    shutil.copytree(folder / "model", tmp_path / "model")
    settings = tmp_path / "model/preprocessor_config.json"
    settings.write_text(json.dumps({"feature_extractor_type": "WhisperFeatureExtractor"}))
    with pytest.raises(DataError, match="only models that read waveforms take audio:PREFIX"):
        open_data(tones, directory=tmp_path / "model")
    settings.unlink()
    with pytest.raises(DataError, match="has no feature extractor that can be read"):
        open_data(tones, directory=tmp_path / "model")
