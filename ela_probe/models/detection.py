"""Faster R-CNN and Mask R-CNN (torchvision's) with a feature pyramid over a ResNet of the zoo.

Faster R-CNN: Ren et al. 2015, arXiv 1506.01497. FPN: Lin et al. 2017, arXiv 1612.03144. Mask R-CNN:
He et al. 2017, arXiv 1703.06870.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ela_probe.errors import ModelError
from ela_probe.models.resnet import ResNet
from ela_probe.system.memory_format import to_memory_format

Target = Mapping[str, Tensor]
ASPECT_RATIOS = (0.5, 1.0, 2.0)
SAMPLING_SEED = 0  # of the anchors and boxes that a loss in eval mode is the mean of


class Detected(NamedTuple):
    """What a detector returns in eval mode where it is given targets.

    detections: one dict for each image, as torchvision's detectors return it. losses: [images], the
    sum of the losses of each image. predictions: [images], see `Detector.predictions`.
    """

    detections: list[dict[str, Tensor]]
    losses: Tensor
    predictions: Tensor


class PyramidBackbone(nn.Module):
    """The stages of a ResNet, and a feature pyramid over them.

    Args:
        body: a ResNet; its classifier is removed.
        channels: of every level of the pyramid.
        frozen_stages: 0 trains everything, n freezes the stem and the first n - 1 stages, as
            in torchvision 5 - `trainable_backbone_layers`.
        frozen_norm: whether batch norms keep their statistics in training. Their scales and shifts
            are trained, outside frozen stages.

    Input: [batch, in_channels, height, width]. Output: by name ("0", "1", ..., "pool") the maps of
    each level, [batch, channels, ...], the finest first.

    Raises:
        ModelError: more stages to freeze than there are.
    """

    def __init__(
        self, body: ResNet, *, channels: int, frozen_stages: int = 0, frozen_norm: bool = False
    ) -> None:
        super().__init__()
        if frozen_stages > len(body.stages) + 1:
            raise ModelError(
                f"frozen_stages={frozen_stages} is more than the stem and the {len(body.stages)} "
                f"stages of this ResNet; use 0 to {len(body.stages) + 1}"
            )
        self.hidden = getattr(body.after, "hidden", 0)
        body.fc, body.after = nn.Identity(), nn.Identity()  # type: ignore[assignment]
        self.body = body
        self.out_channels = channels
        widths = [widest_output(stage) for stage in body.stages]
        self.fpn = FeaturePyramidNetwork(widths, channels, extra_blocks=LastLevelMaxPool())
        self.frozen_stages, self.frozen_norm = frozen_stages, frozen_norm
        for part in self.frozen_parts():
            part.requires_grad_(False)
        if self.hidden:  # nothing reads what the last block adds to the hidden map
            body.stages[-1][-1].hidden_norm.requires_grad_(False)  # type: ignore[index]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.body.stem(to_memory_format(images, self.body))
        outputs: dict[str, Tensor] = OrderedDict()
        for number in range(len(self.body.stages)):
            x = self.body.run_stage(number, x)
            outputs[str(number)] = x[:, : -self.hidden] if self.hidden else x
        return self.fpn(outputs)

    def frozen_parts(self) -> Iterator[nn.Module]:
        """The modules whose parameters are not trained."""
        if self.frozen_stages:
            yield from (self.body.conv1, self.body.bn1)
        for number in range(self.frozen_stages - 1):
            yield self.body.stages[number]
            if str(number) in self.body.shared:
                yield self.body.shared[str(number)]

    def train(self, mode: bool = True) -> "PyramidBackbone":
        """Train mode, but for the batch norms that are frozen."""
        super().train(mode)
        kept = [self.body] if self.frozen_norm else list(self.frozen_parts())
        for module in (module for part in kept for module in part.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def widest_output(stage: nn.Module) -> int:
    """The number of channels that a stage hands on."""
    *_, last = (m for m in stage[-1].body.children() if isinstance(m, nn.BatchNorm2d))  # type: ignore[index]
    return int(last.num_features)


class SampledRoIHeads(RoIHeads):  # type: ignore[misc]
    """torchvision's heads, which remember what the proposals are that their losses are of.

    Attributes:
        sampled_labels: for each image of the latest pass with targets the labels of its sampled
            proposals, int64 [proposals]; 0 for background.
    """

    sampled_labels: Sequence[Tensor] = ()

    def select_training_samples(self, proposals: Any, targets: Any) -> Any:
        """As torchvision's."""
        found = super().select_training_samples(proposals, targets)
        self.sampled_labels = found[2]
        return found


class Detector(nn.Module):
    """What our two detectors add to torchvision's: tensors in batches, and losses in eval mode."""

    backbone: PyramidBackbone
    transform: Any
    rpn: Any
    roi_heads: Any

    def forward(
        self,
        images: Tensor,
        sizes: Tensor | None = None,
        targets: Sequence[Target] | None = None,
        padded_with: Tensor | None = None,
    ) -> Any:
        """Losses by name in train mode, in eval mode detections; with targets `Detected`.

        The losses of an image in eval mode are those of the image alone, on anchors and proposals
        that are drawn with a fixed seed: so they depend on no other image, and two models can be
        compared.

        Args:
            images: [images, channels, height, width] in 0 to 1, each in the upper left corner.
            sizes: int64 [images, 2], the height and width of each; None: all fill the tensor.
            targets: for each image `boxes`, float [objects, 4] as x1, y1, x2, y2 in pixels, and
                `labels`, int64 [objects] from 1; for Mask R-CNN `masks`, uint8 [objects, height,
                width].
            padded_with: int64 [any number, 2], in eval mode the heights and widths of images that
                this batch is padded with, as if they were in it. So several processes find in
                parts of a batch what one finds in the whole.
        """
        single = [
            image if size is None else image[:, : size[0], : size[1]]
            for image, size in zip(
                images, [None] * len(images) if sizes is None else sizes.tolist(), strict=True
            )
        ]
        given = None if targets is None else [dict(target) for target in targets]
        if self.training:
            if given is None:
                raise ModelError("a detector in train mode needs targets; expected one per image")
            return super().forward(single, given)
        batch, resized = self.transform(single, given)
        if padded_with is not None:
            batch = self.padded(batch, padded_with.tolist())
        features = self.backbone(batch.tensors)
        losses = None if resized is None else self.image_losses(batch, features, resized)
        with torch.no_grad():
            proposals, _ = self.rpn(batch, features)
            found, _ = self.roi_heads(features, proposals, batch.image_sizes)
            original = [tuple(image.shape[-2:]) for image in single]
            detections = self.transform.postprocess(found, batch.image_sizes, original)
        return detections if losses is None else Detected(detections, *losses)

    def padded(self, batch: ImageList, sizes: Sequence[Sequence[int]]) -> ImageList:
        """The batch as large as one that also has images of these heights and widths."""
        blank = (torch.empty(1, *size, device="meta") for size in sizes)
        resized = [self.transform.resize(image)[0].shape[-2:] for image in blank]
        multiple = self.transform.size_divisible
        height, width = (
            max(now, *(-(-size[axis] // multiple) * multiple for size in resized))
            for axis, now in enumerate(batch.tensors.shape[-2:])
        )
        missing = (0, width - batch.tensors.shape[-1], 0, height - batch.tensors.shape[-2])
        return ImageList(F.pad(batch.tensors, missing), batch.image_sizes)

    def image_losses(
        self, batch: ImageList, features: Mapping[str, Tensor], targets: Sequence[Any]
    ) -> tuple[Tensor, Tensor]:
        """[images] twice: the sum of the losses that training has the mean of; `predictions`."""
        losses, predictions = [], []
        devices = [batch.tensors.device] if batch.tensors.is_cuda else []
        with self._as_in_training(), torch.random.fork_rng(devices=devices):
            for number, target in enumerate(targets):
                torch.manual_seed(SAMPLING_SEED)
                own = slice(number, number + 1)
                image = ImageList(batch.tensors[own], batch.image_sizes[own])
                maps = OrderedDict((name, values[own]) for name, values in features.items())
                proposals, of_rpn = self.rpn(image, maps, [target])
                _, of_heads = self.roi_heads(maps, proposals, image.image_sizes, [target])
                losses.append(sum({**of_rpn, **of_heads}.values(), batch.tensors.new_zeros(())))
                predictions.append(self.predictions())
        return torch.stack(losses), torch.cat(predictions)

    def predictions(self) -> Tensor:
        """[images]: how many predictions the latest losses of each image are the mean of.

        These are the sampled proposals that hold an object, at least 1. The others are background,
        of which a trained detector is so certain that their losses hardly change.
        """
        found = [(labels > 0).sum() for labels in self.roi_heads.sampled_labels]
        return torch.stack(found).clamp_min(1)

    @contextmanager
    def _as_in_training(self) -> Iterator[None]:
        """A block in which the proposals and the heads return losses."""
        parts = (self.rpn, self.roi_heads)
        modes = [part.training for part in parts]
        try:
            for part in parts:
                part.training = True  # of the part alone: it has no norms and no dropout of its own
            yield
        finally:
            for part, mode in zip(parts, modes, strict=True):
                part.training = mode


class FasterRCNN(Detector, detection.FasterRCNN):  # type: ignore[misc]
    """torchvision's Faster R-CNN as a `Detector`."""


class MaskRCNN(Detector, detection.MaskRCNN):  # type: ignore[misc]
    """torchvision's Mask R-CNN as a `Detector`."""


def build_detector(
    body: ResNet,
    *,
    masks: bool,
    num_classes: int,
    channels: int,
    head_size: int,
    anchor_size: int,
    frozen_stages: int,
    frozen_norm: bool,
    **options: Any,
) -> Detector:
    """A detector over a ResNet, with torchvision's heads.

    Args:
        body: the ResNet. masks: Mask R-CNN, else Faster R-CNN.
        num_classes: the categories and the background.
        channels: of the pyramid. head_size: of the two linear layers of the box head.
        anchor_size: of the anchors at the finest level, in pixels; each level doubles it.
        frozen_stages, frozen_norm: as `PyramidBackbone` takes them.
        options: of torchvision's detector, such as `min_size`.

    Raises:
        ModelError: as `PyramidBackbone`.
    """
    backbone = PyramidBackbone(
        body, channels=channels, frozen_stages=frozen_stages, frozen_norm=frozen_norm
    )
    levels = [str(number) for number in range(len(body.stages))]
    sizes = tuple((anchor_size * 2**level,) for level in range(len(levels) + 1))
    heads: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(sizes, (ASPECT_RATIOS,) * len(sizes)),
        "box_roi_pool": MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
        "box_head": TwoMLPHead(channels * 7**2, head_size),
        "box_predictor": FastRCNNPredictor(head_size, num_classes),
    }
    if masks:
        heads |= {
            "mask_roi_pool": MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2),
            "mask_head": MaskRCNNHeads(channels, (channels,) * 4, 1),
            "mask_predictor": MaskRCNNPredictor(channels, channels, num_classes),
        }
    detector = (MaskRCNN if masks else FasterRCNN)(backbone, **heads, **options)
    detector.roi_heads.__class__ = SampledRoIHeads  # torchvision builds them itself
    return detector


def shrink_stem(body: ResNet) -> None:
    """Let the stem of a CIFAR ResNet reduce its images to a quarter, as that for ImageNet does.

    The stages then have the strides 4, 8 and 16. No parameter changes its shape.
    """
    assert isinstance(body.conv1, nn.Conv2d)
    body.conv1.stride = (2, 2)
    body.shrink = nn.MaxPool2d(3, 2, padding=1)
