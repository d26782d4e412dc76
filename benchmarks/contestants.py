"""The networks of the speed benchmarks: plain, published, ours, and ours under plans."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.checkouts import belongs, published
from benchmarks.zoo import KCLA, MRLA
from ela_probe.adapters.registry import adapter_for
from ela_probe.errors import OptionError
from ela_probe.models.published import from_published
from ela_probe.models.registry import create_model
from ela_probe.sites import Action

PUBLISHED_B, PUBLISHED_L = "published MRLA-B", "published MRLA-L"
PLAIN, OURS, RECUR = "plain", "ours MRLA-B", "ours, all recur"
HALF = "ELA, 0.5 dropped"
SHARES = (0.25, 0.5, 0.75)

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Network:
    """What is timed: `kind` resnet (CIFAR) or imagenet_resnet, a depth, and the batch."""

    kind: str
    depth: int
    images: int
    size: int
    classes: int = 10

    @property
    def name(self) -> str:
        return f"{self.kind}{self.depth}"

    def ours(self, prefix: str = "", **arguments: Any) -> nn.Module:
        name = f"{prefix}{self.name}"
        return create_model(name, num_classes=self.classes, **arguments)

    def theirs(self, checkouts: Sequence[Path], file: str) -> nn.Module | None:
        """The published `mrla_base` or `mrla_light`; None where no checkout has it."""
        cifar = self.kind == "resnet"
        root = next((c for c in checkouts if belongs(c, KCLA if cifar else MRLA)), None)
        if root is None:
            return None
        try:
            if cifar:
                build = published(root, file, file)
                return build(depth=self.depth, num_classes=self.classes, block_name="BasicBlock")
            letter = file.removeprefix("mrla_")[0]
            build = published(root, f"resnet_{file}", f"resnet{self.depth}_mrla{letter}")
            return build(num_classes=self.classes)
        except ImportError as error:
            raise OptionError(f"the published code needs {error.name}: pip install it") from error

    def batch(self, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        shape = (self.images, 3, self.size, self.size)
        return (
            torch.randn(shape, generator=generator),
            torch.randint(self.classes, (self.images,), generator=generator),
        )


def contestants(
    network: Network, checkouts: Sequence[Path], *, full: bool = True
) -> dict[str, nn.Module]:
    """By name, the plain network first. Where weights correspond they are the same.

    full: with all plans; else only what the growth with depth needs.
    """
    arguments = {"stem": "deep"} if network.kind == "imagenet_resnet" else {}
    result = {PLAIN: network.ours(**arguments)}
    light = network.ours("mrla_l_")
    ours = network.ours("mrla_b_", **arguments)
    for name, file, model in (
        (PUBLISHED_B, "mrla_base", ours),
        (PUBLISHED_L, "mrla_light", light),
    ):
        theirs = network.theirs(checkouts, file)
        if theirs is not None and (full or model is ours):
            perturb(theirs)
            model.load_state_dict(from_published(theirs.state_dict()))
            result[name] = theirs
    result[OURS] = ours
    if full:
        result["ours MRLA-L"] = light
        for share in SHARES:
            result[f"ELA, {share:g} dropped"] = under(ours, spread(ours, share, "drop"))
        result["ELA, 0.5 skipped"] = under(ours, spread(ours, 0.5, "skip"))
        result["ELA, 0.5 dropped, largest maps first"] = under(ours, largest_first(ours, 0.5))
    result[RECUR] = under(ours, spread(ours, 1.0, "recur"))
    return result


def sites_of(model: nn.Module) -> list[list[str]]:
    """By stage, the names of all sites but the first, which every plan keeps."""
    adapter = adapter_for(model)
    assert adapter is not None
    return [[site.name for site in stage.sites[1:]] for stage in adapter.stages(model)]


def spread(model: nn.Module, share: float, action: Action) -> dict[str, Action]:
    """A share of the sites, spread evenly over the depth; of each stage the first stays."""
    stages = sites_of(model)
    wanted = share * sum(len(names) + 1 for names in stages)
    names = [name for stage in stages for name in stage]
    count = min(round(wanted), len(names))
    chosen = {int((n + 0.5) * len(names) / count) for n in range(count)} if count else set()
    return {names[index]: action for index in sorted(chosen)}


def largest_first(model: nn.Module, share: float) -> dict[str, Action]:
    """A share of the sites, from the first stages on: those whose retrievals cost the most."""
    stages = sites_of(model)
    count = round(share * sum(len(names) + 1 for names in stages))
    return dict.fromkeys([name for stage in stages for name in stage][:count], "drop")


def under(model: nn.Module, actions: Mapping[str, Action]) -> nn.Module:
    pruned = copy.deepcopy(model)
    adapter = adapter_for(pruned)
    assert adapter is not None
    adapter.apply(pruned, actions)
    return pruned


@torch.no_grad()
def perturb(model: nn.Module) -> None:
    """BatchNorm's weights away from 1 and the blocks' last ones from 0, so that all count."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0.0, 0.1)


def gradients(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Logits in training mode and the gradient of every parameter, by name."""
    model.train()
    logits = model(batch[0])
    F.cross_entropy(logits, batch[1]).backward()
    result = {"logits": logits.detach()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            result[name] = parameter.grad.clone()
    model.zero_grad()
    return result


def largest_difference(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Over all tensors, relative to the largest number in any of them.

    Not of each by itself: the gradient of a scale that a following norm takes out is zero but for
    rounding.
    """
    scale = max(float(tensor.abs().max()) for tensor in expected.values())
    worst = max(float((actual[name] - expected[name]).abs().max()) for name in expected)
    return worst / scale
