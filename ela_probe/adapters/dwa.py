"""The adapter of depth-weighted averages: after each block Σ_s α_s x_s over earlier blocks.

DenseFormer (Pagliardini et al., NeurIPS 2024, arXiv 2402.02622): x_s are the embedding and the
outputs of the blocks, and α are free parameters of either sign. A dilation d leaves every d-th
source, and a period p every p-th block an average.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.adapters.handover import Alternatives, Handover
from ela_probe.adapters.registry import ReadOnlyAdapter, register_adapter
from ela_probe.adapters.replacements import refuse_recur
from ela_probe.errors import PlanError
from ela_probe.sites import Action, Site, Stage


class DWAAdapter(ReadOnlyAdapter):
    """A stage for every list of sources; a site is the average after a block.

    `skip` hands on the block's output, the latest state, which stays a source of later averages.
    """

    name = "dwa"

    def matches(self, model: nn.Module) -> bool:
        return any(True for _ in averages_of(model))

    def stages(self, model: nn.Module) -> list[Stage]:
        stages = []
        for name, module in averages_of(model):
            blocks, dilation = module.n_blocks, module.dilation
            for group in range(dilation):
                sites = tuple(
                    Site(
                        f"{name}.alphas.{block}",
                        name,
                        alpha.weight.numel(),
                        reads="output",
                        call=block,
                        calls=blocks,
                        batch_axis=None,
                    )
                    for block, alpha in enumerate(module.alphas)
                    if alpha is not None and (block + 1) % dilation == group
                )
                if sites:
                    title = name if dilation == 1 else f"{name}.group{group}"
                    stages.append(Stage(title, "signed", sites))
        return stages

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        parameters = [model.get_parameter(f"{site.name}.weight") for site in stage.sites]
        return [alpha.detach().reshape(1, -1) for alpha in parameters]

    def mixed(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        return [tensors[0] for tensors in captured]

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        refuse_recur(actions)
        for name, module in list(averages_of(model)):
            removed = {
                block
                for block, alpha in enumerate(module.alphas)
                if alpha is not None and actions.get(f"{name}.alphas.{block}", "keep") != "keep"
            }
            if not removed:
                continue
            pruned = DepthWeightedAverages(module, removed)
            for block in removed:
                if actions[f"{name}.alphas.{block}"] == "drop" and pruned.is_read(block):
                    raise PlanError(
                        f"{name}.alphas.{block} cannot be dropped: a later average reads the "
                        "output of its block; use skip"
                    )
            put(model, name, pruned)

    def handovers(self, model: nn.Module, stage: Stage) -> dict[str, Handover]:
        return {site.name: _handover(site.name) for site in stage.sites}


@contextmanager
def by_list(model: nn.Module) -> Iterator[None]:
    """A block in which the model has a module for each average; they compute the same.

    The modules that average stay the same objects, since others may have hooked them.
    """
    originals = [m for _, m in averages_of(model) if not isinstance(m, DepthWeightedAverages)]
    alphas = [module.alphas for module in originals]
    try:
        for module in originals:
            listed = DepthWeightedAverages(module)
            module.alphas = listed.alphas
            module.forward, module.init_accumulators = listed.forward, listed.init_accumulators
            module.is_stateful = True
        yield
    finally:
        for module, own in zip(originals, alphas, strict=True):
            module.alphas = own
            for name in ("forward", "init_accumulators", "is_stateful"):
                vars(module).pop(name, None)


def _handover(average: str) -> Handover:
    """Of an average: it takes the block's output first, and hands that on where it is skipped."""

    def tensors(passed: Mapping[str, Any]) -> Sequence[Tensor]:
        return passed[average].inputs[0].clone(), passed[average].outputs[0].clone()

    return Handover(
        module=average,
        actions=("skip",),
        reads=(average,),
        tensors=tensors,
        alternatives=lambda x, y: Alternatives(y, (x,)),
        channel_axis=-1,
        within=by_list,
    )


class DepthWeightedAverages(nn.Module):
    """The averages after the blocks of a network, over a list of sources.

    It is called as DenseFormer's module is: `init_accumulators(x)` with the embedding, then
    `module(x, block_idx=i)` after every block. Like that module it holds the sources until the next
    pass replaces them; a copy holds none.

    Args:
        averages: a module of DenseFormer, or one of these; the parameters are shared.
        removed: the blocks after which nothing is averaged any more.
    """

    is_stateful = True  # see `RecordedPass`

    def __init__(self, averages: Any, removed: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        super().__init__()
        self.n_blocks, self.dilation = averages.n_blocks, averages.dilation
        self.alphas = nn.ModuleList(
            None if alpha is None or block in removed else WeightedSum(alpha.weight)  # type: ignore[misc]
            for block, alpha in enumerate(averages.alphas)
        )
        self._sources: dict[int, Tensor] = {}  # by block; -1 is the embedding

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sources": {}}

    def is_read(self, block: int) -> bool:
        """Whether this or a later average reads the output of a block; −1 is the embedding."""
        group = (block + 1) % self.dilation
        return any(
            alpha is not None and (later + 1) % self.dilation == group
            for later, alpha in enumerate(self.alphas)
            if later >= block
        )

    def init_accumulators(self, x: Tensor) -> None:
        """Begin a pass with the first source."""
        if self.is_read(-1):
            self._sources[-1] = x

    def forward(self, x: Tensor, block_idx: int) -> Tensor:
        """x: the output of a block, [samples, ...]; its average, or itself where there is none."""
        if self.is_read(block_idx):
            self._sources[block_idx] = x
        alpha = self.alphas[block_idx]
        if alpha is None:
            return x
        first = (block_idx + 1) % self.dilation - 1
        read = range(first, block_idx + 1, self.dilation)
        y: Tensor = alpha(x, [self._sources[block] for block in read])
        return y


class WeightedSum(nn.Module):
    """Σ_s weight[0, s] source_s. The latest source comes first among the arguments too."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, latest: Tensor, sources: Sequence[Tensor]) -> Tensor:
        return torch.tensordot(self.weight.view(-1), torch.stack(list(sources)), dims=1)


def averages_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The modules of a model that average over depth, with their names."""
    for name, module in model.named_modules():
        if name and (isinstance(module, DepthWeightedAverages) or is_dwa(module)):
            yield name, module


def is_dwa(module: Any) -> bool:
    """Whether a module averages as DenseFormer's does, by its parts and by a trial run."""
    alphas = getattr(module, "alphas", None)
    numbers = [getattr(module, name, 0) for name in ("n_blocks", "dilation", "period")]
    if not isinstance(alphas, nn.ModuleList) or not hasattr(module, "init_accumulators"):
        return False
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        return False
    n_blocks, dilation, period = numbers
    if len(alphas) != n_blocks:
        return False
    for block, alpha in enumerate(alphas):
        if (alpha is None) != bool((block + 1) % period):
            return False
        sources = (block + 1 + dilation) // dilation
        if alpha is not None and (
            not isinstance(alpha, nn.Linear)
            or alpha.weight.shape != (1, sources)
            or alpha.bias is not None
        ):
            return False
    return _averages_the_same(module)


@torch.no_grad()
def _averages_the_same(module: Any) -> bool:
    """Whether a trial run gives what DepthWeightedAverages gives.

    It runs a shallow copy without hooks, so that what the module holds of its last pass stays.
    """
    weight = next(module.parameters())
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(module.n_blocks + 1, 2, 3, generator=generator).to(weight)
    found = []
    try:
        for averages in (copy.copy(module), DepthWeightedAverages(module)):
            averages.init_accumulators(states[0].clone())
            outputs = (averages.forward(x, block_idx=i) for i, x in enumerate(states[1:]))
            found.append(torch.stack([y.clone() for y in outputs]))
        one, other = found
        return torch.allclose(one, other, rtol=1e-2, atol=1e-4)
    except Exception:  # it is called in another way, or gives other shapes
        return False


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in place of the one of this name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module.train(model.get_submodule(name).training))


register_adapter(DWAAdapter())
