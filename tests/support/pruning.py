"""Analyses of a given model, and retrievals that are zeroed by hooks."""

import torch
from torch import nn

from ela_probe import AttentionProbe
from ela_probe.analysis.result import Analysis


def analysed(model: nn.Module) -> Analysis:
    """The analysis of a model for images, over eight random ones."""
    with AttentionProbe(model) as probe, torch.no_grad():
        images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))
        model(images.to(next(model.parameters()).dtype))
    return probe.analysis()


def zeroed(model: nn.Module, names: list[str]) -> list[object]:
    """Hooks that take the retrieval out of the named blocks' outputs."""
    return [
        model.get_submodule(name).norm.register_forward_hook(
            lambda module, args, out: torch.zeros_like(out)
        )
        for name in names
    ]
