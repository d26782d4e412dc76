"""The files of an analysis belong together: a torn one is refused, an earlier one still loads."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ela_probe.analysis import analysis_folder
from ela_probe.analysis.result import Analysis
from ela_probe.errors import AnalysisError
from ela_probe.system.array_files import read_arrays
from tests.support.planning import analysis_of, without_digests

OLD, NEW = analysis_of([4, 3], seed=0), analysis_of([4, 3], seed=1)


class Killed(Exception):
    """Stands for the end of the process."""


def interrupt_after(monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    """Let the process end when it wants to write one file more than so many."""
    left = iter(range(files))

    def interrupted(write: Callable[..., object]) -> Callable[..., object]:
        def written(*arguments: object) -> object:
            if next(left, None) is None:
                raise Killed
            return write(*arguments)

        return written

    for name in ("write_bytes", "write_json"):
        monkeypatch.setattr(analysis_folder, name, interrupted(getattr(analysis_folder, name)))


@pytest.mark.parametrize("files", range(5))
def test_after_an_interruption_at_any_file_the_analysis_is_whole_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    OLD.save(tmp_path)
    with monkeypatch.context() as patched:
        interrupt_after(patched, files)
        if files < 4:
            with pytest.raises(Killed):
                NEW.save(tmp_path)
        else:
            NEW.save(tmp_path)
    if files in (0, 4):
        whole = OLD if files == 0 else NEW
        assert Analysis.load(tmp_path).pairs.equals(whole.pairs)
    else:
        with pytest.raises(AnalysisError, match=r"is not whole: arrays\.npz is not the file that"):
            Analysis.load(tmp_path)


def test_a_table_of_another_analysis_is_refused_and_a_missing_one_is_not(tmp_path: Path) -> None:
    OLD.save(tmp_path)
    (tmp_path / "sites.csv").write_text("stage,site\n")
    with pytest.raises(AnalysisError, match=r"is not whole: sites\.csv"):
        Analysis.load(tmp_path)
    (tmp_path / "sites.csv").unlink()
    assert Analysis.load(tmp_path).pairs.equals(OLD.pairs)


def test_an_analysis_without_digests_still_loads(tmp_path: Path) -> None:
    OLD.save(tmp_path)
    without_digests(tmp_path)
    (tmp_path / "pairs.csv").write_text("edited")
    assert Analysis.load(tmp_path).pairs.equals(OLD.pairs)


@pytest.mark.parametrize("digests", [1, [], "x", {"arrays.npz": 3}, {"other": "x"}])
def test_digests_of_another_form_are_refused(tmp_path: Path, digests: object) -> None:
    OLD.save(tmp_path)
    document = json.loads((tmp_path / "analysis.json").read_text())
    (tmp_path / "analysis.json").write_text(json.dumps({**document, "sha256": digests}))
    with pytest.raises(AnalysisError, match="is not whole|is damaged"):
        Analysis.load(tmp_path)


def stored(**members: bytes) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_only_the_wanted_arrays_are_read() -> None:
    file = stored(a=npy(np.arange(3)), b=b"no array")
    found = read_arrays(file, "a".__eq__)
    assert list(found) == ["a"]
    assert found["a"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="magic"):
        read_arrays(file, "b".__eq__)


def test_a_shape_that_the_file_does_not_hold_is_refused_before_anything_is_allocated() -> None:
    header = npy(np.zeros(10**6, np.uint8))[:128]
    with pytest.raises(ValueError, match=r"a\.npy declares the shape \(1000000,\) of uint8"):
        read_arrays(stored(a=header + b"\0" * 5), "a".__eq__)


def test_a_large_array_of_next_to_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ela_probe.system.array_files.LARGE_BYTES", 10**4)
    with pytest.raises(ValueError, match="100 times as much"):
        read_arrays(stored(a=npy(np.zeros(10**5))), "a".__eq__)
    values = np.random.default_rng(0).random(10**4)
    assert np.array_equal(read_arrays(stored(a=npy(values)), "a".__eq__)["a"], values)
