"""Small networks of transformers, built from their configs with weights far from their start."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WORDS = 64


def inkling_config(**settings: Any) -> dict[str, Any]:
    """The settings of a small inkling2 text model: four layers, a block of two."""
    return {
        "vocab_size": WORDS,
        "unpadded_vocab_size": WORDS,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 1,
        "swa_head_dim": 16,
        "sliding_window_size": 8,
        "d_rel": 4,
        "rel_extent": 8,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_layers_per_attn_res_block": 2,
        "layer_types": ["hybrid_sliding", "hybrid"] * 2,
        "max_position_embeddings": 64,
        "eos_token_id": 0,
        **settings,
    }


def inkling(seed: int = 0, std: float = 0.3, **settings: Any) -> Any:
    """inkling2, in eval mode; a site with three queries in every second layer."""
    from transformers.models.inkling2 import Inkling2ForCausalLM, Inkling2TextConfig

    return built(Inkling2ForCausalLM, Inkling2TextConfig(**inkling_config(**settings)), seed, std)


def inkling_loop(seed: int = 0) -> Any:
    """inkling2_loop: of eight layers the middle four run three times."""
    from transformers.models.inkling2_loop import Inkling2LoopForCausalLM, Inkling2LoopTextConfig

    config = inkling_config(
        num_hidden_layers=8,
        layer_types=["hybrid_sliding", "hybrid"] * 4,
        loop_layer_index_start=2,
        loop_layer_index_end=6,
        loop_num_passes=3,
        loop_gate_rank=4,
    )
    return built(Inkling2LoopForCausalLM, Inkling2LoopTextConfig(**config), seed)


def built(network: Any, config: Any, seed: int = 0, std: float = 0.3) -> nn.Module:
    """A network in eval mode without a cache, its weights normal with this deviation."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        config.use_cache = False
        model: nn.Module = network(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=std)
    return model.eval()


def token_ids(batch: int = 3, length: int = 7, seed: int = 1) -> Tensor:
    """Random token ids, int64 [batch, length]."""
    return torch.randint(0, WORDS, (batch, length), generator=torch.Generator().manual_seed(seed))


LETTERS = "\n abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,;:!?'-&3"


def save_tokenizer(folder: Path) -> None:
    """Write a tokenizer with a token for each letter of `LETTERS`; any other letter is a blank."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({c: n for n, c in enumerate(LETTERS)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(str(folder))


def save_model(folder: Path, model: nn.Module) -> Path:
    """A directory with a network and a tokenizer, as `save_pretrained` writes it."""
    saved: Any = model
    saved.save_pretrained(str(folder))
    save_tokenizer(folder)
    return folder
