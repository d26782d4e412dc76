"""Training runs with ELA: in a user's Trainer, and by `train`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ela_probe import ELA, SkipPlan
from ela_probe.checkpoint import read_checkpoint
from ela_probe.data.opening import open_data
from ela_probe.models.registry import ModelSpec
from ela_probe.pipeline.train import train
from ela_probe.training.config import TrainConfig
from ela_probe.training.ela.config import ELAConfig
from tests.support.networks import equal_states, network, one_stage, sites

SETTINGS = ELAConfig(skip=0.5, warmup=1, ramp=3)
RUN = TrainConfig(epochs=5, batch_size=8, lr=0.05, warmup_epochs=1)
SPEC = ModelSpec(name="mrla_b_resnet14")


def trained(prefix: Path, output: Path, *, resume: bool = False, **changes: Any) -> Any:
    """Train `SPEC` on the images PREFIX-*.npz with the settings above, and return the result."""
    data = open_data(f"npz:{prefix}", val_fraction=0.2)
    options = {"ela": SETTINGS, **changes}
    return train(
        SPEC, data, RUN, output=output, device="cpu", resume=resume, progress=False, **options
    )


def train_command(prefix: Path, output: Path) -> list[str]:
    """The words of the command that trains as `trained` does."""
    return [
        "train", "--model", "mrla_b_resnet14", "--data", f"npz:{prefix}", "--epochs", "5",
        "--batch-size", "8", "--lr", "0.05", "--warmup", "1", "--val-fraction", "0.2",
        "--ela", "skip=0.5,warmup=1,ramp=3", "--device", "cpu", "-o", str(output),
    ]  # fmt: skip


def equal_runs(one: Path, other: Path) -> bool:
    """Whether two folders hold the same plan, the same plans in the header and equal weights."""
    plans = [SkipPlan.load(folder / "plan.json") for folder in (one, other)]
    files = [read_checkpoint(folder / "last.pt") for folder in (one, other)]
    return (
        plans[0] == plans[1]
        and files[0].header.plans == files[1].header.plans
        and equal_states(files[0].model, files[1].model)
    )


class Classifier(pl.LightningModule):
    """A user's module, which knows nothing of ELA."""

    def __init__(self, net: nn.Module | None = None, *, kind: str = "sgd") -> None:
        super().__init__()
        self.net = network() if net is None else net
        self.kind = kind
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self.losses.append(float(loss))
        return loss

    def configure_optimizers(self) -> Any:
        if self.kind == "adamw":
            return torch.optim.AdamW(self.parameters(), 1e-3)
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)


def batches(count: int = 4, size: int = 8) -> DataLoader:
    """Batches of random images of 8 x 8 with random labels of three classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count * size, 3, 8, 8, generator=generator)
    labels = torch.randint(0, 3, (count * size,), generator=generator)
    return DataLoader(TensorDataset(images, labels), size)


def fitted(
    module: pl.LightningModule,
    *callbacks: pl.Callback,
    epochs: int = 5,
    loader: DataLoader | None = None,
    ckpt_path: Path | None = None,
    **options: Any,
) -> pl.Trainer:
    """Fit a module in a plain Trainer, and return the Trainer."""
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks),
        **{"enable_checkpointing": False} | options,
    )  # fmt: skip
    trainer.fit(module, batches() if loader is None else loader, ckpt_path=ckpt_path)
    return trainer


def resumed_exactly(folder: Path, kind: str, **settings: Any) -> tuple[Classifier, ELA]:
    """Check that a run goes on from each of its checkpoints as if it had never stopped.

    Returns: the module and the callback of the whole run of 6 epochs; its checkpoints are
    `folder/epoch=0.ckpt` and so on.
    """
    keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    whole, ela = Classifier(one_stage(), kind=kind), ELA(**settings)
    fitted(whole, ela, keep, epochs=6, enable_checkpointing=True)
    for epoch in (0, 1, 2, 4):
        resumed, again = Classifier(one_stage(), kind=kind), ELA(**settings)
        fitted(resumed, again, epochs=6, ckpt_path=folder / f"epoch={epoch}.ckpt")
        assert again.plan == ela.plan
        assert equal_states(whole, resumed)
        assert whole.losses[-len(resumed.losses) :] == resumed.losses
        for one, other in zip(ela.analysis.stages, again.analysis.stages, strict=True):
            np.testing.assert_array_equal(one.divergences["kl"], other.divergences["kl"])
    return whole, ela


class Watch(pl.Callback):
    """Records which sites each epoch had, whether the optimizer held all parameters, and the log.

    Add it after ELA.
    """

    def __init__(self) -> None:
        self.sites: list[list[str]] = []
        self.known: list[bool] = []
        self.logged: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        net: Any = pl_module.net
        self.sites.append(sites(getattr(net, "_orig_mod", net)))
        held = {id(p) for o in trainer.optimizers for g in o.param_groups for p in g["params"]}
        self.known.append(held == {id(p) for p in pl_module.parameters()})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items()})


class InterruptAt(pl.Callback):
    """Raises KeyboardInterrupt after one batch of one epoch."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.when = epoch, batch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == self.when:
            raise KeyboardInterrupt
