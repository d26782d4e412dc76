"""Findings: verdicts on stages whose redundancy is known, and honesty where nothing is certain."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ela_probe.analysis.findings import FEW_SAMPLES, NEAR, findings, no_fit_reason, verdicts
from tests.support.synthetic_analyses import PATTERN, make_analysis


def test_verdicts_recover_how_the_weights_were_made() -> None:
    analysis = make_analysis((6, 6), samples=400, pattern=("new", *PATTERN[:4]))
    natures = {"new": "distinct", "repeat": "repeats", "extend": "extends"}
    expected = ("first", *(natures[nature] for nature in ("new", *PATTERN[:4])))
    for part in analysis.stages:
        assert verdicts(part) == expected


@given(st.integers(0, 2**16), st.integers(2, 5), st.integers(2, 60))
def test_a_repeat_is_certainly_below_the_threshold(seed: int, sites: int, samples: int) -> None:
    part = make_analysis((sites,), samples=samples, seed=seed).stages[0]
    kl, error = part.adjacent("kl"), part.adjacent("kl_se")
    for t, verdict in enumerate(verdicts(part)):
        if verdict == "repeats":
            assert kl[t] + 2 * error[t] <= NEAR
        if verdict in ("extends", "distinct"):
            assert kl[t] - 2 * error[t] >= NEAR


def test_shape_over_one_source_is_no_likeness() -> None:
    part = make_analysis((2,), pattern=("extend",)).stages[0]
    assert part.adjacent("shape")[1] == 0
    assert verdicts(part) == ("first", "distinct")


def test_repeated_sites_are_named_in_the_summary_and_their_stage() -> None:
    found = findings(make_analysis((5, 5)))
    near = ("stages.0.2.retrieval", "stages.1.2.retrieval")
    assert found[0].kind == "summary"
    assert found[0].sites == near
    assert tuple(s for f in found if f.kind == "repeats" for s in f.sites) == near
    assert all(s in f.text for f in found if f.kind == "repeats" for s in f.sites)


def test_every_stage_is_spoken_of_and_so_is_its_fit() -> None:
    analysis = make_analysis((4, 1, 3))
    found = findings(analysis)
    for part in analysis.stages:
        kinds = {f.kind for f in found if f.stage == part.stage.name}
        assert kinds & {"repeats", "extends", "distinct", "undecided"}
    assert {f.stage for f in found if "Beta" in f.text} == {"stages.0", "stages.2"}


def test_no_redundancy_is_said_plainly() -> None:
    found = findings(make_analysis((4,), pattern=("new",)))
    assert "none nearly repeats" in found[0].text
    assert any(f.kind == "distinct" and "no redundancy" in f.text for f in found)


@pytest.mark.parametrize("samples", [1, 2, FEW_SAMPLES - 1])
def test_a_small_sample_is_warned_of(samples: int) -> None:
    found = findings(make_analysis((4,), samples=samples))
    assert any(f.kind == "caution" and f"Only {samples} sample" in f.text for f in found)


def test_one_sample_decides_nothing() -> None:
    part = make_analysis((4,), samples=1).stages[0]
    assert verdicts(part) == ("first", "undecided", "undecided", "undecided")


def test_why_there_is_no_fit() -> None:
    constant = make_analysis((2,), constant=True)
    assert "equal" in (no_fit_reason(constant.stages[0]) or "")
    assert any("no Beta fit" in f.text for f in findings(constant))
    assert any("same for every input" in f.text for f in findings(constant))
    assert "one retrieval" in (no_fit_reason(make_analysis((1,)).stages[0]) or "")
    assert "at least 2" in (no_fit_reason(make_analysis((2,), samples=1).stages[0]) or "")
    assert no_fit_reason(make_analysis((3,)).stages[0]) is None


def test_reasons_and_fits_exclude_each_other() -> None:
    for analysis in (make_analysis((4, 1)), make_analysis((2,), constant=True)):
        for part in analysis.stages:
            assert (part.fit is None) == (no_fit_reason(part) is not None)


def test_many_sites_are_counted_and_not_listed() -> None:
    found = findings(make_analysis((30,), pattern=("repeat",), samples=60))
    near = next(f for f in found if f.kind == "repeats")
    assert len(near.sites) > 6
    assert f"and {len(near.sites) - 6} more" in near.text


def test_weights_near_one_hot_are_named_as_such() -> None:
    analysis = make_analysis((4,))
    part = analysis.stages[0]
    np.fill_diagonal(part.divergences["kl"][:, 1:], 40.0)
    assert any("one-hot" in f.text for f in findings(analysis))


def test_findings_import_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, ela_probe.analysis.findings; print({'torch', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
