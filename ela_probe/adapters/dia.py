"""DIA as published (arXiv 1905.10671): a recurrent cell that a stage shares gates channels.

It gates the channels of the output of each block. A stage has a list of blocks and a cell with
`w_ih`, `w_hh`, `nlayers` and four gates.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ela_probe.adapters.handover import Alternatives, Handover
from ela_probe.adapters.registry import ReadOnlyAdapter, register_adapter
from ela_probe.adapters.replacements import refuse_recur
from ela_probe.adapters.weights import normalised
from ela_probe.sites import Action, Site, Stage


class DIAAdapter(ReadOnlyAdapter):
    """Sites are the calls of the cell, `<cell>@<call>`; the weights are over channels, not layers.

    With `skip` the output of a block is not gated, but the cell still reads the block. With `drop`
    the cell does not run either. The parameters of the cell stay, since the calls share them.
    """

    name = "dia"

    def matches(self, model: nn.Module) -> bool:
        return any(True for _ in recurrences(model))

    def stages(self, model: nn.Module) -> list[Stage]:
        stages = []
        for found in recurrences(model):
            cell, module = found.cell, found.name
            actions: list[Action] = ["keep"] * found.calls
            if isinstance(cell, SelectiveCell):
                actions, module = cell.actions, f"{module}.cell"
                cell = cell.cell
            channels = gates_and_channels(cell)[1]
            fired = [call for call, action in enumerate(actions) if action != "drop"]
            sites = [
                Site(
                    f"{found.name}@{call}",
                    module,
                    channels,
                    "output",
                    call=firing,
                    calls=len(fired),
                )
                for firing, call in enumerate(fired)
                if actions[call] == "keep"
            ]
            stages.append(Stage(found.stage, "channel", tuple(sites)))
        return stages

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """The state of the last layer, normalised; read is [layers, samples, channels]."""
        return [normalised(tensors[0][-1]) for tensors in captured]

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        refuse_recur(actions)
        for found in list(recurrences(model)):
            chosen = {
                call: actions.get(f"{found.name}@{call}", "keep") for call in range(found.calls)
            }
            if all(action == "keep" for action in chosen.values()):
                continue
            cell = found.cell
            if not isinstance(cell, SelectiveCell):
                cell = SelectiveCell(cell, found.calls).train(cell.training)
                model.set_submodule(found.name, cell)
            cell.actions = [
                action if action != "keep" else before
                for before, action in zip(cell.actions, chosen.values(), strict=True)
            ]

    def handovers(self, model: nn.Module, stage: Stage) -> dict[str, Handover]:
        """What a call hands on is its gates, and ones without it. It does so in `GatesApart`."""
        apart = {found.name: GatesApart(found.name, found.calls) for found in recurrences(model)}
        placed = {site.name: site.name.rpartition("@") for site in stage.sites}
        return {
            site: gates_handover(f"{cell}.{TAPS}.{call}", apart[cell])
            for site, (cell, _, call) in placed.items()
        }


class SelectiveCell(nn.Module):
    """The cell of a stage, run and applied only where a plan keeps it.

    The stage passes the memory of the cell from call to call without reading it. This module puts
    the number of the call and the state there too, so that nothing is kept between passes.
    """

    def __init__(self, cell: nn.Module, calls: int) -> None:
        super().__init__()
        self.cell = cell
        self.actions: list[Action] = ["keep"] * calls

    def forward(self, descriptor: Tensor, hidden: tuple[Any, Any]) -> tuple[Tensor, Any]:
        """descriptor: [b, c]; hidden: two of [layers, b, c], or the result of the call before."""
        state, memory = hidden
        call = 0
        if isinstance(memory, tuple):
            call, state, memory = memory
        action = self.actions[call]
        if action != "drop":
            state, memory = self.cell(descriptor, (state, memory))
        gates = state if action == "keep" else state.new_ones(()).expand_as(state)
        return gates, (call + 1, state, memory)


TAPS = "gates_of_calls"


class GateTap(nn.Module):
    """Takes the state of a call, [layers, b, c], and returns its last layer, the gates [b, c]."""

    def forward(self, state: Tensor) -> Tensor:
        return state[-1]


class Apart(NamedTuple):
    """What a stage passes on to the next call in `GatesApart`: the number of that call besides."""

    call: int
    state: Tensor
    memory: Any


@dataclass(frozen=True)
class GatesApart:
    """Opens a block in which the gates of each call of a cell come out of a module of their own.

    A cell's state is both the gates and what its next call reads. In the block a change of the
    gates, and their gradient, is that of the gates alone. The names of parameters stay.

    Args:
        cell: its qualified name. calls: how many a pass has.
    """

    cell: str
    calls: int

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[None]:
        cell = model.get_submodule(self.cell)
        if TAPS in cell._modules:  # inside such a block already
            yield
            return
        own, run = vars(cell).get("forward"), cell.forward
        taps = nn.ModuleList(GateTap() for _ in range(self.calls)).train(cell.training)

        def forward(descriptor: Tensor, hidden: tuple[Any, Any]) -> tuple[Tensor, Apart]:
            state, memory = hidden
            call = 0
            if isinstance(memory, Apart):
                call, state, memory = memory
            state, memory = run(descriptor, (state, memory))
            gates = torch.cat([state[:-1], taps[call](state)[None]])
            return gates, Apart(call + 1, state, memory)

        cell.add_module(TAPS, taps)
        cell.forward = forward
        try:
            yield
        finally:
            del cell._modules[TAPS], cell.forward
            if own is not None:
                cell.forward = own


def gates_handover(tap: str, apart: GatesApart) -> Handover:
    """Of a call of a cell whose gates come out of a tap."""
    return Handover(
        tap,
        ("skip",),
        (tap,),
        lambda passed: (passed[tap].outputs[0],),
        lambda gates: Alternatives(gates, (torch.ones_like(gates),)),
        channel_axis=-1,
        within=apart,
    )


class Recurrence(NamedTuple):
    """A cell with its name in the model, the name of its stage, and its calls in one pass."""

    name: str
    stage: str
    cell: nn.Module
    calls: int


def recurrences(model: nn.Module) -> Iterator[Recurrence]:
    """The stages of a model: each a list of blocks and the cell that gates them."""
    for stage, module in model.named_modules():
        lists = (nn.ModuleList, nn.Sequential)
        blocks = [part for part in module.children() if isinstance(part, lists)]
        cells = [(name, part) for name, part in module.named_children() if is_cell(part)]
        if len(blocks) == len(cells) == 1 and not isinstance(module, SelectiveCell):
            name, cell = cells[0]
            name = f"{stage}.{name}" if stage else name
            yield Recurrence(name, stage or name, cell, len(blocks[0]))


def is_cell(module: nn.Module) -> bool:
    """Whether it is DIA's cell, also after pruning."""
    if isinstance(module, SelectiveCell):
        return True
    inputs, states = module._modules.get("w_ih"), module._modules.get("w_hh")
    layers = getattr(module, "nlayers", None)
    return (
        isinstance(inputs, nn.ModuleList)
        and isinstance(states, nn.ModuleList)
        and len(inputs) == len(states) == layers
        and gates_and_channels(module)[0] == 4
    )


def gates_and_channels(cell: nn.Module) -> tuple[float, int]:
    """The numbers of gates and of channels of a cell; (0, 0) where they are unknown."""
    last = list(cell.get_submodule("w_hh").children())[-1]
    linear = [part for part in last.modules() if isinstance(part, nn.Linear)]
    if not linear:
        return 0, 0
    channels = linear[0].in_features
    return linear[-1].out_features / channels, channels


register_adapter(DIAAdapter())
