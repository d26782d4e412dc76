"""Published networks as they are, from checkouts: discovery, probe and pruning are checked."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.published.checkouts import Checkouts, in_precision, on_cpu
from benchmarks.published.networks import in_checkouts
from benchmarks.published.weights_by_hand import largest_difference
from benchmarks.published.with_sites import WITH_SITES, WithSites
from benchmarks.support.results import JsonPath, publish
from ela_probe import SkipPlan, discover, prune
from ela_probe.discovery.discover import Discovery
from ela_probe.models.published import from_published
from ela_probe.models.registry import create_model
from ela_probe.sites import Action

READ, PRUNED = 1e-6, 1e-5
NOT_RUN = "not run"


def run(checkout: Checkouts, seed: int = 0, json: JsonPath = None) -> None:
    """Run discovery, probe and pruning on published networks, from checkouts that you give.

    A checkout's folder has the name of its repository, or `owner+repository`. The code runs
    unmodified on the CPU: `Tensor.cuda`, which DIA and DLA call, returns its tensor.
    Exit code 1: a site is missing or one too many is found, a weight differs by more than 1e-6
    from the one recomputed by hand in float64, or a pruned network by more than 1e-5 from its
    reference. In float32 two correct softmaxes of large logits differ by the rounding of these.
    """
    rows = [row(entry, folder, seed) for entry, folder in in_checkouts(WITH_SITES, checkout)]
    ran = [r for r in rows if r["adapter"] != NOT_RUN]
    verdicts = {
        "every site found and nothing else": all(r["sites"] == r["expected"] for r in ran),
        f"weights as by hand within {READ:g} in float64": all(r["weights 64"] <= READ for r in ran),
        f"pruned as the reference within {PRUNED:g}": all(r["pruned"] <= PRUNED for r in ran),
    }
    title = "Largest differences; logits relative to their scale where that is above 1"
    publish("foreign", {title: rows}, json_path=json, seed=seed, verdicts=verdicts)
    raise typer.Exit(0 if all(verdicts.values()) and ran else 1)


def row(entry: WithSites, checkout: Path, seed: int) -> dict[str, Any]:
    network = entry.network
    result: dict[str, Any] = {
        "repository": network.repository,
        "network": network.label,
        "adapter": NOT_RUN,
        "kind": "",
        "sites": "",
        "expected": joined(entry.sites),
        "weights 32": "",
        "weights 64": "",
        "skipped": "",
        "reference": "",
        "pruned": "",
    }
    try:
        build = network.builder(checkout)
    except ImportError as error:
        return result | {"reference": f"not run: needs {error.name}"}
    torch.manual_seed(seed)
    with on_cpu():
        model = settle(build(), network.size)
        images = torch.randn(2, 3, network.size, network.size)
        found = discover(model)
        return result | {
            "adapter": found.adapter.name,
            "kind": ", ".join(sorted({stage.kind for stage in found.stages})),
            "sites": joined(len(stage.sites) for stage in found.stages),
            "weights 32": largest_difference(model, found, images, entry.by_hand),
            "weights 64": in_float64(entry, build, model, images),
            **pruned(entry, model, found, images, seed),
        }


def in_float64(
    entry: WithSites, build: Callable[[], nn.Module], model: nn.Module, images: Tensor
) -> float:
    """The largest difference of the weights in float64."""
    with in_precision(torch.float64):
        twin = build().eval()
        twin.load_state_dict(model.state_dict())
        return largest_difference(twin, discover(twin), images.double(), entry.by_hand)


def joined(counts: Iterable[int]) -> str:
    return " + ".join(map(str, counts))


@torch.no_grad()
def settle(model: nn.Module, size: int) -> nn.Module:
    """In eval mode, with random scales of norms and the statistics of a batch."""
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
    entry: WithSites, model: nn.Module, found: Discovery, images: Tensor, seed: int
) -> dict[str, Any]:
    """The pruned network against ours with the same weights and plan, or against the whole network
    with the same retrievals set to zero (all with `skip`, so that every source stays).

    The second site of every stage is skipped. The last one stays, so that its source is read:
    `prune` would drop what no later site of the stage reads.
    """
    choose = random.Random(seed)
    choices: list[Action] = ["keep", "skip", "drop"] if entry.ours else ["keep", "skip"]
    actions: dict[str, Action] = {
        site.name: choose.choice(choices) for s in found.stages for site in s.sites[2:-1]
    }
    actions |= {stage.sites[1].name: "skip" for stage in found.stages}
    result = prune(model, SkipPlan.for_actions(found.stages, actions))(images)
    if entry.ours is not None:
        ours = create_model(entry.ours["model"], **entry.ours["arguments"]).eval()
        ours.load_state_dict(from_published(model.state_dict()))
        twin = discover(ours)
        renamed = dict(zip(sites_of(found), sites_of(twin), strict=True))
        named = {renamed[name]: action for name, action in actions.items()}
        plan = SkipPlan.for_actions(twin.stages, named)
        reference, what = prune(ours, plan)(images), "ours, same weights and plan"
    else:
        handles = zero_retrievals(
            model, found, [n for n, action in actions.items() if action == "skip"]
        )
        reference, what = model(images), "retrievals zeroed"
        for handle in handles:
            handle.remove()
    scale = max(1.0, float(reference.abs().max()))
    skipped = f"{sum(action != 'keep' for action in actions.values())} of {len(sites_of(found))}"
    error = float((result - reference).abs().max()) / scale
    return {"skipped": skipped, "reference": what, "pruned": error}


def zero_retrievals(model: nn.Module, found: Discovery, names: list[str]) -> list[Any]:
    """Hooks that set what the named retrievals add to zero."""
    handles = []
    if found.stages[0].kind == "channel":
        for stage in found.stages:
            calls = [n for n, site in enumerate(stage.sites) if site.name in names]
            handles += open_gates(model, stage.sites[0].module, calls)
        return handles
    for name in names:
        if found.adapter.name in ("kcla", "deit"):
            module = model.get_submodule(name)
        else:
            block, _, attribute = name.rpartition(".")
            module = model.get_submodule(f"{block}.bn_{attribute}")
        handles.append(module.register_forward_hook(zero_output))
    return handles


def zero_output(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Zeros for what a layer adds: its output, or the first part if it also passes on sources."""
    if isinstance(output, Tensor):
        return torch.zeros_like(output)
    return torch.zeros_like(output[0]), *output[1:]


def open_gates(model: nn.Module, name: str, calls: list[int]) -> list[Any]:
    """Hooks on a shared cell that open its gate in these calls and keep its true state."""
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
