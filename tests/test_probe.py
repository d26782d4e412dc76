"""The probe: it reads the weights, leaves nothing behind, and says what went wrong."""

import gc
import itertools
import weakref
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ela_probe import AttentionProbe, analyze, discover, make_plan
from ela_probe.adapters.weights import unrolled
from ela_probe.analysis.metric import RedundancyMetric
from ela_probe.discovery.sampling import positions, token_axis
from ela_probe.errors import ModelError, OptionError, ProbeError
from ela_probe.models.mrla import MRLABase
from ela_probe.models.registry import create_model
from tests.support.identities import assert_same
from tests.support.networks import hooks, settled


def test_it_reads_the_weights_of_every_site(mrla_b: nn.Module, images: Tensor) -> None:
    mrla_b, images = mrla_b.double(), images.double()
    seen: dict[str, Tensor] = {}
    taps = {f"{n}.tap": m for n, m in mrla_b.named_modules() if isinstance(m, MRLABase)}
    handles = [
        m.tap.register_forward_hook(lambda mod, args, out, n=n: seen.update({n: out}))
        for n, m in taps.items()
    ]
    with AttentionProbe(mrla_b) as probe, torch.no_grad():
        mrla_b(images)
    for handle in handles:
        handle.remove()
    assert [len(stage.sites) for stage in probe.stages] == [5, 5, 5]
    for stage in probe.stages:
        result = probe.metrics[stage.name].compute()
        assert stage.sizes == (1, 2, 3, 4, 5)
        for t, site in enumerate(stage.sites):
            assert_same(result["weights"][t, : t + 1], seen[site.module].mean((0, 1)))


def test_it_changes_nothing_of_the_model(mrla_b: nn.Module, images: Tensor) -> None:
    mrla_b.stages[0].train()  # type: ignore[index]
    modes = [m.training for m in mrla_b.modules()]
    with torch.no_grad():
        plain = mrla_b(images)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with AttentionProbe(mrla_b), torch.no_grad():
        assert torch.equal(mrla_b(images), plain)
        assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in mrla_b.modules()] == modes
    assert hooks(mrla_b) == []


def test_only_its_own_hooks_are_removed(mrla_b: nn.Module, images: Tensor) -> None:
    calls: list[int] = []
    handle = mrla_b.register_forward_hook(lambda *_: calls.append(1))
    with AttentionProbe(mrla_b):
        mrla_b(images)
    assert hooks(mrla_b)
    assert calls == [1]
    handle.remove()


@pytest.mark.parametrize("where", ["fc", "stages.1.2.retrieval.norm"])
def test_a_raising_module_leaves_no_hook(mrla_b: nn.Module, images: Tensor, where: str) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("halfway")

    handle = mrla_b.get_submodule(where).register_forward_hook(fail)
    probe = AttentionProbe(mrla_b)
    with pytest.raises(RuntimeError, match="halfway"), probe:
        mrla_b(images)
    handle.remove()
    assert hooks(mrla_b) == []
    assert not probe._capture._captured


def test_a_pass_that_raised_is_not_counted(mrla_b: nn.Module, images: Tensor) -> None:
    with AttentionProbe(mrla_b) as probe:
        with pytest.raises(RuntimeError):
            mrla_b(torch.randn(2, 5, 16, 16))
        mrla_b(images)
    assert probe.metrics["stages.0"].samples == len(images)


def test_no_batch_survives(mrla_b: nn.Module) -> None:
    images = torch.randn(2, 3, 16, 16)
    alive = weakref.ref(images)
    probe = AttentionProbe(mrla_b)
    with probe:
        mrla_b(images)
        del images
        gc.collect()
        assert alive() is None
    assert probe.passes == 1


def test_many_passes_add_up(mrla_b: nn.Module, images: Tensor) -> None:
    mrla_b, images = mrla_b.double(), images.double()
    with AttentionProbe(mrla_b) as parts:
        mrla_b(images[:2])
        mrla_b(images[2:])
    with AttentionProbe(mrla_b) as whole:
        mrla_b(images)
    for name in whole.metrics:
        a, b = parts.metrics[name].compute(), whole.metrics[name].compute()
        assert a["samples"] == b["samples"] == len(images)
        assert_same(a["kl"], b["kl"])


def test_no_forward_pass_is_an_error(mrla_b: nn.Module, images: Tensor) -> None:
    with pytest.raises(ProbeError, match="no forward pass"), AttentionProbe(mrla_b):
        pass
    with pytest.raises(ProbeError, match="own forward was never called"), AttentionProbe(mrla_b):
        block: Any = mrla_b.get_submodule("stages.0.0")
        from ela_probe.models.mrla import Sources

        block(torch.randn(1, 16, 8, 8), Sources([block.retrieval]))
    assert hooks(mrla_b) == []


class Changed(nn.Module):
    """A tap that does what it should not."""

    def __init__(self, tap: nn.Module, what: str) -> None:
        super().__init__()
        self.tap, self.what = tap, what

    def forward(self, weights: Tensor, *context: Tensor) -> Tensor:
        if self.what == "silent":
            return weights
        if self.what == "twice":
            self.tap(weights)
            return self.tap(weights)
        if self.what == "shape":
            self.tap(weights[..., :1])
            return weights
        self.tap(weights * float("nan"))
        return weights


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("silent", r"stages\.1\.2\.retrieval fired 0 times"),
        ("twice", r"stages\.1\.2\.retrieval fired 2 times"),
        ("shape", r"stages\.1\.2\.retrieval: got weights of shape \[6, 2, 1\]"),
        ("nan", r"stages\.1\.2\.retrieval: weights are NaN"),
    ],
)
def test_what_is_wrong_with_a_site_is_said(
    mrla_b: nn.Module, images: Tensor, what: str, message: str
) -> None:
    probe = AttentionProbe(mrla_b)
    retrieval: Any = mrla_b.get_submodule("stages.1.2.retrieval")
    tap = retrieval.tap
    with pytest.raises(ProbeError, match=message), probe:
        retrieval.tap = Changed(tap, what)  # around the tap that the probe hooked
        mrla_b(images)
    assert hooks(mrla_b) == []


def test_a_wrapper_is_looked_through(mrla_b: nn.Module, images: Tensor) -> None:
    wrapped = nn.DataParallel(mrla_b)
    with AttentionProbe(wrapped) as probe:
        wrapped(images)
    assert probe.passes == 1
    assert discover(wrapped) == discover(mrla_b)


@pytest.mark.parametrize("model", [create_model("resnet20"), nn.Linear(2, 2)])
def test_a_model_without_layer_attention_is_refused(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="no layer attention|no adapter"):
        AttentionProbe(model)


@pytest.mark.parametrize(
    ("every", "most", "recorded"),
    [(1, None, [0, 1, 2, 3, 4, 5, 6]), (3, None, [0, 3, 6]), (1, 2, [0, 1]), (2, 2, [0, 2])],
)
def test_only_the_sampled_passes_are_recorded(
    mrla_b: nn.Module, every: int, most: int | None, recorded: list[int]
) -> None:
    batches = torch.randn(7, 4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    root = 0
    with AttentionProbe(mrla_b, every=every, max_batches=most) as sampled, torch.no_grad():
        for number, batch in enumerate(batches):
            hooked = len(hooks(mrla_b))
            root = root or hooked
            assert hooked == (root if number in recorded else 1), number  # one counts passes
            mrla_b(batch)
    assert hooks(mrla_b) == []
    assert (sampled.passes, sampled.seen) == (len(recorded), 7)
    with AttentionProbe(mrla_b) as chosen, torch.no_grad():
        for number in recorded:
            mrla_b(batches[number])
    for name, metric in chosen.metrics.items():
        a, b = metric.compute(), sampled.metrics[name].compute()
        assert all(torch.equal(a[key], b[key]) for key in a if not key.endswith("_se"))


def test_a_pass_that_raised_is_not_the_one_sampled(mrla_b: nn.Module, images: Tensor) -> None:
    with AttentionProbe(mrla_b, every=2) as probe, torch.no_grad():
        with pytest.raises(RuntimeError):
            mrla_b(torch.randn(2, 5, 16, 16))
        for _ in range(3):
            mrla_b(images)
            with pytest.raises(RuntimeError):
                mrla_b(torch.randn(2, 5, 16, 16))
    assert (probe.passes, probe.seen) == (2, 3)
    assert hooks(mrla_b) == []


def test_the_same_token_positions_of_all_sites_are_recorded() -> None:
    torch.manual_seed(0)
    model = create_model("attnres2", dim=16, heads=2, kv_heads=1, vocab_size=11).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    tokens = torch.randint(11, (3, 12))
    seen: list[list[Tensor]] = []
    with AttentionProbe(model, max_tokens=4) as probe, torch.no_grad():
        add = probe._capture._receive

        def receive(weights: list[list[Tensor]]) -> None:
            seen.extend(weights)
            add(weights)

        probe._capture._receive = receive
        state = torch.get_rng_state()
        model(tokens)
        assert torch.equal(torch.get_rng_state(), state)
    (stage,) = probe.stages
    metric = RedundancyMetric(stage.sizes)
    metric.update([w[:, [1, 4, 7, 10]] for w in seen[0]])
    expected, result = metric.compute(), probe.metrics[stage.name].compute()
    assert result["rows"] == 12
    for key in expected:
        assert torch.equal(result[key], expected[key]), key


def test_analyze_stops_reading_after_the_last_recorded_batch(mrla_b: nn.Module) -> None:
    read: list[int] = []

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(100):
            read.append(number)
            yield torch.randn(2, 3, 16, 16), torch.tensor([0, 1])

    analysis = analyze(mrla_b, stream(), every=2, max_batches=3, progress=False)
    assert read == [0, 1, 2, 3, 4]
    assert analysis.provenance.samples == 10
    assert {part.samples for part in analysis.stages} == {6}
    assert analysis.provenance.sampling == {
        "every": 2, "max_batches": 3, "batches": 5, "recorded": 3,
    }  # fmt: skip
    assert "3 of the 5 batches" in analysis.provenance.notes[-1]
    assert make_plan(analysis, skip=0.2).origin.samples == 6
    everything = analyze(mrla_b, islice(stream(), 2), progress=False)
    assert everything.provenance.sampling == {}
    assert everything.provenance.notes == ()


@given(st.integers(1, 300), st.integers(1, 300))
def test_positions_are_distinct_ordered_and_spaced_alike(length: int, count: int) -> None:
    found = positions(length, count)
    assert len(found) == min(length, count)
    assert all(0 <= p < length for p in found)
    steps = {b - a for a, b in itertools.pairwise(found)}
    assert not steps or (min(steps) >= 1 and max(steps) - min(steps) <= 1)


def test_the_token_axis_is_as_long_as_the_inputs() -> None:
    assert token_axis((2, 8, 3), (2, 8)) == 1
    assert token_axis((2, 4, 8, 3), (2, 8, 16)) == 2
    assert token_axis((2, 8, 3), (8, 2, 16)) == 1
    for weights, inputs in [((2, 4, 3), (2, 8)), ((2, 3, 4), (2, 3, 16, 16)), ((2, 8), (2, 8))]:
        with pytest.raises(ProbeError, match=r"no axis runs over tokens.*--max-tokens"):
            token_axis(weights, inputs)


def test_images_have_no_tokens_to_thin(mrla_b: nn.Module, images: Tensor) -> None:
    with (
        pytest.raises(ProbeError, match="no axis runs over tokens"),
        AttentionProbe(mrla_b, max_tokens=2),
    ):
        mrla_b(images)
    assert hooks(mrla_b) == []


@pytest.mark.parametrize("option", ["every", "max_batches", "max_tokens"])
def test_sampling_nothing_is_refused(mrla_b: nn.Module, option: str) -> None:
    with pytest.raises(OptionError, match=f"{option} is 0; expected 1 or more"):
        AttentionProbe(mrla_b, **{option: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mrla_b_resnet14", "mrla_l_resnet14"])
def test_a_probed_pass_waits_for_no_accelerator(name: str) -> None:
    """On the meta device, where there are no values, whatever reads one fails."""
    model = create_model(name).eval().to("meta")
    probe = AttentionProbe(model)
    probe.__enter__()
    for _ in range(3):
        model(torch.zeros(2, 3, 16, 16, device="meta"))
    assert probe.passes == 3
    with pytest.raises(ModelError, match="on the meta device"):
        probe.__exit__(None)  # would look at the count of broken weights, which has no value
    assert hooks(model) == []


def test_mrla_l_is_unrolled(mrla_l: nn.Module, images: Tensor) -> None:
    with AttentionProbe(mrla_l) as probe:
        mrla_l(images)
    assert {stage.kind for stage in probe.stages} == {"unrolled"}
    kl = probe.metrics["stages.2"].compute()
    # Decay scales all earlier contributions alike, so a site only ever adds a source.
    assert kl["shape"].abs().max() < 1e-12
    assert kl["mass"][0, 1] > 0


def test_unrolled_contributions_follow_the_recurrence() -> None:
    gates = [torch.tensor([[0.5]]), torch.tensor([[0.25]]), torch.tensor([[1.0]])]
    decays = [torch.tensor([9.0, 9.0]), torch.tensor([-2.0, 1.0]), torch.tensor([0.5, 3.0])]
    weights = unrolled([(g, d[:, None, None]) for g, d in zip(gates, decays, strict=True)])
    raw = torch.tensor([[0.5 * 2 * 0.5, 0.25 * 0.5, 1.0], [0.5 * 1 * 3, 0.25 * 3, 1.0]])
    expected = raw.double() / raw.double().sum(1, keepdim=True)
    assert_same(weights[2][0], expected)


def test_stages_of_a_single_site_are_analysed_too(images: Tensor) -> None:
    model = settled("mrla_b_resnet20", depth=8)
    with AttentionProbe(model) as probe:
        model(images)
    analysis = probe.analysis()
    assert analysis.pairs.empty
    assert list(analysis.sites["fit"]) == ["first site"] * 3
