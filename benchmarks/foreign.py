"""Published networks as they are, from checkouts: found, read and pruned as we say."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.checkouts import belongs, on_this_device, published
from benchmarks.recomputed import (
    channel_weights,
    key_norm_weights,
    largest_difference,
    softmax_weights,
    token_softmax_weights,
    unrolled_weights,
)
from benchmarks.results import JsonPath, publish
from ela_probe import SkipPlan, discover, prune
from ela_probe.discovery.discover import Discovery
from ela_probe.errors import OptionError
from ela_probe.models.published import from_published
from ela_probe.models.registry import create_model
from ela_probe.sites import Action

READ, PRUNED = 1e-6, 1e-5
NOT_RUN = "not run"
MRLA_B = partial(softmax_weights, raw=False)
EQUATION_4 = partial(softmax_weights, raw=True)


@dataclass(frozen=True)
class Case:
    """A network of a checkout. blocks: its expected sites, by stage. ours: the name of the same
    network in our zoo, or None."""

    repository: str
    file: str
    function: str
    arguments: dict[str, Any]
    blocks: tuple[int, ...]
    by_hand: Callable[..., list[Tensor]]
    size: int = 32
    ours: str | None = None


def cifar(file: str, by_hand: Any, depth: int, block: str, **options: Any) -> dict[str, Any]:
    per_stage = (depth - 2) // (6 if block == "BasicBlock" else 9)
    arguments = {"depth": depth, "num_classes": 10, "block_name": block}
    common = {"file": file, "arguments": arguments, "blocks": (per_stage,) * 3}
    return {"function": file, **common, "by_hand": by_hand, **options}


def imagenet(file: str, function: str, by_hand: Any) -> dict[str, Any]:
    arguments = {"num_classes": 10}
    common = {"file": file, "arguments": arguments, "blocks": (3, 4, 6, 3), "size": 64}
    return {"function": function, **common, "by_hand": by_hand}


def deit(file: str, function: str, by_hand: Any, blocks: tuple[int, ...]) -> dict[str, Any]:
    """Their smallest DeiT on 4 by 4 patches. They need timm (0.5.4 works)."""
    arguments = {"num_classes": 10, "img_size": 64}
    common = {"file": file, "arguments": arguments, "blocks": blocks, "size": 64}
    return {"function": function, **common, "by_hand": by_hand}


DEPTH, PER_LIST = 12, 4  # blocks of their DeiTs; MRLA-B starts a new list of sources every 4
LISTS, WHOLE = (PER_LIST,) * (DEPTH // PER_LIST), (DEPTH,)
DEIT_B, DEIT_L = "deit_mrlab_tiny_patch16_224", "deit_mrlal_tiny_patch16_224"
KCLA, MRLA = "bgx666/KCLA", "joyfang1106/MRLA"
DLA, DIA = "tunantu/Dynamic-Layer-Attention", "gbup-group/DIANet"
BASIC, BOTTLENECK = "BasicBlock", "Bottleneck"
WIDE = {"depth": 16, "num_classes": 10, "widen_factor": 4}
RESNEXT = {"cardinality": 8, "depth": 20, "num_classes": 10, "widen_factor": 4}
CASES = [
    Case(KCLA, **cifar("mrla_base", MRLA_B, 32, BASIC, ours="mrla_b_resnet32")),
    Case(KCLA, **cifar("mrla_base", MRLA_B, 47, BOTTLENECK, ours="mrla_b_resnet47")),
    Case(KCLA, **cifar("mrla_light", unrolled_weights, 32, BASIC, ours="mrla_l_resnet32")),
    Case(KCLA, **cifar("mrla_light", unrolled_weights, 47, BOTTLENECK, ours="mrla_l_resnet47")),
    Case(KCLA, **cifar("layer_attention", EQUATION_4, 32, BASIC)),
    Case(KCLA, **cifar("dla_b", MRLA_B, 47, BOTTLENECK)),
    Case(KCLA, **cifar("dla_l", unrolled_weights, 47, BOTTLENECK)),
    Case(KCLA, **cifar("KCLA", key_norm_weights, 47, BOTTLENECK, function="kcla")),
    Case(KCLA, **cifar("dia_resnet", channel_weights, 47, BOTTLENECK)),
    Case(KCLA, **imagenet("kcla_resnet", "resnet50_kcla", key_norm_weights)),
    Case(MRLA, **imagenet("resnet_mrla_base", "resnet50_mrlab", MRLA_B)),
    Case(MRLA, **imagenet("resnet_mrla_base22", "resnet50_mrlab", MRLA_B)),
    Case(MRLA, **imagenet("resnet_mrla_light", "resnet50_mrlal", unrolled_weights)),
    Case(MRLA, **deit("deit_mrla_base", DEIT_B, token_softmax_weights, LISTS)),
    Case(MRLA, **deit("deit_mrla_light", DEIT_L, unrolled_weights, WHOLE)),
    Case(DLA, **cifar("mrla_base", MRLA_B, 47, BOTTLENECK)),
    Case(DLA, **cifar("mrla_light", unrolled_weights, 47, BOTTLENECK)),
    Case(DLA, **cifar("dla_b", MRLA_B, 47, BOTTLENECK)),
    Case(DLA, **cifar("dla_l", unrolled_weights, 47, BOTTLENECK)),
    Case(DLA, **imagenet("resnet_dla_l", "resnet50_dla_l", unrolled_weights)),
    Case(DIA, **cifar("dia_resnet", channel_weights, 47, BOTTLENECK)),
    Case(DIA, **cifar("dia_preresnet", channel_weights, 47, BOTTLENECK)),
    Case(DIA, "dia_wrn", "dia_wrn", WIDE, (2, 2, 2), channel_weights),
    Case(DIA, "dia_resnext", "dia_resnext", RESNEXT, (2, 2, 2), channel_weights),
]


def run(
    checkout: Annotated[
        list[Path], typer.Option(help="A checkout of one of the repositories; may be repeated.")
    ],
    seed: int = 0,
    json: JsonPath = None,
) -> None:
    """Run discovery, probe and pruning on published networks, from checkouts that you give.

    A checkout's folder is named as its repository or `owner+repository`. Their code runs as it
    is, on the CPU: meanwhile `Tensor.cuda`, which DIA and DLA call, returns its tensor.
    Exit code 1 when a site is missed or one too many, a weight differs by more than 1e-6 from the
    one recomputed by hand in float64, or a pruned network by more than 1e-5 from its reference. In
    float32 two correct softmaxes of large logits differ by the rounding of these.
    """
    rows = []
    for case in CASES:
        root = next((c for c in checkout if belongs(c, case.repository)), None)
        if root is not None:
            rows.append(row(case, root, seed))
    if not rows:
        names = ", ".join(sorted({case.repository for case in CASES}))
        raise OptionError(f"none of the folders is a checkout of one of: {names}")
    ran = [r for r in rows if r["adapter"] != NOT_RUN]
    verdicts = {
        "every site found and nothing else": all(r["sites"] == r["expected"] for r in ran),
        f"weights as by hand within {READ:g} in float64": all(r["weights 64"] <= READ for r in ran),
        f"pruned as the reference within {PRUNED:g}": all(r["pruned"] <= PRUNED for r in ran),
    }
    title = "Largest differences; logits relative to their scale where that is above 1"
    publish("foreign", {title: rows}, json_path=json, seed=seed, verdicts=verdicts)
    raise typer.Exit(0 if all(verdicts.values()) and ran else 1)


def row(case: Case, root: Path, seed: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "repository": case.repository,
        "network": " ".join([case.file, *map(str, shape_of(case))]),
        "adapter": NOT_RUN,
        "kind": "",
        "sites": "",
        "expected": joined(case.blocks),
        "weights 32": "",
        "weights 64": "",
        "skipped": "",
        "reference": "",
        "pruned": "",
    }
    try:
        build = published(root, case.file, case.function)
    except ImportError as error:
        return result | {"reference": f"not run: needs {error.name}"}
    torch.manual_seed(seed)
    with on_this_device():
        model = settle(build(**case.arguments), case.size)
        images = torch.randn(2, 3, case.size, case.size)
        found = discover(model)
        return result | {
            "adapter": found.adapter.name,
            "kind": ", ".join(sorted({stage.kind for stage in found.stages})),
            "sites": joined(len(stage.sites) for stage in found.stages),
            "weights 32": largest_difference(model, found, images, case.by_hand),
            "weights 64": in_float64(case, build, model, images),
            **pruned(case, model, found, images, seed),
        }


def in_float64(
    case: Case, build: Callable[..., nn.Module], model: nn.Module, images: Tensor
) -> float:
    """The largest difference of the weights in float64, which some forwards need as default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        twin = build(**case.arguments).eval()
        twin.load_state_dict(model.state_dict())
        return largest_difference(twin, discover(twin), images.double(), case.by_hand)
    finally:
        torch.set_default_dtype(before)


def shape_of(case: Case) -> list[Any]:
    return [case.arguments[key] for key in ("depth", "block_name") if key in case.arguments]


def joined(counts: Iterable[int]) -> str:
    return " + ".join(map(str, counts))


@torch.no_grad()
def settle(model: nn.Module, size: int) -> nn.Module:
    """In eval mode, its norms' scales random and their statistics those of a batch."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5)
        norm.momentum = 1.0
    for layer in model.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.weight.uniform_(0.5, 1.5)
    model.train()(torch.randn(4, 3, size, size))
    return model.eval()


@torch.no_grad()
def pruned(
    case: Case, model: nn.Module, found: Discovery, images: Tensor, seed: int
) -> dict[str, Any]:
    """Against ours with the same weights and plan, or against the whole network with the same
    retrievals zeroed (all of them `skip`, so that every source stays).

    The second site of every stage is skipped and the last stays, so that its source is read: what
    no later site of its stage reads `prune` would drop.
    """
    choose = random.Random(seed)
    choices: list[Action] = ["keep", "skip", "drop"] if case.ours else ["keep", "skip"]
    actions: dict[str, Action] = {
        site.name: choose.choice(choices) for s in found.stages for site in s.sites[2:-1]
    }
    actions |= {stage.sites[1].name: "skip" for stage in found.stages}
    result = prune(model, SkipPlan.for_actions(found.stages, actions))(images)
    if case.ours is not None:
        block = "basic" if case.arguments["block_name"] == BASIC else "bottleneck"
        ours = create_model(case.ours, block=block).eval()
        ours.load_state_dict(from_published(model.state_dict()))
        twin = discover(ours)
        renamed = dict(zip(sites_of(found), sites_of(twin), strict=True))
        named = {renamed[name]: action for name, action in actions.items()}
        plan = SkipPlan.for_actions(twin.stages, named)
        reference, what = prune(ours, plan)(images), "ours, same weights and plan"
    else:
        handles = silenced(model, found, [n for n, action in actions.items() if action == "skip"])
        reference, what = model(images), "retrievals zeroed"
        for handle in handles:
            handle.remove()
    scale = max(1.0, float(reference.abs().max()))
    skipped = f"{sum(action != 'keep' for action in actions.values())} of {len(sites_of(found))}"
    error = float((result - reference).abs().max()) / scale
    return {"skipped": skipped, "reference": what, "pruned": error}


def silenced(model: nn.Module, found: Discovery, names: list[str]) -> list[Any]:
    """Hooks that take out what the named retrievals add."""
    handles = []
    if found.stages[0].kind == "channel":
        for stage in found.stages:
            calls = [n for n, site in enumerate(stage.sites) if site.name in names]
            handles += ungated(model, stage.sites[0].module, calls)
        return handles
    for name in names:
        if found.adapter.name in ("kcla", "deit"):
            module = model.get_submodule(name)
        else:
            block, _, attribute = name.rpartition(".")
            module = model.get_submodule(f"{block}.bn_{attribute}")
        handles.append(module.register_forward_hook(zero))
    return handles


def zero(module: nn.Module, inputs: Any, output: Any) -> Any:
    """What a layer adds, which is the first where it passes on sources too."""
    if isinstance(output, Tensor):
        return torch.zeros_like(output)
    return torch.zeros_like(output[0]), *output[1:]


def ungated(model: nn.Module, name: str, calls: list[int]) -> list[Any]:
    """Hooks on a shared cell: the state is kept aside and put back before the next call."""
    states: list[Any] = []

    def put_back(module: nn.Module, inputs: Any) -> Any:
        return (inputs[0], states[-1]) if states else None

    def open_gate(module: nn.Module, inputs: Any, output: Any) -> Any:
        states.append(output)
        return (torch.ones_like(output[0]), output[1]) if len(states) - 1 in calls else output

    cell = model.get_submodule(name)
    return [cell.register_forward_pre_hook(put_back), cell.register_forward_hook(open_gate)]


def sites_of(found: Discovery) -> list[str]:
    return [site.name for stage in found.stages for site in stage.sites]
