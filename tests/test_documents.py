"""Documents are read in the encodings that people's tools write, and refused in one clear line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ela_probe.analysis.result import Analysis
from ela_probe.errors import AnalysisError, ElaProbeError, OutputError, PlanError
from ela_probe.pruning.cost_model import CostModel
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.planners import make_plan
from ela_probe.system.reading import read_document
from ela_probe.system.storage import output_directory, write_text
from tests.support.costs import PRICES, costs_of, priced
from tests.support.planning import analysis_of

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")  # the last three with a byte-order mark


def load_plan(folder: Path) -> object:
    return SkipPlan.load(folder / "plan.json")


def load_costs(folder: Path) -> object:
    return CostModel.load(folder / "costs.json")


def load_analysis(folder: Path) -> object:
    return Analysis.load(folder).summary()


READERS = {"plan.json": load_plan, "costs.json": load_costs, "analysis.json": load_analysis}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    analysis = analysis_of([4, 3])
    analysis.save(tmp_path)
    make_plan(analysis, skip=0.3).save(tmp_path / "plan.json")
    stages = [part.stage for part in analysis.stages]
    costs_of([priced(s, PRICES) for s in stages], of=stages).save(tmp_path / "costs.json")
    return tmp_path


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("name", "load"), READERS.items())
def test_every_document_is_read_in_every_marked_encoding(
    folder: Path, name: str, load: Callable[[Path], object], encoding: str
) -> None:
    original = load(folder)
    text = (folder / name).read_text(encoding="utf-8")
    (folder / name).write_bytes(text.replace("\n", "\r\n").encode(encoding))
    assert load(folder) == original


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "is not text in UTF-16"),
        (b"\x80\x81", "is not text in UTF-8"),
        (b"\xef\xbb\xbf\xff", "is not text in UTF-8"),
    ],
)
def test_what_is_not_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(PlanError, match=message):
        load_plan(tmp_path)


@pytest.mark.parametrize("load", [SkipPlan.load, CostModel.load])
def test_a_folder_where_a_file_belongs_is_named_as_such(
    tmp_path: Path, load: Callable[[Path], object]
) -> None:
    with pytest.raises(PlanError, match=r": it is a folder; expected a file that `ela-probe"):
        load(tmp_path)
    with pytest.raises(PlanError, match=r"none\.json: there is no such file; expected a file"):
        load(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match=r"file is a file, not a folder; expected a file"):
        load(tmp_path / "file" / "plan.json")


def test_a_file_where_a_folder_belongs_is_named_as_such(folder: Path) -> None:
    with pytest.raises(AnalysisError, match=r"plan\.json is a file; expected a folder") as caught:
        Analysis.load(folder / "plan.json")
    assert "Error" not in str(caught.value)
    with pytest.raises(OutputError, match=r"plan\.json: it is a file; expected a folder"):
        output_directory(folder / "plan.json")


def test_a_folder_is_no_place_for_the_text_of_a_file(tmp_path: Path) -> None:
    target = tmp_path / "results"
    target.mkdir()
    with pytest.raises(OutputError, match=r"results: it is a folder; expected the name of a file"):
        write_text(target, "text")
    assert list(tmp_path.iterdir()) == [target]


def test_the_error_is_of_the_callers_class(tmp_path: Path) -> None:
    class Special(ElaProbeError): ...

    with pytest.raises(
        Special, match="cannot read the note .*: there is no such file; expected a note"
    ):
        read_document(tmp_path / "a", what="the note", expected="a note", error=Special)


def test_a_missing_or_broken_analysis_says_which_file(folder: Path) -> None:
    document = (folder / "analysis.json").read_text()
    (folder / "analysis.json").write_text("{")
    with pytest.raises(AnalysisError, match="is damaged"):
        Analysis.load(folder)
    (folder / "analysis.json").write_text(json.dumps([]))
    with pytest.raises(AnalysisError, match="is damaged"):
        Analysis.load(folder)
    arrays = folder / "arrays.npz"
    arrays.write_bytes(arrays.read_bytes()[:300])
    (folder / "analysis.json").write_text(document)
    with pytest.raises(AnalysisError, match=r"is not whole: arrays\.npz"):
        Analysis.load(folder)
    (folder / "analysis.json").unlink()
    with pytest.raises(AnalysisError, match=r"analysis\.json is missing.*expected a folder"):
        Analysis.load(folder)
