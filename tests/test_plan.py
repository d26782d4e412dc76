"""The plan file: a round trip, and what it refuses."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ela_probe.errors import OutputError, PlanError
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.planners import make_plan
from tests.support.planning import analysis_of


@settings(max_examples=15)
@given(
    st.lists(st.integers(2, 5), min_size=1, max_size=3),
    st.sampled_from(["budget", "score", "random"]),
    st.integers(0, 99),
)
def test_a_plan_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], planner: str, seed: int
) -> None:
    plan = make_plan(analysis_of(sizes, seed), skip=0.2, planner=planner, seed=seed)  # type: ignore[arg-type]
    path = plan.save(tmp_path_factory.mktemp("plan") / "plan.json")
    assert SkipPlan.load(path) == plan


@pytest.fixture
def document() -> dict:
    return json.loads(make_plan(analysis_of([4, 4]), skip=0.25).model_dump_json())


def broken(document: dict, change: str) -> dict:
    site = document["stages"][0]["sites"]
    if change == "version":
        document["schema_version"] = 7
    elif change == "action":
        site[1]["action"] = "remove"
    elif change == "first":
        site[0]["action"] = "skip"
    elif change == "extra":
        document["comment"] = "mine"
    elif change == "missing":
        del document["stages"]
    elif change == "kind":
        document["stages"][0]["kind"] = "token"
    return document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("version", r"schema_version: got 7, expected 1; .* upgrade"),
        ("action", r"action 'remove': Input should be 'keep', 'recur', 'skip', 'drop' or 'affine'"),
        ("first", r"s0\.0 is the first site of its stage and can't have the action 'skip'"),
        ("extra", r"there is no 'comment'; expected schema_version, "),
        ("missing", r"stages: Field required"),
        ("kind", r"kind 'token': Input should be"),
    ],
)
def test_a_broken_plan_is_refused(
    document: dict,
    tmp_path: Path,
    change: str,
    message: str,
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(broken(document, change)))
    with pytest.raises(PlanError, match=message) as caught:
        SkipPlan.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b"null"])
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=r"plan\.json"):
        SkipPlan.load(path)


def test_a_missing_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="there is no such file"):
        SkipPlan.load(tmp_path / "none.json")


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(analysis_of([4]), skip=0.25)
    path = plan.save(tmp_path / "plan.json")
    before = path.read_text()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        make_plan(analysis_of([9]), skip=0.5).save(path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
