"""Small networks of the zoo, whole and pruned, under everything that PyTorch does with networks.

Each use is compared with the ordinary forward and backward pass, in float64 up to rounding. The
hand-written functions work in the ordinary pass, and plain operations under most uses, so the two
also check each other. docs/models.md has the table.
"""

import copy
import functools
import operator
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import prune as masks
from torch.utils.checkpoint import checkpoint

from ela_probe import create_model, discover, prune
from ela_probe.errors import PlanError
from ela_probe.models.attention_mechanisms import MECHANISMS
from ela_probe.models.attnres import Sublayer
from ela_probe.models.blocks import Block
from ela_probe.models.resnet import Layout, ResNet
from ela_probe.pruning.plan import SkipPlan, encode_stand_in
from ela_probe.sites import Action
from tests.support.identities import assert_same

ARGUMENTS: dict[str, dict[str, object]] = {
    "se": {"reduction": 4},
    "cbam": {"reduction": 4},
    "rla_g": {"hidden": 4},
    **{name: {"head_dim": 4} for name in ("mrla_b", "mrla_l", "dla_b", "dla_l")},
}
TOKENS = {"dim": 8, "heads": 2, "kv_heads": 1, "vocab_size": 11}
# By network, an action for each of its sites after the first.
PLANS: dict[str, list[Action]] = {
    "mrla_b": ["skip", "recur", "recur"],
    "mrla_l": ["affine", "drop", "keep"],
    "dla_b": ["skip", "drop", "keep"],
    "dla_l": ["skip", "keep", "drop"],
    "dia": ["skip", "drop", "keep"],
    "attnres": ["recur", "affine", "keep", "drop", "keep", "recur"],
    "attnres_block": ["skip", "keep", "recur", "keep", "keep", "skip"],
}
WHOLE = [*MECHANISMS, "gpt", "attnres", "attnres_block"]
PRUNED = [f"{name}, pruned" for name in PLANS]
NETWORKS = [*WHOLE, *PRUNED]
DYNAMO_ONNX = (2, 9)  # the torch whose dynamo exporter is no longer a preview

Network = tuple[nn.Module, Tensor]


@functools.cache
def built(name: str) -> nn.Module:
    whole, _, pruned = name.partition(", ")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if whole in MECHANISMS:
            mechanism = MECHANISMS[whole](**ARGUMENTS.get(whole, {}))
            blocks = 4 if pruned else 3
            model: nn.Module = ResNet(
                Layout("small", (blocks,), (8,), "basic"), mechanism, num_classes=3
            )
        else:
            block = {"block_size": 2} if whole == "attnres_block" else {}
            model = create_model(f"{whole}{3 if pruned else 2}", **TOKENS, **block)
        for module in model.modules():  # far from the start, where some derivatives vanish
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            elif isinstance(module, Sublayer) and whole != "gpt":
                nn.init.normal_(module.retrieval.query)  # type: ignore[arg-type]
    if pruned:
        (stage,) = discover(model).stages
        names = [site.name for site in stage.sites[1:]]
        actions = dict(zip(names, PLANS[whole], strict=True))
        generator = np.random.default_rng(0)  # a stand-in has two rows here, and eight channels
        stand_ins = {
            name: {"stand_in": encode_stand_in(generator.normal(size=(2, 8)).astype(np.float32))}
            for name, action in actions.items()
            if action == "affine"
        }
        model = prune(model, SkipPlan.for_actions([stage], actions, figures=stand_ins))
    return model.double()


def network(name: str, *, batch: int = 2) -> Network:
    """A network in training, and inputs."""
    generator = torch.Generator().manual_seed(1)
    if name.partition(",")[0] in MECHANISMS:
        return copy.deepcopy(built(name)), torch.randn(
            batch, 3, 8, 8, generator=generator, dtype=torch.float64
        )
    return copy.deepcopy(built(name)), torch.randint(0, 11, (batch, 5), generator=generator)


def loss_of(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs).sin().sum()


def stepped(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """The loss and the gradients of all parameters, by `backward`."""
    model.zero_grad()
    loss = loss_of(model, inputs)
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return [loss.detach(), *gradients]


def derived(loss: Tensor, model: nn.Module, *, create_graph: bool = False) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        loss, list(model.parameters()), materialize_grads=True, create_graph=create_graph
    )


def each(names: list[str]) -> Callable[..., None]:
    return pytest.mark.parametrize("name", names)


class Checkpointed(nn.Module):
    """Keeps the inputs of a module for the backward pass, and nothing else."""

    def __init__(self, module: nn.Module, *, reentrant: bool) -> None:
        super().__init__()
        self.module, self.reentrant = module, reentrant
        self.retrieval = module.retrieval

    def forward(self, *arguments: object) -> object:
        return checkpoint(self.module, *arguments, use_reentrant=self.reentrant)


def checkpointed(model: nn.Module, *, reentrant: bool) -> nn.Module:
    """A copy that shares nothing, whose blocks or sublayers are checkpointed one by one."""
    model = copy.deepcopy(model)
    for name, part in list(model.named_modules()):
        if isinstance(part, Block | Sublayer):
            model.set_submodule(name, Checkpointed(part, reentrant=reentrant))
    return model


@pytest.mark.parametrize("reentrant", [False, True])
@each(NETWORKS)
def test_checkpointed_blocks_have_the_same_gradients(name: str, reentrant: bool) -> None:
    model, inputs = network(name)
    assert_same(stepped(checkpointed(model, reentrant=reentrant), inputs), stepped(model, inputs))


def squares_of_gradients(parameters: dict[str, Tensor], model: nn.Module, inputs: Tensor) -> Tensor:
    def loss(parameters: dict[str, Tensor]) -> Tensor:
        buffers = {n: b.clone() for n, b in model.named_buffers()}
        return torch.func.functional_call(model, {**parameters, **buffers}, inputs).sin().sum()

    return sum(g.square().sum() for g in torch.func.grad(loss)(parameters).values())


@pytest.mark.parametrize("kept", ["all", "checkpoints"])
@each(NETWORKS)
def test_double_backward_is_that_of_plain_operations(name: str, kept: str) -> None:
    """`torch.func`, which sees plain operations only, differentiates twice as well."""
    model, inputs = network(name)
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    ours = model if kept == "all" else checkpointed(model, reentrant=False)
    with sdpa_kernel(SDPBackend.MATH):
        expected = torch.func.grad(squares_of_gradients)(parameters, model, inputs)
        gradients = derived(loss_of(ours, inputs), ours, create_graph=True)
        squares = sum(gradient.square().sum() for gradient in gradients)
        assert_same(derived(squares, ours), list(expected.values()))  # type: ignore[arg-type]


@each(NETWORKS)
def test_vmap_of_grad_gives_the_gradients_of_single_samples(name: str) -> None:
    model, inputs = network(name)
    model.eval()

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, sample[None]).sin().sum()

    parameters = {n: p.detach() for n, p in model.named_parameters()}
    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, inputs)
    for index in range(len(inputs)):
        expected = derived(loss_of(model, inputs[index : index + 1]), model)
        assert_same([gradient[index] for gradient in found.values()], expected)


@each(NETWORKS)
def test_jvp_is_the_transpose_of_the_backward_pass(name: str) -> None:
    """v · (J t) = (Jᵀ v) · t for the Jacobian J of the outputs by the parameters."""
    model, inputs = network(name)
    generator = torch.Generator().manual_seed(2)

    def like(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    parameters = {n: p.detach() for n, p in model.named_parameters()}
    tangents = {n: like(p) for n, p in parameters.items()}
    model.eval()
    with sdpa_kernel(SDPBackend.MATH):
        derivative = torch.func.jvp(
            lambda p: torch.func.functional_call(model, p, inputs), (parameters,), (tangents,)
        )[1]
    direction = like(derivative)
    gradients = derived((model(inputs) * direction).sum(), model)
    products = (g * t for g, t in zip(gradients, tangents.values(), strict=True))
    expected = functools.reduce(operator.add, (p.sum() for p in products))
    assert_same((derivative * direction).sum(), expected)


@pytest.mark.parametrize("use", ["twice", "jvp"])
def test_fused_attention_over_tokens_cannot_be_differentiated_so(use: str) -> None:
    """On a CPU, in PyTorch's words; under `sdpa_kernel(SDPBackend.MATH)` it can, see above."""
    model, inputs = network("attnres")
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="_scaled_dot_product_flash_attention_for_cpu"):
        if use == "twice":
            gradients = derived(loss_of(model, inputs), model, create_graph=True)
            derived(sum(gradient.sum() for gradient in gradients), model)  # type: ignore[arg-type]
        else:
            torch.func.jvp(
                lambda p: torch.func.functional_call(model, p, inputs),
                (parameters,) * 1,
                (parameters,),
            )


def test_vmap_in_training_is_refused_by_batch_norm() -> None:
    model, inputs = network("mrla_b")
    with pytest.raises(RuntimeError, match="running_mean or running_var"):
        torch.func.vmap(lambda sample: model(sample[None]))(inputs)


@each(NETWORKS)
def test_a_traced_network_computes_the_same(name: str) -> None:
    model, inputs = network(name)
    model.eval()
    _, others = network(name, batch=3)
    with torch.no_grad():
        traced = torch.jit.trace(model, (inputs,), check_trace=False)
        for form in (traced, torch.fx.symbolic_trace(model)):
            assert_same(form(others), model(others))


@each(["rla_g", "mrla_l, pruned", "dla_b, pruned", "dia, pruned", "attnres, pruned"])
def test_an_exported_network_computes_the_same_for_any_batch(name: str) -> None:
    model, inputs = network(name)
    model.eval()
    _, others = network(name, batch=3)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (inputs,), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        assert_same(program.module()(others), model(others))


@pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < DYNAMO_ONNX,
    reason="the dynamo exporter of this torch is a preview",
)
@each(["mrla_b", "mrla_b, pruned"])
def test_an_exported_onnx_file_computes_the_same_in_onnxruntime(name: str, tmp_path: Path) -> None:
    """In float32, whose rounding of sums in another order the tolerance covers."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, inputs = network(name)
    model = model.float().eval()
    _, others = network(name, batch=3)
    inputs, others = (x.float() if x.is_floating_point() else x for x in (inputs, others))
    file = tmp_path / "model.onnx"
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        model, (inputs,), file, dynamo=True, verbose=False, dynamic_shapes=({0: batch},)
    )
    session = onnxruntime.InferenceSession(file)
    (result,) = session.run(None, {session.get_inputs()[0].name: others.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(result), model(others), rtol=1e-4, atol=1e-4)


@each(["dla_b, pruned", "attnres, pruned"])
def test_a_compiled_network_has_the_same_gradients(name: str) -> None:
    """In one graph. tests/test_stack.py and test_recur.py also compile the backward pass."""
    model, inputs = network(name)
    expected = stepped(model, inputs)
    compiled = cast(nn.Module, torch.compile(model, fullgraph=True, backend="eager"))
    assert_same(stepped(compiled, inputs), expected)


def test_blocks_can_be_compiled_one_by_one() -> None:
    model, inputs = network("mrla_b, pruned")
    expected = stepped(model, inputs)
    for index, block in enumerate(model.stages[0]):  # type: ignore[index]
        if index:  # the first one has put its sources into a block of memory
            block.compile(backend="eager")
    assert_same(stepped(model, inputs), expected)


@each(NETWORKS)
def test_copies_and_pickles_are_the_same_network(name: str) -> None:
    model, inputs = network(name)
    expected = stepped(model, inputs)
    for form in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(stepped(form, inputs), expected)


@pytest.mark.parametrize("training", [False, True])
@each(NETWORKS)
def test_an_empty_batch_gives_an_empty_result_and_zero_gradients(name: str, training: bool) -> None:
    model, inputs = network(name)
    before = {n: b.clone() for n, b in model.named_buffers() if "num_batches" not in n}
    out = model.train(training)(inputs[:0])
    assert out.shape == (0, *model(inputs).shape[1:])
    for gradient in derived(out.sum(), model):
        assert not gradient.any()
    for buffer in before:
        assert model.get_buffer(buffer).isfinite().all()


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
@each(NETWORKS)
def test_in_bfloat16_results_stay_near_those_in_float32(name: str, how: str) -> None:
    """A bfloat16 number has 8 bits: 0.4 % each time, and a dozen layers."""
    model, inputs = network(name)
    model, inputs = model.float(), inputs.float() if inputs.is_floating_point() else inputs
    with torch.no_grad():
        expected = copy.deepcopy(model)(inputs)
    if how == "bfloat16":
        model = model.bfloat16()
        inputs = inputs.bfloat16() if inputs.is_floating_point() else inputs
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        out = model(inputs).float()
    assert (out - expected).norm() < 0.1 * expected.norm()
    assert all(gradient.isfinite().all() for gradient in derived(out.sum(), model))


@each(["mrla_b", "mrla_l", "dla_b", "attnres"])
def test_a_model_under_masks_is_trained_and_pruned_with_them(name: str) -> None:
    """`torch.nn.utils.prune` leaves tensors that are computed from others."""
    model, inputs = network(name)
    for part in list(model.modules()):
        if isinstance(part, nn.Conv2d | nn.Conv1d | nn.Linear):
            masks.random_unstructured(part, "weight", amount=0.3)
    stepped(model, inputs)  # leaves tensors that have a graph
    (stage,) = discover(model).stages
    plan = SkipPlan.for_actions([stage], {stage.sites[1].name: "skip"})
    pruned = prune(model, plan)
    assert any(masks.is_pruned(part) for part in pruned.modules())
    result = stepped(pruned, inputs)
    assert_same(stepped(pruned, inputs), result)
    for part in list(model.modules()):
        if hasattr(part, "weight_mask"):
            masks.remove(part, "weight")
    assert_same(result[0], loss_of(prune(model, plan), inputs))


def test_a_masked_query_cannot_recur() -> None:
    model, _ = network("attnres")
    (stage,) = discover(model).stages
    masks.random_unstructured(model.layers[0]["mlp"].retrieval, "query", amount=0.3)  # type: ignore[index]
    plan = SkipPlan.for_actions([stage], {"layers.0.mlp.retrieval": "recur"})
    with pytest.raises(PlanError, match=r"query is computed .*torch\.nn\.utils\.prune\.remove"):
        prune(model, plan)
