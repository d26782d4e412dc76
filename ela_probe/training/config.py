"""TrainConfig: the settings of a training run, checked, and its learning rate by step."""

import math
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ela_probe.data.source_names import Task
from ela_probe.system.validation import Settings

DEFAULT_MILESTONES = (0.5, 0.75)  # fractions of all epochs
TEXT_DEFAULTS: dict[str, Any] = {
    "epochs": 5,
    "batch_size": 32,
    "lr": 2e-3,
    "optimizer": "adamw",
    "weight_decay": 0.1,
    "warmup_epochs": 0.1,
    "gradient_clip": 1.0,
}
DETECTION_DEFAULTS: dict[str, Any] = {  # the 1x schedule of Detectron and mmdetection
    "epochs": 12,
    "batch_size": 16,
    "lr": 0.02,
    "weight_decay": 1e-4,
    "schedule": "step",
    "warmup_epochs": 0.07,  # 500 of the 7,330 steps of an epoch of COCO
}
AUDIO_DEFAULTS: dict[str, Any] = {  # as in transformers' example of audio classification
    "epochs": 5,
    "batch_size": 32,
    "lr": 3e-5,
    "optimizer": "adamw",
    "weight_decay": 0.0,
    "warmup_epochs": 0.5,
    "gradient_clip": 1.0,
}
DETECTION_MILESTONES = (8 / 12, 11 / 12)  # fractions of all epochs
TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "images": {},
    "tokens": TEXT_DEFAULTS,
    "detection": DETECTION_DEFAULTS,
    "audio": AUDIO_DEFAULTS,
}
FINETUNING_DEFAULTS: dict[str, dict[str, Any]] = {
    "images": {"epochs": 10, "lr": 0.01},
    "tokens": {**TEXT_DEFAULTS, "epochs": 1, "lr": 5e-4},
    "detection": {**DETECTION_DEFAULTS, "epochs": 1, "lr": 2e-3, "schedule": "cosine"},
    "audio": AUDIO_DEFAULTS,
}


class TrainConfig(Settings):
    """Settings of a training run; the defaults are the usual ones for CIFAR ResNets.

    `for_task` has the defaults for language models and for detectors.
    """

    TITLE: ClassVar[str] = "training settings"

    epochs: int = Field(160, ge=1, description="passes over the training samples")
    batch_size: int = Field(128, ge=1, description="samples per optimizer step")
    lr: float = Field(0.1, gt=0, description="highest learning rate")
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    nesterov: bool = Field(False, description="Nesterov's momentum")
    betas: tuple[float, float] = Field((0.9, 0.95), description="betas of AdamW")
    weight_decay: float = Field(
        5e-4, ge=0, description="SGD: on all parameters; AdamW: on matrices, not on vectors"
    )
    schedule: Literal["cosine", "step"] = Field(
        "cosine", description="cosine to 0, or multiplied by gamma at every milestone"
    )
    milestones: tuple[float, ...] | None = Field(
        None, description="of the step schedule, in epochs; default: 1/2 and 3/4 of all"
    )
    gamma: float = Field(0.1, gt=0, le=1, description="of the step schedule")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs of linearly rising learning rate")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    gradient_clip: float | None = Field(None, gt=0, description="largest norm of the gradient")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(
        "32-true", description="arithmetic; 16-mixed needs CUDA"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of order, augmentation and drop path")
    num_workers: int | None = Field(None, ge=0, description="worker processes that read samples")
    data_on_device: bool = Field(
        False,
        description="keep images that fit into memory on the GPU, and augment them there",
    )
    channels_last: bool | None = Field(
        None, description="memory format of images; default: true on a CPU for our ResNets"
    )
    deterministic: bool = Field(False, description="only deterministic kernels (slower on CUDA)")

    @model_validator(mode="after")
    def _fits(self) -> "TrainConfig":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} must be fewer than epochs {self.epochs}"
            )
        if self.data_on_device and self.num_workers:
            raise ValueError(
                f"data_on_device needs num_workers 0, got {self.num_workers}: batches are made on "
                "the GPU"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} must be from 0 to less than 1")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        if self.milestones is not None:
            if self.schedule != "step":
                raise ValueError(f"milestones need schedule 'step', not {self.schedule!r}")
            if not all(0 < milestone < self.epochs for milestone in self.milestones):
                raise ValueError(
                    f"milestones {self.milestones} must lie between 0 and epochs {self.epochs}"
                )
        return self

    @classmethod
    def for_task(cls, task: Task, **settings: Any) -> "TrainConfig":
        """The settings with the defaults of a task.

        For tokens they are those of small language models: AdamW, 5 epochs, batches of 32, a
        learning rate of 0.002, gradients clipped to a norm of 1. For detection they are the 1x
        schedule: 12 epochs, batches of 16, a learning rate of 0.02 that is multiplied by gamma
        after epochs 8 and 11 of 12.

        Raises:
            OptionError: as `of`.
        """
        chosen = {**TASK_DEFAULTS[task], **settings}
        if task == "detection" and chosen["schedule"] == "step":
            epochs = chosen["epochs"]
            if chosen.get("milestones") is None and isinstance(epochs, int):
                chosen["milestones"] = tuple(part * epochs for part in DETECTION_MILESTONES)
        return cls.of(**chosen)

    @classmethod
    def for_finetuning(cls, task: Task = "images", **settings: Any) -> "TrainConfig":
        """The settings with the defaults of fine-tuning.

        For images: 10 epochs, learning rate 0.01. For tokens: 1 epoch, learning rate 0.0005.
        For detection: 1 epoch, learning rate 0.002.

        Raises:
            OptionError: as `of`.
        """
        return cls.of(**{**FINETUNING_DEFAULTS[task], **settings})

    def result_settings(self) -> dict[str, Any]:
        """The settings that a result depends on, as plain values: all but how samples are read."""
        return self.model_dump(mode="json", exclude={"num_workers", "data_on_device"})

    def lr_factor(self, step: int, *, steps_per_epoch: int) -> float:
        """The factor of `lr` in optimizer step `step` (from 0).

        Warm-up: (step + 1) / warm-up steps. Then cosine (Loshchilov & Hutter, ICLR 2017, eq. 5,
        without restarts): (1 + cos(pi t)) / 2 with t from 0 to 1 over the remaining steps; or step:
        `gamma` to the power of the milestones passed.
        """
        total = self.epochs * steps_per_epoch
        warmup = round(self.warmup_epochs * steps_per_epoch)
        if step < warmup:
            return (step + 1) / warmup
        if self.schedule == "step":
            milestones = self.milestones
            if milestones is None:
                milestones = tuple(fraction * self.epochs for fraction in DEFAULT_MILESTONES)
            return self.gamma ** sum(step >= epoch * steps_per_epoch for epoch in milestones)
        return (1 + math.cos(math.pi * min(1.0, (step - warmup) / (total - warmup)))) / 2
