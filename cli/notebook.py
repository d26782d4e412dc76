"""`ela-probe notebook`."""

from pathlib import Path
from typing import Annotated

import typer

from ela_probe.system.messages import quoted

from . import console, inputs
from .options import Json
from .outputs import check_output, writing


def command(
    *,
    analysis: Annotated[
        Path | None,
        typer.Argument(
            help="A folder that `analyze` wrote. Without it the notebook opens that of the demo.",
            callback=inputs.ANALYSIS_FOLDER.check,
        ),
    ] = None,
    other: Annotated[
        Path | None,
        typer.Option(
            help="A second analysis folder, to look at beside the first.",
            callback=inputs.ANALYSIS_FOLDER.check,
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option(
            help="Which notebook: 01_explore, 02_checkpoint_to_pruned, 03_ebqm, 04_ablation, "
            "05_own_model or 06_language_model."
        ),
    ] = "01_explore",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="The copy. Default: NAME.ipynb beside the analysis, or here."
        ),
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser.")] = True,
    copy: Annotated[
        bool, typer.Option("--copy", help="Write the copy only; don't start Jupyter.")
    ] = False,
    json: Json = False,
) -> None:
    """Copy a notebook that explores an analysis, and open it in JupyterLab.

    It shows every pair with its numbers, a slider from no skipping to the most, and two analyses
    side by side. Jupyter comes with the extra `notebooks`. --json writes the copy only.

        ela-probe notebook runs/digits/analysis
        ela-probe notebook runs/digits/analysis --other runs/other/analysis --no-browser
        ela-probe notebook --name 03_ebqm --copy -o ebqm.ipynb
    """
    from ela_probe.errors import OptionError
    from ela_probe.pipeline.notebook import EXPLORE, check_jupyter, copy_notebook, open_notebook

    if name != EXPLORE and (analysis or other):
        raise OptionError(
            f"got an analysis for the notebook {name}, which makes its own; leave it out, or "
            f"leave out --name to open {EXPLORE}"
        )
    folders = {"analysis_folder": analysis, "other_folder": other}
    for folder in (analysis, other):
        if folder is not None:
            from ela_probe.analysis.result import Analysis

            Analysis.load(folder)
    path = output or (Path() if analysis is None else analysis.parent) / f"{name}.ipynb"
    check_output(path, [])
    if not (copy or json):
        check_jupyter()
    parameters = {n: str(folder.resolve()) for n, folder in folders.items() if folder is not None}
    with writing(path):
        copy_notebook(name, path, **parameters)
    if json:
        console.print_json({"notebook": path})
        return
    console.print_line(f"notebook: {quoted(path)}")
    if not copy:
        raise typer.Exit(open_notebook(path, browser=browser))
