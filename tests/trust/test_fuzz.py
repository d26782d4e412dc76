"""Every reader answers mutated files with success or one clear error (`make trust` runs more).

Here each reader gets a few inputs in this process, the same ones in every run, and documents that
Hypothesis makes up. Limits of time and memory are those of `tests/trust/fuzz.py`, which is tried on
readers that break its rules.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ela_probe.errors import CheckpointError
from tests.trust.fuzz_inputs import input_of, write
from tests.trust.fuzz_judge import judge
from tests.trust.fuzz_mutations import changed_tree
from tests.trust.fuzz_readers import READERS
from tests.trust.fuzz_results import Outcome, Results, table, wrong_ones
from tests.trust.fuzz_worker import Reading

# Slow readers get fewer inputs: a network is built, a page is drawn, a run is continued.
FEW = {"checkpoint": 20, "safetensors": 20, "state-dict": 8, "report": 8, "hf": 8, "resume": 4}
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


def fuzz(path: Path, *options: str) -> tuple[int, Results, str]:
    """The command on the readers that break the rules: its exit code, results and output."""
    command = [sys.executable, "-m", "tests.trust.fuzz", "--limit", "0.5", "--json", str(path)]
    command += ["--readers", "tests.trust.fuzz_rule_breakers", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, Results.load(path), done.stdout + done.stderr


def test_what_ends_hangs_or_takes_memory_is_wrong_and_the_next_input_is_read(
    tmp_path: Path,
) -> None:
    code, results, output = fuzz(tmp_path / "trust.json", "-n", "2")
    assert code == 1
    assert list(results.readers) == list(RULE_BREAKERS)
    assert results.readers["good"].accepted == 2
    assert not results.readers["good"].wrong
    for name, reason in RULE_BREAKERS.items():
        if reason is not None:
            wrong = results.readers[name].wrong
            assert list(wrong) == [1, 2]
            assert all(reason in text for text in wrong.values())
            assert f"--reader {name} --only 1" in output


def test_a_later_run_goes_on_and_tries_what_was_wrong_again(tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    earlier = Outcome(inputs=3, accepted=1, refused=1, wrong={2: "KeyError at a.py:1: 'x'"})
    Results(readers={"good": earlier}).save(path)
    code, results, _ = fuzz(path, "--reader", "good", "--total", "5")
    assert code == 0
    good = results.readers["good"]
    assert (good.inputs, good.accepted, good.refused, good.mended) == (5, 4, 1, 1)
    assert not good.wrong
    again = fuzz(path, "--reader", "good", "--total", "5")[1]
    assert again.readers == results.readers
    assert "seed 0, not 1" in fuzz(path, "--seed", "1")[2]


def test_the_table_counts_the_inputs_and_names_those_that_went_wrong() -> None:
    outcome = Outcome()
    outcome.add(Reading(1, "accepted", seconds=0.5, spent=0.6))
    outcome.add(Reading(2, "wrong", "KeyError at a.py:1: 'x'", spent=0.2))
    outcome.add(Reading(3, "refused", spent=0.2))
    results = Results(readers={"npz": outcome})
    cells = [line.strip("|").split("|") for line in table(results).splitlines()]
    assert [cell.strip() for cell in cells[2]] == ["npz", "3", "1", "1", "1", "0", "0.50", "3"]
    assert {len(line) for line in cells} == {8}
    assert "--reader npz --only 2 (1 times): KeyError at a.py:1" in wrong_ones(results)
