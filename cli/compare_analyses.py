"""`ela-probe compare-analyses`."""

from pathlib import Path
from typing import Annotated

import typer

from . import console, inputs
from .options import Json


def command(
    *,
    first: Annotated[
        Path,
        typer.Argument(
            help="A folder that `analyze` wrote.", callback=inputs.ANALYSIS_FOLDER.check
        ),
    ],
    second: Annotated[
        Path,
        typer.Argument(
            help="Another one, of the same network.", callback=inputs.ANALYSIS_FOLDER.check
        ),
    ],
    skip: Annotated[
        float,
        typer.Option(
            help="Share of all retrievals that the two compared plans skip.",
            callback=inputs.share_of("--skip"),
        ),
    ] = 0.3,
    json: Json = False,
) -> None:
    """What changed between two analyses: redundancy, damage, and the plans that follow.

    They may be of other checkpoints, epochs, seeds or data; sites are matched by name.

    ela-probe compare-analyses runs/seed0/best-analysis runs/seed1/best-analysis
    """
    from ela_probe.analysis.result import Analysis
    from ela_probe.pruning.changes import compare_analyses

    changes = compare_analyses(
        Analysis.load(first), Analysis.load(second), names=inputs.names_of(first, second),
        share=skip,
    )  # fmt: skip
    if json:
        console.print_json(changes.model_dump())
        return
    for sentence in changes.sentences():
        console.print_paragraph(sentence)
    columns = ["site", ">kl", ">then", ">± 2 se", ">damage", ">then", ">± 2 se", "plan", "then"]
    console.print_table(
        "",
        columns,
        (
            [
                site.site, site.kl.first, site.kl.second, site.kl.reach, site.damage.first,
                site.damage.second, site.damage.reach, site.first_action, site.second_action,
            ]
            for site in changes.sites
        ),
    )  # fmt: skip
