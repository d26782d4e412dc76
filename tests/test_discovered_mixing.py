"""Static and signed layer mixing found by observation, and sums that are no such thing."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ela_probe import AttentionProbe, analyze, discover
from ela_probe.discovery.discover import OBSERVED
from ela_probe.errors import ModelError
from tests.support.layer_mixing import CLASSES, DIM, batch, block, random_parameters

BLOCKS = 3


def einsum(weights: Tensor, states: Sequence[Tensor]) -> Tensor:
    return torch.einsum("l,l...->...", weights, torch.stack(list(states)))


def tensordot(weights: Tensor, states: Sequence[Tensor]) -> Tensor:
    return torch.tensordot(weights, torch.stack(list(states)), dims=1)


def matmul(weights: Tensor, states: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(states), dim=-1) @ weights


def stack_and_sum(weights: Tensor, states: Sequence[Tensor]) -> Tensor:
    return (torch.stack(list(states)) * weights.view(-1, 1, 1, 1)).sum(dim=0)


WAYS = pytest.mark.parametrize("form", [einsum, tensordot, matmul, stack_and_sum])


class Mix(nn.Module):
    """A weighted sum of its own over earlier states, by free or softmaxed parameters."""

    def __init__(self, sources: int, form: Any, *, softmax: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(sources))
        self.form, self.softmax = form, softmax

    def forward(self, x: Tensor, states: Sequence[Tensor]) -> Tensor:
        weights = self.weight.softmax(0) if self.softmax else self.weight
        return self.form(weights, states)


class Mixing(nn.Module):
    """Blocks; after each a mix of the embedding and all blocks so far."""

    def __init__(self, form: Any = einsum, *, softmax: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Linear(4, DIM)
        self.blocks = nn.ModuleList(block() for _ in range(BLOCKS))
        self.mixes = nn.ModuleList(Mix(t + 2, form, softmax=softmax) for t in range(BLOCKS))
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        states = [x]
        for each, mix in zip(self.blocks, self.mixes, strict=True):
            states.append(x + each(x))
            x = mix(states[-1], states)
        return self.head(x.mean(1))


class Dynamic(Mixing):
    """The weights are computed from the latest state, token by token, for two ways to read."""

    def __init__(self) -> None:
        super().__init__()
        self.mixes = nn.ModuleList(nn.Linear(DIM, 2 * (t + 2)) for t in range(BLOCKS))
        self.values = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        states = [x]
        for each, mix, value in zip(self.blocks, self.mixes, self.values, strict=True):
            states.append(x + each(x))
            weights = mix(states[-1]).unflatten(-1, (2, -1))
            one, two = torch.einsum("btcl,lbtd->cbtd", weights, torch.stack(states))
            x = one + value(two)
        return self.head(x.mean(1))


class LayerSum(nn.Module):
    """The states of all blocks, weighted once at the end."""

    def __init__(self, form: Any = einsum, *, softmax: bool = True, split: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Linear(4, DIM)
        self.blocks = nn.ModuleList(block() for _ in range(BLOCKS))
        self.scalars = nn.Parameter(torch.randn(BLOCKS + 1))
        self.form, self.softmax, self.split = form, softmax, split
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        states = [self.embedding(x)]
        for each in self.blocks:
            states.append(each(states[-1]))
        weights = self.scalars.softmax(0) if self.softmax else self.scalars
        if self.split:  # as a ScalarMix does
            terms = [w * s for w, s in zip(weights.split(1), states, strict=True)]
            x = sum(terms[1:], terms[0])
        else:
            x = self.form(weights, states)
        return self.head(x.mean(1))


@WAYS
def test_free_weights_over_a_growing_list_are_signed(form: Any) -> None:
    model, (inputs, labels) = random_parameters(Mixing(form)), batch()
    found = discover(model, inputs)
    (stage,) = found.stages
    assert found.adapter is OBSERVED
    assert (stage.name, stage.kind, stage.sizes) == ("mixes", "signed", (2, 3, 4))
    assert [site.name for site in stage.sites] == [f"mixes.{t}" for t in range(BLOCKS)]
    outputs: list[Tensor] = []
    for mix in model.mixes:
        mix.register_forward_hook(lambda *a: outputs.append(a[2]))
    with torch.no_grad(), AttentionProbe(model, discovery=found) as probe:
        model(inputs)
    part = probe.analysis().stages[0]
    for t, mix in enumerate(model.mixes):
        assert part.weights[t, : t + 2] == pytest.approx(mix.weight.detach().numpy(), abs=1e-12)
    a, b = (y.flatten(1) for y in outputs[1:3])
    l2 = (a - b).norm(dim=1) / torch.maximum(a.norm(dim=1), b.norm(dim=1))
    assert part.divergences["l2"][1, 2] == pytest.approx(float(l2.mean()), abs=1e-12)
    analysis = analyze(model, [(inputs, labels)], progress=False)
    assert analysis.stages[0].damage is not None  # of leaving each mix out


@WAYS
def test_softmaxed_parameters_over_a_growing_list_are_static(form: Any) -> None:
    model, (inputs, _) = random_parameters(Mixing(form, softmax=True)), batch()
    (stage,) = discover(model, inputs).stages
    assert (stage.kind, stage.sizes) == ("static", (2, 3, 4))
    analysis = analyze(model, [inputs, inputs], labelled=False, progress=False)
    (part,) = analysis.stages
    assert part.samples == part.rows == 1
    rows = [mix.weight.detach().softmax(0) for mix in model.mixes]
    kl = (rows[0] * (rows[0] / rows[1][:2]).log()).sum()
    assert part.divergences["kl"][0, 1] == pytest.approx(float(kl), abs=1e-12)


def test_weights_that_follow_the_input_are_signed_and_read_token_by_token() -> None:
    model, (inputs, _) = random_parameters(Dynamic()), batch()
    (stage,) = discover(model, inputs).stages
    assert (stage.kind, stage.sizes) == ("signed", (2, 3, 4))
    with torch.no_grad(), AttentionProbe(model, example_inputs=inputs) as probe:
        model(inputs)
        states = [model.embedding(inputs)]
        states.append(states[0] + model.blocks[0](states[0]))
    weights = model.mixes[0](states[1]).unflatten(-1, (2, -1)).mean((0, 1, 2)).detach()
    part = probe.analysis().stages[0]
    assert part.weights[0, :2] == pytest.approx(weights.numpy(), abs=1e-12)


@pytest.mark.parametrize("settings", [{}, {"form": stack_and_sum}, {"split": True}])
def test_a_learned_layer_sum_is_static(settings: dict[str, Any]) -> None:
    model, (inputs, _) = random_parameters(LayerSum(**settings)), batch()
    (stage,) = discover(model, inputs).stages
    assert (stage.kind, stage.sizes) == ("static", (BLOCKS + 1,))


@WAYS
def test_a_layer_sum_without_a_softmax_is_signed(form: Any) -> None:
    model, (inputs, _) = random_parameters(LayerSum(form, softmax=False)), batch()
    (stage,) = discover(model, inputs).stages
    assert (stage.kind, stage.sizes) == ("signed", (BLOCKS + 1,))


class Ensemble(LayerSum):
    """The same blocks side by side: their mean is no layer sum."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        states = [x, *(each(x) for each in self.blocks)]
        weights = self.scalars.softmax(0) if self.softmax else self.scalars
        return self.head(self.form(weights, states).mean(1))


class GrowingEnsemble(Mixing):
    """Partial sums over members that all read the input."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        states, total = [x], x
        for each, mix in zip(self.blocks, self.mixes, strict=True):
            states.append(each(x))
            total = total + mix(x, states)
        return self.head(total.mean(1))


class Residual(Mixing):
    """Plain residual sums, and the mean of all states, without weights."""

    def forward(self, x: Tensor) -> Tensor:
        states = [self.embedding(x)]
        for each in self.blocks:
            states.append(states[-1] + each(states[-1]))
        return self.head(torch.stack(states).sum(0).mean(1))


class Pyramid(nn.Module):
    """Levels of falling length; each level is a weighted sum of its lateral and the one above."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, DIM, 1)
        self.down = nn.ModuleList(nn.Conv1d(DIM, DIM, 3, 2, 1) for _ in range(BLOCKS))
        self.lateral = nn.ModuleList(nn.Conv1d(DIM, DIM, 1) for _ in range(BLOCKS))
        self.weights = nn.ParameterList(torch.rand(2) for _ in range(BLOCKS - 1))
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.movedim(1, 2))
        levels = []
        for down in self.down:
            x = down(x)
            levels.append(x)
        top = self.lateral[-1](levels[-1])
        for level in reversed(range(BLOCKS - 1)):
            side = self.lateral[level](levels[level])
            up = nn.functional.interpolate(top, size=side.shape[-1])
            weights = self.weights[level].relu()
            weights = weights / weights.sum()
            top = torch.einsum("l,l...->...", weights, torch.stack([side, up]))
        return self.head(top.mean(2))


class OverTime(nn.Module):
    """A cell that weights all its earlier states: its list grows with the length of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.rate = nn.Linear(4 + DIM, DIM), nn.Linear(DIM, 1)
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        states = [x.new_zeros(len(x), DIM)]
        read = states[0]
        for token in x.unbind(1):
            states.append(self.cell(torch.cat([token, read], -1)).tanh())
            rates = torch.stack([self.rate(state)[:, 0] for state in states], 1)
            read = torch.einsum("bl,bld->bd", rates.sin(), torch.stack(states, 1))
        return self.head(read)


@pytest.mark.parametrize(
    "model",
    [
        Ensemble(), Ensemble(softmax=False), Ensemble(stack_and_sum), GrowingEnsemble(), Residual(),
        Pyramid(), OverTime(),
    ],
    ids=lambda model: type(model).__name__,
)  # fmt: skip
def test_other_sums_are_not_taken(model: nn.Module) -> None:
    inputs, _ = batch()
    with pytest.raises(ModelError, match="no layer attention found"):
        discover(random_parameters(model), inputs)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Ensemble(softmax=False), "don't come from each other"),
        (OverTime(), "attends over time"),
    ],
)
def test_the_message_says_why_a_sum_is_none(model: nn.Module, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        discover(random_parameters(model), batch()[0])


def test_lime_of_x_transformers_without_a_softmax_is_signed() -> None:
    package = pytest.importorskip("x_transformers", reason="needs the package x-transformers")
    layers = package.Decoder(
        dim=8, depth=2, heads=2, attn_dim_head=4, integrate_layers=True,
        layer_integrate_use_softmax=False,
    )  # fmt: skip
    model = package.TransformerWrapper(num_tokens=16, max_seq_len=8, attn_layers=layers)
    model = random_parameters(model)
    tokens = torch.randint(16, (3, 8), generator=torch.Generator().manual_seed(0))
    found = discover(model, tokens)
    # three views are read before attention, one before a feedforward: sums of unlike shapes
    assert {stage.kind for stage in found.stages} == {"signed"}
    sites = [site for stage in found.stages for site in stage.sites]
    integrators = dict(model.attn_layers.layer_integrators.named_children())
    with_lists = set(integrators) - {"0"}  # the first one reads the embedding alone
    assert {site.name.rpartition(".")[2] for site in sites} == with_lists
    read: dict[str, Tensor] = {}
    for site in sites:
        integrator = model.get_submodule(site.name)
        integrator.to_weights.register_forward_hook(
            lambda _, __, weights, name=site.name: read.__setitem__(name, weights.detach())
        )
    with torch.no_grad(), AttentionProbe(model, discovery=found) as probe:
        model(tokens)
    for part in probe.analysis().stages:
        for t, site in enumerate(part.stage.sites):
            expected = read[site.name].mean((0, 1, 2)).numpy()  # views, samples, tokens
            assert part.weights[t, : site.sources] == pytest.approx(expected, abs=1e-12)
