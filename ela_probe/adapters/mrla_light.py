"""MRLA-L and DLA-L as published: o_t = sigmoid(q_t · k_t / √d) V_t + λ_t o_{t-1}.

A layer has Wq, Wk, Wv and a `sigmoid` module; the module around it holds λ as `lambda_t`.
"""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from ela_probe.adapters.placement import (
    AddedRetrievals,
    Placement,
    container,
    has_projections,
    placements,
)
from ela_probe.adapters.registry import ReadOnlyAdapter, register_adapter
from ela_probe.adapters.replacements import NoRetrieval, refuse_recur
from ela_probe.adapters.weights import heads_of_layer, unrolled
from ela_probe.sites import Action, Site, Stage


class MRLALightAdapter(AddedRetrievals, ReadOnlyAdapter):
    """Sites are the retrievals of the blocks; a stage is a list of blocks with equal channels.

    Pruning replaces the module that holds λ by one that adds nothing. `skip` and `drop` are the
    same, since later layers read nothing of a layer.
    """

    name = "mrla-l"

    def matches(self, model: nn.Module) -> bool:
        return any(True for _ in retrievals(model))

    def stages(self, model: nn.Module) -> list[Stage]:
        stages: list[tuple[str, int, list[Site]]] = []
        for place in retrievals(model):
            name, channels = (
                container(model, place.name),
                len(place.wrapper.get_parameter("lambda_t")),
            )
            if not stages or stages[-1][:2] != (name, channels):
                stages.append((name, channels, []))
            sites = stages[-1][2]
            module = f"{place.module_name}.sigmoid"
            sites.append(Site(place.name, module, len(sites) + 1, "output"))
        names = [name for name, _, _ in stages]
        return [
            Stage(name if names.count(name) == 1 else sites[0].name, "unrolled", tuple(sites))
            for name, _, sites in stages
        ]

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """[samples, channels, sources], unrolled from gates [samples, heads, 1, 1, 1] and λ."""
        decays = [model.get_parameter(f"{site.name}.lambda_t") for site in stage.sites]
        return unrolled(
            [(gate.flatten(1), decay) for (gate,), decay in zip(captured, decays, strict=True)]
        )

    def heads(self, model: nn.Module, stage: Stage) -> int:
        return heads_of_layer(model, stage)

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        refuse_recur(actions)
        for place in list(retrievals(model)):
            if actions.get(place.name, "keep") != "keep":
                left = NoRetrieval().train(place.wrapper.training)
                setattr(place.block, place.attribute, left)
                place.silence()


def retrievals(model: nn.Module) -> Iterator[Placement]:
    """The retrievals of a model, with their λ."""
    for place in placements(model, is_light_layer):
        decay = getattr(place.wrapper, "lambda_t", None)
        if isinstance(decay, nn.Parameter) and decay.shape[1:] == (1, 1):
            yield place


def is_light_layer(module: nn.Module) -> bool:
    """Whether it has the parts of an MRLA-L layer."""
    return (
        has_projections(module)
        and isinstance(module._modules.get("sigmoid"), nn.Sigmoid)
        and isinstance(getattr(module, "heads", None), int)
    )


register_adapter(MRLALightAdapter())
