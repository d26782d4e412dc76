"""Adapters of published code: found by structure, read exactly, pruned without a trace."""

import copy
import functools
import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from benchmarks.published.weights_by_hand import (
    channel_weights,
    key_norm_weights,
    largest_difference,
    softmax_weights,
    unrolled_weights,
)
from ela_probe import SkipPlan, discover, prune
from ela_probe.adapters.registry import adapter_for
from ela_probe.analysis.result import Analysis
from ela_probe.errors import PlanError
from ela_probe.models.published import from_published
from ela_probe.models.registry import create_model
from ela_probe.pruning.planners import PLANNERS, make_plan
from ela_probe.sites import Action
from tests.support import lookalikes
from tests.support.identities import ROUNDING, assert_same
from tests.support.lookalikes import GateNetwork, GateWrapper, Network, SoftLayer, SoftNetwork
from tests.support.lookalikes_stateful import (
    GatedNetwork,
    NormLayer,
    NormNetwork,
    RefreshingNetwork,
)
from tests.support.pruning import analysed

GROWING: list[tuple[int, ...]] = [(1, 2, 3, 4)] * 3
CARRYING: list[tuple[int, ...]] = [(1, 2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5)]
FAMILIES: dict[str, tuple[Callable[[], nn.Module], str, str, str, list[tuple[int, ...]]]] = {
    # factory, adapter, kind, a site, sizes
    "mrla_b": (SoftNetwork, "mrla-b", "softmax", "stages.1.2.mrla", GROWING),
    "eq4": (partial(SoftNetwork, raw=True), "mrla-b", "softmax", "stages.1.2.mrla", GROWING),
    "dla_b": (RefreshingNetwork, "mrla-b", "softmax", "stages.1.attention.2.look", GROWING),
    "mrla_l": (GateNetwork, "mrla-l", "unrolled", "stages.1.2.mrla", GROWING),
    "kcla": (NormNetwork, "kcla", "softmax", "stages.1.2.kcla", CARRYING),
    "dia": (
        GatedNetwork,
        "dia",
        "channel",
        "stages.1.memory@2",
        [(channels,) * 4 for channels in lookalikes.PLANES],
    ),
}
BY_HAND: dict[str, Callable[..., list[Tensor]]] = {
    "mrla_b": partial(softmax_weights, raw=False),
    "eq4": partial(softmax_weights, raw=True),
    "dla_b": partial(softmax_weights, raw=False),
    "mrla_l": unrolled_weights,
    "kcla": key_norm_weights,
    "dia": channel_weights,
}
each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def images(images: Tensor) -> Tensor:
    return images.double()


def settled(family: str) -> nn.Module:
    """A float64 look-alike in eval mode; its norms have a batch's statistics and random scales."""
    return copy.deepcopy(_settled(family)).double()


@functools.cache
def _settled(family: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return settle(FAMILIES[family][0]())


@functools.cache
def analysis(family: str) -> Analysis:
    return analysed(settled(family))


def settle(model: nn.Module) -> nn.Module:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(16, 3, 16, 16))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def chosen(model: nn.Module, seed: int) -> dict[str, Action]:
    choose = random.Random(seed)
    return {
        site.name: choose.choice(["keep", "skip", "drop"])
        for stage in discover(model).stages
        for site in stage.sites[1:]
    }


def applied(model: nn.Module, actions: dict[str, Action]) -> nn.Module:
    return prune(model, SkipPlan.for_actions(discover(model).stages, actions))


@each_family
def test_every_site_is_found_and_nothing_else(family: str) -> None:
    _, adapter, kind, site, sizes = FAMILIES[family]
    model = settled(family)
    found = discover(model)
    assert found.adapter.name == adapter
    assert {stage.kind for stage in found.stages} == {kind}
    assert [stage.sizes for stage in found.stages] == sizes
    names = [site.name for stage in found.stages for site in stage.sites]
    assert len(set(names)) == 12
    assert site in names
    assert len({stage.name for stage in found.stages}) == 3


@each_family
def test_weights_are_those_recomputed_from_the_inputs(family: str, images: Tensor) -> None:
    model = settled(family)
    assert largest_difference(model, discover(model), images, BY_HAND[family]) <= ROUNDING


@pytest.mark.parametrize("planner", sorted(set(PLANNERS) - {"threshold", "cost", "damage"}))
@each_family
def test_every_planner_plans_it(family: str, planner: str) -> None:
    plan = make_plan(analysis(family), skip=0.4, planner=planner)  # type: ignore[arg-type]
    assert len(plan.skipped) == 5


def without(model: nn.Module, actions: dict[str, Action]) -> nn.Module:
    """The whole model with hooks that zero what is skipped and mask what is dropped."""
    model = copy.deepcopy(model)
    for stage in discover(model).stages:
        dropped: list[int] = []
        for t, site in enumerate(stage.sites):
            action = actions.get(site.name, "keep")
            module = model.get_submodule(site.module.partition("@")[0])
            if isinstance(module, nn.Softmax):
                dropped += [t] * (action == "drop")
                module.register_forward_hook(partial(masked, list(dropped)))
            if stage.kind == "softmax" and not isinstance(module, nn.Softmax) and action != "keep":
                module.register_forward_hook(partial(source_only, action))
            elif stage.kind != "channel" and action != "keep":
                block, _, attribute = site.name.rpartition(".")
                norm = model.get_submodule(f"{block}.bn_{attribute}")
                norm.register_forward_hook(lambda module, inputs, out: torch.zeros_like(out))
    return model


def masked(dropped: list[int], module: nn.Module, inputs: object, weights: Tensor) -> Tensor:
    weights = weights.clone()
    weights[..., dropped] = 0
    return weights / weights.sum(-1, keepdim=True)


def source_only(action: str, module: nn.Module, inputs: tuple, output: tuple) -> tuple:
    return torch.zeros_like(output[0]), output[1] if action == "skip" else inputs[1]


def last_kept(model: nn.Module, actions: dict[str, Action]) -> dict[str, Action]:
    """As `prune` does: what no later site reads is dropped; KCLA's next stage reads all."""
    actions = dict(actions)
    for stage in discover(model).stages:
        for site in () if stage.carried_over else reversed(stage.sites):
            if actions.get(site.name, "keep") == "keep":
                break
            actions[site.name] = "drop"
    return actions


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "dia"])
def test_pruning_equals_zeroing_and_masking(family: str, seed: int, images: Tensor) -> None:
    model = settled(family)
    actions = chosen(model, seed)
    pruned = applied(model, actions)
    reference = without(model, last_kept(model, actions))
    with torch.no_grad():
        whole, result = model(images), pruned(images)
        assert_same(result, reference(images))
    assert (whole - result).abs().max() > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_a_skipped_gate_leaves_the_output_ungated(seed: int, images: Tensor) -> None:
    model = settled("dia")
    actions = chosen(model, seed)
    pruned = applied(model, actions)
    actions = last_kept(model, actions)

    def by_hand(x: Tensor) -> Tensor:
        for s, stage in enumerate(model.stages):  # type: ignore[arg-type]
            h = c = x.new_zeros(len(x), lookalikes.PLANES[s])[None]
            for t, block in enumerate(stage.blocks):
                x, shortcut = block(x)
                action = actions.get(f"stages.{s}.memory@{t}", "keep")
                if action != "drop":
                    h, c = stage.memory(x.mean((2, 3)), (h, c))
                x = (x * h[-1][..., None, None] if action == "keep" else x) + shortcut
                x = x.relu()
        return x

    model.features = by_hand  # type: ignore[assignment]
    with torch.no_grad():
        assert_same(pruned(images), model(images))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("family", "name"), [("mrla_b", "mrla_b"), ("mrla_l", "mrla_l")])
def test_a_pruned_foreign_model_equals_ours(
    family: str, name: str, seed: int, images: Tensor
) -> None:
    theirs, ours = settled(family), create_model(f"{name}_resnet20", depth=26).double().eval()
    ours.load_state_dict(from_published(theirs.state_dict()))
    actions = chosen(theirs, seed)
    pruned = applied(theirs, actions)
    renamed = {key.replace(".mrla", ".retrieval"): action for key, action in actions.items()}
    twin = applied(ours, renamed)
    with torch.no_grad():
        assert_same(pruned(images), twin(images))
    state = from_published(pruned.state_dict())
    assert state.keys() == twin.state_dict().keys()


@each_family
def test_what_is_skipped_is_gone_and_the_rest_trains(family: str, images: Tensor) -> None:
    model = settled(family)
    plan = make_plan(analysis(family), skip=0.4, planner="alternate")
    pruned = prune(model, plan)
    assert untrained(pruned, images) <= untrained(model, images)  # KCLA's first stage has some
    count = [sum(p.numel() for p in m.parameters()) for m in (model, pruned)]
    assert count[1] < count[0] or family == "dia"  # one cell serves the whole stage
    kept = [s.name for stage in discover(pruned).stages for s in stage.sites]
    assert kept == [name for name, action in plan.actions.items() if action == "keep"]


@each_family
def test_a_pruned_model_is_copied_rebuilt_and_pruned_again(family: str, images: Tensor) -> None:
    model = settled(family)
    plan = make_plan(analysis(family), skip=0.4, planner="alternate")
    pruned = prune(model, plan)
    rebuilt = prune(FAMILIES[family][0]().double(), plan).eval()
    rebuilt.load_state_dict(pruned.state_dict())
    with torch.no_grad():
        expected = pruned(images)
        assert torch.equal(copy.deepcopy(pruned)(images), expected)
        assert torch.equal(rebuilt(images), expected)
    again = prune(pruned, make_plan(analysed(pruned), skip=0.3, planner="deepest"))
    assert sum(len(s.sites) for s in discover(again).stages) == 5
    if family == "kcla":  # sums only are passed on: a skipped source joins the next
        return
    if family != "dia":
        assert largest_difference(pruned, discover(pruned), images, BY_HAND[family]) <= ROUNDING


def untrained(model: nn.Module, images: Tensor) -> set[str]:
    """The parameters that a training step gives no gradient."""
    model = copy.deepcopy(model).train()
    model(images).square().sum().backward()
    return {name for name, p in model.named_parameters() if p.grad is None}


def test_recur_is_refused() -> None:
    for family, (_, _, _, site, _) in FAMILIES.items():
        with pytest.raises(PlanError, match="recur"):
            applied(settled(family), {site: "recur"})


def test_names_of_classes_do_not_matter() -> None:
    class Anything(SoftLayer):
        pass

    model = settled("mrla_b")
    for module in model.modules():
        if type(module) is SoftLayer:
            module.__class__ = Anything
    assert len(discover(model).stages) == 3


def replaced(network: type[Network], change: Callable[[nn.Module], None]) -> nn.Module:
    model = network()
    for module in list(model.modules()):
        change(module)
    return model


def dense_values(module: nn.Module) -> None:
    if isinstance(module, SoftLayer):
        channels = module.Wv.in_channels
        module.Wv = nn.Conv2d(channels, channels, 3, padding=1)


def functional_softmax(module: nn.Module) -> None:
    if isinstance(module, SoftLayer):
        module.softmax = torch.nn.functional.softmax  # type: ignore[assignment]
        del module._modules["softmax"]


def no_norm(module: nn.Module) -> None:
    if hasattr(module, "bn_mrla"):
        module.norm_mrla = module.bn_mrla
        del module.bn_mrla


def no_decay(module: nn.Module) -> None:
    if isinstance(module, GateWrapper):
        module.lambda_t = None  # type: ignore[assignment]


def one_dimensional_decay(module: nn.Module) -> None:
    if isinstance(module, GateWrapper):  # over tokens, as in a transformer
        module.lambda_t = nn.Parameter(torch.randn(len(module.lambda_t)))


def no_distance(module: nn.Module) -> None:
    if isinstance(module, NormLayer):
        module.norm_d = nn.Parameter(torch.ones(1))


class mrla_base_layer(nn.Linear):
    """A published name on something else."""


@pytest.mark.parametrize(
    "model",
    [
        replaced(SoftNetwork, dense_values),
        replaced(SoftNetwork, no_norm),
        replaced(GateNetwork, no_norm),
        replaced(GateNetwork, no_decay),
        replaced(GateNetwork, one_dimensional_decay),
        replaced(NormNetwork, no_distance),
        GatedNetwork(gates=3),
        nn.Sequential(mrla_base_layer(2, 2)),
    ],
    ids=[
        "dense values",
        "no norm b",
        "no norm l",
        "no λ",
        "λ of tokens",
        "no d",
        "3 gates",
        "name",
    ],
)
def test_a_near_miss_is_no_match(model: nn.Module) -> None:
    assert adapter_for(model) is None


def test_a_layer_that_passes_on_something_else_is_not_pruned_by_skipping() -> None:
    model = settled("mrla_b")
    layer = model.get_submodule("stages.1.2.mrla.mrla")
    original = layer.forward

    def forward(x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, keys, values = original(x, keys, values)
        return out, 2 * keys, values

    layer.forward = forward
    with pytest.raises(PlanError, match=r"stages\.1\.2\.mrla looks like MRLA-B.*drop"):
        applied(model, {"stages.1.2.mrla": "skip"})
    applied(model, {"stages.1.2.mrla": "drop"})


def test_other_sums_than_of_key_norms_are_not_pruned_by_skipping() -> None:
    model = settle(NormNetwork(limit=1.5))
    with pytest.raises(PlanError, match=r"looks like KCLA.*drop"):
        applied(model, {"stages.1.2.kcla": "skip"})
