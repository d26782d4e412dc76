"""Checkpoints in the layouts of real training scripts: they load, or one line names what lacks."""

import copy
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.optim.swa_utils import AveragedModel

from ela_probe.checkpoint import Checkpoint, read_checkpoint
from ela_probe.errors import CheckpointError
from ela_probe.models.registry import ModelSpec
from ela_probe.system.state_dicts import find_weights, fit_names
from tests.support.networks import settled

NAME = "mrla_b_resnet8"
State = dict[str, Tensor]


def before(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def noise(state: State) -> State:
    return {name: torch.randn(value.shape) for name, value in state.items()}


def lightning(prefix: str, state: State) -> dict[str, Any]:
    """As `Trainer.save_checkpoint` writes it, with a loss and a metric beside the network."""
    return {
        "epoch": 3,
        "global_step": 90,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": {
            **before(prefix, state),
            "criterion.weight": torch.ones(10),
            "accuracy.total": torch.zeros(()),
        },
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(3)}}}],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 0.1, "arch": "resnet8"},
    }


def averaged(model: nn.Module) -> State:
    return AveragedModel(model).state_dict()


def profiled(state: State) -> State:
    """As a profiler leaves it: two counters in every module."""
    modules = {name.rpartition(".")[0] for name in state}
    counters = {
        f"{module}.{what}": torch.zeros(1, dtype=torch.float64)
        for module in modules
        for what in ("total_ops", "total_params")
    }
    return {**state, **counters, "total_ops": torch.zeros(1), "total_params": torch.zeros(1)}


def by_name_optimizer(state: State) -> dict[str, Any]:
    """Moments that lie in mappings as large as the state dict."""
    return {"exp_avg": noise(state), "exp_avg_sq": noise(state), "step": 9}


# What a script saves of a model, and a part of the note that the user gets (None: no note).
LAYOUTS: dict[str, tuple[Callable[[nn.Module, State], Any], str | None]] = {
    "bare": (lambda m, s: s, None),
    "ordered, as parameters": (
        lambda m, s: OrderedDict(m.named_parameters()) | OrderedDict(m.named_buffers()), None
    ),
    "state_dict": (lambda m, s: {"epoch": 1, "state_dict": s}, None),
    "model": (lambda m, s: {"model": s, "optimizer": {}}, None),
    "model_state_dict": (lambda m, s: {"model_state_dict": s}, None),
    "model_state": (lambda m, s: {"model_state": s, "epoch": 3}, None),
    "network": (lambda m, s: {"network": s}, None),
    "weights": (lambda m, s: {"weights": s, "args": {"lr": 0.1}}, None),
    "net": (lambda m, s: {"net": s, "acc": 93.1, "epoch": 9}, None),
    "nested twice": (lambda m, s: {"checkpoint": {"model_state": s}, "rng": [1, 2]}, None),
    "nested thrice": (lambda m, s: {"a": {"b": [{"c": s}]}}, None),
    "in a list": (lambda m, s: [s, 17], None),
    "in a tuple of an epoch and weights": (lambda m, s: (17, {"state_dict": s}), None),
    "beside numbers": (lambda m, s: {**s, "epoch": 3, "best": 0.5}, None),
    "with keys that are numbers": (lambda m, s: {0: "x", "weights": s}, None),
    "Lightning, model.": (lambda m, s: lightning("model.", s), "'model.'.*criterion"),
    "Lightning, net.": (lambda m, s: lightning("net.", s), "'net.'.*accuracy"),
    "backbone.": (lambda m, s: before("backbone.", s), "'backbone.'"),
    "DDP": (lambda m, s: {"state_dict": before("module.", s)}, None),
    "compiled": (lambda m, s: before("_orig_mod.", s), None),
    "Lightning, compiled": (lambda m, s: lightning("model._orig_mod.", s), "'model.'"),
    "DDP in a wrapper": (lambda m, s: before("model.module.", s), "'model.'"),
    "two prefixes": (lambda m, s: before("algorithm.model.", s), "'algorithm.model.'"),
    "AveragedModel": (lambda m, s: averaged(m), "ignored n_averaged"),
    "AveragedModel beside": (
        lambda m, s: {"model": s, "swa_model": noise(averaged(m))}, "'model', not .*'swa_model'"
    ),
    "averaged only": (lambda m, s: {"state_dict_ema": s}, "averaged .*'state_dict_ema'"),
    "profiled": (lambda m, s: profiled(s), r"ignored .*total_ops \(\d+ tensors\)"),
    "without num_batches_tracked": (
        lambda m, s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
        r"missing num_batches_tracked of \d+ batch norms",
    ),
    "auxiliary head": (
        lambda m, s: {**s, "aux_head.weight": torch.ones(10, 32), "aux_head.bias": torch.ones(10)},
        r"ignored aux_head\.\* \(2 tensors\)",
    ),
    "large optimizer beside": (
        lambda m, s: {"optimizer": by_name_optimizer(s), "model": s}, None
    ),
    "student and teacher": (
        lambda m, s: {"teacher": noise(s), "student": s}, "'student', not .*'teacher'"
    ),
    "two encoders": (
        lambda m, s: {**before("encoder_q.", s), **before("encoder_k.", noise(s))},
        r"'encoder_q.'.*ignored encoder_k\.\*",
    ),
    "averaged copy in one state dict": (
        lambda m, s: {**before("ema_model.", noise(s)), **before("model.", s)},
        r"'model.'.*ignored ema_model\.\*",
    ),
    "all at once": (
        lambda m, s: {"run": [{"model_state": profiled(before("module.backbone.", s))}]},
        "'backbone.'.*total_params",
    ),
}  # fmt: skip


def saved(path: Path, stored: Any) -> Path:
    torch.save(stored, path)
    return path


def read(path: Path, name: str = NAME, **arguments: Any) -> Checkpoint:
    return read_checkpoint(path, spec=ModelSpec(name=name, args=arguments))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_with_the_same_outputs(
    layout: str, tmp_path: Path, images: Tensor
) -> None:
    model = settled(NAME)
    save, note = LAYOUTS[layout]
    loaded = read(saved(tmp_path / "given.pth", save(model, model.state_dict())))
    assert torch.equal(loaded.model(images), model(images))
    if note is None:
        assert loaded.note is None
    else:
        assert loaded.note is not None
        assert "\n" not in loaded.note
        assert re.search(note, loaded.note), loaded.note


def test_safetensors_have_prefixes_too(tmp_path: Path, images: Tensor) -> None:
    model = settled(NAME)
    path = tmp_path / "given.safetensors"
    safetensors.torch.save_file(before("net.", model.state_dict()), path)
    assert torch.equal(read(path).model(images), model(images))


def test_published_names_have_prefixes_too(tmp_path: Path, images: Tensor) -> None:
    model = settled("resnet8")
    state = {
        name.replace("stages.0", "layer1").replace("stages.1", "layer2")
        .replace("stages.2", "layer3").replace(".body", ""): value
        for name, value in model.state_dict().items()
    }  # fmt: skip
    assert any(name.startswith("layer1") for name in state)
    path = saved(tmp_path / "given.pth", lightning("model.", state))
    assert torch.equal(read(path, "resnet8").model(images), model(images))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_types_become_the_models(tmp_path: Path, dtype: torch.dtype) -> None:
    state = settled(NAME).state_dict()
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    loaded = read(saved(tmp_path / "given.pth", {"model": cast})).model.state_dict()
    name = "fc.weight"
    assert loaded[name].dtype == torch.float32
    assert torch.equal(loaded[name], cast[name].float())


def test_the_model_follows_the_classes_of_the_file(tmp_path: Path, images: Tensor) -> None:
    model = settled(NAME, num_classes=100)
    path = saved(tmp_path / "given.pth", {"state_dict": before("module.", model.state_dict())})
    loaded = read(path)
    assert torch.equal(loaded.model(images), model(images))
    assert loaded.header.model.args == {"num_classes": 100}
    assert loaded.note == "num_classes=100, as the file has it"
    with pytest.raises(
        CheckpointError, match=r"fc.weight is \[100, 64\], the model has \[10, 64\]"
    ):
        read(path, num_classes=10)


class Wrapper(nn.Module):
    """A model that holds the network as a part."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.network = settled(NAME, num_classes=num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


def fixed() -> nn.Module:
    return Wrapper()


@pytest.mark.parametrize("prefix", ["", "network.", "model.", "module.model."])
def test_a_model_that_wraps_the_network_takes_its_weights(
    tmp_path: Path, images: Tensor, prefix: str
) -> None:
    model = settled(NAME)
    path = saved(tmp_path / "given.pth", before(prefix, model.state_dict()))
    loaded = read(path, "tests.test_checkpoint_layouts:Wrapper")
    assert torch.equal(loaded.model(images), model(images))


def test_a_factory_follows_the_classes_if_it_takes_them(tmp_path: Path) -> None:
    path = saved(tmp_path / "given.pth", settled(NAME, num_classes=7).state_dict())
    loaded = read(path, "tests.test_checkpoint_layouts:Wrapper")
    assert loaded.header.model.args == {"num_classes": 7}
    with pytest.raises(CheckpointError, match=r"network\.fc\.weight is \[7, 64\]"):
        read(path, "tests.test_checkpoint_layouts:fixed")


def without(state: State, name: str) -> State:
    return {key: value for key, value in state.items() if key != name}


def masked(state: State) -> State:
    """The state dict of a model under torch.nn.utils.prune."""
    model = settled(NAME)
    torch_prune.l1_unstructured(model.fc, "weight", amount=0.5)
    return model.state_dict()


REFUSED: dict[str, tuple[Callable[[State], Any], str]] = {
    "a tensor is missing": (lambda s: without(s, "fc.bias"), "NAME: fc.bias is missing. Check"),
    "parameters alone": (
        lambda s: {k: v for k, v in s.items() if "running" not in k}, "running_mean is missing"
    ),
    "pruned by a mask": (masked, "fc.weight is missing; fc.weight_orig is unknown"),
    "a deeper network": (
        lambda s: settled("mrla_b_resnet14").state_dict(),
        r"stages\.0\.1\.\S+ is unknown to the model",
    ),
    "another attention": (
        lambda s: settled("mrla_l_resnet8").state_dict(), r"is missing|is unknown"
    ),
    "a tensor of the root": (lambda s: {**s, "position": torch.ones(3)}, "position is unknown"),
    "numpy arrays": (
        lambda s: {k: np.zeros(2) for k in s}, "holds a dict that is no state dict"
    ),
    "numbers": (lambda s: {"epoch": 3, "history": [1.0, 2.0]}, "dict that is no state dict"),
    "an optimizer alone": (
        lambda s: {"optimizer": by_name_optimizer(s)}, "dict that is no state dict"
    ),
    "another network": (lambda s: {"0.weight": torch.ones(2, 2)}, "is missing"),
    "wider": (
        lambda s: {**s, "fc.weight": torch.ones(10, 128)}, r"fc.weight is \[10, 128\]"
    ),
    "a whole model": (lambda s: settled(NAME), "save the weights alone"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_loaded_is_named(case: str, tmp_path: Path) -> None:
    save, message = REFUSED[case]
    path = saved(tmp_path / "given.pth", save(settled(NAME).state_dict()))
    with pytest.raises(CheckpointError, match=message.replace("NAME", ".*ResNet")) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_the_search_ends_in_containers_that_hold_themselves() -> None:
    state = {"a": torch.ones(1)}
    loop: list[Any] = [state]
    loop.extend([loop] * 50)
    found = find_weights(loop)
    assert found is not None
    assert found.state == state
    assert find_weights("text") is None
    assert find_weights(torch.ones(3)) is None


def test_names_that_fit_are_never_changed() -> None:
    """A model whose own names begin with a wrapper's prefix keeps them."""
    model = nn.Sequential(OrderedDict(model=nn.Linear(2, 2), net=nn.Linear(2, 2)))
    state = copy.deepcopy(model.state_dict())
    fit = fit_names(state, model.state_dict())
    assert not fit.problems
    assert fit.note is None
    assert fit.state.keys() == state.keys()
