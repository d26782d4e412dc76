"""Attention Residuals (Kimi Team 2026, arXiv 2603.15031): softmax attention over depth.

The input of a sublayer is not the residual sum but what its site retrieves, per token, from the
embedding and the outputs of the sublayers before it (`Retrieval`). `Residual` and `Recurrence`
replace a pruned retrieval.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ela_probe.models.rows import Rows
from ela_probe.models.tap import Tap
from ela_probe.models.weighted_sum import weighted_sum


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

    def forward(self, history: "History") -> tuple[Tensor, "History"]:
        keys = history.all_keys()
        logits = torch.stack([key @ self.query for key in keys], dim=-1)
        weights = self.tap(logits.softmax(dim=-1))
        rows = Rows(history.values[0].shape)
        summary = None
        if history.continued:
            entropy = logits.logsumexp(dim=-1) - (weights * logits).sum(dim=-1)
            summary = weighted_sum(weights, keys, rows), entropy
        value = weighted_sum(weights, history.values, rows)
        return value, history.after(value, keys, summary)


class Residual(nn.Module):
    """h_t = h_{t−1} + v_t, as in a plain residual stream: the result of `skip` and `drop`.

    A transformer that has it at all sites is the plain pre-norm one.

    Args:
        source: False after `drop`: no later site retrieves from the newest output.

    Attributes:
        stand_in: scales h_{t−1} and v_t by channel, after `affine`; None otherwise.
    """

    def __init__(self, *, source: bool = True) -> None:
        super().__init__()
        self.source = source
        self.stand_in: nn.Module | None = None

    def forward(self, history: "History") -> tuple[Tensor, "History"]:
        before, newest = history.retrieved, history.newest
        assert newest is not None
        if before is None:
            value = newest
        elif self.stand_in is not None:
            value = self.stand_in(before, newest)
        else:
            value = before + newest
        return value, history.after(value, history.keys)


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

    def forward(self, history: "History") -> tuple[Tensor, "History"]:
        assert history.retrieved is not None
        assert history.summary is not None  # the adapter refuses any other module before it
        keys, (key_before, entropy) = history.all_keys(), history.summary
        logit = (keys[-1] - key_before) @ self.query - entropy
        newest = logit.sigmoid().to(history.values[-1].dtype)
        summary = None
        if history.continued:
            of_choice = F.softplus(logit) - newest * logit
            mixed = torch.lerp(key_before, keys[-1], newest[..., None])
            summary = mixed, (1 - newest) * entropy + of_choice
        value = torch.lerp(history.retrieved, history.values[-1], newest[..., None])
        return value, history.after(value, keys, summary)


@dataclass(frozen=True)
class History:
    """The sources at one point of a forward pass. Nothing is concatenated, and nothing changed.

    The first source is the embedding. The others are sums of `block_size` outputs of sublayers,
    the last one of fewer while it is incomplete (block AttnRes, section 3.2 of the paper). With 1
    they are the outputs themselves (full AttnRes).

    Attributes:
        values: [batch, tokens, dim] each.
        keys: v / rms(v) of every source, computed once; None for those that no site has read.
        newest: the latest output of a sublayer.
        retrieved: what the latest site passed to its sublayer, [batch, tokens, dim].
        summary: the key that the weights of that site retrieve, [batch, tokens, dim], and the
            entropy of these weights in nats, [batch, tokens]; where this site asks for them.
        continued: whether the next site will ask for the summary of this one.
        filled: how many outputs the last source is the sum of; 0: it is complete.
    """

    block_size: int
    values: tuple[Tensor, ...] = ()
    keys: tuple[Tensor | None, ...] = ()
    newest: Tensor | None = None
    retrieved: Tensor | None = None
    summary: tuple[Tensor, Tensor] | None = None
    continued: bool = False
    filled: int = 0

    def arrive(self, output: Tensor, *, record: bool, continued: bool = False) -> "History":
        """With the output of a sublayer (first, the embedding). record: whether it is a source."""
        values, keys, filled = self.values, self.keys, self.filled
        if record:
            if values:  # under autocast the sources stay in the precision of the embedding
                output = output.to(values[0].dtype)
            if filled:
                values, keys = (*values[:-1], values[-1] + output), (*keys[:-1], None)
            else:
                values, keys = (*values, output), (*keys, None)
            if len(values) > 1:  # the embedding is a block of its own
                filled = (filled + 1) % self.block_size
        return History(
            self.block_size, values, keys, output, self.retrieved, self.summary, continued, filled
        )

    def all_keys(self) -> tuple[Tensor, ...]:
        return tuple(
            F.rms_norm(value, value.shape[-1:]) if key is None else key
            for value, key in zip(self.values, self.keys, strict=True)
        )

    def after(
        self,
        value: Tensor,
        keys: tuple[Tensor | None, ...],
        summary: tuple[Tensor, Tensor] | None = None,
    ) -> "History":
        """After a site has retrieved this value, with its summary if it is continued."""
        return History(
            self.block_size, self.values, keys, None, value, summary, self.continued, self.filled
        )

    def as_arguments(self) -> tuple[Any, ...]:
        """The arguments of a sublayer: every tensor one of its own, as checkpoints need it."""
        bare = History(self.block_size, continued=self.continued, filled=self.filled)
        summary = self.summary or (None, None)
        return bare, self.newest, self.retrieved, *summary, *self.values, *self.keys

    @classmethod
    def of(cls, bare: "History", *tensors: Any) -> "History":
        """From what `as_arguments` has returned."""
        newest, retrieved, key, entropy, *sources = tensors
        count = len(sources) // 2
        return cls(
            bare.block_size,
            tuple(sources[:count]),
            tuple(sources[count:]),
            newest,
            retrieved,
            None if key is None else (key, entropy),
            bare.continued,
            bare.filled,
        )
