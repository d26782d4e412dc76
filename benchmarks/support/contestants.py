"""The networks that are timed: plain, published, ours, and ours pruned by plans."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.published.checkouts import checkout_of
from benchmarks.published.networks import mrla
from ela_probe.adapters.registry import adapter_for
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

    def published(self, checkouts: Sequence[Path], variant: str) -> nn.Module | None:
        """The published MRLA-B (`base`) or MRLA-L (`light`); None where no checkout has it."""
        network = mrla(variant, self.kind, self.depth, classes=self.classes)
        checkout = checkout_of(network.repository, checkouts)
        return None if checkout is None else network.from_checkout(checkout)

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
    """By name, the plain network first. Weights that correspond are the same.

    full: with all plans; else only what the growth with depth needs.
    """
    arguments = {"stem": "deep"} if network.kind == "imagenet_resnet" else {}
    result = {PLAIN: network.ours(**arguments)}
    light = network.ours("mrla_l_")
    ours = network.ours("mrla_b_", **arguments)
    for name, variant, model in ((PUBLISHED_B, "base", ours), (PUBLISHED_L, "light", light)):
        theirs = network.published(checkouts, variant)
        if theirs is not None and (full or model is ours):
            randomise_norms(theirs)
            model.load_state_dict(from_published(theirs.state_dict()))
            result[name] = theirs
    result[OURS] = ours
    if full:
        result["ours MRLA-L"] = light
        for share in SHARES:
            result[f"ELA, {share:g} dropped"] = pruned(ours, spread(ours, share, "drop"))
        result["ELA, 0.5 skipped"] = pruned(ours, spread(ours, 0.5, "skip"))
        result["ELA, 0.5 dropped, largest maps first"] = pruned(ours, largest_first(ours, 0.5))
    result[RECUR] = pruned(ours, spread(ours, 1.0, "recur"))
    return result


def skippable_sites(model: nn.Module) -> list[list[str]]:
    """By stage, the names of all sites but the first, which every plan keeps."""
    adapter = adapter_for(model)
    assert adapter is not None
    return [[site.name for site in stage.sites[1:]] for stage in adapter.stages(model)]


def spread(model: nn.Module, share: float, action: Action) -> dict[str, Action]:
    """A share of the sites, spread evenly over the depth; the first of each stage stays."""
    stages = skippable_sites(model)
    wanted = share * sum(len(names) + 1 for names in stages)
    names = [name for stage in stages for name in stage]
    count = min(round(wanted), len(names))
    chosen = {int((n + 0.5) * len(names) / count) for n in range(count)} if count else set()
    return {names[index]: action for index in sorted(chosen)}


def largest_first(model: nn.Module, share: float) -> dict[str, Action]:
    """A share of the sites, beginning with the first stages, whose retrievals cost the most."""
    stages = skippable_sites(model)
    count = round(share * sum(len(names) + 1 for names in stages))
    return dict.fromkeys([name for stage in stages for name in stage][:count], "drop")


def pruned(model: nn.Module, actions: Mapping[str, Action]) -> nn.Module:
    """A copy with these actions."""
    result = copy.deepcopy(model)
    adapter = adapter_for(result)
    assert adapter is not None
    adapter.apply(result, actions)
    return result


@torch.no_grad()
def randomise_norms(model: nn.Module) -> None:
    """Give BatchNorm weights and biases other than 1 and 0, so that all of them matter."""
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
