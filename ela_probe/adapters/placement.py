"""Where a retrieval is in published code: a layer in a wrapper in a block.

Research code is copied between repositories, so everything is recognised by its submodules, never
by the names of classes or files.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ela_probe.adapters.handover import Handover, added_retrieval
from ela_probe.models.stand_in import MAPS, StandIn, put_after
from ela_probe.sites import Stage


@dataclass(frozen=True)
class Placement:
    """A retrieval of a block.

    `block.<attribute>` is the wrapper, `layer` the name of the layer in it, and
    `block.bn_<attribute>` the norm that follows. Blocks for classification also have a
    `block.drop_path`; those of detection backbones have none.
    """

    name: str
    layer: str
    wrapper: nn.Module
    block: nn.Module

    @property
    def attribute(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def module(self) -> nn.Module:
        return self.wrapper.get_submodule(self.layer)

    @property
    def module_name(self) -> str:
        return f"{self.name}.{self.layer}"

    def silence(self) -> None:
        """Remove the norm after the retrieval, and the drop path if there is one."""
        setattr(self.block, f"bn_{self.attribute}", nn.Identity())
        if "drop_path" in self.block._modules:
            self.block.drop_path = nn.Identity()


def placements(model: nn.Module, is_layer: Callable[[nn.Module], bool]) -> Iterator[Placement]:
    """The retrievals of a model in the order of its modules, which is the order of the blocks."""
    for name, module in model.named_modules():
        if not is_layer(module):
            continue
        wrapper, _, layer = name.rpartition(".")
        block, _, attribute = wrapper.rpartition(".")
        parent = model.get_submodule(block)
        if attribute and f"bn_{attribute}" in parent._modules:
            yield Placement(wrapper, layer, model.get_submodule(wrapper), parent)


class AddedRetrievals:
    """Handovers and stand-ins where `block.<attribute>` is a site that the block adds last.

    The first layer of a list of sources can't be removed: it also begins the list.
    """

    channel_axis = MAPS

    def handovers(self, model: nn.Module, stage: Stage) -> dict[str, Handover]:
        removable = stage.sites[1:] if stage.kind == "softmax" else stage.sites
        return {
            site.name: added_retrieval(
                site.name.rpartition(".")[0], site.name, channel_axis=self.channel_axis
            )
            for site in removable
        }

    def stand_in(self, model: nn.Module, site: str, coefficients: Tensor) -> None:
        block = model.get_submodule(site.rpartition(".")[0])
        put_after(block, StandIn(coefficients, channel_axis=self.channel_axis))


def has_projections(module: nn.Module) -> bool:
    """Whether it has the query, key and value of MRLA.

    These are two 1-D convolutions along the channels of a pooled descriptor, and a depthwise 2-D
    convolution.
    """
    parts = module._modules
    value = parts.get("Wv")
    return (
        all(along_channels(parts.get(name)) for name in ("Wq", "Wk"))
        and isinstance(value, nn.Conv2d)
        and value.groups == value.in_channels == value.out_channels
    )


def along_channels(module: nn.Module | None) -> bool:
    """Whether it is a 1-D convolution with one input and one output channel."""
    return isinstance(module, nn.Conv1d) and module.in_channels == module.out_channels == 1


def container(model: nn.Module, name: str) -> str:
    """The name of the innermost list of modules that holds a module, else of its parent."""
    parent = name
    while parent:
        parent = parent.rpartition(".")[0]
        if isinstance(model.get_submodule(parent), nn.ModuleList | nn.Sequential):
            return parent
    return name.rpartition(".")[0]


def stage_name(model: nn.Module, first: str, taken: Iterable[str]) -> str:
    """The name of the list with the first site of a stage, or that site if the name is taken."""
    name = container(model, first)
    return first if name in taken or not name else name
