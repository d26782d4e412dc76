"""Models and parts of models under torch.compile are read as if they had never been compiled."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from ela_probe import AttentionProbe, SkipPlan, analyze, discover, measure_costs, prune
from ela_probe.discovery.declared import DeclaredAdapter
from ela_probe.errors import ModelError
from ela_probe.evaluation.compare import CompareEntry, compare
from ela_probe.forward import uncompiled
from tests.support.foreign_models import OnAxisZero
from tests.support.identities import ROUNDING, assert_same
from tests.support.networks import hooks, settled

SKIPPED = "stages.0.2.retrieval"
TIMES = [0]


def backend(graph: Any, inputs: Any) -> Any:
    TIMES[0] += 1
    return graph.forward


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend=backend)


def compile_block(model: Any) -> nn.Module:
    model.stages[1][1] = compiled(model.stages[1][1])
    return model


def compile_leaf(model: Any) -> nn.Module:
    model.conv1 = compiled(model.conv1)
    return model


def compile_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend=backend)
    return model


def compile_stage_in_place(model: Any) -> nn.Module:
    model.stages[1].compile(backend=backend)
    return model


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "a block": compile_block,
    "a layer": compile_leaf,
    "the model": compiled,
    "the model in DataParallel": lambda model: nn.DataParallel(compiled(model)),
    "the model in place": compile_in_place,
    "a stage in place": compile_stage_in_place,
}


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    TIMES[0] = 0
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_network_has_the_sites_and_weights_of_the_plain_one(
    way: str, images: Tensor
) -> None:
    plain, images = settled("mrla_b_resnet14").double(), images.double()
    model = WAYS[way](settled("mrla_b_resnet14").double())
    with torch.no_grad():
        output = model(images)
        names = list(model.state_dict())
        assert discover(model) == discover(plain)
        assert discover(model, images).stages == discover(plain).stages
        expected = analyze(plain, [images], progress=False).pairs
        analysis = analyze(model, [images], progress=False)
        with AttentionProbe(model) as probe:
            assert_same(model(images), output)
        assert probe.passes == 1
        for found in (analysis, probe.analysis()):
            pd.testing.assert_frame_equal(found.pairs, expected, rtol=1e-9, atol=ROUNDING)
        times = TIMES[0]
        assert_same(model(images), output)  # compiled as before, and not compiled again
    assert TIMES[0] == times
    assert (times > 0) == (way != "a stage in place")  # a list of blocks is never called itself
    assert list(model.state_dict()) == names
    assert hooks(model) == []


@pytest.mark.parametrize("way", WAYS)
def test_a_pruned_copy_of_a_compiled_network_is_uncompiled(way: str, images: Tensor) -> None:
    plain, images = settled("mrla_b_resnet20").double(), images.double()
    model = WAYS[way](settled("mrla_b_resnet20").double())
    plan = SkipPlan.for_actions(discover(plain).stages, {SKIPPED: "skip"})
    pruned, expected = prune(model, plan), prune(plain, plan)
    assert list(pruned.state_dict()) == list(expected.state_dict())
    with torch.no_grad():
        assert_same(pruned(images), expected(images))


def test_observation_looks_into_compiled_parts() -> None:
    plain, inputs = OnAxisZero(4, 2, 3, 3), torch.randn(2, 3, 4)
    expected = discover(plain, inputs)
    for number in (1, 2):
        plain.blocks[number] = compiled(plain.blocks[number])
    found = discover(plain, inputs)
    assert (found.stages, found.found) == (expected.stages, expected.found)
    with AttentionProbe(plain, discovery=found) as probe, torch.no_grad():
        plain(inputs)
    assert probe.passes == 1


def test_what_took_the_place_of_a_compiled_part_stays(images: Tensor) -> None:
    model: Any = settled("mrla_b_resnet14")
    model.conv1 = compiled(model.conv1)
    other = nn.Conv2d(3, 16, 3)
    with uncompiled(model):
        assert isinstance(model.conv1, nn.Conv2d)
        model.conv1 = other
    assert model.conv1 is other


def test_a_pass_that_raises_puts_compiled_parts_back(images: Tensor) -> None:
    model: Any = settled("mrla_b_resnet14")
    part = model.conv1 = compiled(model.conv1)
    with pytest.raises(RuntimeError), AttentionProbe(model):
        model(images[:, :1])
    assert model.conv1 is part


def test_declared_sites_have_the_names_of_the_plain_model(tmp_path: Path) -> None:
    model, inputs = OnAxisZero(4, 2, 3, 3), torch.randn(2, 3, 4)
    names = [site.module for site in discover(model, inputs).stages[0].sites]
    (tmp_path / "sites.toml").write_text(
        f'[[stage]]\nmodules = "{names[0].replace("0", "*", 1)}"\nsources = [1, 2, 3]\n'
    )
    model.blocks[1] = compiled(model.blocks[1])
    found = DeclaredAdapter.load(tmp_path / "sites.toml").discover(model)
    assert [site.module for site in found.stages[0].sites] == names


def test_times_of_compiled_models_are_refused(images: Tensor) -> None:
    model = compile_block(settled("mrla_b_resnet14"))
    labels = torch.zeros(len(images), dtype=torch.long)
    message = r"stages\.1\.1 in this model was compiled, .* before torch.compile"
    with pytest.raises(ModelError, match=message):
        measure_costs(model, (images, labels), progress=False)
    with pytest.raises(ModelError, match=message):
        compare([CompareEntry("one", model)], [(images, labels)], progress=False)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_scripted_part_is_refused_by_name() -> None:
    model = OnAxisZero(4, 2, 2, 3)
    model.head = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(ModelError, match="head in this model was scripted"):
        discover(model, torch.randn(2, 3, 4))
