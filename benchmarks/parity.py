"""Whether our networks are the published ones: same weights, same outputs and gradients."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from benchmarks.results import JsonPath, publish
from ela_probe.errors import OptionError
from ela_probe.models import create_model, parameter_count
from ela_probe.models.published import from_published
from ela_probe.storage import write_text

TOLERANCE = 1e-5
FILES = {"mrla_b_": "mrla_base", "mrla_l_": "mrla_light", "": "resnet"}
NETWORKS = ((20, "basic"), (29, "bottleneck"), (56, "basic"))

Figures = dict[str, Tensor]


def run(
    reference: Annotated[Path, typer.Option(help="A checkout of github.com/bgx666/KCLA.")],
    record: Annotated[
        Path | None, typer.Option(help="Write the published networks' logits for the tests.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=2)] = 4,
    seed: int = 0,
    json: JsonPath = None,
) -> None:
    """Compare with the published CIFAR networks: outputs and gradients, in float32 and float64.

    Exit code 1 when a figure is above 1e-5, relative to its scale where that is above 1. Gradients
    count in float64: in float32 a ReLU's input can round to the other side of zero, and two correct
    gradients then differ by a whole term.
    """
    published = {prefix: load(reference, name) for prefix, name in FILES.items()}
    if record is not None:
        from benchmarks.golden import recording  # of the repository's tests

        write_text(record, recording(published))
    rows = [
        compare_network(build, f"{prefix}resnet{depth}", block, batch_size=batch_size, seed=seed)
        for prefix, build in published.items()
        for depth, block in NETWORKS
    ]
    held = all(row["parameters"] == row["published"] for row in rows) and all(
        error <= TOLERANCE
        for row in rows
        for what, error in row.items()
        if isinstance(error, float) and not (what.endswith("32") and "grad" in what)
    )
    verdicts = {f"every difference at most {TOLERANCE:g}, parameter counts equal": held}
    title = "Largest differences, relative to the scale of the figure where that is above 1"
    publish("parity", {title: rows}, json_path=json, seed=seed, verdicts=verdicts)
    raise typer.Exit(0 if held else 1)


def load(reference: Path, name: str) -> Callable[..., nn.Module]:
    """The function `name` of the published file of that name; runs the user's copy of it.

    Raises:
        OptionError: no such file there, or it needs a package that is missing.
    """
    path = reference / "cifar" / "models" / "cifar" / f"{name}.py"
    if not path.is_file():
        raise OptionError(
            f"{path} does not exist; --reference expects a checkout of github.com/bgx666/KCLA"
        )
    spec = importlib.util.spec_from_file_location(f"published_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise OptionError(f"{path} needs {error.name}: pip install {error.name}") from error
    function: Callable[..., nn.Module] = getattr(module, name)
    return function


def compare_network(
    build: Callable[..., nn.Module], name: str, block: str, *, batch_size: int, seed: int
) -> dict[str, Any]:
    """A row: parameter counts, and the largest difference of each figure in each precision."""
    torch.manual_seed(seed)
    depth = int(name.rpartition("resnet")[2])
    theirs = build(depth=depth, num_classes=10, block_name=published_block(block))
    images = torch.randn(batch_size, 3, 32, 32)
    labels = torch.randint(10, (batch_size,))
    perturb(theirs)
    ours = create_model(name, block=block)
    row: dict[str, Any] = {
        "network": f"{name} {block}",
        "parameters": parameter_count(ours),
        "published": parameter_count(theirs),
    }
    state = theirs.state_dict()
    for dtype in (torch.float32, torch.float64):
        theirs.load_state_dict(state)
        ours.load_state_dict(from_published(state))
        pair = [figures(model.to(dtype), images.to(dtype), labels) for model in (theirs, ours)]
        expected, actual = from_published(pair[0]), pair[1]
        if expected.keys() != actual.keys():
            raise OptionError(f"{name}: names differ: {sorted(expected.keys() ^ actual.keys())}")
        bits = 32 if dtype == torch.float32 else 64
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


def figures(model: nn.Module, images: Tensor, labels: Tensor) -> Figures:
    """Logits in both modes, the input's gradient, and every parameter's by its name."""
    images = images.clone().requires_grad_()
    model.train()
    logits = model(images)
    F.cross_entropy(logits, labels).backward()
    assert images.grad is not None
    result = {"train logits": logits.detach(), "input grad": images.grad}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
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


def published_block(block: str) -> str:
    return {"basic": "basicblock", "bottleneck": "bottleneck"}[block]
