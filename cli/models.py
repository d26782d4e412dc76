"""`ela-probe models`."""

from . import console
from .options import Json


def command(json: Json = False) -> None:
    """List the models that `--model` knows.

    A name ends in its depth, and any depth that fits works: of ResNets 6n+2 (basic blocks, the
    default) or 9n+2 (bottlenecks, --model-args '{"block": "bottleneck"}'), of language models any.
    """
    from ela_probe.models import FAMILIES, create_model, parameter_count

    rows = []
    for family in FAMILIES.values():
        for name in [f"{family.name}{depth}" for depth in family.depths] or [family.name]:
            rows.append(
                {
                    "name": name,
                    "parameters": parameter_count(create_model(name)),
                    "description": family.description,
                }
            )
    console.emit({"models": rows}, as_json=json)
    if not json:
        columns = ("model", ">parameters", "what it is")
        console.out.print(console.table("", columns, [row.values() for row in rows]))
        console.out.print(
            "arguments (--model-args JSON): of ResNets block, num_classes, in_channels, head_dim, "
            "drop_path; of language models dim, heads, kv_heads, block_size, vocab_size, tied",
            markup=False,
        )
