"""`ela-probe recipes`."""

from . import console
from .options import Json


def command(*, json: Json = False) -> None:
    """List the built-in recipes of `train --recipe`.

    `ela-probe recipes --json` also prints their settings and files. Copy a file and change it to
    make a recipe of your own.
    """
    from ela_probe.training.recipes import built_in, read_recipe

    found = {name: (path, read_recipe(path)) for name, path in built_in().items()}
    rows = [
        {"name": name, "file": path, **recipe.model_dump(mode="json", exclude_unset=True)}
        for name, (path, recipe) in found.items()
    ]
    if json:
        console.print_json({"recipes": rows})
        return
    lines = [(name, recipe.description) for name, (_, recipe) in found.items()]
    console.print_table("", ("recipe", "~description"), lines)
