"""docs/adapters.md: its example runs as it stands there, and its sites file is a valid one."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ela_probe import analyze, make_plan, prune
from ela_probe.adapters.registry import ADAPTERS, adapter_for
from ela_probe.discovery.declared import DeclaredAdapter
from ela_probe.errors import PlanError

PAGE = (Path(__file__).parent.parent / "docs" / "adapters.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def example(capsys: pytest.CaptureFixture[str]) -> Iterator[dict[str, Any]]:
    adapter_for(nn.Identity())  # so that those of the package are there
    before = list(ADAPTERS)
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    try:
        for block in blocks("python"):
            exec(compile(block, "docs/adapters.md", "exec"), names)
        names["printed"] = capsys.readouterr().out
        yield names
    finally:
        ADAPTERS[:] = before


def test_the_example_analyses_and_prunes(example: dict[str, Any]) -> None:
    assert example["printed"].splitlines() == [
        "(1, 2, 3, 4, 5, 6)",
        f"2 retrievals and {2 * (16 + 16 * 16 + 16)} parameters less",
        "torch.Size([32, 3])",
    ]


def test_the_examples_pruned_model_is_the_model_without_these_retrievals(
    example: dict[str, Any],
) -> None:
    model, smaller, x = example["model"], example["smaller"], example["batches"][0]
    for name in example["plan"].skipped:
        model.get_submodule(name).register_forward_hook(lambda m, a, out: out * 0)
    torch.testing.assert_close(smaller(x), model(x), rtol=0, atol=0)


def test_the_adapter_is_about_thirty_lines() -> None:
    adapter = next(block for block in blocks("python") if "class StackNetAdapter" in block)
    code = [line for line in adapter.splitlines() if line.strip()]
    assert len(code) <= 36


def test_the_sites_file_on_the_page_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "sites.toml"
    file.write_text(blocks("toml")[0])
    declared = DeclaredAdapter.load(file).declared
    assert [stage.reads for stage in declared.stage] == ["output", "output"]


class Unknown(nn.Module):
    """Weights of layers come out of a module, but no adapter knows it."""

    def __init__(self, depth: int = 3, width: int = 4) -> None:
        super().__init__()
        self.softmax = nn.ModuleList(nn.Softmax(dim=-1) for _ in range(depth))
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: list[torch.Tensor] = []
        for softmax in self.softmax:
            outputs.append(torch.tanh(x))
            stack = torch.stack(outputs, dim=1)
            x = x + (softmax(stack.sum(-1)).unsqueeze(-1) * stack).sum(1)
        return x


def test_pruning_an_unknown_family_points_to_the_page(tmp_path: Path) -> None:
    file = tmp_path / "sites.toml"
    file.write_text('[[stage]]\nmodules = "softmax.*"\n')
    model, x = Unknown(), torch.randn(8, 4)
    found = DeclaredAdapter.load(file).discover(model, x)
    plan = make_plan(analyze(model, [x], discovery=found, progress=False), skip=0.3)
    with pytest.raises(PlanError, match=r"no adapter knows .* Unknown; .*docs/adapters\.md"):
        prune(model, plan)
