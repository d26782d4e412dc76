"""The Typer application: one file per command."""

import typer

from . import (
    ablate,
    analyze,
    compare,
    compare_analyses,
    costs,
    demo,
    discover,
    finetune,
    models,
    notebook,
    plan,
    prune,
    recipes,
    report,
    train,
)
from .option_groups import expand_groups, fence_examples

app = typer.Typer(
    name="ela-probe",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every command takes --json (one document on stdout) and --debug (tracebacks).",
)


def version(value: bool) -> None:
    """Print the version and stop, for `--version`."""
    if value:
        from ela_probe import __version__

        typer.echo(f"ela-probe {__version__}")
        raise typer.Exit


def root(
    show_version: bool = typer.Option(
        False, "--version", callback=version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Find, measure and remove redundant retrievals of networks with layer attention.

    The usual way:

        ela-probe train --model mrla_b_resnet20 --data digits -o runs/digits
        ela-probe analyze runs/digits/best.pt -o runs/digits/analysis
        ela-probe plan runs/digits/analysis --skip 0.3 -o plan.json
        ela-probe prune runs/digits/best.pt --plan plan.json -o pruned.pt
        ela-probe finetune pruned.pt -o tuned.pt
        ela-probe compare runs/digits/best.pt pruned.pt tuned.pt

    `ela-probe demo` does all of this on small real images in about two minutes.
    """


app.callback(help=fence_examples(root.__doc__ or ""))(root)
VERBS = (
    demo, train, discover, analyze, costs, plan, prune, finetune, compare, ablate, report,
    compare_analyses, notebook, models, recipes,
)  # fmt: skip
for module in VERBS:
    app.command(module.__name__.rpartition(".")[2].replace("_", "-"))(expand_groups(module.command))
