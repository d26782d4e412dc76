"""`ela-probe models`."""

from . import console
from .options import Json


def command(*, json: Json = False) -> None:
    """List the models that `--model` knows.

    A name ends in the depth, as in mrla_b_resnet20. CIFAR ResNets take a depth of 6n+2 (basic
    blocks, the default) or 9n+2 (--model-args '{"block": "bottleneck"}'), ImageNet ResNets 50, 101
    or 152, language models any. fasterrcnn_NAME_fpn and maskrcnn_NAME_fpn are detectors over the
    ResNet NAME.
    """
    from ela_probe.models.zoo import ZOO

    if json:
        rows = [
            {
                "name": f"{family.name}{depth}",
                "parameters": count,
                "description": family.description,
            }
            for family in ZOO
            for depth, count in zip(family.depths, family.parameters, strict=True)
        ]
        console.print_json({"models": rows})
        return
    lines = [
        (
            family.name,
            " - ".join(str(depth) for depth in ends_of(family.depths)),
            " - ".join(f"{count / 1e6:.2f}" for count in ends_of(family.parameters)),
            family.description,
        )
        for family in ZOO
    ]
    console.print_table("", ("model", "depth", ">M parameters", "~description"), lines)
    console.print_paragraph(
        "detectors over any of these ResNets: fasterrcnn_NAME_fpn and maskrcnn_NAME_fpn, such as "
        "fasterrcnn_mrla_b_resnet20_fpn"
    )
    console.print_paragraph(
        "arguments (--model-args JSON). ResNets: num_classes, in_channels, block (CIFAR), stem "
        "(ImageNet), and for their attention reduction (SE, CBAM, DIA, DLA), head_dim and "
        "drop_path (DLA, MRLA), hidden (RLA_g). Language models: dim, heads, kv_heads, "
        "block_size, vocab_size, tied"
    )


def ends_of(values: tuple[int, ...]) -> tuple[int, int]:
    """The first and the last value."""
    return values[0], values[-1]
