"""Which calls read one growing list: told by the tensors that they read, not by their lengths."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ela_probe.discovery.calls import Call
from ela_probe.discovery.growth import growing_runs
from ela_probe.discovery.lineage import Lineage

Join = Callable[[Sequence[Tensor]], Tensor]


def appended(sources: Sequence[Tensor]) -> Tensor:
    """The list as published code keeps it: each time one more behind what was joined before."""
    joined = sources[0][None]
    for source in sources[1:]:
        joined = torch.cat([joined, source.unsqueeze(0)])
    return joined


def by_parts(sources: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.stack(list(sources[:1])), *(s.view(1, -1) for s in sources[1:])], 0)


def projected(sources: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(sources)).tanh() * 0.5


JOINS: tuple[Join, ...] = (
    lambda sources: torch.stack(list(sources)),
    appended,
    by_parts,
    projected,
)


def called(lineage: Lineage, weights: Tensor, order: int) -> Call:
    return Call(
        order, f"layers.{order}", "layers.*", "Layer", "softmax", "softmax", 0, 0,
        tuple(weights.shape), node=lineage.node(weights), batch_axis=1,
    )  # fmt: skip


class Script:
    """A forward pass of appends and reads: `run("a+ a? b+ a+ a?")` appends to a, reads a, ..."""

    def __init__(self, join: Join = JOINS[0], *, window: int | None = None) -> None:
        self.lineage, self.join, self.window = Lineage(nn.Identity()), join, window
        self.calls: list[Call] = []
        self.reads: dict[str, list[int]] = {}

    def run(self, script: str) -> list[list[int]]:
        """The orders of the calls of each run that is found."""
        lists: dict[str, list[Tensor]] = {}
        with self.lineage:
            x = torch.randn(6)
            for step in script.split():
                name, action = step[0], step[1]
                sources = lists.setdefault(name, [])
                if action == "+":
                    x = (x + torch.randn(6)).tanh()
                    sources.append(x)
                elif sources:
                    x = x + self.read(name, sources, x)
        return [[call.order for call in run] for run in growing_runs(self.calls, self.lineage)]

    def read(self, name: str, sources: list[Tensor], query: Tensor) -> Tensor:
        joined = self.join(sources[-self.window :] if self.window else sources)
        weights = (joined * query).softmax(0)
        self.reads.setdefault(name, []).append(len(self.calls))
        order = len(self.calls)
        call = called(self.lineage, weights, order)
        self.calls.append(replace(call, starred_name=f"layers.*.{name}", lines=(name,)))
        return (weights * joined).sum(0)


actions = st.lists(
    st.sampled_from([name + action for name in "abc" for action in "+?+"]), max_size=25
).map(" ".join)


@given(script=actions, join=st.sampled_from(JOINS))
def test_reads_of_one_list_are_one_run_however_they_take_turns(script: str, join: Join) -> None:
    made = Script(join)
    found = made.run(script)
    expected = [
        orders
        for orders in made.reads.values()
        if len({made.calls[order].length for order in orders}) > 1
    ]
    assert found == sorted(expected)


@pytest.mark.parametrize(
    ("script", "runs"),
    [
        ("a+ a? a+ a? a+ a?", [[0, 1, 2]]),
        ("a+ a? a? a+ a? a? a+", [[0, 1, 2, 3]]),  # two readers a layer
        ("a+ b+ a? b? a+ b+ a? b?", [[0, 2], [1, 3]]),  # a list each
        ("a+ a+ a+ a+ a? a+ a+ a+ a+ a? a+ a+ a?", [[0, 1, 2]]),  # by blocks
        ("a+ a? a? a?", []),
        ("a+ a+ a?", []),
    ],
)
@pytest.mark.parametrize("join", JOINS)
def test_runs_are_told_apart(script: str, runs: list[list[int]], join: Join) -> None:
    assert Script(join).run(script) == runs


def test_a_window_that_moves_is_no_growing_list() -> None:
    assert Script(window=2).run("a+ a? a+ a? a+ a? a+ a?") == [[0, 1]]


def test_a_stage_of_one_site_is_one_where_others_of_its_place_grow() -> None:
    made = Script()
    with made.lineage:
        x = torch.randn(6)
        for depth in (1, 3, 1):
            sources = []
            for _ in range(depth):
                sources.append(x)
                x = (x + made.read("a", sources, x)).tanh()
    found = growing_runs(made.calls, made.lineage)
    assert [[call.order for call in run] for run in found] == [[0], [1, 2, 3], [4]]


@pytest.mark.parametrize("block", [1, 2, 3])
def test_the_last_source_may_be_a_sum_that_goes_on(block: int) -> None:
    """Attention Residuals in blocks: the newest source is the sum of a block so far."""
    lineage, calls = Lineage(nn.Identity()), []
    with lineage:
        done, partial = [torch.randn(6)], torch.zeros(6)
        for step in range(9):
            sources = torch.stack([*done, partial] if step % block else done)
            weights = sources.softmax(0)
            calls.append(called(lineage, weights, step))
            out = (weights * sources).sum(0).tanh()
            partial = partial + out if step % block else out
            if step % block == block - 1:
                done = [*done, partial]
    (run,) = growing_runs(calls, lineage)
    assert run == calls


@pytest.mark.parametrize(
    "grow",
    [
        lambda lists, x: [*(source * 1.1 for source in reversed(lists)), x],  # another order
        lambda lists, x: [*(torch.randn(6) for _ in lists), x],  # nothing from before
        lambda lists, x: [x, *lists],  # new ones in front
    ],
)
def test_a_list_of_other_tensors_does_not_continue(grow: Callable[..., list[Tensor]]) -> None:
    lineage, calls = Lineage(nn.Identity()), []
    with lineage:
        x = torch.randn(6)
        sources = [x, x + 1]
        for order in range(4):
            stacked = torch.stack(sources)
            weights = stacked.softmax(0)
            calls.append(called(lineage, weights, order))
            x = (weights * stacked).sum(0).tanh()
            sources = grow(sources, x)
    assert growing_runs(calls, lineage) == []


def test_learned_tensors_are_no_sources() -> None:
    model = nn.ParameterList(torch.randn(6) for _ in range(5))
    lineage, calls = Lineage(model), []
    with lineage:
        x = torch.randn(6)
        for order in range(4):
            keys = torch.stack(list(model[: order + 1]))
            weights = (keys * x).softmax(0)
            calls.append(called(lineage, weights, order))
            x = x + (weights * keys).sum(0)
    assert growing_runs(calls, lineage) == []


def test_nothing_of_a_pass_is_kept_alive() -> None:
    import gc
    import weakref

    lineage = Lineage(nn.Identity())
    with lineage:
        x = torch.randn(6)
        y = torch.stack([x.tanh(), x]).softmax(0)
    alive = [weakref.ref(x), weakref.ref(y)]
    del x, y
    gc.collect()
    assert [ref() for ref in alive] == [None, None]
