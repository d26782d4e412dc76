"""The adapter of learned layer sums: a softmax over one number for each hidden state of an encoder.

The audio encoders of transformers classify so, with `use_weighted_layer_sum` (wav2vec2, WavLM,
HuBERT, Whisper, ...): Σ_l softmax(layer_weights)_l h_l over the encoder's hidden states, as in
SUPERB (arXiv 2105.01051).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ela_probe.adapters.handover import Alternatives, Handover
from ela_probe.adapters.registry import ReadOnlyAdapter, register_adapter
from ela_probe.adapters.replacements import refuse_recur
from ela_probe.errors import ModelError
from ela_probe.sites import Action, Site, Stage

WEIGHTS = "layer_weights"


class LayerSum(NamedTuple):
    """A module that sums hidden states.

    prefix: its qualified name, with a dot unless it is the model. encoder: its child that gives the
    hidden states. reader: its child that reads the sum.
    """

    prefix: str
    module: nn.Module
    encoder: str
    reader: str


class LayerSumAdapter(ReadOnlyAdapter):
    """One stage with one site, the sum. `skip` hands on the encoder's last hidden state."""

    name = "layer_sum"

    def matches(self, model: nn.Module) -> bool:
        return layer_sum_of(model) is not None

    def stages(self, model: nn.Module) -> list[Stage]:
        found = layer_sum_of(model)
        if found is None:
            return []
        sources = found.module.get_parameter(WEIGHTS).numel()
        encoder = found.prefix + found.encoder
        site = Site(found.prefix + WEIGHTS, encoder, sources, reads="output", batch_axis=None)
        return [Stage(found.prefix + "layers", "static", (site,))]

    def reduced(
        self, model: nn.Module, site: str, call: int, captured: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """No hidden state is kept: the weights are the same for all of them."""
        found = layer_sum_of(model)
        assert found is not None
        return (found.module.get_parameter(WEIGHTS).detach().double().softmax(dim=-1),)

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        refuse_recur(actions)
        found = layer_sum_of(model)
        if found is None or actions.get(found.prefix + WEIGHTS, "keep") == "keep":
            return
        module: Any = found.module
        module.config.use_weighted_layer_sum = False
        delattr(module, WEIGHTS)

    def handovers(self, model: nn.Module, stage: Stage) -> dict[str, Handover]:
        found = layer_sum_of(model)
        assert found is not None
        encoder, reader = found.prefix + found.encoder, found.prefix + found.reader

        @contextmanager
        def tapped(inside: nn.Module) -> Iterator[None]:
            """The model with a module before the reader, whose output is the sum."""
            parent = inside.get_submodule(found.prefix.rstrip("."))
            read = parent.get_submodule(found.reader)
            try:
                if not isinstance(read, Tapped):
                    setattr(parent, found.reader, Tapped(read))
                yield
            finally:
                setattr(parent, found.reader, read)

        def tensors(passed: Mapping[str, Any]) -> Sequence[Tensor]:
            last, total = passed[encoder].outputs[0], passed[f"{reader}.tap"].outputs[0]
            if last.shape != total.shape:  # SEW sums before it upsamples
                raise ModelError(
                    f"the damage of {found.prefix}{WEIGHTS} can't be measured: it sums "
                    f"{total.shape[1]} frames, but the encoder hands on {last.shape[1]}; analyze "
                    "without damage (--no-damage)"
                )
            return last.clone(), total.clone()  # the model may overwrite either later

        handover = Handover(
            module=f"{reader}.tap",
            actions=("skip",),
            reads=(encoder, f"{reader}.tap"),
            tensors=tensors,
            alternatives=lambda last, total: Alternatives(total, (last,)),
            channel_axis=-1,
            within=tapped,
        )
        return {site.name: handover for site in stage.sites}


class Tapped(nn.Module):
    """A module after one that does nothing, whose output is then what the module reads."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.tap, self.module = nn.Identity(), module

    def forward(self, x: Tensor) -> Any:
        return self.module(self.tap(x))


def layer_sum_of(model: nn.Module) -> LayerSum | None:
    """The part of a model that sums hidden states by learned weights; None if there is none."""
    for name, module in model.named_modules():
        config = getattr(module, "config", None)
        weights = module._parameters.get(WEIGHTS)
        if weights is None or getattr(config, "use_weighted_layer_sum", False) is not True:
            continue
        layers = getattr(config, "num_hidden_layers", None)
        if weights.shape != torch.Size([(layers or 0) + 1]):
            continue
        children = dict(module.named_children())
        encoder = next((n for n, c in children.items() if hasattr(c, "config")), None)
        reader = next((n for n, c in children.items() if isinstance(c, nn.Linear)), None)
        if encoder is not None and reader is not None:
            return LayerSum(f"{name}." if name else "", module, encoder, reader)
    return None


register_adapter(LayerSumAdapter())
