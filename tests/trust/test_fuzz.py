"""Every reader answers mutated files with success or one clear error (`make trust` runs more).

Here each reader gets a few inputs in this process, the same ones in every run, and documents that
Hypothesis makes up. Limits of time and memory are those of `tests/trust/fuzz.py`, which is tried on
readers that break its rules.
"""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ela_probe.errors import CheckpointError
from tests.trust.fuzz import Outcome, fuzz, input_of, judge, table, write
from tests.trust.fuzz_mutations import changed_tree
from tests.trust.fuzz_readers import READERS

# Slow readers get fewer inputs: a network is built, a page is drawn, a run is continued.
FEW = {"checkpoint": 8, "safetensors": 8, "state-dict": 8, "report": 4, "hf": 8, "resume": 0}
MANY = 60


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_mutated_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    if name in ("hf", "tokenizer"):
        pytest.importorskip("transformers")
    for number in range(1 + FEW.get(name, MANY)):
        write(input_of(READERS[name], 0, number), tmp_path / "input")
        outcome, reason = judge(READERS[name].read, tmp_path / "input")
        assert outcome == "accepted" or (number and outcome == "refused"), f"{number}: {reason}"


RULE_BREAKERS = {"busy": "more than 0.5 s", "dead": "SIGABRT", "large": "memory", "good": None}

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
DOCUMENTS = {
    "plan": "plan.json",
    "costs": "costs.json",
    "ablation": "ablation.json",
    "comparison": "comparison.json",
    "analysis": "analysis.json",
    "model-args": "args.json",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DOCUMENTS)
@settings(
    max_examples=int(os.environ.get("TRUST_N", "25")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_documents_with_values_of_any_kind_are_read_or_refused(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    reader, file = READERS[name], DOCUMENTS[name]
    drawn = data.draw(st.lists(values, min_size=1, max_size=3))
    random = data.draw(st.randoms(use_true_random=False))
    tree = changed_tree(random, json.loads(reader.valid[file]), tuple(drawn))
    text = json.dumps(tree).encode("utf-8", "surrogatepass")
    write(reader.repaired({**reader.valid, file: text}), tmp_path / "input")
    outcome, reason = judge(reader.read, tmp_path / "input")
    assert outcome != "wrong", reason


def test_the_same_number_is_the_same_input() -> None:
    for name in ("npz", "recipe", "plan", "idx", "folder"):
        reader = READERS[name]
        assert input_of(reader, 3, 7) == input_of(reader, 3, 7) != input_of(reader, 4, 7)


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (KeyError("x"), "KeyError"),
        (CheckpointError("set weights_only=False"), "weights_only"),
        (CheckpointError("x" * 5000), "5000 characters"),
    ],
)
def test_what_is_no_clear_error_is_wrong(tmp_path: Path, raised: Exception, reason: str) -> None:
    def read(_: Path) -> None:
        raise raised

    outcome, found = judge(read, tmp_path)
    assert outcome == "wrong"
    assert reason in found


def test_an_error_that_hides_a_lack_of_memory_is_wrong(tmp_path: Path) -> None:
    def read(_: Path) -> None:
        try:
            raise MemoryError
        except MemoryError as error:
            raise CheckpointError("damaged") from error

    assert judge(read, tmp_path)[1].startswith("memory")


def test_what_ends_hangs_or_takes_memory_is_wrong_and_the_next_input_is_read() -> None:
    results = fuzz(
        list(RULE_BREAKERS), 2, seed=0, limit=0.5, module="tests.trust.fuzz_rule_breakers"
    )
    found = {result.reader: result for result in results}
    assert found["good"].accepted == 2
    assert not found["good"].wrong
    for name, reason in RULE_BREAKERS.items():
        if reason is not None:
            assert [number for number, _ in found[name].wrong] == [1, 2]
            assert all(reason in text for _, text in found[name].wrong)


def test_the_table_names_the_inputs_that_went_wrong() -> None:
    outcome = Outcome("npz", inputs=3, accepted=1, refused=1, wrong=[(2, "KeyError at a.py:1")])
    text = table([outcome])
    assert text.splitlines()[1].split() == ["npz", "3", "1", "1", "1", "0.00"]
    assert "npz --only 2 (1 times): KeyError at a.py:1" in text
