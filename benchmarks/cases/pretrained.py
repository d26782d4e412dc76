"""A small inkling2 network with a tokenizer, untrained, as save_pretrained writes it.

The verbs of ela-probe do the rest: `ela-probe finetune hf:DIR --data text:FILE` trains it.
"""

from pathlib import Path
from typing import Annotated

import typer

from ela_probe.data.source_files import check_text
from ela_probe.errors import OutputError
from ela_probe.pretrained import quiet
from ela_probe.system.extras import transformers


def run(
    text: Annotated[Path, typer.Option(help="A text to make the tokenizer from.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The directory to write.")],
    layers: Annotated[int, typer.Option(min=2)] = 6,
    width: Annotated[int, typer.Option(min=32, help="A multiple of 32.")] = 64,
    tokens: Annotated[int, typer.Option(min=300, help="Of the tokenizer (BPE).")] = 512,
    seed: int = 0,
) -> None:
    """Write a directory that `ela-probe finetune hf:DIR` can train."""
    if output.exists():
        raise OutputError(f"cannot write {output}: it exists already; choose another name")
    check_text(text)
    library = transformers()

    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers.models.inkling2 import Inkling2ForCausalLM, Inkling2TextConfig

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train([str(text)], vocab_size=tokens, show_progress=False)
    torch.manual_seed(seed)
    config = Inkling2TextConfig(
        vocab_size=tokens,
        unpadded_vocab_size=tokens,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=1,
        head_dim=32,
        swa_num_attention_heads=width // 32,
        swa_num_key_value_heads=1,
        swa_head_dim=32,
        sliding_window_size=32,
        d_rel=8,
        rel_extent=64,
        moe_intermediate_size=width,
        n_routed_experts=4,
        num_experts_per_tok=2,
        route_scale=1.0,
        n_layers_per_attn_res_block=2,
        layer_types=["hybrid_sliding", "hybrid_sliding", "hybrid"] * (layers // 3)
        + ["hybrid_sliding"] * (layers % 3),
        max_position_embeddings=512,
        eos_token_id=None,
    )
    model = Inkling2ForCausalLM(config)
    with quiet():
        model.save_pretrained(str(output))
    saved = library.PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer)
    saved.save_pretrained(str(output))
    parameters = sum(p.numel() for p in model.parameters())
    typer.echo(f"{parameters:,} parameters, {len(saved)} tokens, written to {output}")
