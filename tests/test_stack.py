"""The operators of layer attention against their definitions in plain PyTorch."""

import gc
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ela_probe.evaluation.peak_memory import peak_bytes
from ela_probe.models.descriptor import describe, descriptor_conv, project
from ela_probe.models.mrla import MRLABase
from ela_probe.models.norm_relu_add import norm_relu_add
from ela_probe.models.registry import create_model
from ela_probe.models.rows import Rows
from ela_probe.models.stack import Stack
from ela_probe.models.weighted_sum import plain_dot, plain_sum, weighted_sum

CHANNELS_LAST = torch.channels_last
FORMATS = [torch.contiguous_format, CHANNELS_LAST]


def maps(count: int, *, heads: int = 2, depth: int = 3, last: bool = False) -> list[Tensor]:
    memory = CHANNELS_LAST if last else torch.contiguous_format
    shape = (2, heads * depth, 3, 4)
    return [
        torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory).requires_grad_()
        for _ in range(count)
    ]


@given(count=st.integers(1, 4), heads=st.integers(1, 3), last=st.booleans())
def test_the_sum_is_the_einsum_and_has_its_gradients(count: int, heads: int, last: bool) -> None:
    sources = maps(count, heads=heads, last=last)
    rows = Rows.of_maps(sources[0], heads)
    weights = torch.rand(2, heads, count, dtype=torch.float64, requires_grad=True)
    split = torch.stack(sources, dim=-1).unflatten(1, (heads, -1))
    expected = torch.einsum("nkdhws,nks->nkdhw", split, weights).flatten(1, 2)
    for form in (plain_sum, weighted_sum):
        result = form(weights, sources, rows)
        torch.testing.assert_close(result, expected)
        assert result.is_contiguous(memory_format=CHANNELS_LAST) or not last
    assert torch.autograd.gradcheck(
        lambda w, *v: weighted_sum(w, v, rows), (weights, *sources), fast_mode=True
    )


def a_stage(
    values: list[Tensor],
    keys: list[Tensor],
    queries: list[Tensor | None],
    rows: Rows,
    *,
    stacked: bool,
) -> list[Tensor]:
    """What the sites with a query retrieve; where it is None the layer is a source only."""
    key_rows = Rows(keys[0].shape)
    stack, key_stack, retrieved = Stack(len(values)), Stack(len(values)), []
    for t, query in enumerate(queries):
        if query is None:
            stack = stack.append(values[t], rows)
            key_stack = key_stack.append(keys[t], key_rows)
        elif stacked:
            logits, key_stack = key_stack.append_and_dot(keys[t], query, key_rows)
            total, stack = stack.append_and_sum(values[t], logits.softmax(dim=-1), rows)
            retrieved.append(total)
        else:
            weights = plain_dot(query, keys[: t + 1]).softmax(dim=-1)
            retrieved.append(plain_sum(weights, values[: t + 1], rows))
    return retrieved


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("skipped", [(), (1,), (0, 2), (3,)])
def test_a_stage_over_stacks_is_one_over_lists(skipped: tuple[int, ...], last: bool) -> None:
    torch.manual_seed(0)
    values = maps(4, last=last)
    rows = [torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(8)]
    keys, queries = rows[:4], [None if t in skipped else rows[4 + t] for t in range(4)]
    leaves = [*values, *keys, *(query for query in queries if query is not None)]
    figures = []
    for stacked in (False, True):
        out = a_stage(values, keys, queries, Rows.of_maps(values[0], 2), stacked=stacked)
        loss = torch.stack([(x.sin() * (t + 1)).sum() for t, x in enumerate(out)]).sum()
        figures.append([*out, *torch.autograd.grad(loss, leaves, materialize_grads=True)])
    torch.testing.assert_close(figures[1], figures[0])


def test_a_backward_pass_leaves_nothing_to_the_next() -> None:
    """Whether it went over a part of the graph only, or over all of it, or twice."""
    values = maps(3)
    rows = Rows.of_maps(values[0], 2)
    weights = [torch.rand(2, 2, t + 1, dtype=torch.float64, requires_grad=True) for t in range(3)]
    stack, sums = Stack(3), []
    for value, weight in zip(values, weights, strict=True):
        total, stack = stack.append_and_sum(value, weight, rows)
        sums.append(total)
    plain = [plain_sum(w, values[: t + 1], rows) for t, w in enumerate(weights)]
    for wanted in ([weights[2]], [*values[1:]], [*values, *weights], [values[0]], [*values]):
        for which in ([2], [0, 1, 2], [1]):
            results = [
                torch.autograd.grad(
                    torch.stack([outputs[t].square().sum() for t in which]).sum(),
                    wanted,
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                for outputs in (plain, sums)
            ]
            torch.testing.assert_close(results[1], results[0])


def test_sources_beyond_the_capacity_are_not_kept() -> None:
    stack, values = Stack(1), maps(2)
    for value in values:
        stack = stack.append(value, Rows.of_maps(value, 2))
    assert stack.count == 1


@pytest.mark.parametrize("capacity", [0, 1, 3])
def test_two_branches_from_one_stack_do_not_disturb_each_other(capacity: int) -> None:
    """A stack never changes. One that was made too small grows."""
    values = maps(4)
    rows = Rows.of_maps(values[0], 2)
    weights = [torch.rand(2, 2, n, dtype=torch.float64, requires_grad=True) for n in (1, 2, 2, 3)]
    sums, (first, *others) = [], values
    total, root = Stack(capacity).append_and_sum(first, weights[0], rows)
    sums.append(total)
    for value, weight in zip(others[:2], weights[1:3], strict=True):
        total, branch = root.append_and_sum(value, weight, rows)
        sums.append(total)
    sums.append(branch.append_and_sum(values[3], weights[3], rows)[0])
    read = [values[:1], values[:2], [values[0], values[2]], [values[0], *values[2:]]]
    plain = [plain_sum(w, sources, rows) for w, sources in zip(weights, read, strict=True)]
    figures = []
    for outputs in (sums, plain):
        loss = torch.stack([(x.sin() * (t + 1)).sum() for t, x in enumerate(outputs)]).sum()
        figures.append([*outputs, *torch.autograd.grad(loss, [*values, *weights])])
    torch.testing.assert_close(figures[0], figures[1])


def test_a_value_is_stored_once() -> None:
    """Memory of a stage grows with its depth, not with its square."""

    def peak(sites: int) -> int:
        values = [torch.randn(2, 8, 16, 16, requires_grad=True) for _ in range(sites)]
        rows = Rows.of_maps(values[0], 1)

        def work() -> None:
            stack = Stack(sites)
            total = torch.zeros(())
            for t, value in enumerate(values):
                result, stack = stack.append_and_sum(value, torch.rand(2, 1, t + 1), rows)
                total = total + result.sum()
            total.backward()

        return peak_bytes(work)

    assert peak(16) < 2.2 * peak(8)


def test_the_block_goes_with_the_graph_that_saved_it() -> None:
    values = maps(2)
    stack = Stack(2)
    rows = Rows.of_maps(values[0], 2)
    stack = stack.append(values[0], rows)
    weights = torch.rand(2, 2, 2, dtype=torch.float64)
    total, stack = stack.append_and_sum(values[1], weights, rows)
    loss = total.sum()
    block = StorageWeakRef(stack.tensors[0].untyped_storage())
    del stack, total
    assert not block.expired()
    loss.backward()
    gc.collect()
    assert block.expired()  # though the loss is still there


@pytest.mark.parametrize("memory", FORMATS)
def test_norm_relu_add_is_what_it_says(memory: torch.memory_format) -> None:
    torch.manual_seed(0)
    figures = []
    norm = nn.BatchNorm2d(3, dtype=torch.float64)
    nn.init.uniform_(norm.weight, -1.0, 1.0)
    nn.init.normal_(norm.bias)
    inputs = [
        torch.randn(4, 3, 5, 5, dtype=torch.float64).contiguous(memory_format=memory)
        for _ in range(2)
    ]
    state = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    forms: list[Callable[..., Tensor]] = [lambda n, o, x: x + F.relu(n(o)), norm_relu_add]
    for form in forms:
        norm.load_state_dict(state)
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out = form(norm, *leaves)
        gradients = torch.autograd.grad(out.sin().sum(), [*leaves, *norm.parameters()])
        figures.append([out, *gradients, *(b.clone() for b in norm.buffers())])
    torch.testing.assert_close(figures[1], figures[0])
    assert figures[1][0].is_contiguous(memory_format=memory)


def test_hooks_of_the_norm_still_fire() -> None:
    norm, fired = nn.BatchNorm2d(2), []
    norm.register_forward_hook(lambda *_: fired.append(1))
    norm_relu_add(norm, torch.randn(2, 2, 3, 3, requires_grad=True), torch.randn(2, 2, 3, 3))
    assert fired


def test_a_projection_is_the_convolutions_of_the_descriptor() -> None:
    for channels in (8, 64, 256):
        convolutions = [descriptor_conv(channels).double() for _ in range(2)]
        x = torch.randn(3, channels, 2, 2, dtype=torch.float64, requires_grad=True)
        assert describe(x).shape == (3, 1, channels)
        leaves = [x, *(convolution.weight for convolution in convolutions)]
        figures = []
        for parts in (
            project(x, *convolutions),
            [convolution(describe(x)).squeeze(1) for convolution in convolutions],
        ):
            loss = parts[0].sin().sum() + parts[1].cos().sum()
            figures.append([*parts, *torch.autograd.grad(loss, leaves)])
        torch.testing.assert_close(figures[0], figures[1])


def test_a_descriptor_stays_in_the_range_of_float16() -> None:
    maps = torch.full((1, 2, 112, 112), 100.0, dtype=torch.float16)
    torch.testing.assert_close(describe(maps), torch.full((1, 1, 2), 100.0, dtype=torch.float16))


@pytest.mark.slow
@pytest.mark.parametrize("memory", FORMATS)
def test_a_compiled_network_is_the_eager_one(memory: torch.memory_format) -> None:
    """In one graph: `fullgraph` raises where it would break."""
    torch.manual_seed(0)
    model = create_model("mrla_b_resnet14").double().to(memory_format=memory)
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64).contiguous(memory_format=memory)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    figures = []
    for form in (model, compiled):
        loss = form(images).square().sum()
        figures.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(figures[1], figures[0])


def test_a_training_step_in_bfloat16_stays_near_the_one_in_float32() -> None:
    torch.manual_seed(0)
    model = create_model("mrla_b_resnet14")
    images = torch.randn(8, 3, 16, 16)
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(images).float().square().mean()
        loss.backward()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_modules_names_are_those_of_checkpoints() -> None:
    assert [name for name, _ in MRLABase(16).named_parameters()] == [
        "key.weight", "value.weight", "query.weight", "norm.weight", "norm.bias"
    ]  # fmt: skip
