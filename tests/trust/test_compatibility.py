"""Files of earlier versions load; those of a later one are refused with the advice to upgrade."""

import json
import lzma
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ela_probe import Analysis, SkipPlan, load_checkpoint, make_plan
from ela_probe.checkpoint import read_checkpoint
from ela_probe.errors import ElaProbeError
from ela_probe.evaluation.comparison import Comparison
from ela_probe.pruning.ablation import Ablation
from ela_probe.pruning.cost_model import CostModel

GOLDEN = Path(__file__).parents[1] / "golden"
VERSIONS = ("first", "current")
SITES = [f"stages.{stage}.{block}.retrieval" for stage in range(3) for block in range(2)]
DOCUMENTS: dict[str, Callable[[Path], Any]] = {
    "plan.json": SkipPlan.load, "costs.json": CostModel.load, "ablation.json": Ablation.load,
    "comparison.json": Comparison.load,
}  # fmt: skip


def checkpoint(version: str, folder: Path) -> Path:
    """A golden checkpoint, unpacked."""
    path = folder / "checkpoint.pt"
    path.write_bytes(lzma.decompress((GOLDEN / version / "checkpoint.pt.xz").read_bytes()))
    return path


@pytest.mark.parametrize("version", VERSIONS)
def test_a_checkpoint_rebuilds_the_model_that_was_pruned(version: str, tmp_path: Path) -> None:
    loaded = read_checkpoint(checkpoint(version, tmp_path))
    plan = SkipPlan.load(GOLDEN / version / "plan.json")
    assert loaded.header.model.name == "mrla_b_resnet14"
    assert loaded.header.metrics == {"val_accuracy": 0.5}
    assert [p.skipped for p in loaded.header.plans] == [plan.skipped]
    assert all((p == 2**-7).all() for p in loaded.model.parameters())
    assert loaded.model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_analysis_is_read_and_planned_from(version: str) -> None:
    folder = GOLDEN / version / "analysis"
    analysis = Analysis.load(folder)
    assert list(analysis.sites["site"]) == SITES
    assert analysis.provenance.samples == 12
    import pandas as pd

    written = pd.read_csv(folder / "pairs.csv")
    assert np.allclose(analysis.pairs["kl"], written["kl"], rtol=1e-9)
    plan = make_plan(analysis, skip=0.5, planner="budget")
    assert plan.skipped == SkipPlan.load(folder.parent / "plan.json").skipped


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_read(version: str, name: str) -> None:
    path = GOLDEN / version / name
    found, written = DOCUMENTS[name](path), json.loads(path.read_text())
    assert found.schema_version == 1
    if name == "plan.json":
        assert len(found.skipped) == 3
    elif name == "ablation.json":
        assert found.samples == 12
        assert {change.site for change in found.changes} == set(SITES)
    elif name == "comparison.json":
        assert [(model.kept, model.skipped) for model in found.models] == [(6, 0), (3, 3)]
        assert found.to_frame()["loss"].tolist() == [m["loss"] for m in written["models"]]
    else:
        assert len(json.loads(found.model_dump_json())) >= len(written)


def newer_document(folder: Path, *, name: str) -> Path:
    """A document of version 2, with a field that nobody knows."""
    document = json.loads((GOLDEN / "current" / name).read_text())
    path = folder / name
    path.write_text(json.dumps({**document, "schema_version": 2, "unknown": [1]}))
    return path


def newer_checkpoint(folder: Path) -> Path:
    path = checkpoint("current", folder)
    content = torch.load(path, weights_only=True)
    header = json.loads(content["ela_probe"])
    content["ela_probe"] = json.dumps({**header, "format_version": 2, "unknown": 1})
    torch.save(content, path)
    return path


def newer_analysis(folder: Path) -> Path:
    copy = Path(shutil.copytree(GOLDEN / "current" / "analysis", folder / "analysis"))
    document = json.loads((copy / "analysis.json").read_text())
    (copy / "analysis.json").write_text(json.dumps({"schema_version": 2, "x": document["stages"]}))
    return copy


READERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    **{name: (partial(newer_document, name=name), load) for name, load in DOCUMENTS.items()},
    "checkpoint": (newer_checkpoint, load_checkpoint),
    "analysis": (newer_analysis, Analysis.load),
}


@pytest.mark.parametrize("name", READERS)
def test_a_newer_version_is_refused_with_the_advice_to_upgrade(name: str, tmp_path: Path) -> None:
    write, load = READERS[name]
    path = write(tmp_path)
    with pytest.raises(ElaProbeError, match=r"got 2|version 2") as caught:
        load(path)
    line = str(caught.value)
    assert "upgrade" in line
    assert "\n" not in line
    assert "unknown" not in line  # what else differs is of no use
