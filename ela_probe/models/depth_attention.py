"""Attention Residuals (Kimi Team 2026, arXiv 2603.15031): softmax attention over depth.

The input of a sublayer is not the residual sum but what its site retrieves, per token, from the
embedding and the outputs of the sublayers before it (`Retrieval`). `Residual` and `Recurrence`
replace a pruned retrieval.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ela_probe.models.stack import Rows, weighted_sum
from ela_probe.models.tap import Tap


class Retrieval(nn.Module):
    """h = Σ_s softmax_s(q · k_s) v_s with a learned query q and k_s = v_s / rms(v_s) (eqs. 2-4).

    The norm of the key has no scale, since the query would absorb it. q starts at zero, which
    makes the weights uniform. The weights pass through `tap` as [batch, tokens, sources].

    Attributes:
        source: whether the newest output is a source for this and later sites.
    """

    source = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(dim))
        self.tap = Tap()

    def forward(self, history: "History") -> Tensor:
        values, keys = history.values, history.keys()
        logits = torch.stack([key @ self.query for key in keys], dim=-1)
        weights = self.tap(logits.softmax(dim=-1))
        rows = Rows(values[0].shape)

        def summary() -> tuple[Tensor, Tensor]:
            entropy = logits.logsumexp(dim=-1) - (weights * logits).sum(dim=-1)
            return weighted_sum(weights, keys, rows), entropy

        return history.retrieve(weighted_sum(weights, values, rows), summary)


class Residual(nn.Module):
    """h_t = h_{t−1} + v_t, as in a plain residual stream: the result of `skip` and `drop`.

    A transformer that has it at all sites is the plain pre-norm one.

    Args:
        source: False after `drop`: no later site retrieves from the newest output.
    """

    def __init__(self, *, source: bool = True) -> None:
        super().__init__()
        self.source = source

    def forward(self, history: "History") -> Tensor:
        before, newest = history.retrieved, history.newest
        return history.retrieve(newest if before is None else before.value + newest)


class Recurrence(nn.Module):
    """h_t = (1 − m) h_{t−1} + m v_t: the result of `recur`. Its cost does not grow with depth.

        m = sigmoid( q · k_t − q · κ_{t−1} − H_{t−1} )

    with κ = Σ_s w(s) k_s the key that the site before retrieved and H the entropy of its weights
    (nats); both are carried along. q · κ + H ≤ log Σ_s exp(q · k_s) (Gibbs), with equality where
    this query would give the sources of the site before the weights that they have there. In that
    case (shape divergence 0) the recurrence is exact. The formula is this project's own.
    """

    source = True

    def __init__(self, query: nn.Parameter) -> None:
        super().__init__()
        self.query = query

    def forward(self, history: "History") -> Tensor:
        before = history.retrieved
        assert before is not None
        assert before.summary is not None  # the adapter refuses any other module before it
        key, (key_before, entropy) = history.keys()[-1], before.summary()
        logit = (key - key_before) @ self.query - entropy
        newest = logit.sigmoid()

        def summary() -> tuple[Tensor, Tensor]:
            of_choice = F.softplus(logit) - newest * logit
            mixed = torch.lerp(key_before, key, newest[..., None])
            return mixed, (1 - newest) * entropy + of_choice

        value = torch.lerp(before.value, history.values[-1], newest[..., None])
        return history.retrieve(value, summary)


@dataclass(frozen=True)
class Retrieved:
    """What a site passed to its sublayer, [batch, tokens, dim].

    `summary` computes the key that the weights of the site retrieve, [batch, tokens, dim], and the
    entropy of these weights in nats, [batch, tokens].
    """

    value: Tensor
    summary: Callable[[], tuple[Tensor, Tensor]] | None = None


@dataclass
class History:
    """The sources of one forward pass. Every value is stored once; nothing is concatenated.

    The first source is the embedding. The others are sums of `block_size` outputs of sublayers,
    the last one of fewer while it is incomplete (block AttnRes, section 3.2 of the paper). With 1
    they are the outputs themselves (full AttnRes).

    Attributes:
        values: [batch, tokens, dim] each. newest: the latest output of a sublayer.
        retrieved: the result of the latest site.
    """

    block_size: int
    values: list[Tensor] = field(default_factory=list)
    retrieved: Retrieved | None = None
    _newest: Tensor | None = None
    _keys: list[Tensor | None] = field(default_factory=list)
    _filled: int = 0

    @property
    def newest(self) -> Tensor:
        assert self._newest is not None
        return self._newest

    def arrive(self, output: Tensor, *, record: bool) -> None:
        """Add the output of a sublayer (first, the embedding). record: whether it is a source."""
        self._newest = output
        if not record:
            return
        if self._filled:
            self.values[-1], self._keys[-1] = self.values[-1] + output, None
        else:
            self.values.append(output)
            self._keys.append(None)
        if len(self.values) > 1:  # the embedding is a block of its own
            self._filled = (self._filled + 1) % self.block_size

    def keys(self) -> list[Tensor]:
        """v / rms(v) of every source, computed once."""
        keys = [
            F.rms_norm(value, value.shape[-1:]) if key is None else key
            for value, key in zip(self.values, self._keys, strict=True)
        ]
        self._keys = list(keys)
        return keys

    def retrieve(
        self, value: Tensor, summary: Callable[[], tuple[Tensor, Tensor]] | None = None
    ) -> Tensor:
        """Keep what a site retrieved for the next one. Returns `value`."""
        self.retrieved = Retrieved(value, summary)
        return value
