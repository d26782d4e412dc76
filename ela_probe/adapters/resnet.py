"""The adapter of our ResNets (ela_probe.models.resnet)."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from ela_probe.adapters import register_adapter
from ela_probe.adapters.unrolled import unrolled
from ela_probe.errors import PlanError
from ela_probe.models.attention import MRLABase, MRLALight
from ela_probe.models.blocks import Block
from ela_probe.models.resnet import ResNet
from ela_probe.sites import Action, Site, Stage


class ResNetAdapter:
    """Sites are the blocks' retrievals; a skipped one leaves its key and value, if it had any."""

    name = "resnet"

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, ResNet)

    def stages(self, model: nn.Module) -> list[Stage]:
        stages = []
        for stage_name, blocks in self._blocks(model):
            sites, sources, kind = [], 0, None
            for name, block in blocks:
                retrieval = block.retrieval
                sources += retrieval is not None
                if isinstance(retrieval, MRLABase | MRLALight):
                    kind = retrieval.kind
                    sites.append(Site(name, f"{name}.tap", sources))
            if kind is not None:
                stages.append(Stage(stage_name, kind, tuple(sites)))
        return stages

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        if stage.kind == "softmax":
            return [tensors[0] for tensors in captured]
        return unrolled([(gate, decay) for gate, decay in captured])

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        for _, blocks in self._blocks(model):
            for name, block in blocks:
                action = actions.get(name, "keep")
                if action == "keep":
                    continue
                if action == "recur":
                    raise PlanError(
                        f"{name}: this version cannot apply the action 'recur'; "
                        "use keep, skip or drop"
                    )
                retrieval = block.retrieval
                if action == "skip" and isinstance(retrieval, MRLABase):
                    block.retrieval = retrieval.without_retrieval()
                else:
                    block.retrieval = None

    @staticmethod
    def _blocks(model: nn.Module) -> Iterator[tuple[str, list[tuple[str, Block]]]]:
        """Per stage its name and its blocks by the name of their retrieval."""
        for s, stage in enumerate(model.stages):  # type: ignore[arg-type]
            name = f"stages.{s}"
            yield name, [(f"{name}.{t}.retrieval", block) for t, block in enumerate(stage)]


register_adapter(ResNetAdapter())
