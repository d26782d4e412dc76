"""Networks of transformers without layer attention: no site is found, and the reason is shown."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ela_probe import discover
from ela_probe.errors import ModelError

pytest.importorskip("transformers", reason="needs transformers")

import transformers as library

from tests.support.transformers_models import WORDS, built, token_ids

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOKENS = r"attends over tokens"
FIXED = r"attends over a fixed number"


class Generates(nn.Module):
    """A language model that generates greedily, with a cache that grows from step to step."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.generate(tokens, max_new_tokens=5, do_sample=False, use_cache=True,
                                   pad_token_id=0)  # fmt: skip


class Segments(nn.Module):
    """A language model with the memory of Transformer-XL, on two segments of a text."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        outputs, memory = [], None
        for segment in tokens.chunk(2, dim=1):
            output = self.model(segment, mems=memory, use_mems=True)
            outputs.append(output.logits)
            memory = output.mems
        return torch.cat(outputs, 1)


def xlnet() -> nn.Module:
    config = library.XLNetConfig(
        vocab_size=WORDS, d_model=32, n_layer=3, n_head=2, d_inner=64, mem_len=8
    )
    return built(library.XLNetLMHeadModel, config)


def gpt2(attention: str = "sdpa") -> nn.Module:
    config = library.GPT2Config(
        vocab_size=WORDS, n_positions=64, n_embd=32, n_layer=4, n_head=2, bos_token_id=0,
        eos_token_id=0, attn_implementation=attention,
    )  # fmt: skip
    return built(library.GPT2LMHeadModel, config)


def vit() -> nn.Module:
    config = library.ViTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=8,
    )  # fmt: skip
    return built(library.ViTForImageClassification, config)


def swin() -> nn.Module:
    config = library.SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
    )
    return built(library.SwinForImageClassification, config)


def detr(**settings: str) -> nn.Module:
    backbone = library.ResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage4"]
    )
    config = library.DetrConfig(
        d_model=32, encoder_layers=2, decoder_layers=3, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=5, backbone=None,
        use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=backbone,
        **settings,
    )  # fmt: skip
    return built(library.DetrForObjectDetection, config, std=0.1)


def mixtral(attention: str) -> nn.Module:
    config = library.MixtralConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
        max_position_embeddings=64, attn_implementation=attention,
    )  # fmt: skip
    return built(library.MixtralForCausalLM, config)


def t5() -> nn.Module:
    config = library.T5Config(
        vocab_size=WORDS, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=2
    )
    return built(library.T5ForConditionalGeneration, config)


CASES = {
    "ViT": (vit, IMAGES, rf"attention \(scaled_dot_product_attention\).*{TOKENS}"),
    "GPT-2": (gpt2, token_ids(), rf"attn \(scaled_dot_product_attention\).*{TOKENS}"),
    "GPT-2 with a cache": (
        lambda: Generates(gpt2("eager")),
        token_ids(),
        r"attn \(softmax\), lengths 7 to 11 in 20 calls: follows the length of the inputs",
    ),
    "GPT-2 with a cache, fused": (
        lambda: Generates(gpt2()),
        token_ids(),
        r"lengths 7 to 11 in 20 calls: follows the length of the inputs",
    ),
    "XLNet with a memory": (
        lambda: Segments(xlnet()),
        token_ids(length=8),
        r"rel_attn \(softmax\), lengths 4 to 8 in 5 calls: follows the length of the inputs",
    ),
    "Swin": (swin, IMAGES, rf"blocks\.\*\.attention.*{TOKENS}"),
    "DETR": (
        lambda: detr(attn_implementation="eager"),
        torch.randn(2, 3, 64, 64),
        rf"encoder_attn \(softmax\).*{FIXED}",
    ),
    "DETR, fused": (detr, torch.randn(2, 3, 64, 64), rf"self_attn.*{TOKENS}"),
    "Mixtral": (
        lambda: mixtral("eager"),
        token_ids(),
        rf"mlp\.gate \(softmax\), length 4.*{FIXED}",
    ),
    "Mixtral, fused": (lambda: mixtral("sdpa"), token_ids(), rf"mlp\.gate \(softmax\).*{FIXED}"),
    "T5": (
        t5,
        {"input_ids": token_ids(), "decoder_input_ids": token_ids(length=5)},
        r"EncDecAttention.*attends over",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_no_site_is_found_and_the_reason_is_shown(name: str) -> None:
    build, inputs, reason = CASES[name]
    with pytest.raises(ModelError, match=f"no layer attention found.*{reason}"):
        discover(build(), inputs)
