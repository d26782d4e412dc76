"""What defines a run is compared when it is resumed: every difference is named, none is silent."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ela_probe import ELA
from ela_probe.checkpoint import read_checkpoint
from ela_probe.data.opening import Data, open_data
from ela_probe.errors import CheckpointError
from ela_probe.models.registry import ModelSpec
from ela_probe.pipeline.train import finetune, train
from ela_probe.training.config import TrainConfig
from ela_probe.training.ela.config import ELAConfig
from ela_probe.training.resuming import differences
from ela_probe.training.run_folder import RESUME
from ela_probe.training.trainer import FitResult, fit
from tests.support.commands import run as command
from tests.support.image_sets import write_images

CONFIG = TrainConfig(epochs=2, batch_size=16, lr=0.05)
HEADS = {"head_dim": 16}
OTHER_CONFIG: dict[str, Any] = {
    "batch_size": 8, "lr": 0.1, "optimizer": "adamw", "momentum": 0.5, "nesterov": True,
    "betas": (0.8, 0.9), "weight_decay": 0.0, "schedule": "step", "gamma": 0.5,
    "warmup_epochs": 1.0, "label_smoothing": 0.1, "gradient_clip": 1.0,
    "precision": "bf16-mixed", "seed": 1, "channels_last": False, "deterministic": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "set", size=8)


def opened(prefix: Path, **options: Any) -> Data:
    return open_data(f"npz:{prefix}", **{"val_fraction": 0.2, **options})


def trained(
    data: Data, output: Path, config: TrainConfig = CONFIG, *, args: Any = HEADS, **options: Any
) -> FitResult:
    spec = ModelSpec(name="mrla_b_resnet8", args=args)
    return train(spec, data, config, output=output, device="cpu", progress=False, **options)


@pytest.fixture(scope="module")
def finished(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    trained(opened(prefix), folder)
    return folder


def test_a_model_argument_that_changes_no_shape_is_compared(
    prefix: Path, tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckpointError, match="model argument head_dim 16 then, 4 now"):
        trained(opened(prefix), finished, args={"head_dim": 4}, resume=True)
    words = ["train", "--model", "mrla_b_resnet8", "--data", f"npz:{prefix}", "--epochs", "2"]
    words += ["--batch-size", "16", "--lr", "0.05", "--val-fraction", "0.2", "--device", "cpu"]
    words += ["-o", str(finished), "--resume"]
    line = command(capsys, *words, "--model-args", '{"head_dim": 4}', code=2)
    assert "model argument head_dim 16 then, 4 now" in line
    assert "head_dim 16 then, None now" in command(capsys, *words, code=2)
    other = [*words[:2], "dla_b_resnet8", *words[3:]]
    assert "model name 'mrla_b_resnet8' then, 'dla_b_resnet8' now" in command(
        capsys, *other, "--model-args", '{"head_dim": 16}', code=2
    )


def test_every_training_setting_but_how_samples_are_read_is_compared(
    prefix: Path, finished: Path
) -> None:
    settings = set(TrainConfig.model_fields)
    assert settings - set(OTHER_CONFIG) == {
        *("epochs", "num_workers", "data_on_device", "milestones")
    }
    for name, value in OTHER_CONFIG.items():
        other = CONFIG.model_copy(update={name: value})
        with pytest.raises(CheckpointError, match=rf"\({name} [^;]* then, [^;]* now\)"):
            trained(opened(prefix), finished, other, resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 40}, "limit None then, 40 now"),
        ({"val_fraction": 0.4}, r"val_fraction 0\.2 then, 0\.4 now"),
        ({"seed": 3}, "seed 0 then, 3 now"),
        ({"augment": "none"}, "augment 'crop-flip' then, 'none' now"),
        ({"image_size": 16}, "image_size 8 then, 16 now"),
    ],
)
def test_how_data_become_batches_is_compared(
    prefix: Path, finished: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        trained(opened(prefix, **options), finished, resume=True)


def test_other_data_are_refused_and_moved_data_are_not(
    prefix: Path, finished: Path, tmp_path: Path
) -> None:
    for path in prefix.parent.glob("set*.npz"):
        shutil.copy(path, tmp_path / path.name)
        shutil.copy(path, tmp_path / path.name.replace("set", "other"))
    assert trained(opened(tmp_path / "set"), finished, resume=True).epochs == 2
    with pytest.raises(CheckpointError, match="source 'npz:set' then, 'npz:other' now"):
        trained(opened(tmp_path / "other"), finished, resume=True)
    normalised = opened(prefix)
    mean = tuple(value + 0.25 for value in normalised.spec.mean)
    normalised.spec = normalised.spec.model_copy(update={"mean": mean})
    with pytest.raises(CheckpointError, match=r"mean \[.*\] then, \[.*\] now"):
        trained(normalised, finished, resume=True)


def test_all_differences_stand_in_one_line(prefix: Path, finished: Path) -> None:
    config = CONFIG.model_copy(update={"lr": 0.1, "seed": 7})
    ela = ELAConfig(skip=0.5, warmup=1, ramp=1)
    with pytest.raises(CheckpointError) as caught:
        trained(opened(prefix, limit=60), finished, config, args={}, ela=ela, resume=True)
    line = str(caught.value)
    assert "\n" not in line
    for part in ("head_dim 16 then", "lr 0.05", "seed 0", "limit None", "ela skip None then, 0.5"):
        assert part in line


def test_fewer_epochs_are_refused_and_more_continue_on_the_longer_schedule(
    prefix: Path, tmp_path: Path
) -> None:
    """The learning rate of every later epoch is that of a run of so many epochs."""
    trained(opened(prefix), tmp_path)
    longer = CONFIG.model_copy(update={"epochs": 4})
    result = trained(opened(prefix), tmp_path, longer, resume=True)
    whole = trained(opened(prefix), tmp_path / "whole", longer)
    assert [row["lr"] for row in result.history[2:]] == [row["lr"] for row in whole.history[2:]]
    state = torch.load(result.state, weights_only=True)
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-9)
    with pytest.raises(CheckpointError, match=r"\(epochs 4 then, 2 now\)"):
        trained(opened(prefix), tmp_path, resume=True)


def test_the_first_step_of_a_longer_run_has_its_own_learning_rate(
    prefix: Path, tmp_path: Path
) -> None:
    """The optimizer was saved with the last rate of the shorter schedule, 0."""
    rates: list[float] = []

    class Rates(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    def run(config: TrainConfig, **options: Any) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        fit(
            model, opened(prefix), config, output=tmp_path, device="cpu", progress=False,
            save=lambda path, state, metrics: path.write_bytes(b""), callbacks=[Rates()], **options,
        )  # fmt: skip

    run(CONFIG)
    steps = len(rates)
    longer = CONFIG.model_copy(update={"epochs": 4})
    run(longer, resume=True)
    factors = [longer.lr_factor(step, steps_per_epoch=steps // 2) for step in range(2 * steps)]
    assert rates[steps:] == pytest.approx([0.05 * factor for factor in factors[steps:]])


def test_fine_tuning_is_resumed_from_the_same_checkpoint_only(
    prefix: Path, finished: Path, tmp_path: Path
) -> None:
    def tuned(checkpoint: Path, **options: Any) -> FitResult:
        return finetune(
            read_checkpoint(checkpoint), CONFIG, output=tmp_path / "tuned.pt", device="cpu",
            progress=False, **options,
        )  # fmt: skip

    tuned(finished / "best.pt")
    assert tuned(finished / "best.pt", resume=True).epochs == 2
    again = trained(opened(prefix), tmp_path / "again", CONFIG.model_copy(update={"seed": 5}))
    with pytest.raises(CheckpointError, match=r"start checkpoint \(SHA-256\) '\w+' then, '\w+'"):
        tuned(again.best, data=opened(prefix), resume=True)


def test_a_state_of_an_older_version_is_compared_as_far_as_it_goes(
    prefix: Path, finished: Path, tmp_path: Path
) -> None:
    """It holds neither the model nor the name of the data."""
    folder = shutil.copytree(finished, tmp_path / "old")
    state = torch.load(folder / RESUME, weights_only=True)
    kept = state["callbacks"]["ela_probe.History"]["origin"]
    for section in ("model", "start"):
        del kept[section]
    for name in ("source", "training samples", "validation samples"):
        del kept["data"][name]
    torch.save(state, folder / RESUME)
    assert trained(opened(prefix), folder, resume=True).epochs == 2
    with pytest.raises(CheckpointError, match="limit None then"):
        trained(opened(prefix, limit=60), folder, resume=True)


def test_a_tuple_equals_a_list_and_a_definition_itself() -> None:
    defined = {
        "config": TrainConfig().result_settings(),
        "model": {"name": "m", "argument widths": (1, 2)},
    }
    assert not list(
        differences(defined, {**defined, "model": {"name": "m", "argument widths": [1, 2]}})
    )


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = ModelSpec(name="mrla_b_resnet14", args={"num_classes": 3}).build()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def test_in_an_own_trainer_the_settings_of_ela_are_compared(tmp_path: Path) -> None:
    batches = DataLoader(TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 3), 4)

    def run(epochs: int, path: Path | None = None, **settings: Any) -> pl.Trainer:
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, callbacks=[ELA(**settings)],
        )  # fmt: skip
        trainer.fit(
            Classifier(), batches, ckpt_path=path, weights_only=None if path is None else True
        )
        return trainer

    settings: dict[str, Any] = {"skip": 0.5, "warmup": 1, "ramp": 1}
    path = tmp_path / "own.ckpt"
    run(2, **settings).save_checkpoint(path)
    run(3, path, **settings)
    with pytest.raises(CheckpointError, match=r"\(skip 0\.5 then, 0\.3 now; ramp 1 then, None now"):
        run(3, path, skip=0.3, warmup=1)


def test_a_state_whose_counters_are_texts_is_refused(
    prefix: Path, finished: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    state = torch.load(folder / "resume.ckpt", weights_only=True)
    state["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] = "3"
    torch.save(state, folder / "resume.ckpt")
    with pytest.raises(CheckpointError, match="a counter of its loops is a text"):
        trained(opened(prefix), folder, resume=True)
