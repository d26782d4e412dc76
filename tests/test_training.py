"""Training: the arithmetic of a plain loop, exact resumption, and what is left behind."""

import csv
import errno
import itertools
import math
import os
import pickle
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from ela_probe.data.opening import open_data
from ela_probe.errors import CheckpointError, DataError, OptionError, OutputError
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.system.device import resolve_device
from ela_probe.system.progress import track
from ela_probe.training.config import TrainConfig
from ela_probe.training.trainer import TrainingInterrupted, fit

CONFIG = TrainConfig(epochs=4, batch_size=16, lr=0.05, warmup_epochs=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """90 images whose brightness says their class."""
    folder = tmp_path_factory.mktemp("npz")
    rng = np.random.default_rng(0)
    for split, count in (("train", 90), ("test", 30)):
        labels = np.arange(count) % 3
        images = rng.integers(0, 100, (count, 8, 8, 3)) + labels[:, None, None, None] * 60
        np.savez(folder / f"set-{split}.npz", images=images.astype(np.uint8), labels=labels)
    return open_data(f"npz:{folder / 'set'}", val_fraction=0.2)


def network(dropout=0.2):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 3),
        )


def save(path, state, metrics):
    torch.save({"state": state, "metrics": metrics}, path)


def run(data, output, model=None, config=CONFIG, **options):
    model = network() if model is None else model
    options = {"save": save, "device": "cpu", "progress": False, **options}
    return model, fit(model, data, config, output=output, **options)


def same(ours, theirs):
    return all(
        torch.equal(a, b)
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    )


def without_seconds(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


class InterruptAt(pl.Callback):
    def __init__(self, epoch, batch):
        self.when = epoch, batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.when:
            raise KeyboardInterrupt


def test_weights_equal_those_of_a_plain_loop(data, tmp_path):
    config = TrainConfig(
        epochs=3, batch_size=16, lr=0.05, label_smoothing=0.1, schedule="step", gradient_clip=0.5
    )
    model, _ = run(data, tmp_path, network(dropout=0), config)

    plain = network(dropout=0).train()
    optimizer = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    loader = data.loader("train", batch_size=16, shuffle=True, augment=True, seed=0)
    step = 0
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        for images, labels in loader:
            rate = 0.05 * 0.1 ** sum(step >= milestone for milestone in (7.5, 11.25))
            optimizer.param_groups[0]["lr"] = rate
            loss = nn.functional.cross_entropy(plain(images), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            optimizer.step()
            step += 1
    assert step == 15
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("reading", "channels_last"),
    [
        ({}, None),
        ({"num_workers": 1}, None),
        ({"data_on_device": True}, None),
        ({}, True),
    ],
)
def test_a_resumed_run_equals_the_uninterrupted_one_exactly(data, tmp_path, reading, channels_last):
    uncut = CONFIG.model_copy(update={"channels_last": channels_last})
    config = uncut.model_copy(update=reading)
    whole, expected = run(data, tmp_path / "whole", config=uncut)
    assert all(value.is_contiguous() for value in whole.state_dict().values())

    with pytest.raises(TrainingInterrupted, match=r"after epoch 2 of 4: .*last\.pt.*--resume"):
        run(data, tmp_path / "cut", config=config, callbacks=[InterruptAt(2, 1)])
    kept = torch.load(tmp_path / "cut" / "last.pt", weights_only=True)
    assert kept["metrics"]["epoch"] == 2

    resumed, result = run(data, tmp_path / "cut", config=config, resume=True)
    assert same(whole, resumed)
    assert without_seconds(result.history) == without_seconds(expected.history)
    assert without_seconds([result.best_metrics]) == without_seconds([expected.best_metrics])
    best = [torch.load(r.best, weights_only=True)["state"] for r in (result, expected)]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


def test_resuming_a_finished_run_changes_nothing(data, tmp_path):
    model, result = run(data, tmp_path)
    again, repeated = run(data, tmp_path, resume=True)
    assert same(model, again)
    assert repeated.history == result.history


def test_ctrl_c_works_again_after_an_interrupt(data, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match="nothing is kept"):
        run(data, tmp_path, callbacks=[InterruptAt(0, 0)])
    assert signal.getsignal(signal.SIGINT) is before
    assert not list(tmp_path.iterdir())


def test_a_real_signal_interrupts_too(data, tmp_path):
    class Signal(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                os.kill(os.getpid(), signal.SIGINT)

    # A test run in the background ignores the signal: Python's own handler is set.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(TrainingInterrupted, match="after epoch 1 of 4"):
            run(data, tmp_path, callbacks=[Signal()])
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(data, tmp_path):
    first, _ = run(data, tmp_path / "a")
    torch.rand(7)
    second, _ = run(data, tmp_path / "b")
    other, _ = run(data, tmp_path / "c", config=CONFIG.model_copy(update={"seed": 1}))
    assert same(first, second)
    assert not same(first, other)


def test_best_is_the_epoch_of_highest_validation_accuracy(data, tmp_path):
    _, result = run(data, tmp_path)
    accuracies = [row["val_accuracy"] for row in result.history]
    assert result.best_metrics["val_accuracy"] == max(accuracies)
    assert result.best_metrics["epoch"] == 1 + accuracies.index(max(accuracies))
    model = network()
    kept = torch.load(result.best, weights_only=True)
    model.load_state_dict(kept["state"])
    measured = evaluate(model, data.loader("val"), torch.device("cpu"))
    assert measured["accuracy"] == pytest.approx(kept["metrics"]["val_accuracy"])
    assert measured["loss"] == pytest.approx(kept["metrics"]["val_loss"], rel=1e-5)


def test_the_log_has_a_row_an_epoch(data, tmp_path):
    _, result = run(data, tmp_path)
    with open(result.log, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")
    ]
    assert [{k: float(v) for k, v in row.items()} for row in rows] == result.history
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("best.pt", "last.pt", "metrics.csv", "resume.ckpt")
    ]


def test_without_validation_images_best_is_last(data, tmp_path):
    spec = data.spec
    alone = open_data(spec.source, val_fraction=0)
    model, result = run(alone, tmp_path)
    assert result.best_metrics == result.last_metrics
    assert "val_accuracy" not in result.last_metrics
    kept = torch.load(result.best, weights_only=True)["state"]
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())


def test_a_model_in_eval_mode_is_trained_in_train_mode(data, tmp_path):
    trained, _ = run(data, tmp_path / "a")
    from_eval, _ = run(data, tmp_path / "b", network().eval())
    assert same(trained, from_eval)


def test_callbacks_run_between_best_and_last(data, tmp_path):
    class Zero(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            with torch.no_grad():
                pl_module.model[-1].weight.zero_()

    _, result = run(
        data, tmp_path, config=CONFIG.model_copy(update={"epochs": 2}), callbacks=[Zero()]
    )
    best, last = (torch.load(p, weights_only=True)["state"] for p in (result.best, result.last))
    assert best["6.weight"].abs().sum() > 0
    assert last["6.weight"].abs().sum() == 0
    state = torch.load(result.state, weights_only=True)["state_dict"]
    assert state["model.6.weight"].abs().sum() == 0


def test_stdout_stays_empty_and_stderr_has_a_line_an_epoch(data, tmp_path, capfd):
    run(data, tmp_path / "a", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("epoch 1/4  loss ")
    run(data, tmp_path / "b", progress=False)
    assert capfd.readouterr() == ("", "")


def test_global_settings_are_put_back(data, tmp_path):
    config = CONFIG.model_copy(update={"epochs": 1, "deterministic": True, "warmup_epochs": 0})
    before = dict(os.environ), torch.are_deterministic_algorithms_enabled()
    run(data, tmp_path, config=config)
    assert (dict(os.environ), torch.are_deterministic_algorithms_enabled()) == before


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_mixed_precision_keeps_float32_weights(data, tmp_path, precision):
    config = CONFIG.model_copy(update={"epochs": 1, "precision": precision, "warmup_epochs": 0})
    model, result = run(data, tmp_path, config=config)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert np.isfinite(result.last_metrics["train_loss"])


def test_a_loss_that_is_not_finite_stops_with_one_line_and_leaves_nothing(data, tmp_path):
    model = network()
    nn.init.constant_(model[0].weight, float("nan"))
    with pytest.raises(OptionError, match=r"loss became nan in epoch 1, step 1: .*--lr") as caught:
        run(data, tmp_path, model)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_precision_that_needs_a_gpu_is_refused_on_a_cpu(data, tmp_path):
    with pytest.raises(OptionError, match="16-mixed needs a GPU"):
        run(data, tmp_path, config=CONFIG.model_copy(update={"precision": "16-mixed"}))


def test_an_output_that_is_a_file_is_refused(data, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="cannot write into"):
        run(data, tmp_path / "taken")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing"),
    ],
)
def test_a_full_disk_is_one_line(data, tmp_path, error):
    def full(path, model, metrics):
        raise error

    with pytest.raises(OutputError, match="cannot write") as caught:
        run(data, tmp_path, save=full)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_state_of_the_epoch_before(data, tmp_path, monkeypatch):
    written: list[Any] = []

    def fails_later(trainer, path, *args, **kwargs):
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        original(trainer, path, *args, **kwargs)

    original = pl.Trainer.save_checkpoint
    monkeypatch.setattr(pl.Trainer, "save_checkpoint", fails_later)
    with pytest.raises(OutputError, match=r"cannot write .*resume\.ckpt"):
        run(data, tmp_path)
    monkeypatch.undo()
    whole, _ = run(data, tmp_path / "whole")
    resumed, _ = run(data, tmp_path, resume=True)
    assert same(whole, resumed)


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "nothing to resume"),
        (b"", "no training state, or a damaged one"),
        (b"PK\x03\x04 cut", "a damaged one"),
        (pickle.dumps(Attack(), protocol=2), "a damaged one"),
        ({"state_dict": {}}, "no training state"),
        ([1, 2], "no training state"),
    ],
)
def test_states_that_cannot_be_resumed(data, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "resume.ckpt"
    if isinstance(content, bytes):
        state.write_bytes(content)
    elif content is not None:
        torch.save(content, state)
    with pytest.raises(CheckpointError, match=message) as caught:
        run(data, tmp_path, resume=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "attacked").exists()


def test_resuming_with_other_settings_data_or_model_is_refused(data, tmp_path):
    run(data, tmp_path)
    with pytest.raises(CheckpointError, match=r"lr 0\.05 then, 0\.01 now"):
        run(data, tmp_path, config=CONFIG.model_copy(update={"lr": 0.01}), resume=True)
    other = open_data(data.spec.source, val_fraction=0.2, limit=60)
    with pytest.raises(CheckpointError, match="limit None then, 60 now"):
        run(other, tmp_path, resume=True)
    larger = nn.Sequential(*network(), nn.Linear(3, 3))
    with pytest.raises(CheckpointError, match=r"2 tensors differ, the first is model\.7\.bias"):
        run(data, tmp_path, larger, resume=True)


def test_a_state_of_before_a_setting_was_added_resumes(data, tmp_path):
    model, _ = run(data, tmp_path)
    state = torch.load(tmp_path / "resume.ckpt", weights_only=True)
    kept = state["callbacks"]["ela_probe.History"]["origin"]["config"]
    for added in ("milestones", "gamma"):
        del kept[added]
    torch.save(state, tmp_path / "resume.ckpt")
    assert same(model, run(data, tmp_path, resume=True)[0])


def test_cosine_schedule_falls_from_1_to_0_after_warm_up():
    config = TrainConfig(epochs=10, warmup_epochs=2)
    factors = [config.lr_factor(step, steps_per_epoch=5) for step in range(51)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1
    assert factors[30] == pytest.approx(0.5)
    assert factors[50] == 0
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))


def test_step_schedule_divides_by_ten_at_half_and_three_quarters():
    config = TrainConfig(epochs=8, schedule="step")
    factors = [config.lr_factor(step, steps_per_epoch=3) for step in range(24)]
    assert factors == pytest.approx([1] * 12 + [0.1] * 6 + [0.01] * 6)


def test_step_schedule_multiplies_with_gamma_at_every_milestone():
    config = TrainConfig(epochs=4, schedule="step", milestones=(1, 3.5), gamma=0.2)
    factors = [config.lr_factor(step, steps_per_epoch=2) for step in range(8)]
    assert factors == pytest.approx([1] * 2 + [0.2] * 5 + [0.04])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs 0: Input should be greater than or equal to 1"),
        ({"lr": -1}, "lr -1"),
        ({"lr": float("nan")}, "lr nan"),
        ({"schedule": "linear"}, "schedule 'linear': Input should be 'cosine' or 'step'"),
        ({"precision": "64"}, "precision '64'"),
        ({"speed": 3}, "there is no 'speed'.*; expected epochs, batch_size"),
        ({"epochs": 2, "warmup_epochs": 2}, "warmup_epochs 2 must be fewer than epochs 2"),
        ({"nesterov": True, "momentum": 0}, "nesterov needs a momentum"),
    ],
)
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(OptionError, match=message) as caught:
        TrainConfig.of(**settings)
    assert "\n" not in str(caught.value)


def test_finetuning_is_the_same_with_a_smaller_schedule():
    tuned = TrainConfig.for_finetuning(seed=3)
    assert (tuned.epochs, tuned.lr, tuned.seed) == (10, 0.01, 3)
    assert TrainConfig.for_finetuning(epochs=2).epochs == 2


class Answers(nn.Module):
    """Gives the logits that its first pixels hold."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Dropout()

    def forward(self, images):
        return images.flatten(1)[:, :3]


def batches(labels):
    images = torch.eye(3).double()[torch.tensor([0, 1, 2, 0, 1])].reshape(5, 3, 1, 1) * 9
    return [(images[:3], torch.tensor(labels[:3])), (images[3:], torch.tensor(labels[3:]))]


def test_evaluation_is_right_on_a_known_model():
    result = evaluate(Answers(), batches([0, 1, 2, 0, 0]))
    right = math.log(math.exp(9) + 2) - 9
    assert result["accuracy"] == pytest.approx(0.8)
    assert result["samples"] == 5
    assert result["loss"] == pytest.approx((4 * right + right + 9) / 5, rel=1e-12)


def test_evaluation_puts_every_mode_back():
    model = Answers().eval()
    model.inner.train()
    evaluate(model, batches([0] * 5))
    assert (model.training, model.inner.training) == (False, True)
    with pytest.raises(DataError, match="label 3, the model only 3 classes"):
        evaluate(model, batches([3] * 5))
    assert (model.training, model.inner.training) == (False, True)


def test_evaluating_nothing_is_an_error():
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(Answers(), [])


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device().type in ("cpu", "cuda", "mps")
    for name in ("tpu", "gpu", ""):
        with pytest.raises(OptionError, match=r"unknown device .*choose auto"):
            resolve_device(name)


def test_a_device_that_is_not_here_is_refused_with_those_that_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match="'cuda' is not on this machine: choose auto or one of"):
        resolve_device("cuda")


def test_progress_never_writes_to_stdout(capfd):
    assert list(track(iter(range(3)), "counting", total=3)) == [0, 1, 2]
    assert list(track([1], "counting", progress=False)) == [1]
    assert capfd.readouterr() == ("", "")


def test_settings_alone_import_no_torch():
    code = "import sys, ela_probe.training.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
