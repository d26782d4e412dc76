"""The Lightning module of a detector: its losses, and its validation's average precision."""

from typing import Any

from torch import Tensor, nn

from ela_probe.evaluation.average_precision import FIGURES, AveragePrecision
from ela_probe.evaluation.detections import DetectionPrecision
from ela_probe.evaluation.objectives import Detection
from ela_probe.forward import call, inputs_and_labels
from ela_probe.models.detection import MaskRCNN
from ela_probe.training.config import TrainConfig
from ela_probe.training.module import TrainingModule


class DetectionModule(TrainingModule):
    """Trains a `Detector` with the sum of its losses.

    The best epoch has the highest `val_ap`, the average precision of boxes or, with Mask R-CNN, the
    mean of that of boxes and of masks. The validation loss is the mean over images.

    Args:
        model: the detector. config, steps_per_epoch: as `TrainingModule` takes them.
    """

    best_by = ("val_ap", True)
    columns = (
        *("train_loss", "val_loss", "val_ap"),
        *(f"val_{kind}_{figure}" for kind in ("box", "mask") for figure in FIGURES),
    )

    def __init__(self, model: nn.Module, config: TrainConfig, *, steps_per_epoch: int) -> None:
        super().__init__(model, config, steps_per_epoch=steps_per_epoch)
        self.objective = Detection(masks=isinstance(model, MaskRCNN))
        self.precision = DetectionPrecision(masks=self.objective.masks)
        if not self.objective.masks:
            self.columns = tuple(name for name in self.columns if "_mask_" not in name)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of one batch. Raises OptionError if a check finds that it is not finite."""
        images, targets = inputs_and_labels(batch)
        loss = self.objective.training_loss(self.model, images, targets)
        self.check_loss_sometimes(loss.detach(), step=batch_idx)
        self.train_loss.update(loss.detach(), weight=len(targets))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add one batch to the validation sums."""
        images, targets = inputs_and_labels(batch)
        found = call(self.model, self.objective.arguments(images, targets))
        self.val_loss.update(found.losses.detach())
        self.precision.update(found.detections, targets)

    def val_figures(self) -> dict[str, float]:
        """The loss and all figures of average precision that there are."""
        found = self.precision.compute()
        parts = {"box": found.box, "mask": found.mask}
        figures = {
            f"val_{kind}_{name}": float(value)
            for kind, part in parts.items()
            if part is not None
            for name, value in part.model_dump().items()
            if value is not None
        }
        means = [ap_of(part) for part in parts.values() if part is not None]
        return {**super().val_figures(), "val_ap": sum(means) / len(means), **figures}

    def reset_sums(self) -> None:
        """Reset the sums for the next epoch."""
        super().reset_sums()
        self.precision.reset()


def ap_of(found: AveragePrecision) -> float:
    """The average precision; 0 where there is no object to find."""
    return found.ap or 0.0
