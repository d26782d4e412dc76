"""The Lightning modules: the optimizer and learning rate of any network, a classifier's loss."""

import math
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from ela_probe.errors import OptionError
from ela_probe.evaluation.labels import IGNORED
from ela_probe.forward import call, required_logits
from ela_probe.system.memory_format import to_memory_format
from ela_probe.system.nested_tensors import mapped
from ela_probe.system.processes import process_count
from ela_probe.training.config import TrainConfig

CHECK_EVERY = 50  # steps between checks of the loss, where a check waits for something


class TrainingModule(pl.LightningModule):
    """What the training of every network has: sums of losses, an optimizer and its learning rate.

    The sums of an epoch are kept in torchmetrics objects (`train_loss`, `val_loss`), which `fit`
    reads and resets.

    Args:
        model: kept as `self.model`.
        config: the settings.
        steps_per_epoch: optimizer steps in an epoch, for the schedule.

    Attributes:
        best_by: the figure that decides which epoch is the best, and whether more is better.
        columns: the names of the figures of an epoch, in the order of the log.
    """

    best_by: tuple[str, bool]
    columns: tuple[str, ...]

    def __init__(self, model: nn.Module, config: TrainConfig, *, steps_per_epoch: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.train_loss = MeanMetric()
        self.val_loss = MeanMetric()

    def train_figures(self) -> dict[str, float]:
        """The figures of the epoch's training."""
        return {"train_loss": float(self.train_loss.compute())}

    def val_figures(self) -> dict[str, float]:
        """The figures of the epoch's validation."""
        return {"val_loss": float(self.val_loss.compute())}

    def configure_model(self) -> None:
        """Divide the parameters among the processes, if the trainer's strategy does so (FSDP)."""
        if self.device_mesh is not None and not isinstance(self.model, FSDPModule):
            fully_shard(self.model, mesh=self.device_mesh["data_parallel"])

    def on_validation_start(self) -> None:
        """Validate with the running statistics of the first process, which are saved, as in DDP."""
        if self.device_mesh is not None:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def on_train_start(self) -> None:
        """Take the learning rate from this run's schedule: a resumed run may have more epochs."""
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        factor = self.config.lr_factor(scheduler.last_epoch, steps_per_epoch=self.steps_per_epoch)
        for group in scheduler.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def check_loss_sometimes(self, loss: Tensor, *, step: int) -> None:
        """Check the loss at every step on one CPU, else every CHECK_EVERY steps."""
        alone = process_count() == 1
        if (alone and loss.device.type == "cpu") or step % CHECK_EVERY == 0:
            if not alone:  # all processes stop, or none
                loss = self.trainer.strategy.reduce(loss.clone(), reduce_op="sum")  # in place
            self.check_loss(loss.item(), step=step)

    def reset_sums(self) -> None:
        """Reset the sums for the next epoch."""
        self.train_loss.reset()
        self.val_loss.reset()

    def check_loss(self, loss: float, *, step: int) -> None:
        """Raise OptionError unless `loss` is finite."""
        if not math.isfinite(loss):
            raise OptionError(
                f"the loss became {loss} in epoch {self.current_epoch + 1}, step {step + 1}: "
                "choose a lower learning rate (--lr), or check that the weights at the start "
                "of training are finite"
            )

    def configure_optimizers(self) -> Any:
        """SGD or AdamW over all parameters, with a learning rate by step."""
        optimizer: torch.optim.Optimizer
        if self.config.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                self.model.parameters(),
                lr=self.config.lr,
                momentum=self.config.momentum,
                nesterov=self.config.nesterov,
                weight_decay=self.config.weight_decay,
            )
        else:
            parameters = list(self.model.parameters())
            vectors = [p for p in parameters if p.dim() < 2]  # norms, biases, depth queries
            groups: list[dict[str, Any]] = [
                {"params": [p for p in parameters if p.dim() >= 2]},
                {"params": vectors, "weight_decay": 0.0},
            ]
            optimizer = torch.optim.AdamW(
                groups,
                lr=self.config.lr,
                betas=self.config.betas,
                weight_decay=self.config.weight_decay,
            )
        factor = partial(self.config.lr_factor, steps_per_epoch=self.steps_per_epoch)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class ClassificationModule(TrainingModule):
    """Trains a classifier, of samples or of each token of a sequence, with the cross entropy.

    The validation loss has no label smoothing. Labels of -100 count neither in the loss nor in the
    accuracy (`train_accuracy`, `val_accuracy`).

    Args:
        model: maps inputs (N, ...) to logits (*L, K), where L is the shape of the labels.
        config, steps_per_epoch: as `TrainingModule` takes them.
        num_classes: K.
        by_loss: whether the best epoch has the lowest validation loss, instead of the highest
            accuracy.
    """

    columns = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        *,
        num_classes: int,
        steps_per_epoch: int,
        by_loss: bool = False,
    ) -> None:
        super().__init__(model, config, steps_per_epoch=steps_per_epoch)
        self.best_by = ("val_loss", False) if by_loss else ("val_accuracy", True)
        accuracy = partial(
            MulticlassAccuracy,
            num_classes,
            average="micro",
            ignore_index=IGNORED,
            validate_args=False,
        )
        self.train_accuracy = accuracy()
        self.val_accuracy = accuracy()

    def forward(self, inputs: Any) -> Tensor:
        """Logits (*L, K)."""
        return required_logits(call(self.model, inputs))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch, nats. Raises OptionError if a check finds that it is not finite."""
        logits, labels = self._logits_and_labels(batch)
        loss = F.cross_entropy(
            logits, labels, ignore_index=IGNORED, label_smoothing=self.config.label_smoothing
        )
        self.check_loss_sometimes(loss.detach(), step=batch_idx)
        self.train_loss.update(loss.detach(), weight=(labels != IGNORED).sum())
        self.train_accuracy.update(logits.detach(), labels)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add one batch to the validation sums."""
        logits, labels = self._logits_and_labels(batch)
        loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED)
        self.val_loss.update(loss, weight=(labels != IGNORED).sum())
        self.val_accuracy.update(logits, labels)

    def _logits_and_labels(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (M, K) and labels (M,) of all M samples, or tokens, of a batch."""
        inputs, labels = batch
        channels_last = self.config.channels_last
        inputs = mapped(
            inputs, lambda t: to_memory_format(t, self.model, channels_last=channels_last)
        )
        return self(inputs).flatten(0, -2), labels.flatten().long()

    def train_figures(self) -> dict[str, float]:
        """Loss and accuracy of training."""
        return {**super().train_figures(), "train_accuracy": float(self.train_accuracy.compute())}

    def val_figures(self) -> dict[str, float]:
        """Loss and accuracy of validation."""
        return {**super().val_figures(), "val_accuracy": float(self.val_accuracy.compute())}

    def reset_sums(self) -> None:
        """Reset the sums for the next epoch."""
        super().reset_sums()
        self.train_accuracy.reset()
        self.val_accuracy.reset()
