"""Declared sites and other packages' adapters: what is read, and what is said where nothing is."""

import importlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ela_probe import AttentionProbe, analyze, make_plan
from ela_probe.adapters.plugins import PluginWarning, load_plugins
from ela_probe.adapters.registry import ADAPTERS, adapter_for
from ela_probe.discovery.declared import DeclaredAdapter
from ela_probe.errors import ModelError, OptionError
from tests.support.identities import assert_same


class Mixer(nn.Module):
    """Takes scores [t, n], gives the mixed stack and the weights [t, n], sources first."""

    def forward(self, stack: Tensor) -> tuple[Tensor, Tensor]:
        weights = torch.exp(stack.mean(-1))
        weights = weights / weights.sum(0)
        return (weights.unsqueeze(-1) * stack).sum(0), weights.transpose(0, 1)


class Net(nn.Module):
    """Two stages of mixers; every layer of a stage retrieves from all earlier ones of it."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleList(nn.ModuleDict({"lin": nn.Linear(4, 4), "mix": Mixer()}) for _ in range(d))
            for d in (depth, depth - 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        stage: Any
        for stage in self.stages:
            stack: list[Tensor] = []
            for layer in stage:
                stack.append(layer["lin"](x))
                x = x + layer["mix"](torch.stack(stack))[0]
        return x


class Looped(nn.Module):
    """One softmax module for all layers: its k-th call is the k-th site."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh = nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        stack: list[Tensor] = []
        for _ in range(3):
            stack.append(torch.tanh(x))
            outputs = torch.stack(stack, 1)
            x = x + (self.weigh(outputs.sum(-1)).unsqueeze(-1) * outputs).sum(1)
        return x


MIXERS = """
[[stage]]
regex = 'stages\\.(\\d+)\\.\\d+\\.mix'
group = 1
name = "part"
tensor = 1
axis = -1
"""


def load(tmp_path: Path, text: str) -> DeclaredAdapter:
    (tmp_path / "sites.toml").write_text(text, encoding="utf-8")
    return DeclaredAdapter.load(tmp_path / "sites.toml")


def test_sites_are_grouped_and_their_sources_counted(tmp_path: Path) -> None:
    model, x = Net().train(), torch.randn(5, 4)
    found = load(tmp_path, MIXERS).discover(model, x)
    assert [(s.name, s.kind, s.sizes) for s in found.stages] == [
        ("part.0", "softmax", (1, 2, 3)),
        ("part.1", "softmax", (1, 2)),
    ]
    assert found.stages[1].sites[0].name == "stages.1.0.mix"
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_weights_read_are_those_put_out(tmp_path: Path) -> None:
    model, x = Net().double().eval(), torch.randn(5, 4, dtype=torch.float64)
    found = load(tmp_path, MIXERS).discover(model, x)
    seen: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, Mixer):
            module.register_forward_hook(lambda m, a, out, n=name: seen.update({n: out[1]}))
    with AttentionProbe(model, discovery=found) as probe, torch.no_grad():
        model(x)
    for stage in found.stages:
        weights = probe.metrics[stage.name].compute()["weights"]
        for t, site in enumerate(stage.sites):
            expected = seen[site.name].mean(0)
            assert_same(weights[t, : t + 1], expected)


def test_a_module_called_in_a_loop_is_a_site_a_call(tmp_path: Path) -> None:
    declared = load(tmp_path, '[[stage]]\nmodules = "we*"\ncalls = 3\nname = "loop"\n')
    found = declared.discover(Looped(), torch.randn(4, 6))
    assert [(site.name, site.sources) for site in found.stages[0].sites] == [
        ("weigh@0", 1),
        ("weigh@1", 2),
        ("weigh@2", 3),
    ]
    analysis = analyze(Looped(), [torch.randn(4, 6)], discovery=found, progress=False)
    assert make_plan(analysis, skip=0.3).share == pytest.approx(1 / 3)


def test_declared_sources_need_no_forward_pass(tmp_path: Path) -> None:
    text = '[[stage]]\nmodules = "weigh"\ncalls = 3\nsources = [1, 2, 3]\n'
    found = load(tmp_path, text).discover(Looped())
    assert found.stages[0].sizes == (1, 2, 3)


@pytest.mark.parametrize(
    ("glob", "count"),
    [("stages.*.*.mix", 5), ("**.mix", 5), ("stages.0.*.mix", 3), ("stages.?.1.mix", 2)],
)
def test_globs_stay_within_one_part_of_a_name(tmp_path: Path, glob: str, count: int) -> None:
    declared = load(tmp_path, f'[[stage]]\nmodules = "{glob}"\ntensor = 1\n')
    assert sum(len(stage.sites) for stage in declared.stages(Net())) == count
    with pytest.raises(ModelError, match=r"matches no module; near names are stages\."):
        load(tmp_path, '[[stage]]\nmodules = "stages.*.mix"\n').stages(Net())


BAD = {
    "no toml": ("[[stage", "cannot read the sites file"),
    "nothing": ("", "stage: Field required"),
    "unknown key": (
        '[[stage]]\nmodule = "a"',
        r"no 'stage\.0\.module' \(did you mean",
    ),
    "no pattern": ("[[stage]]\naxis = 1", "names no modules"),
    "regex": ("[[stage]]\nregex = '('", "no regular expression"),
    "group": ("[[stage]]\nregex = 'a(b)'\ngroup = 2", "no capture group .* expected 1"),
    "group of a glob": ("[[stage]]\nmodules = 'a'\ngroup = 1", "a regex with groups"),
    "kind": ('[[stage]]\nmodules = "a"\nkind = "unrolled"', "takes an adapter"),
    "reads": ('[[stage]]\nmodules = "a"\nreads = "gradient"', "reads 'gradient': .*'inputs'"),
    "calls": ('[[stage]]\nmodules = "a"\ncalls = 0', "calls 0: .*greater"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_file_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    text, message = BAD[case]
    with pytest.raises(OptionError, match=message) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "sites.toml") in str(caught.value)
    with pytest.raises(OptionError, match="there is no such file"):
        DeclaredAdapter.load(tmp_path / "none.toml")


WRONG = {
    "no inputs": (MIXERS, None, "add sources = "),
    "not growing": ('[[stage]]\nmodules = "**.mix"\ntensor = 1', (5, 4), "numbers that grow"),
    "no such axis": (MIXERS.replace("-1", "2"), (5, 4), "axis 2 of a tensor of shape"),
    "no such tensor": (MIXERS.replace("= 1\na", "= 2\na"), (5, 4), "hold 2 tensors"),
    "inputs": (MIXERS, (5, 9), "does not take the example inputs"),
    "calls": (MIXERS + "calls = 2", (5, 4), "fired 1 times .*calls = 2"),
    "twice": (MIXERS + '[[stage]]\nmodules = "**.mix"', (5, 4), r"declares .*mix twice"),
    "numbers": (MIXERS + "sources = [1, 2]", (5, 4), "has 3 sites"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_the_model_is_said(tmp_path: Path, case: str) -> None:
    text, shape, message = WRONG[case]
    model = Net()
    with pytest.raises(ModelError, match=message):
        load(tmp_path, text).discover(model, None if shape is None else torch.randn(shape))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    adapter_for(nn.Linear(1, 1))
    before, path = list(ADAPTERS), list(sys.path)
    load_plugins.cache_clear()
    yield
    ADAPTERS[:], sys.path[:] = before, path
    for name in [name for name in sys.modules if name.startswith("fake_plugin")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    load_plugins.cache_clear()


def distribution(folder: Path, name: str, code: str, *, target: str = "Adapter") -> None:
    """A package with an entry point, as pip would leave it in a folder on sys.path."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ela_probe.adapters]\n{name} = {name}:{target}\n")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


GOOD = """
from torch import nn
from ela_probe.adapters import ReadOnlyAdapter

class Adapter(ReadOnlyAdapter):
    name = "good"
    def matches(self, model): return isinstance(model, nn.Bilinear)
    def stages(self, model): return []
"""


def test_an_adapter_of_another_package_is_found_and_a_broken_one_named(
    registry: None, tmp_path: Path
) -> None:
    distribution(tmp_path, "fake_plugin_good", GOOD)
    distribution(tmp_path, "fake_plugin_broken", "raise RuntimeError('too old')")
    distribution(tmp_path, "fake_plugin_half", "class Adapter:\n    name = 'half'")
    distribution(
        tmp_path, "fake_plugin_raises",
        GOOD.replace("return isinstance(model, nn.Bilinear)", "return model.no_such_thing"),
    )  # fmt: skip
    with pytest.warns(PluginWarning) as caught:
        found = adapter_for(nn.Bilinear(1, 1, 1))
    assert found is not None
    assert found.name == "good"
    said = {str(w.message).split(" of the package ")[1]: w for w in caught}
    assert [name.split(" ")[0] for name in sorted(said)] == [
        "fake_plugin_broken",
        "fake_plugin_half",
        "fake_plugin_raises",
    ]
    assert any("too old" in name for name in said)
    assert any("no matches, stages, weights, apply" in name for name in said)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plugin: Any = sys.modules["fake_plugin_raises"]
        plugin.Adapter.matches = lambda self, model: False
        assert adapter_for(nn.Bilinear(1, 1, 1)) is found  # loaded once, said once
