"""Published language models with Attention Residuals, small, and their formulas by hooks.

Hooks follow the residual stream of a plain transformer: the embedding and the outputs of all
sublayers. So what a network computes where sites hand on that stream is known without pruning.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.published.checkouts import run_file

OPEN, DELTA = "Zefan-Cai/open-attention-residuals", "wdlctc/delta-attention-residuals-code"
WORDS, WIDTH = 64, 32
NORMS = {"attn_res": "input_layernorm", "mlp_res": "post_attention_layernorm"}


class Family(Protocol):
    """What the case needs of a family of networks."""

    def by_hand(self, model: nn.Module, sites: Sequence[str], tokens: Tensor) -> dict[str, Tensor]:
        """The weights [samples, tokens, sources] of a pass, by site."""

    def skipping(
        self, model: nn.Module, sites: Sequence[str]
    ) -> contextlib.AbstractContextManager[None]:
        """A block in which the sites hand on the residual stream."""


@dataclass(frozen=True)
class LanguageModel:
    """A small network, its family, and how many sources its sites have."""

    repository: str
    label: str
    build: Callable[[Path | None], nn.Module]
    family: Family
    sizes: tuple[int, ...]


class WithoutMask(nn.Module):
    """A network of transformers, called with a mask that is made already: causal attention.

    The checkouts were written for an earlier version of transformers, whose function for masks had
    other arguments; given a mask, they do not call it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        return self.network(tokens, attention_mask={"full_attention": None}).logits


def open_network(file: str, mode: str, checkout: Path | None) -> nn.Module:
    assert checkout is not None
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        code = run_file(checkout, file)
        config = code.Qwen3AttnResConfig(
            attnres_num_blocks=2, attnres_mode=mode, vocab_size=WORDS, hidden_size=WIDTH,
            intermediate_size=48, num_hidden_layers=4, num_attention_heads=2, head_dim=16,
            num_key_value_heads=1, max_position_embeddings=64,
        )  # fmt: skip
        config.use_cache = False
        return WithoutMask(code.Qwen3AttnResForCausalLM(config))


class OpenFamily:
    """Of both checkouts: a function in the layer calls a norm with the stacked sources."""

    def by_hand(self, model: nn.Module, sites: Sequence[str], tokens: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def rate(site: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
            parent, _, title = site.rpartition(".")
            owner: Any = model.get_submodule(parent)
            query = getattr(owner, f"{title}_proj").weight[0]
            keys = getattr(owner, f"{title}_norm")
            scores = []
            for x in inputs[0].unbind(0):
                rms = (x.square().mean(-1, keepdim=True) + keys.variance_epsilon).sqrt()
                scores.append((x / rms * keys.weight * query).sum(-1))
            bias = getattr(owner, f"{title}_bias", None)
            if bias is not None and "delta" not in str(getattr(owner, "attnres_mode", "")):
                scores[-1] = scores[-1] + bias
            powers = (
                torch.stack(scores, -1) - torch.stack(scores, -1).amax(-1, keepdim=True)
            ).exp()
            found[site] = powers / powers.sum(-1, keepdim=True)

        hooks = [
            model.get_submodule(f"{site}_norm").register_forward_pre_hook(partial(rate, site))
            for site in sites
        ]
        run(model, tokens, hooks)
        return found

    @contextmanager
    def skipping(self, model: nn.Module, sites: Sequence[str]) -> Iterator[None]:
        stream: list[Tensor] = []

        def begin(_: nn.Module, inputs: Any, output: Tensor) -> None:
            stream[:] = [output]

        def add(_: nn.Module, inputs: Any, output: Any) -> None:
            stream[0] = stream[0] + (output if isinstance(output, Tensor) else output[0])

        hooks = []
        for name, module in model.named_modules():
            last = name.rpartition(".")[2]
            if last == "embed_tokens":
                hooks.append(module.register_forward_hook(begin))
            elif last in ("self_attn", "mlp"):
                hooks.append(module.register_forward_hook(add))
        for site in sites:
            layer, _, title = site.rpartition(".")
            norm = model.get_submodule(f"{layer}.{NORMS[title]}")
            hooks.append(norm.register_forward_pre_hook(lambda *_: (stream[0],)))
        yield from removed_afterwards(hooks)


def integrated_network(settings: dict[str, Any], _: Path | None) -> nn.Module:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=WIDTH, depth=4, heads=2, attn_dim_head=16, **settings)
    return TransformerWrapper(num_tokens=WORDS, max_seq_len=32, attn_layers=layers)


class IntegratedFamily:
    """Of x-transformers: an integrator gets its sublayer's input and the inputs of all so far."""

    def by_hand(self, model: nn.Module, sites: Sequence[str], tokens: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def rate(site: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
            part: Any = module
            x, states = inputs
            if hasattr(part, "to_weights"):
                norm, linear = part.to_weights[0], part.to_weights[1]
                scores = (norm(x) @ linear.weight.T + linear.bias).unflatten(-1, (-1, len(states)))
            else:
                added = part.to_query(x).unflatten(-1, (part.num_views, -1))
                query = part.norm(x.unsqueeze(-2) + added)
                rated = [(query * part.to_keys(s).unsqueeze(-2)).sum(-1) for s in states]
                scores = torch.stack(rated, -1) / x.shape[-1] ** 0.5
            powers = (scores - scores.amax(-1, keepdim=True)).exp()
            found[site] = (powers / powers.sum(-1, keepdim=True)).mean(-2)

        hooks = [
            model.get_submodule(site).register_forward_pre_hook(partial(rate, site))
            for site in sites
        ]
        run(model, tokens, hooks)
        return found

    @contextmanager
    def skipping(self, model: nn.Module, sites: Sequence[str]) -> Iterator[None]:
        hooks = [
            model.get_submodule(site).register_forward_hook(
                lambda _, inputs, output: inputs[0].expand(output.shape)
            )
            for site in sites
        ]
        yield from removed_afterwards(hooks)


def run(model: nn.Module, tokens: Tensor, hooks: Sequence[Any]) -> None:
    """One pass, without the hooks afterwards."""
    try:
        with torch.no_grad():
            model(tokens)
    finally:
        for hook in hooks:
            hook.remove()


def removed_afterwards(hooks: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


OF_OPEN = {
    ("modeling_attnres", "block"): (2, 2, 2, 2, 3, 3, 3, 3),
    ("modeling_attnres", "full"): tuple(range(2, 10)),
    ("modeling_qwen3_attnres", "block"): (2, 2, 2, 2, 2, 3, 3, 3, 3),
    ("modeling_qwen3_attnres", "full"): tuple(range(2, 10)),
    ("modeling_qwen3_attnres", "delta"): tuple(range(1, 9)),
    ("modeling_qwen3_attnres", "delta_block"): (1, 1, 1, 1, 2, 2, 2, 2),
}
OF_DELTA = {
    "block": (1, 2, 2, 2, 2, 3, 3, 3, 3),
    "full": tuple(range(1, 10)),
    "delta": tuple(range(2, 9)),
    "delta_block": (1, 1, 1, 1, 2, 2, 2),
}
LORA = {"attn_aggregated_residuals": True, "attn_aggregated_residual_kwargs": {"lora_rank": 8}}
OF_X_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "DynamicLIMe": {"integrate_layers": True},
    "AttentionResidual": LORA,
    "AttentionResidual, three views": {**LORA, "qkv_receive_diff_residuals": True},
}
LANGUAGE_MODELS = (
    *(
        LanguageModel(
            OPEN, f"{file} {mode}", partial(open_network, file, mode), OpenFamily(), sizes
        )
        for (file, mode), sizes in OF_OPEN.items()
    ),
    *(
        LanguageModel(
            DELTA, mode, partial(open_network, "modeling_qwen3_attnres", mode), OpenFamily(), sizes
        )
        for mode, sizes in OF_DELTA.items()
    ),
    *(
        LanguageModel(
            "x-transformers", label, partial(integrated_network, settings), IntegratedFamily(),
            tuple(range(1, 9)),
        )
        for label, settings in OF_X_TRANSFORMERS.items()
    ),
)  # fmt: skip
