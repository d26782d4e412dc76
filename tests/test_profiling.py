"""What a model costs: closed forms, and that measuring changes nothing."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ela_probe.discovery.discover import discover
from ela_probe.errors import DataError, OptionError
from ela_probe.evaluation.compare import CompareEntry, compare
from ela_probe.evaluation.comparison import Comparison, Timing
from ela_probe.evaluation.peak_memory import peak_bytes
from ela_probe.evaluation.profiling import (
    alternate,
    count_flops,
    measure_latency,
    measure_memory,
)
from ela_probe.models.registry import create_model, parameter_count
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.prune import prune
from ela_probe.sites import Action

CLASSES = 10


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(4, 3, 16, 16, generator=generator),
        torch.randint(CLASSES, (4,), generator=generator),
    )


def record(model: nn.Module) -> list[object]:
    """All of a model that measuring could disturb."""
    return [
        (
            name,
            module.training,
            list(module._forward_hooks),
            list(module._forward_pre_hooks),
            list(module._backward_hooks),
            [(n, p.grad is None, p.requires_grad) for n, p in module.named_parameters()],
        )
        for name, module in model.named_modules()
    ]


@pytest.fixture
def untouched() -> Iterator[nn.Module]:
    """A model with mixed modes and a hook of its user's, checked afterwards."""
    model: Any = create_model("mrla_b_resnet8", drop_path=0.2).train()
    model.stages[1].eval()
    model.fc.register_forward_hook(lambda module, inputs, output: None)
    before, state = record(model), {n: v.clone() for n, v in model.state_dict().items()}
    random = torch.get_rng_state()
    yield model
    assert record(model) == before
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_flops_of_a_linear_layer_are_two_per_weight() -> None:
    assert count_flops(nn.Linear(30, 7), (30,)) == 2 * 30 * 7


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (4, 1), (1, 2)])
def test_flops_of_a_convolution_are_two_per_weight_and_place(groups: int, stride: int) -> None:
    layer = nn.Conv2d(4, 8, 3, stride, padding=1, groups=groups)
    places = (10 // stride) * (6 // stride)
    assert count_flops(layer, (4, 10, 6)) == 2 * 8 * (4 // groups) * 9 * places


def test_flops_do_not_touch_the_model(untouched: nn.Module) -> None:
    assert count_flops(untouched, (3, 16, 16)) > 0


def test_peak_of_a_chain_is_its_two_largest_neighbours() -> None:
    def chain() -> None:
        a = torch.zeros(1000)
        b = torch.zeros(5000)
        del a
        c = torch.zeros(3000)
        del b, c
        torch.zeros(4000)

    assert peak_bytes(chain) == 4 * (5000 + 3000)


def test_views_and_in_place_work_on_older_tensors_take_no_memory() -> None:
    old = torch.ones(1000)

    def work() -> Tensor:
        old.mul_(2.0)
        return old.view(10, 100)[3:].t()

    assert peak_bytes(work) == 0


def test_a_view_keeps_its_storage_alive() -> None:
    def work() -> None:
        view = torch.zeros(5000)[:2]
        torch.zeros(3000)
        del view

    assert peak_bytes(work) == 4 * 8000


def test_what_backward_needs_counts_until_it_is_freed() -> None:
    x = torch.ones(1000, requires_grad=True)

    def work() -> None:
        # exp keeps its result for backward: each link of the chain adds one tensor
        y = x
        for _ in range(5):
            y = y.exp() * 0.1
        del y

    # five results of exp are kept, the last product beside them; each product is freed by the next
    assert 4 * 6000 <= peak_bytes(work) <= 4 * 7000


def test_memory_of_training_exceeds_inference_and_changes_nothing(
    untouched: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    memory = measure_memory(untouched, batch)
    assert memory.training > memory.inference > batch[0].nbytes


def test_contestants_alternate_and_the_order_rotates() -> None:
    calls: list[str] = []
    contestants = {name: lambda name=name: calls.append(name) for name in "ABC"}
    seconds = alternate(contestants, rounds=3, warmup=1, progress=False)
    assert "".join(calls) == "ABCBCACABABC"
    assert {name: len(taken) for name, taken in seconds.items()} == {"A": 3, "B": 3, "C": 3}


def test_ratios_are_formed_within_rounds() -> None:
    timing = Timing.of([2.0, 4.0, 60.0], [1.0, 2.0, 30.0])
    assert (timing.median, timing.ratio, timing.ratio_lower, timing.ratio_upper) == (4, 2, 2, 2)


def test_latency_touches_no_model_and_compares_with_the_first(
    untouched: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    models = {"first": untouched, "second": untouched}
    latency = measure_latency(models, batch, repeats=2, warmup=0, progress=False)
    assert list(latency) == ["first", "second"]
    assert latency["first"].training.ratio == latency["first"].inference.ratio == 1.0
    assert latency["second"].training.rounds == 2


def test_nothing_to_measure_is_an_error(batch: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(OptionError, match="no model"):
        measure_latency({}, batch)
    with pytest.raises(OptionError, match="0 rounds"):
        alternate({"a": lambda: None}, rounds=0)


def test_comparison_counts_evaluates_and_survives_json(batch: tuple[Tensor, Tensor]) -> None:
    full = create_model("mrla_b_resnet14")
    plan = every_second(full)
    pruned = prune(full, plan)
    entries = [
        CompareEntry("full", full),
        CompareEntry("pruned", pruned, len(plan.skipped)),
        CompareEntry("plain", create_model("resnet14")),
    ]
    modes = [record(entry.model) for entry in entries]
    result = compare(entries, [batch, batch], repeats=1, warmup=0, progress=False)

    assert [(m.kept, m.skipped) for m in result.models] == [(6, 0), (3, 3), (0, 0)]
    assert [m.parameters for m in result.models] == [parameter_count(e.model) for e in entries]
    assert result.models[0].samples == 8
    assert result.models[0].flops > result.models[1].flops > result.models[2].flops
    assert result.models[0].memory.training > result.models[1].memory.training
    assert [record(entry.model) for entry in entries] == modes

    text = json.dumps(result.to_dict(), allow_nan=False)
    assert Comparison.model_validate_json(text) == result
    headings, rows = result.table()
    assert {len(row) for row in rows} == {len(headings)}
    assert result.to_frame().loc["plain", "latency.training.rounds"] == 1


def test_comparing_nothing_or_the_same_name_twice_is_an_error(batch: tuple[Tensor, Tensor]) -> None:
    twice = [CompareEntry("a", create_model("resnet8")) for _ in range(2)]
    with pytest.raises(OptionError, match="with different names"):
        compare(twice, [batch])
    with pytest.raises(OptionError, match="one or more"):
        compare([], [batch])
    with pytest.raises(DataError, match="split is empty"):
        compare(twice[:1], [])


def every_second(model: nn.Module) -> SkipPlan:
    """A plan that skips the second of each pair of sites."""
    stages = discover(model).stages
    second: dict[str, Action] = {
        site.name: "skip" for stage in stages for site in stage.sites[1::2]
    }
    return SkipPlan.for_actions(stages, second)
