"""`ela-probe recipes`."""

from . import console
from .options import Json


def command(json: Json = False) -> None:
    """List the built-in recipes that `train --recipe` knows.

    `ela-probe recipes --json` also says what is in each, and where its file lies: a copy of it,
    changed, is a recipe too.
    """
    from ela_probe.training.recipes import built_in, read_recipe

    found = {name: (path, read_recipe(path)) for name, path in built_in().items()}
    rows = [
        {"name": name, "file": path, **recipe.model_dump(mode="json", exclude_unset=True)}
        for name, (path, recipe) in found.items()
    ]
    console.emit({"recipes": rows}, as_json=json)
    if not json:
        lines = [(name, recipe.description) for name, (_, recipe) in found.items()]
        console.out.print(console.table("", ("recipe", "what it is"), lines))
