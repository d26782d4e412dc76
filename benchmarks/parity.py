"""Whether our networks are the published ones: same weights, same outputs and gradients."""

from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from benchmarks.checkouts import belongs
from benchmarks.results import JsonPath, publish
from benchmarks.zoo import TWINS, Twin, in_precision
from ela_probe.errors import OptionError
from ela_probe.models.published import from_published
from ela_probe.models.registry import parameter_count
from ela_probe.system.storage import write_text

TOLERANCE = 1e-5
OF_FLOPS = 0.01

Figures = dict[str, Tensor]


def run(
    checkout: Annotated[
        list[Path], typer.Option(help="A checkout of one of the repositories; may be repeated.")
    ],
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
    twins = [
        (twin, root)
        for twin in TWINS
        if (root := next((c for c in checkout if belongs(c, twin.repository)), None)) is not None
    ]
    if not twins:
        names = ", ".join(sorted({twin.repository for twin in TWINS}))
        raise OptionError(f"none of the folders is a checkout of one of: {names}")
    if record is not None:
        from benchmarks.golden import recording  # of the repository's tests

        write_text(record, recording(twins))
    rows = [compare_network(twin, root, batch_size=batch_size, seed=seed) for twin, root in twins]
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


def compare_network(twin: Twin, root: Path, *, batch_size: int, seed: int) -> dict[str, Any]:
    """A row: parameter counts, ratio of FLOPs, and the largest difference of each figure."""
    from tests.golden import layer_flops, network  # of the repository's tests

    torch.manual_seed(seed)
    theirs, ours = load(twin, root), network(twin.ours)
    samples = twin.samples or batch_size
    images = torch.randn(samples, 3, twin.size, twin.size)
    labels = torch.randint(10, (samples,))
    perturb(theirs)
    state = theirs.state_dict()
    row: dict[str, Any] = {
        "repository": twin.repository,
        "network": twin.network,
        "ours": twin.ours.get("model", twin.ours.get("attention")),
        "samples": samples,
        "parameters": parameter_count(ours),
    }
    for dtype, bits in ((torch.float32, 32), (torch.float64, 64)):
        torch.manual_seed(seed)
        theirs.load_state_dict(state)
        ours.load_state_dict(from_published(state))
        with in_precision(dtype):
            pair = [figures(model.to(dtype), images.to(dtype), labels) for model in (theirs, ours)]
            if bits == 32:
                row["published"] = sum(
                    p.numel() for n, p in theirs.named_parameters() if n in pair[0]
                )
                row["FLOPs"] = layer_flops(ours, twin.size) / layer_flops(theirs, twin.size)
        expected, actual = from_published(pair[0]), pair[1]
        if expected.keys() != actual.keys():
            differing = sorted(expected.keys() ^ actual.keys())
            raise OptionError(f"{twin.network}: names differ: {differing}")
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


def load(twin: Twin, root: Path) -> nn.Module:
    """Raises OptionError: the file is not there, or needs a package that is missing."""
    try:
        return twin.theirs(root)
    except ImportError as error:
        needed = error.name
        raise OptionError(f"{twin.file}.py needs {needed}: pip install {needed}") from error


def figures(model: nn.Module, images: Tensor, labels: Tensor) -> Figures:
    """Logits in both modes, the input's gradient, and every parameter's by its name."""
    images = images.clone().requires_grad_()
    model.train()
    logits = model(images)
    F.cross_entropy(logits, labels).backward()
    assert images.grad is not None
    result = {"train logits": logits.detach(), "input grad": images.grad}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:  # some published networks have parameters of no use
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


@torch.no_grad()
def perturb(model: nn.Module) -> None:
    """BatchNorm's weights and biases away from 1 and 0, so that they count."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0.0, 0.1)
