"""`ela-probe models`."""

from . import console
from .options import Json


def command(*, json: Json = False) -> None:
    """List the models that `--model` knows.

    A name ends in the depth, as in mrla_b_resnet20. CIFAR ResNets take a depth of 6n+2 (basic
    blocks, the default) or 9n+2 (--model-args '{"block": "bottleneck"}'), ImageNet ResNets 50, 101
    or 152, language models any.
    """
    import torch

    from ela_probe.models.registry import FAMILIES, create_model, parameter_count

    rows, lines = [], []
    for family in FAMILIES.values():
        depths = family.depths if json else tuple(dict.fromkeys(ends_of(family.depths)))
        names = [f"{family.name}{depth}" for depth in depths] or [family.name]
        counts = []
        for name in names:
            with torch.device("meta"):  # shapes alone, so that large networks list soon
                counts.append(parameter_count(create_model(name)))
            rows.append({"name": name, "parameters": counts[-1], "description": family.description})
        span = " - ".join(map(str, depths))
        millions = " - ".join(f"{count / 1e6:.2f}" for count in counts)
        lines.append((family.name, span, millions, family.description))
    if json:
        console.print_json({"models": rows})
        return
    console.print_table("", ("model", "depth", ">M parameters", "description"), lines)
    console.print_paragraph(
        "arguments (--model-args JSON). ResNets: num_classes, in_channels, block (CIFAR), stem "
        "(ImageNet), and for their attention reduction (SE, CBAM, DIA, DLA), head_dim and "
        "drop_path (DLA, MRLA), hidden (RLA_g). Language models: dim, heads, kv_heads, "
        "block_size, vocab_size, tied"
    )


def ends_of(depths: tuple[int, ...]) -> tuple[int, ...]:
    """The first and the last."""
    return (*depths[:1], *depths[-1:])
