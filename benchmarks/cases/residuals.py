"""Language models with Attention Residuals as they are, from checkouts and installed packages."""

from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.published.checkouts import Checkouts, checkout_of, in_precision
from benchmarks.published.language_models import LANGUAGE_MODELS, WORDS, LanguageModel
from benchmarks.support.results import JsonPath, publish
from ela_probe import discover
from ela_probe.adapters.registry import adapter_for
from ela_probe.analysis.damage_probe import handovers_of
from ela_probe.discovery.capture import Capture
from ela_probe.discovery.discover import Discovery
from ela_probe.forward import copied

READ, PRUNED = 1e-6, 1e-5


def run(checkout: Checkouts = [], seed: int = 0, json: JsonPath = None) -> None:  # noqa: B006
    """Read and prune published language models, from checkouts that you give and x-transformers.

    A checkout's folder has the name of its repository, or `owner+repository`. The code runs
    unmodified, in float64; its norms compute in float32.
    Exit code 1: a site is missing or one too many is found, a weight differs by more than 1e-6 from
    the one recomputed by hand, or a pruned network by more than 1e-5 from the whole one whose
    skipped sites hand on the residual stream. The last column says how far skipping changes logits.
    """
    rows = [row(entry, checkout, seed) for entry in LANGUAGE_MODELS]
    ran = [r for r in rows if r["adapter"] != "not run"]
    verdicts = {
        "every site found and nothing else": all(r["sources"] == r["expected"] for r in ran),
        f"weights as by hand within {READ:g}": all(r["weights"] <= READ for r in ran),
        f"pruned as defined within {PRUNED:g}": all(r["pruned"] <= PRUNED for r in ran),
    }
    title = "Largest differences; logits relative to their scale where that is above 1"
    publish("residuals", {title: rows}, json_path=json, seed=seed, verdicts=verdicts)
    raise typer.Exit(0 if all(verdicts.values()) and ran else 1)


def row(entry: LanguageModel, checkouts: list[Path], seed: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "repository": entry.repository,
        "network": entry.label,
        "adapter": "not run",
        "expected": joined(entry.sizes),
        "sources": "",
        "weights": "",
        "skipped": "",
        "pruned": "",
        "from whole": "",
    }
    checkout = checkout_of(entry.repository, checkouts) if "/" in entry.repository else None
    if "/" in entry.repository and checkout is None:
        return result | {"skipped": "no checkout given"}
    torch.manual_seed(seed)
    with in_precision(torch.float64):
        try:
            model = entry.build(checkout).double().eval()
        except ImportError as error:
            return result | {"skipped": f"needs {error.name}"}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.2)
        tokens = torch.randint(0, WORDS, (4, 16))
        found = discover(model, tokens)
        (stage,) = found.stages
        names = [site.name for site in stage.sites]
        expected = entry.family.by_hand(model, names, tokens)
        read = weights_read(model, found, tokens)
        skipped = list(handovers_of(model, found))[1::2]
        return result | {
            "adapter": found.adapter.name,
            "sources": joined(stage.sizes),
            "weights": max(float((read[n] - expected[n]).abs().max()) for n in names),
            "skipped": f"{len(skipped)} of {len(names)}",
            **pruned(entry, model, skipped, tokens),
        }


def weights_read(model: nn.Module, found: Discovery, tokens: Tensor) -> dict[str, Tensor]:
    """The weights that a probe reads in one pass, by site."""
    weights: dict[str, Tensor] = {}
    names = [site.name for stage in found.stages for site in stage.sites]

    def receive(stages: list[list[Tensor]]) -> None:
        weights.update(zip(names, [w for stage in stages for w in stage], strict=True))

    capture = Capture(model, found.adapter, stages=found.stages, receive=receive)
    with torch.no_grad(), capture:
        model(tokens)
    return weights


def pruned(
    entry: LanguageModel, model: nn.Module, skipped: list[str], tokens: Tensor
) -> dict[str, float]:
    """The largest differences of the logits from the definition of `skip` and the whole network."""
    smaller = copied(model)
    adapter = adapter_for(smaller)
    assert adapter is not None
    adapter.apply(smaller, dict.fromkeys(skipped, "skip"))
    with torch.no_grad(), entry.family.skipping(model, skipped):
        reference = model(tokens)
    with torch.no_grad():
        result, whole = smaller(tokens), model(tokens)
    scale = max(1.0, float(reference.abs().max()))
    return {
        "pruned": float((result - reference).abs().max()) / scale,
        "from whole": float((result - whole).abs().max()) / scale,
    }


def joined(counts: tuple[int, ...]) -> str:
    return " ".join(map(str, counts))
