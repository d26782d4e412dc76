"""The adapter of our ResNets (ela_probe.models.resnet), also where they carry a detector."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.adapters.handover import Alternatives, Handover, Passed, input_and_output
from ela_probe.adapters.registry import register_adapter
from ela_probe.adapters.weights import heads_of_layer, normalised, unrolled
from ela_probe.errors import PlanError
from ela_probe.models.blocks import Block
from ela_probe.models.cells import Shared, Step
from ela_probe.models.detection import Detector
from ela_probe.models.dia import DIA
from ela_probe.models.dla import DLABase, DLALight, DLASource, SharedSources
from ela_probe.models.mrla import MRLABase, MRLALight, MRLARecurrence, Source
from ela_probe.models.resnet import ResNet
from ela_probe.models.stand_in import StandIn
from ela_probe.sites import Action, Kind, Site, Stage

SLOTS = ("gate", "retrieval")
PROVIDERS = (Source, DLASource, MRLALight)  # later sites can retrieve from these
READERS = (DIA, DLASource, DLALight, Step)  # these use the cell of a stage
SITES = (DIA, DLABase, MRLABase, MRLALight)


class ResNetAdapter:
    """Sites are the retrievals of the blocks, or in DIA their gates.

    `skip` keeps what later sites read: the key and the value, the step of the cell that the stage
    shares. The cell is removed with the last site of its stage.

    In a detector the sites have the names that they have in the ResNet alone, so that a plan for
    one is a plan for the other.
    """

    name = "resnet"

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, ResNet | Detector)

    def stages(self, model: nn.Module) -> list[Stage]:
        stages, prefix = [], prefix_of(model)
        for stage_name, parts in self._parts(model):
            sites, sources = [], 0
            kind: Kind | None = None
            for _, name, part in parts:
                sources += isinstance(part, PROVIDERS)
                if isinstance(part, SITES) and not isinstance(part, MRLARecurrence):
                    kind = part.kind
                    size = part.channels if isinstance(part, DIA) else sources
                    sites.append(Site(name, f"{prefix}{name}.tap", size))
            if kind is not None:
                stages.append(Stage(stage_name, kind, tuple(sites)))
        return stages

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """Softmax weights as read, gates over channels normalised, recurrences unrolled."""
        if stage.kind == "softmax":
            return [tensors[0] for tensors in captured]
        if stage.kind == "channel":
            return [normalised(tensors[0]) for tensors in captured]
        return unrolled([(gate, decay) for gate, decay in captured])

    def heads(self, model: nn.Module, stage: Stage) -> int:
        return heads_of_layer(model, stage)

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        for stage, parts in self._parts(model):
            for block, name, part in parts:
                action = actions.get(name, "keep")
                if action != "keep" and part is not None:
                    setattr(block, name.rpartition(".")[2], replacement_of(name, part, action))
            drop_unused_cell(resnet_of(model), stage)

    def handovers(self, model: nn.Module, stage: Stage) -> dict[str, Handover]:
        sites, prefix = {site.name for site in stage.sites}, prefix_of(model)
        found: dict[str, Handover] = {}
        before: str | None = None  # the latest retrieval, and the sources that came after it
        newer: list[str] = []
        for _, name, part in dict(self._parts(model))[stage.name]:
            module = f"{prefix}{name}"
            newer += [module] if isinstance(part, Source) else []
            if name in sites and isinstance(part, MRLABase) and before is not None:
                found[name] = recurring_handover(part, module, before, newer)
            elif name in sites and isinstance(part, DIA):
                found[name] = gate_handover(module)
            elif name in sites:
                found[name] = input_and_output(module, actions=("skip", "affine"))
            if isinstance(part, MRLABase):
                before, newer = module, []
        return found

    def stand_in(self, model: nn.Module, site: str, coefficients: Tensor) -> None:
        block, _, slot = site.rpartition(".")
        left = resnet_of(model).get_submodule(block)
        assert isinstance(left, Block)
        left.stand_ins[slot] = StandIn(coefficients)

    @staticmethod
    def _parts(
        model: nn.Module,
    ) -> Iterator[tuple[str, list[tuple[Block, str, nn.Module | None]]]]:
        """For each stage its name, and in forward order the blocks with their attention modules."""
        lists: Any = resnet_of(model).stages
        for s, stage in enumerate(lists):
            name = f"stages.{s}"
            yield (
                name,
                [
                    (block, f"{name}.{t}.{slot}", getattr(block, slot))
                    for t, block in enumerate(stage)
                    for slot in SLOTS
                ],
            )


def resnet_of(model: nn.Module) -> nn.Module:
    """The model itself, or the ResNet of a detector."""
    return model.backbone.body if isinstance(model, Detector) else model


def prefix_of(model: nn.Module) -> str:
    """What the qualified names of a ResNet's modules begin with in the model."""
    return "backbone.body." if isinstance(model, Detector) else ""


def gate_handover(name: str) -> Handover:
    """Of DIA. The block adds its shortcut to the output in place, so the product is formed anew."""
    tap = f"{name}.tap"
    return Handover(
        name,
        ("skip", "affine"),
        (name, tap),
        lambda passed: (passed[name].inputs[0], passed[tap].outputs[0]),
        lambda x, gate: Alternatives(x * gate[..., None, None], (x,)),
    )


def recurring_handover(part: MRLABase, name: str, before: str, newer: Sequence[str]) -> Handover:
    """Of MRLA-B after the first retrieval of its stage.

    Args:
        before: the retrieval before it. newer: the sources after that one, with this one.
    """
    tap, norm, values = f"{name}.tap", f"{before}.norm", [f"{source}.value" for source in newer]

    def tensors(passed: Mapping[str, Passed]) -> list[Tensor]:
        x, y = passed[name].inputs[0], passed[name].outputs[0]
        weights, retrieved = passed[tap].outputs[0], passed[norm].inputs[0]
        return [x, y, weights, retrieved, *(passed[value].outputs[0] for value in values)]

    def alternatives(
        x: Tensor, y: Tensor, weights: Tensor, retrieved: Tensor, *values: Tensor
    ) -> Alternatives:
        by_channel = weights[..., -len(values) :].repeat_interleave(
            x.shape[1] // weights.shape[1], dim=1
        )[..., None, None]
        o = retrieved * (1 - by_channel.sum(dim=2))
        for place, value in enumerate(values):
            o = torch.addcmul(o, value, by_channel[:, :, place])
        # the norm's own forward: calling the module would also call its hooks
        return Alternatives(y, (x,), x + part.norm.forward(o).relu())

    return Handover(
        module=name,
        actions=("skip", "affine", "recur"),
        reads=(name, tap, norm, *values),
        tensors=tensors,
        alternatives=alternatives,
    )


def replacement_of(name: str, part: nn.Module, action: Action) -> nn.Module | None:
    """The module that replaces a site under an action. Raises PlanError where it cannot recur."""
    if action == "recur":
        if not isinstance(part, MRLABase):
            raise PlanError(
                f"{name} cannot recur: among the ResNets only MRLA-B has a recurrent form; "
                "use keep, skip or drop"
            )
        return part.as_recurrence()
    if action == "drop":
        return None
    if isinstance(part, MRLABase | DLABase):
        return part.without_retrieval()
    if isinstance(part, DIA | DLALight):
        return Step()
    return None


def drop_unused_cell(model: nn.Module, stage: str) -> None:
    """Delete the cell that the blocks of a stage share once nothing uses its state."""
    number = stage.rpartition(".")[2]
    shared = getattr(model, "shared", {})
    if number not in shared or not isinstance(shared[number], Shared):
        return
    parts = list(model.get_submodule(stage).modules())
    if not any(isinstance(part, READERS) for part in parts):
        del shared[number]
        return
    sources = sum(isinstance(part, DLASource) for part in parts)
    if isinstance(shared[number], SharedSources) and sources < 2:  # nothing to refresh
        shared[number].cell = None


register_adapter(ResNetAdapter())
