"""The published networks that benchmarks build from checkouts.

A network is known by its repository and file, and by how that file's classes make it. The files
beside this one list those that our zoo has too, and those whose sites are known.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import nn

from benchmarks.published.checkouts import checkout_of, run_file
from ela_probe.errors import OptionError

KCLA, MRLA = "bgx666/KCLA", "joyfang1106/MRLA"
DLA, DIA = "tunantu/Dynamic-Layer-Attention", "gbup-group/DIANet"
CBAM, ECA, RLA = "Jongchan/attention-module", "BangguWu/ECANet", "fangyanwen1106/RLANet"
BASE, LIGHT = "resnet_mrla_base", "resnet_mrla_light"  # of MRLA: its files for ImageNet
BLOCKS = {"basic": "BasicBlock", "bottleneck": "Bottleneck"}  # ours, and theirs


@dataclass(frozen=True)
class PublishedNetwork:
    """A network of a repository.

    Attributes:
        file: the one that defines it, without `.py`. label: the network in a few words.
        build: makes it from the file's module. size: of the images.
    """

    repository: str
    file: str
    label: str
    build: Callable[[Any], nn.Module]
    size: int = 32

    def builder(self, checkout: Path) -> Callable[[], nn.Module]:
        """Run the file; the function returned builds the network, anew in each call.

        Raises:
            OptionError: there is no such file. ImportError: it needs a package that is missing.
        """
        return partial(self.build, run_file(checkout, self.file))

    def from_checkout(self, checkout: Path) -> nn.Module:
        """Raises OptionError: there is no such file, or it needs a package that is missing."""
        try:
            return self.builder(checkout)()
        except ImportError as error:
            needed = error.name
            raise OptionError(f"{self.file}.py needs {needed}: pip install {needed}") from error


def cifar(
    repository: str,
    file: str,
    depth: int,
    block: str,
    *,
    function: str | None = None,
    classes: int = 10,
    label: str | None = None,
) -> PublishedNetwork:
    """A CIFAR ResNet of basic or bottleneck blocks; the function has the file's name."""
    options = {"depth": depth, "num_classes": classes, "block_name": BLOCKS[block]}
    return PublishedNetwork(
        repository,
        file,
        label or f"{file} {depth} {block}",
        lambda code: getattr(code, function or file)(**options),
    )


def imagenet(
    repository: str,
    file: str,
    function: str,
    *,
    size: int = 64,
    classes: int = 10,
    label: str | None = None,
    **options: Any,
) -> PublishedNetwork:
    return PublishedNetwork(
        repository,
        file,
        label or function,
        lambda code: getattr(code, function)(num_classes=classes, **options),
        size,
    )


def mrla(variant: str, kind: str, depth: int, *, classes: int) -> PublishedNetwork:
    """The published MRLA-B (`base`) or MRLA-L (`light`) on a `resnet` or `imagenet_resnet`."""
    if kind == "resnet":
        return cifar(KCLA, f"mrla_{variant}", depth, "basic", classes=classes)
    function = f"resnet{depth}_mrla{variant[0]}"
    return imagenet(MRLA, f"resnet_mrla_{variant}", function, classes=classes)


class HasNetwork(Protocol):
    """An entry of one of the lists."""

    @property
    def network(self) -> PublishedNetwork: ...


Entry = TypeVar("Entry", bound=HasNetwork)


def in_checkouts(entries: Sequence[Entry], checkouts: Sequence[Path]) -> list[tuple[Entry, Path]]:
    """The entries whose repository is among the checkouts, each with its checkout.

    Raises:
        OptionError: there are none.
    """
    found = [
        (entry, checkout)
        for entry in entries
        if (checkout := checkout_of(entry.network.repository, checkouts)) is not None
    ]
    if not found:
        names = ", ".join(sorted({entry.network.repository for entry in entries}))
        raise OptionError(f"none of the folders is a checkout of one of: {names}")
    return found
