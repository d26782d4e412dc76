"""Damage and stand-ins: what actions would hand on, what that does to the loss, and the fit."""

import copy
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ela_probe import Analysis, analyze, discover, prune
from ela_probe.adapters.handover import Alternatives, input_and_output
from ela_probe.analysis.damage import MEASURED
from ela_probe.analysis.damage_probe import DamageProbe, handovers_of
from ela_probe.analysis.exact_sums import carry
from ela_probe.analysis.handover_hooks import HandoverHooks
from ela_probe.analysis.stand_ins import NormalEquations, fit_stand_ins
from ela_probe.evaluation.objectives import sample_losses
from ela_probe.pruning.ablation import handed_on
from ela_probe.sites import Stage
from tests.support.damage_networks import NETWORKS, batch, network, only
from tests.support.identities import assert_same
from tests.support.networks import hooks


@pytest.mark.parametrize("name", NETWORKS)
def test_alternatives_are_what_a_pruned_model_hands_on(name: str) -> None:
    """With a site's output replaced by y^a, the model computes what the pruned model does."""
    model, (inputs, _) = network(name), batch(name)
    found = discover(model)
    handovers = handovers_of(model, found)
    assert handovers
    firsts = {stage.sites[0].name for stage in found.stages}
    generator = torch.Generator().manual_seed(2)
    for site, handover in handovers.items():
        with torch.no_grad():
            shape: list[tuple[int, ...]] = []
            terms: list[int] = []

            def look(
                _: str, tensors: Sequence[Tensor], y: Tensor, handover=handover, shape=shape,
                terms=terms,
            ) -> None:  # fmt: skip
                given = handover.alternatives(*tensors)
                assert_same(given.output, y)
                shape.append(y.shape)
                terms.append(len(given.terms))

            with HandoverHooks(model, {site: handover}, look):
                model(inputs)
        rows = terms[0] + handover.has_shift
        channels = shape[0][handover.channel_axis]
        stand_in = torch.randn(rows, channels, generator=generator) / 10
        for action in handover.actions:
            if site in firsts and action != "affine":
                continue

            def instead(
                _: str, tensors: Sequence[Tensor], y: Tensor, handover=handover, action=action,
                stand_in=stand_in,
            ) -> Tensor:  # fmt: skip
                return handed_on(handover.alternatives(*tensors), handover, action, stand_in)

            with torch.no_grad(), HandoverHooks(model, {site: handover}, instead):
                replaced = model(inputs)
            pruned = prune(model, only(model, site, action, stand_in))
            with torch.no_grad():
                assert_same(replaced, pruned(inputs))
    assert not hooks(model)


class Additive(nn.Module):
    """x + scale · tanh(W x): a site that adds to its input."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.mix, self.scale = nn.Linear(width, width), scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.mix(x).tanh()


def additive(scale: float = 0.5, *, width: int = 4, classes: int = 3) -> nn.Sequential:
    """Two additive sites before a linear classifier, float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(5, width), Additive(width, scale), Additive(width, scale),
            nn.Linear(width, classes),
        )  # fmt: skip
    return model.double().eval()


HANDOVERS = {site: input_and_output(site, actions=("skip", "affine")) for site in ("1", "2")}


def measured(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, step: int | None = None
) -> DamageProbe:
    with DamageProbe(model, HANDOVERS) as probe:
        for x, y in zip(
            inputs.split(step or len(inputs)), labels.split(step or len(inputs)), strict=True
        ):
            with torch.enable_grad():
                losses = F.cross_entropy(model(x), y, reduction="none")
            probe.backward(losses)
    return probe


def sums_of(probe: DamageProbe) -> np.ndarray:
    return probe.metric.compute()["sums"].numpy()


def test_the_fisher_identity() -> None:
    """Over labels that follow the model's own probabilities, E c = 0 and E ½c² = ½ δᵀHδ."""
    model, x = additive(), torch.randn(1, 5, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        before = model[:2](x)
        y = model[2](before)
        probabilities = model(x).softmax(-1)[0]
    sums = np.stack([sums_of(measured(model, x, torch.tensor([k]))) for k in range(3)])
    c = torch.from_numpy(sums[:, 1, 0, 0])  # site "2", skip
    hessian = torch.autograd.functional.hessian(
        lambda y: F.cross_entropy(model[3](y), torch.tensor([0])), y
    )[0, :, 0]
    delta = (before - y)[0]
    assert_same((probabilities * c).sum(), torch.zeros(()).double())
    assert_same((probabilities * c.square() / 2).sum(), delta @ hessian @ delta / 2)


def test_the_fisher_identity_of_sequences() -> None:
    """The loss of a sequence is a mean over its n tokens, so there E ½nc² = ½ δᵀHδ."""
    model = additive()
    x = torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        before = model[:2](x)
        y = model[2](before)
        probabilities = model(x).softmax(-1)[0]
    first, second = torch.zeros(2).double()
    for labels in itertools.product(range(3), repeat=2):
        with DamageProbe(model, HANDOVERS) as probe:
            with torch.enable_grad():
                found, counts = sample_losses(model(x), torch.tensor([labels]))
            probe.backward(found, counts)
        chance = float(probabilities[0, labels[0]] * probabilities[1, labels[1]])
        c, _, damage, _ = sums_of(probe)[1, 0]  # site "2", skip
        first = first + chance * c
        second = second + chance * (damage - c)
    hessian = torch.autograd.functional.hessian(
        lambda y: F.cross_entropy(model[3](y).flatten(0, 1), torch.tensor([0, 0])), y
    ).reshape(y.numel(), y.numel())
    delta = (before - y).flatten()
    expected = torch.stack([torch.zeros(()).double(), delta @ hessian @ delta / 2])
    assert_same(torch.stack([first, second]), expected)


def test_for_a_small_retrieval_the_prediction_is_the_change_of_the_loss() -> None:
    """Both are first order in ε, with a difference of second order."""
    inputs = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(20) % 3
    errors = []
    for scale in (1e-2, 1e-3, 1e-4):
        model = additive(scale)
        sums = sums_of(measured(model, inputs, labels))[1, 0]
        with torch.no_grad():
            skipped = F.cross_entropy(model[3](model[:2](inputs)), labels)
            change = float(skipped - F.cross_entropy(model(inputs), labels))
        errors.append(abs(sums[2] / 20 / change - 1))
    assert errors[0] < 0.1
    assert errors[2] < errors[1] / 5 < errors[0] / 25


def test_an_action_that_changes_nothing_has_no_damage() -> None:
    model = additive(0.0)
    probe = measured(model, torch.randn(6, 5).double(), torch.arange(6) % 3)
    assert not sums_of(probe)[:, 0].any()


def test_merged_halves_equal_the_whole_and_batches_do_not_matter() -> None:
    model, inputs, labels = additive(), torch.randn(12, 5).double(), torch.arange(12) % 3
    whole = measured(model, inputs, labels, step=4).metric
    half, other = (measured(model, inputs[p], labels[p], step=4).metric
                   for p in (slice(8), slice(8, 12)))  # fmt: skip
    for state in ("samples", "sums", "norms"):
        a, b, c = (getattr(m, state) for m in (half, other, whole))
        total = a + b
        if state != "samples":
            carry(total)
        assert torch.equal(total, c)
    assert_same(
        torch.from_numpy(sums_of(measured(model, inputs, labels, step=5))),
        whole.compute()["sums"],
    )


@pytest.mark.parametrize("has_shift", [False, True])
@pytest.mark.parametrize("terms", [1, 2])
def test_a_stand_in_is_numpys_least_squares(terms: int, has_shift: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(7, 3, 4, 5, generator=generator).double() for _ in range(terms)]
    y = sum(xs) + 0.3 * xs[0] ** 2 + 0.1
    halves = [
        NormalEquations.of(Alternatives(y[p], tuple(x[p] for x in xs)), 1)
        for p in (slice(3), slice(3, 7))
    ]
    fitted = (halves[0] + halves[1]).solve(has_shift=has_shift)
    for channel in range(3):
        columns = [x[:, channel].flatten() for x in xs]
        residual = y[:, channel].flatten() - sum(columns)
        columns += [torch.ones_like(columns[0])] * has_shift
        expected, *_ = np.linalg.lstsq(
            torch.stack(columns, dim=1).numpy(), residual.numpy(), rcond=None
        )
        # the result is float32, and the ridge is 1e-10 of a channel's variance
        np.testing.assert_allclose(fitted[:, channel].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_constant_channel_gets_a_shift_and_no_scale() -> None:
    x = torch.zeros(4, 2, 3, 3).double()
    x[:, 1] = torch.randn(4, 3, 3).double()
    fitted = NormalEquations.of(Alternatives(x + 2, (x,)), 1).solve(has_shift=True)
    torch.testing.assert_close(fitted, torch.tensor([[0.0, 0.0], [2.0, 2.0]]))


@pytest.mark.parametrize("name", ["mrla_b", "dia", "attnres"])
def test_the_analysis_holds_what_single_probes_measure(name: str) -> None:
    """The whole way gives ⟨g, δ⟩ by plain autograd, and does not depend on the batch size."""
    model, (inputs, labels) = network(name), batch(name, 6)
    before = copy.deepcopy(model.state_dict())
    results = [
        analyze(
            model, list(zip(inputs.split(step), labels.split(step), strict=True)),
            fit_batches=[(inputs, labels)], progress=False,
        )
        for step in (2, 3, 6)
    ]  # fmt: skip
    for other in results[1:]:
        for part, same in zip(results[0].stages, other.stages, strict=True):
            assert part.damage is not None
            assert same.damage is not None
            known = np.isfinite(part.damage.sums)
            assert_same(
                torch.from_numpy(part.damage.sums[known]),
                torch.from_numpy(same.damage.sums[known]),
            )
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not hooks(model)
    handovers = handovers_of(model, discover(model))
    for part in results[0].stages:
        for t, site in enumerate(part.stage.sites):
            if site.name not in handovers:
                continue
            expected = plain_changes(model, inputs, labels, part.stage, t)
            assert part.damage is not None
            found = part.damage.of(t, "skip")
            assert found is not None
            assert_same(torch.tensor(found.first, dtype=torch.float64), expected.mean())
            n = labels[0].numel()  # predictions of a sample
            damage = (expected + n * expected.square() / 2).mean()
            assert_same(torch.tensor(found.mean, dtype=torch.float64), damage)


def plain_changes(model: nn.Module, inputs: Tensor, labels: Tensor, stage: Stage, t: int) -> Tensor:
    """⟨g, y^skip − y⟩ of each sample, one sample at a time, through `torch.autograd.grad`."""
    site = stage.sites[t].name
    handover = handovers_of(model, discover(model))[site]
    result = []
    for x, label in zip(inputs.split(1), labels.split(1), strict=True):
        kept: list[tuple[Tensor, Tensor]] = []

        def leaf(_: str, tensors: Sequence[Tensor], y: Tensor, kept=kept) -> Tensor:
            given = handover.alternatives(*tensors)
            free = given.output.detach().requires_grad_()
            kept.append((free, given.skipped - given.output))
            return free.clone()

        with HandoverHooks(model, {site: handover}, leaf):
            logits = model(x)
        loss = F.cross_entropy(logits.flatten(0, -2), label.flatten())
        free, delta = kept[0]
        (gradient,) = torch.autograd.grad(loss, free)
        result.append((gradient * delta).sum())
    return torch.stack(result)


def test_a_better_stand_in_is_not_found_by_moving_its_coefficients() -> None:
    model, data = network("mrla_b"), [batch("mrla_b", 8)]
    handovers = handovers_of(model, discover(model))
    fitted = fit_stand_ins(model, handovers, data, progress=False)
    site = "stages.1.1.retrieval"

    def error(coefficients: Tensor) -> float:
        found = []

        def compare(_: str, tensors: Sequence[Tensor], y: Tensor) -> None:
            given = handovers[site].alternatives(*tensors)
            stood_in = handed_on(given, handovers[site], "affine", coefficients)
            found.append(float((stood_in - y).square().sum()))

        with torch.no_grad(), HandoverHooks(model, {site: handovers[site]}, compare):
            model(data[0][0])
        return found[0]

    best = error(fitted[site])
    for row in range(2):
        for step in (-1e-2, 1e-2):
            moved = fitted[site].clone()
            moved[row, 3] += step
            assert error(moved) > best


def test_damage_is_saved_and_loaded(tmp_path) -> None:
    model, data = network("mrla_b"), [batch("mrla_b")]
    analysis = analyze(model, data, progress=False)
    loaded = Analysis.load(analysis.save(tmp_path / "analysis"))
    for part, same in zip(analysis.stages, loaded.stages, strict=True):
        assert part.damage is not None
        assert same.damage is not None
        np.testing.assert_array_equal(part.damage.sums, same.damage.sums)
        for one, other in zip(part.damage.stand_ins, same.damage.stand_ins, strict=True):
            np.testing.assert_array_equal(one, other)
    assert {"norm", *(f"damage_{action}" for action in MEASURED)} <= set(loaded.sites.columns)


def test_without_labels_or_asked_to_no_damage_is_measured() -> None:
    model, (inputs, labels) = network("mrla_b"), batch("mrla_b")
    unlabelled = analyze(model, [inputs], progress=False)
    assert not unlabelled.has_damage
    other = analyze(model, [(inputs, torch.rand(5))], progress=False)
    assert any("damage was not measured: it needs labels" in n for n in other.provenance.notes)
    left_out = analyze(model, [(inputs, labels)], damage=False, progress=False)
    assert not left_out.has_damage
    assert not any("damage" in note for note in left_out.provenance.notes)
    assert "damage_skip" not in left_out.sites.columns


def test_batches_that_can_be_read_once_give_no_stand_ins() -> None:
    model, (inputs, labels) = network("mrla_b"), batch("mrla_b")
    analysis = analyze(model, iter([(inputs, labels)]), progress=False)
    damage = analysis.stages[0].damage
    assert damage is not None
    assert damage.actions(1) == ("skip", "recur")
