"""State dicts of bgx666/KCLA's CIFAR networks, renamed to ours. Names only; no value changes."""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

# (pattern, replacement) in order; `mrla.mrla` and `bn_mrla` hold a retrieval's parts there.
RULES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^layer(\d)\.", lambda m: f"stages.{int(m[1]) - 1}."),
    (r"^(stages\.\d+\.\d+)\.(conv|bn)(\d)\.", r"\1.body.\2\3."),
    (r"\.downsample\.0\.", ".downsample.conv."),
    (r"\.downsample\.1\.", ".downsample.bn."),
    (r"\.mrla\.mrla\.Wq\.", ".retrieval.query."),
    (r"\.mrla\.mrla\.Wk\.", ".retrieval.key."),
    (r"\.mrla\.mrla\.Wv\.", ".retrieval.value."),
    (r"\.mrla\.lambda_t$", ".retrieval.decay"),
    (r"\.bn_mrla\.", ".retrieval.norm."),
]


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published CIFAR `resnet`, `mrla_base` or `mrla_light` state dict.

    A state dict that already has our names comes back unchanged.
    """
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in RULES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed
