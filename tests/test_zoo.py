"""The ResNets of the zoo: counts as published, laws of every attention, sites and pruning."""

import pytest
import torch
from torch import Tensor, nn

from ela_probe import SkipPlan, discover, prune
from ela_probe.adapters.resnet import ResNetAdapter
from ela_probe.checkpoint import load_checkpoint, save_checkpoint
from ela_probe.discovery.capture import Capture
from ela_probe.errors import ModelError
from ela_probe.evaluation.profiling import count_flops
from ela_probe.models.cells import Cell, Step
from ela_probe.models.dla import DLASource
from ela_probe.models.published import from_published
from ela_probe.models.registry import FAMILIES, ModelSpec, create_model, parameter_count
from ela_probe.pruning.planners import make_plan
from ela_probe.sites import Action
from tests.support.identities import assert_same
from tests.support.networks import settled
from tests.support.pruning import analysed, zeroed

ATTENTIONS = [
    *("", "se_", "eca_", "cbam_", "dia_", "rla_g_"),
    *("dla_b_", "dla_l_", "mrla_b_", "mrla_l_"),
]
KINDS = {"dia_": "channel", "dla_b_": "softmax", "dla_l_": "unrolled"}

TORCHVISION = "meta of torchvision's ResNet weights, convolutions and linear layers alone"
ECA_README = "README of BangguWu/ECANet, units of 1024 (its paras_flops.py)"
RLA_README = "README of fangyanwen1106/RLANet, units of 1024 (its paras_flops.py)"
IMGCLSMOB = "README of osmr/imgclsmob; its SE-ResNet-50b has biases, ours as in MRLA's code none"
ABSTRACT = "abstract of arXiv 2302.03985, 0.16 M and 0.07 G above ResNet-50"
MEGA, GIGA = 1024**2, 1024**3
PUBLISHED = {  # parameters, multiply-adds at 224 x 224, source
    "imagenet_resnet50": (25_557_032, 4.089e9, TORCHVISION),
    "imagenet_resnet101": (44_549_160, 7.801e9, TORCHVISION),
    "imagenet_resnet152": (60_192_808, 11.514e9, TORCHVISION),
    "se_imagenet_resnet50": (28_088_024, 4115.78e6, IMGCLSMOB),
    "eca_imagenet_resnet50": (24.37 * MEGA, 3.86 * GIGA, ECA_README),
    "eca_imagenet_resnet101": (42.49 * MEGA, 7.35 * GIGA, ECA_README),
    "eca_imagenet_resnet152": (57.41 * MEGA, 10.83 * GIGA, ECA_README),
    "cbam_imagenet_resnet50": (28_089_624, 4116.97e6, IMGCLSMOB),
    "rla_g_imagenet_resnet50": (24.67 * MEGA, 4.17 * GIGA, RLA_README),
    "rla_g_imagenet_resnet101": (42.92 * MEGA, 7.79 * GIGA, RLA_README),
    "mrla_l_imagenet_resnet50": (25_557_032 + 0.16e6, 4.089e9 + 0.07e9, ABSTRACT),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_within_a_percent_of_the_published_ones(name: str) -> None:
    """What thop counts besides, two operations a norm's output, is added where thop counted."""
    parameters, operations, source = PUBLISHED[name]
    with torch.device("meta"):
        model = create_model(name).eval()
    ours = count_flops(model, (3, 224, 224)) / 2
    if source not in (TORCHVISION, ABSTRACT):
        ours += 2 * outputs_of_norms(model)
    assert parameter_count(model) == pytest.approx(parameters, rel=0.01)
    assert ours == pytest.approx(operations, rel=0.01)


def outputs_of_norms(model: nn.Module) -> int:
    counts: list[int] = []
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [n.register_forward_hook(lambda m, i, out: counts.append(out.numel())) for n in norms]
    model(torch.zeros(1, 3, 224, 224, device="meta"))
    for hook in hooks:
        hook.remove()
    return sum(counts)


def test_every_attention_comes_for_cifar_and_for_imagenet() -> None:
    backbones = ("resnet", "imagenet_resnet")
    assert {f"{a}{b}" for a in ATTENTIONS for b in backbones} <= FAMILIES.keys()


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_it_trains_with_a_gradient_for_every_parameter(attention: str, block: str) -> None:
    model = create_model(f"{attention}resnet{14 if block == 'basic' else 20}", block=block).train()
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_a_sample_does_not_depend_on_the_others(attention: str, images: Tensor) -> None:
    """In evaluation. (Published DLA refreshes with the state of the batch's first sample.)"""
    model, images = settled(f"{attention}resnet20").double(), images.double()
    assert_same(model(images)[3:4], model(images[3:4]))


@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_bfloat16_autocast_runs(attention: str, images: Tensor) -> None:
    model = settled(f"{attention}resnet14")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (model(images).float() - model(images.flip(0)).flip(0).float()).abs().max() < 0.1


@pytest.mark.parametrize("attention", KINDS)
@torch.no_grad()
def test_sites_are_found_and_read(attention: str, images: Tensor) -> None:
    """Against what passes the taps: gates over channels, weights, gates of a recurrence."""
    model, images = settled(f"{attention}resnet20").double(), images.double()
    found = discover(model)
    stage = found.stages[1]
    slot = "gate" if attention == "dia_" else "retrieval"
    assert {s.kind for s in found.stages} == {KINDS[attention]}
    assert [s.name for s in stage.sites] == [f"stages.1.{t}.{slot}" for t in range(3)]
    assert stage.sizes == ((32, 32, 32) if attention == "dia_" else (1, 2, 3))
    taps: list[tuple[Tensor, ...]] = []
    for site in stage.sites:
        tap = model.get_submodule(site.module)
        tap.register_forward_hook(lambda module, inputs, out: taps.append(inputs))
    weights: list[list[Tensor]] = []
    with Capture(model, found.adapter, stages=found.stages, receive=weights.extend):
        model(images)
    last, tapped = weights[1][2], taps[2][0]
    if attention == "dia_":
        expected = tapped / tapped.sum(-1, keepdim=True)
    elif attention == "dla_b_":
        expected = tapped
        assert (expected.max() - expected.min()) > 1e-3
    else:
        gates = [gate.repeat_interleave(16, dim=1) for gate, _ in taps]
        decays = [decay.flatten().abs() for _, decay in taps]
        parts = [gates[0] * decays[1] * decays[2], gates[1] * decays[2], gates[2]]
        expected = torch.stack(parts, dim=-1) / torch.stack(parts).sum(0)[..., None]
    assert_same(last.double(), expected)


@pytest.mark.parametrize("name", ["dla_b_resnet32", "dla_l_resnet32"])
def test_skipping_equals_zeroing_the_retrieval(name: str, images: Tensor) -> None:
    model, images = settled(name).double(), images.double()
    plan = make_plan(analysed(model), skip=0.5, planner="random", seed=5)
    plan = SkipPlan.for_actions(discover(model).stages, dict.fromkeys(plan.skipped, "skip"))
    pruned = prune(model, plan)
    with torch.no_grad():
        full, result = model(images), pruned(images)
        zeroed(model, plan.skipped)
        assert_same(result, model(images))
    assert (full - result).abs().max() > 1e-3


def test_a_skipped_gate_leaves_the_block_ungated(images: Tensor) -> None:
    model, images = settled("dia_resnet32").double(), images.double()
    skipped = ["stages.1.1.gate", "stages.2.2.gate"]
    plan = SkipPlan.for_actions(discover(model).stages, dict.fromkeys(skipped, "skip"))
    result = prune(model, plan)
    for name in skipped:
        tap = model.get_submodule(f"{name}.tap")
        tap.register_forward_hook(lambda module, inputs, out: torch.ones_like(out))
    assert_same(result(images), model(images))


@pytest.mark.parametrize("attention", KINDS)
def test_the_cell_reads_skipped_blocks_and_no_dropped_ones(attention: str, images: Tensor) -> None:
    model = settled(f"{attention}resnet32")
    stages = discover(model).stages
    names = [site.name for site in stages[1].sites]
    pruned = prune(model, SkipPlan.for_actions(stages, {names[1]: "skip", names[3]: "drop"}))
    assert isinstance(pruned.get_submodule(names[1]), Step | DLASource)
    assert names[3] not in dict(pruned.named_modules())
    read: list[Tensor] = []
    for module, expected in ((model, 5), (pruned, 4)):
        read.clear()
        cell = module.shared["1"].cell  # type: ignore[index]
        assert isinstance(cell, Cell)
        cell.register_forward_pre_hook(lambda m, inputs: read.append(inputs[0]))
        module(images)
        assert sum(descriptors.ndim == 2 for descriptors in read) == expected


@pytest.mark.parametrize("name", ["dia_", "dla_b_", "dla_l_", "mrla_b_", "mrla_l_"])
@torch.no_grad()
def test_without_any_site_it_is_the_plain_network(name: str, images: Tensor) -> None:
    model, plain = settled(f"{name}resnet20"), create_model("resnet20").eval()
    sites = [site.name for stage in discover(model).stages for site in stage.sites]
    ResNetAdapter().apply(model, dict.fromkeys(sites, "drop"))
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(images), plain(images))


@pytest.mark.parametrize("attention", KINDS)
def test_a_pruned_one_trains_whole_and_is_rebuilt_from_its_checkpoint(
    attention: str, images: Tensor, tmp_path
) -> None:
    """In the first stage all but the first site go: nothing is left there to refresh."""
    model = settled(f"{attention}resnet20")
    stages = discover(model).stages
    actions: dict[str, Action] = {site.name: "drop" for site in stages[0].sites[1:]}
    actions |= {stages[1].sites[1].name: "skip", stages[2].sites[2].name: "skip"}
    plan = SkipPlan.for_actions(stages, actions)
    pruned = prune(model, plan)
    assert (parameter_count(pruned) < parameter_count(model)) == (attention != "dia_")
    pruned(images).square().sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())
    again = prune(pruned, make_plan(analysed(pruned.eval()), skip=0.0))  # found and read again
    spec = ModelSpec(name=f"{attention}resnet20")
    path = save_checkpoint(tmp_path / "pruned.pt", pruned, spec=spec, plans=[plan])
    with torch.no_grad():
        loaded = load_checkpoint(path).eval()
        assert torch.equal(loaded(images), pruned(images))
        assert torch.equal(again(images), pruned(images))


@pytest.mark.parametrize("name", ["resnet20", "se_resnet20", "cbam_resnet20", "rla_g_resnet20"])
def test_without_layer_attention_there_is_nothing_to_discover(name: str, images: Tensor) -> None:
    for example in (None, images):
        with pytest.raises(ModelError, match="no layer attention found in this ResNet"):
            discover(create_model(name), example)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet20", {"head_dim": 8}, "resnet20 does not take head_dim=8"),
        ("eca_resnet20", {"reduction": 4}, "does not take reduction=4"),
        ("se_resnet20", {"reduction": 32}, "reduction=32 exceeds the 16 channels"),
        ("dia_resnet20", {"reduction": 0}, "does not take reduction=0"),
        ("dla_b_resnet20", {"head_dim": 32}, "head_dim=32 does not divide 16 channels"),
        ("rla_g_resnet20", {"hidden": 0}, "does not take hidden=0"),
    ],
)
def test_arguments_of_no_use_are_refused(
    name: str, arguments: dict[str, int], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        create_model(name, **arguments)


def test_a_norm_that_published_code_never_calls_is_left_out() -> None:
    """KCLA's DLA-L has a `bn2`; RLA has one too, and calls it."""
    norm = torch.zeros(12)
    assert from_published({"bn2.weight": norm, "fc.bias": norm}).keys() == {"fc.bias"}
    rla = {"recurrent_convs.0.weight": norm, "bn2.weight": norm}
    assert "after.norm.weight" in from_published(rla)
