"""The adapter of our ResNets (ela_probe.models.resnet)."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from ela_probe.adapters.registry import register_adapter
from ela_probe.adapters.weights import normalised, unrolled
from ela_probe.errors import PlanError
from ela_probe.models.blocks import Block
from ela_probe.models.cells import Shared, Step
from ela_probe.models.dia import DIA
from ela_probe.models.dla import DLABase, DLALight, DLASource, SharedSources
from ela_probe.models.mrla import MRLABase, MRLALight, MRLARecurrence, Source
from ela_probe.models.resnet import ResNet
from ela_probe.sites import Action, Kind, Site, Stage

SLOTS = ("gate", "retrieval")
PROVIDERS = (Source, DLASource, MRLALight)  # later sites can retrieve from these
READERS = (DIA, DLASource, DLALight, Step)  # these use the cell of a stage
SITES = (DIA, DLABase, MRLABase, MRLALight)


class ResNetAdapter:
    """Sites are the retrievals of the blocks, or in DIA their gates.

    `skip` keeps what later sites read: the key and the value, the step of the cell that the stage
    shares. The cell is removed with the last site of its stage.
    """

    name = "resnet"

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, ResNet)

    def stages(self, model: nn.Module) -> list[Stage]:
        stages = []
        for stage_name, parts in self._parts(model):
            sites, sources = [], 0
            kind: Kind | None = None
            for _, name, part in parts:
                sources += isinstance(part, PROVIDERS)
                if isinstance(part, SITES) and not isinstance(part, MRLARecurrence):
                    kind = part.kind
                    size = part.channels if isinstance(part, DIA) else sources
                    sites.append(Site(name, f"{name}.tap", size))
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

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        for stage, parts in self._parts(model):
            for block, name, part in parts:
                action = actions.get(name, "keep")
                if action != "keep" and part is not None:
                    setattr(block, name.rpartition(".")[2], replacement_of(name, part, action))
            drop_unused_cell(model, stage)

    @staticmethod
    def _parts(
        model: nn.Module,
    ) -> Iterator[tuple[str, list[tuple[Block, str, nn.Module | None]]]]:
        """For each stage its name, and in forward order the blocks with their attention modules."""
        for s, stage in enumerate(model.stages):  # type: ignore[arg-type]
            name = f"stages.{s}"
            yield (
                name,
                [
                    (block, f"{name}.{t}.{slot}", getattr(block, slot))
                    for t, block in enumerate(stage)
                    for slot in SLOTS
                ],
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
