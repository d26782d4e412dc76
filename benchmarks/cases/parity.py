"""Do our networks compute what the published ones do? Same weights, outputs, gradients."""

from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from benchmarks.published.checkouts import Checkouts, in_precision
from benchmarks.published.counterparts import COUNTERPARTS, Counterpart
from benchmarks.published.networks import in_checkouts
from benchmarks.support.contestants import randomise_norms
from benchmarks.support.results import JsonPath, publish
from ela_probe.errors import OptionError
from ela_probe.models.published import from_published
from ela_probe.models.registry import parameter_count
from ela_probe.system.storage import write_text

TOLERANCE = 1e-5
OF_FLOPS = 0.01

Outputs = dict[str, Tensor]


def run(
    checkout: Checkouts,
    record: Annotated[
        Path | None, typer.Option(help="Write the published networks' logits for the tests.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=2)] = 4,
    seed: int = 0,
    json: JsonPath = None,
) -> None:
    """Compare our ResNets with published ones: outputs and gradients, in float32 and float64.

    A checkout's folder is named as its repository or `owner+repository`; its code runs as it is,
    on the CPU. Exit code 1 when parameter counts differ (of parameters that the published forward
    uses), when ours has 1 % more FLOPs in its layers, or a figure differs by more than 1e-5,
    relative to its scale where that is above 1. Gradients count in float64: in float32 a ReLU's
    input can round to the other side of zero, and two correct gradients then differ by a whole
    term.
    """
    pairs = in_checkouts(COUNTERPARTS, checkout)
    if record is not None:
        from benchmarks.published.golden import recorded_outputs  # needs the repository's tests

        write_text(record, recorded_outputs(pairs))
    rows = [compare_network(pair, root, batch_size=batch_size, seed=seed) for pair, root in pairs]
    verdicts = {
        "parameter counts equal": all(row["parameters"] == row["published"] for row in rows),
        f"FLOPs at most {OF_FLOPS:.0%} above": all(r["FLOPs"] <= 1 + OF_FLOPS for r in rows),
        f"every difference at most {TOLERANCE:g}": all(
            error <= TOLERANCE
            for row in rows
            for what, error in row.items()
            if what.endswith(("32", "64")) and not ("grad" in what and what.endswith("32"))
        ),
    }
    title = "Largest differences, relative to the scale of the figure where that is above 1"
    publish("parity", {title: rows}, json_path=json, seed=seed, verdicts=verdicts)
    raise typer.Exit(0 if all(verdicts.values()) else 1)


def compare_network(
    pair: Counterpart, checkout: Path, *, batch_size: int, seed: int
) -> dict[str, Any]:
    """A row: parameter counts, ratio of FLOPs, and the largest difference of each output."""
    from tests.golden import layer_flops, network  # needs the repository's tests

    torch.manual_seed(seed)
    published = pair.network
    theirs, ours = published.from_checkout(checkout), network(pair.ours)
    samples = pair.samples or batch_size
    images = torch.randn(samples, 3, published.size, published.size)
    labels = torch.randint(10, (samples,))
    randomise_norms(theirs)
    state = theirs.state_dict()
    row: dict[str, Any] = {
        "repository": published.repository,
        "network": published.label,
        "ours": pair.ours.get("model", pair.ours.get("attention")),
        "samples": samples,
        "parameters": parameter_count(ours),
    }
    for dtype, bits in ((torch.float32, 32), (torch.float64, 64)):
        torch.manual_seed(seed)
        theirs.load_state_dict(state)
        ours.load_state_dict(from_published(state))
        with in_precision(dtype):
            found = [outputs(model.to(dtype), images.to(dtype), labels) for model in (theirs, ours)]
            if bits == 32:
                row["published"] = sum(
                    p.numel() for n, p in theirs.named_parameters() if n in found[0]
                )
                row["FLOPs"] = layer_flops(ours, published.size) / layer_flops(
                    theirs, published.size
                )
        expected, actual = from_published(found[0]), found[1]
        if expected.keys() != actual.keys():
            differing = sorted(expected.keys() ^ actual.keys())
            raise OptionError(f"{published.label}: names differ: {differing}")
        groups: dict[str, list[str]] = {
            "train logits": [],
            "eval logits": [],
            "input grad": [],
            "weight grad": [],
        }
        for key in expected:
            groups[key if key in groups else "weight grad"].append(key)
        for group, keys in groups.items():
            row[f"{group} {bits}"] = max(difference(actual[k], expected[k]) for k in keys)
    return row


def outputs(model: nn.Module, images: Tensor, labels: Tensor) -> Outputs:
    """Logits in both modes, and the gradients of the input and, by name, of every parameter."""
    images = images.clone().requires_grad_()
    model.train()
    logits = model(images)
    F.cross_entropy(logits, labels).backward()
    assert images.grad is not None
    result = {"train logits": logits.detach(), "input grad": images.grad}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:  # some published networks have unused parameters
            result[name] = parameter.grad.clone()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # the batch's own statistics: activations of order 1
        model(images)
        result["eval logits"] = model.eval()(images)
    model.zero_grad()
    return result


def difference(actual: Tensor, expected: Tensor) -> float:
    scale = max(1.0, float(expected.abs().max()))
    return float((actual - expected).abs().max()) / scale
