"""Rename the state dicts of published ResNets to our names. Values do not change.

Repositories: bgx666/KCLA and tunantu/Dynamic-Layer-Attention (CIFAR and ImageNet),
joyfang1106/MRLA, gbup-group/DIANet, Jongchan/attention-module, BangguWu/ECANet,
fangyanwen1106/RLANet.
"""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

# (pattern, replacement), all applied in this order: first the prefixes, then the modules.
RULES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^layer(\d)\.", lambda m: f"stages.{int(m[1]) - 1}."),
    (r"^stages\.(\d)\.(ModuleList|layers)\.", r"stages.\1."),
    (r"^stages\.(\d)\.attention\.(\d+)\.", r"stages.\1.\2."),
    (r"^(stages\.\d+\.\d+)\.(conv|bn)(\d)\.", r"\1.body.\2\3."),
    (r"\.downsample\.0\.", ".downsample.conv."),
    (r"\.downsample\.1\.", ".downsample.bn."),
    # MRLA and DLA: `mrla.mrla` or `layer_attention.layer_attention` hold the parts of a retrieval
    (r"\.(mrla|layer_attention)\.(mrla|layer_attention)\.Wq\.", ".retrieval.query."),
    (r"\.(mrla|layer_attention)\.(mrla|layer_attention)\.Wk\.", ".retrieval.key."),
    (r"\.(mrla|layer_attention)\.(mrla|layer_attention)\.Wv\.", ".retrieval.value."),
    (r"\.(mrla|layer_attention)\.lambda_t$", ".retrieval.decay"),
    (r"\.bn_(mrla|layer_attention)\.", ".retrieval.norm."),
    # DIA and DLA: the cell of a stage; DLA-L's convolution has two spellings
    (r"^stages\.(\d)\.lstm\.w_ih\.0\.seq\.", r"shared.\1.cell.of_input."),
    (r"^stages\.(\d)\.lstm\.w_hh\.0\.seq\.", r"shared.\1.cell.of_state."),
    (r"^stages\.(\d)\.ex(cite|tict)\.", r"shared.\1.excite."),
    # attention modules at the end of a body
    (r"\.se\.fc\.0\.", ".body.attention.squeeze."),
    (r"\.se\.fc\.2\.", ".body.attention.excite."),
    (r"\.eca\.conv\.", ".body.attention.conv."),
    (r"\.cbam\.ChannelGate\.mlp\.1\.", ".body.attention.squeeze."),
    (r"\.cbam\.ChannelGate\.mlp\.3\.", ".body.attention.excite."),
    (r"\.cbam\.SpatialGate\.spatial\.conv\.", ".body.attention.conv."),
    (r"\.cbam\.SpatialGate\.spatial\.bn\.", ".body.attention.norm."),
    # RLA
    (r"^stage_bns\.(\d)\.(\d+)\.", r"stages.\1.\2.hidden_norm."),
    (r"^conv_outs\.", "shared."),
    (r"^recurrent_convs\.(\d)\.", r"shared.\1.recurrent."),
    (r"^shared\.(\d)\.weight$", r"shared.\1.project.weight"),
    (r"^bn2\.", "after.norm."),
]
UNUSED = "after.norm."  # the DLA-L of KCLA has a `bn2` that it never calls


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of a published ResNet, plain or with an attention of our zoo.

    A state dict that already has our names is returned unchanged.
    """
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in RULES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    if "shared.0.recurrent.weight" not in renamed:
        renamed = {name: v for name, v in renamed.items() if not name.startswith(UNUSED)}
    return renamed
