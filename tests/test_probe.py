"""The probe: it reads the weights, leaves nothing behind, and says what went wrong."""

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from ela_probe import AttentionProbe, discover
from ela_probe.adapters.unrolled import unrolled
from ela_probe.errors import ModelError, ProbeError
from ela_probe.models import create_model
from ela_probe.models.attention import MRLABase
from tests.conftest import settled


def hooks(model: nn.Module) -> list[object]:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [h for m in model.modules() for table in tables for h in getattr(m, table).values()]


def test_it_reads_the_weights_of_every_site(mrla_b: nn.Module, images: Tensor) -> None:
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
            torch.testing.assert_close(
                result["weights"][t, : t + 1],
                seen[site.module].double().mean((0, 1)),
                rtol=1e-6,
                atol=1e-6,
            )


def test_it_changes_nothing_of_the_model(mrla_b: nn.Module, images: Tensor) -> None:
    mrla_b.stages[0].train()  # type: ignore[index, union-attr]
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
    with AttentionProbe(mrla_b) as parts:
        mrla_b(images[:2])
        mrla_b(images[2:])
    with AttentionProbe(mrla_b) as whole:
        mrla_b(images)
    for name in whole.metrics:
        a, b = parts.metrics[name].compute(), whole.metrics[name].compute()
        assert a["samples"] == b["samples"] == len(images)
        torch.testing.assert_close(a["kl"], b["kl"], rtol=1e-4, atol=1e-7)


def test_no_forward_pass_is_an_error(mrla_b: nn.Module, images: Tensor) -> None:
    with pytest.raises(ProbeError, match="no forward pass"), AttentionProbe(mrla_b):
        pass
    with pytest.raises(ProbeError, match="own forward was never called"), AttentionProbe(mrla_b):
        block = mrla_b.stages[0][0]  # type: ignore[index]
        from ela_probe.models.attention import Sources

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
        ("shape", r"stages\.1\.2\.retrieval: weights of shape \[6, 2, 1\] came"),
        ("nan", r"stages\.1\.2\.retrieval: weights are NaN"),
    ],
)
def test_what_is_wrong_with_a_site_is_said(
    mrla_b: nn.Module, images: Tensor, what: str, message: str
) -> None:
    probe = AttentionProbe(mrla_b)
    retrieval = mrla_b.get_submodule("stages.1.2.retrieval")
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


def test_a_compiled_model_is_refused(mrla_b: nn.Module) -> None:
    with pytest.raises(ModelError, match="compiled"):
        AttentionProbe(torch.compile(mrla_b))  # type: ignore[arg-type]
    mrla_b.compile()
    with pytest.raises(ModelError, match="compiled"):
        AttentionProbe(mrla_b)


@pytest.mark.parametrize("model", [create_model("resnet20"), nn.Linear(2, 2)])
def test_a_model_without_layer_attention_is_refused(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="no layer attention|no adapter"):
        AttentionProbe(model)


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
    expected = (raw / raw.sum(1, keepdim=True)).double()
    torch.testing.assert_close(weights[2][0], expected)


def test_stages_of_a_single_site_are_analysed_too(images: Tensor) -> None:
    from ela_probe.measure import from_probe

    model = settled("mrla_b_resnet20", depth=8)
    with AttentionProbe(model) as probe:
        model(images)
    analysis = from_probe(probe)
    assert analysis.pairs.empty
    assert list(analysis.sites["fit"]) == ["first site"] * 3
