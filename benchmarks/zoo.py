"""Published networks that our zoo has too: how each is built from a checkout, and ours."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.checkouts import on_this_device, published

KCLA, MRLA = "bgx666/KCLA", "joyfang1106/MRLA"
DLA, DIA = "tunantu/Dynamic-Layer-Attention", "gbup-group/DIANet"
CBAM, ECA, RLA = "Jongchan/attention-module", "BangguWu/ECANet", "fangyanwen1106/RLANet"
WIDTHS = [5, 5, 5, 7]  # of ECA's convolutions in ImageNet ResNets, as its formula gives them
SHORT = [2, 1, 1, 1]  # blocks a stage of an ImageNet network that a test can afford


@dataclass(frozen=True)
class Twin:
    """A published network and ours.

    Attributes:
        file: of the repository. network: what is compared, in a few words.
        build: makes theirs from what `get(name)` finds in the file.
        ours: as `tests.golden.network` takes it: a name and arguments, or a layout.
        size: of the images. samples: how many at once; None where any number does.
        recorded: whether the tests have its logits.
    """

    repository: str
    file: str
    network: str
    build: Callable[[Callable[[str], Any]], nn.Module]
    ours: Mapping[str, Any]
    size: int = 32
    samples: int | None = None
    recorded: bool = False

    def theirs(self, root: Path) -> nn.Module:
        """Raises OptionError: no such file. ImportError: it needs a package that is missing."""
        return self.build(lambda name: published(root, self.file, name))


def cifar(
    repository: str,
    file: str,
    ours: str,
    block: str,
    *,
    samples: int | None = None,
    recorded: bool = False,
    **arguments: Any,
) -> Twin:
    """Their `file(depth, block)`; the depth is that of our name."""
    depth = int(ours.rpartition("resnet")[2])
    name = {"basic": "BasicBlock", "bottleneck": "Bottleneck"}[block]
    return Twin(
        repository,
        file,
        f"{file} {depth} {block}",
        lambda get: get(file)(depth=depth, num_classes=10, block_name=name),
        {"model": ours, "arguments": {"block": block, **arguments}},
        samples=samples,
        recorded=recorded,
    )


def dla(repository: str, file: str, depth: int, head_dim: int, *, recorded: bool = False) -> Twin:
    """One sample at a time: their refreshes read the cell's state of the batch's first sample."""
    ours, block = f"{file}_resnet{depth}", "bottleneck"
    return cifar(repository, file, ours, block, samples=1, recorded=recorded, head_dim=head_dim)


def imagenet(
    repository: str, file: str, function: str, ours: str, *, size: int = 64, **theirs: Any
) -> Twin:
    return Twin(
        repository,
        file,
        function,
        lambda get: get(function)(num_classes=10, **theirs),
        {"model": ours, "arguments": {"num_classes": 10}},
        size=size,
    )


def short(
    repository: str, file: str, network: str, block: str, attention: str, **options: Any
) -> Twin:
    """An ImageNet network of five blocks, which no published function makes."""
    stem = options.pop("stem", "plain")
    layout = {"stem": stem, "blocks": SHORT, "planes": [64, 128, 256, 512], "block": "bottleneck"}
    return Twin(
        repository,
        file,
        f"{network} {SHORT}",
        lambda get: get(network)(get(block), SHORT, num_classes=10),
        {"layout": layout, "attention": attention, "arguments": options},
        size=64,
        recorded=True,
    )


def cbam_without_pooling() -> Twin:
    """Their CIFAR network: a 3 x 3 stem, basic blocks."""
    layout = {"stem": "small", "blocks": SHORT, "planes": [64, 128, 256, 512], "block": "basic"}
    return Twin(
        CBAM,
        "model_resnet",
        f"CIFAR10 {SHORT} CBAM",
        lambda get: get("ResNet")(get("BasicBlock"), SHORT, "CIFAR10", 10, "CBAM"),
        {"layout": layout, "attention": "cbam", "arguments": {}},
        recorded=True,
    )


TWINS = [
    cifar(KCLA, "mrla_base", "mrla_b_resnet20", "basic", recorded=True),
    cifar(KCLA, "mrla_base", "mrla_b_resnet29", "bottleneck", recorded=True),
    cifar(KCLA, "mrla_base", "mrla_b_resnet56", "basic"),
    cifar(KCLA, "mrla_light", "mrla_l_resnet20", "basic", recorded=True),
    cifar(KCLA, "mrla_light", "mrla_l_resnet29", "bottleneck", recorded=True),
    cifar(KCLA, "mrla_light", "mrla_l_resnet56", "basic"),
    cifar(KCLA, "resnet", "resnet20", "basic", recorded=True),
    cifar(KCLA, "resnet", "resnet29", "bottleneck", recorded=True),
    cifar(KCLA, "resnet", "resnet56", "basic"),
    cifar(KCLA, "senet", "se_resnet20", "basic"),
    cifar(KCLA, "ecanet", "eca_resnet20", "basic", recorded=True),
    cifar(KCLA, "ecanet", "eca_resnet29", "bottleneck"),
    cifar(KCLA, "dia_resnet", "dia_resnet29", "bottleneck"),
    dla(KCLA, "dla_b", 29, 16),
    dla(KCLA, "dla_l", 29, 16),
    cifar(DLA, "senet", "se_resnet29", "bottleneck", recorded=True),
    dla(DLA, "dla_b", 29, 32, recorded=True),
    dla(DLA, "dla_b", 56, 32),
    dla(DLA, "dla_l", 29, 32, recorded=True),
    cifar(DIA, "dia_resnet", "dia_resnet29", "bottleneck", recorded=True),
    cifar(DIA, "dia_resnet", "dia_resnet56", "bottleneck"),
    Twin(
        DLA,
        "resnet_dla_l",
        "resnet50_dla_l",
        lambda get: get("resnet50_dla_l")(num_classes=10),
        {"model": "dla_l_imagenet_resnet50", "arguments": {"num_classes": 10}},
        size=128,
        samples=1,
    ),
    imagenet(MRLA, "resnet", "resnet50", "imagenet_resnet50"),
    imagenet(MRLA, "resnet", "resnet101", "imagenet_resnet101"),
    imagenet(MRLA, "resnet", "resnet152", "imagenet_resnet152"),
    imagenet(MRLA, "resnet", "resnet50_se", "se_imagenet_resnet50"),
    imagenet(MRLA, "resnet", "resnet50_eca", "eca_imagenet_resnet50"),
    imagenet(MRLA, "resnet_mrla_base", "resnet50_mrlab", "mrla_b_imagenet_resnet50"),
    imagenet(MRLA, "resnet_mrla_base", "resnet101_mrlab", "mrla_b_imagenet_resnet101", size=128),
    imagenet(MRLA, "resnet_mrla_light", "resnet50_mrlal", "mrla_l_imagenet_resnet50"),
    imagenet(ECA, "eca_resnet", "eca_resnet50", "eca_imagenet_resnet50", k_size=WIDTHS),
    short(MRLA, "resnet_mrla_base", "ResNet_mrlab", "MRLA_Bottleneck", "mrla_b", stem="deep"),
    short(RLA, "resnet_rla", "RLA_ResNet", "RLA_Bottleneck", "rla", hidden=32),
    Twin(
        RLA,
        "resnet_rla",
        "RLA_ResNet 50",
        lambda get: get("RLA_ResNet")(get("RLA_Bottleneck"), [3, 4, 6, 3], num_classes=10),
        {"model": "rla_g_imagenet_resnet50", "arguments": {"num_classes": 10}},
        size=64,
    ),
    cbam_without_pooling(),
    Twin(
        CBAM,
        "model_resnet",
        "ImageNet 50 CBAM",
        lambda get: get("ResidualNet")("ImageNet", 50, 10, "CBAM"),
        {"model": "cbam_imagenet_resnet50", "arguments": {"num_classes": 10}},
        size=224,
    ),
]


@contextmanager
def in_precision(dtype: torch.dtype) -> Iterator[None]:
    """New tensors have this type, as some forwards make states of the default; all on the CPU."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with on_this_device():
            yield
    finally:
        torch.set_default_dtype(before)
