"""The verbs that write, on a small data set: what the tests of faults run."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ela_probe_cli import main

from tests.support.image_sets import write_images

CPU = ["--device", "cpu"]
BATCHES = ["--batch-size", "30", *CPU]
TRAIN = ["train", "--model", "mrla_b_resnet8", "--data", "npz:set", "--val-fraction", "0.2"]


class Verb(NamedTuple):
    """A command, what it makes that is always the same, and the state that --resume needs.

    results: paths, which may have a `*`.
    """

    words: Sequence[str]
    results: Sequence[str]
    resumable: str | None = None


RUN = ("run/best.pt", "run/last.pt", "run/metrics.csv")
VERBS = {
    "train": Verb([*TRAIN, "--epochs", "2", *BATCHES, "-o", "run"], RUN, "run/resume.ckpt"),
    "train over a run": Verb([*TRAIN, "--epochs", "1", *BATCHES, "-o", "old"], ["old/best.pt"]),
    "train --ela": Verb(
        ["train", "--model", "mrla_b_resnet14", *TRAIN[3:], "--epochs", "3", *BATCHES, "-o", "run",
         "--ela", "skip=0.3,warmup=1,ramp=1"],
        [*RUN, "run/plan.json", "run/ela.csv"], "run/resume.ckpt",
    ),
    "finetune": Verb(
        ["finetune", "old/best.pt", "--epochs", "2", *BATCHES, "-o", "tuned.pt"],
        ["tuned.pt", "tuned-run/best.pt"], "tuned-run/resume.ckpt",
    ),
    "finetune over a file": Verb(
        ["finetune", "old/best.pt", "--epochs", "1", *BATCHES, "-o", "pruned.pt"], ["pruned.pt"],
        "pruned-run/resume.ckpt",
    ),
    "analyze": Verb(
        ["analyze", "old/best.pt", "-o", "new", "--no-figures", *BATCHES],
        ["new/arrays.npz", "new/pairs.csv", "new/sites.csv"],
    ),
    "analyze over an analysis": Verb(
        ["analyze", "old/best.pt", "-o", "an", "--limit", "40", "--no-figures", *BATCHES],
        ["an/arrays.npz", "an/pairs.csv", "an/sites.csv"],
    ),
    "analyze with figures": Verb(
        ["analyze", "old/best.pt", "-o", "new", *BATCHES],
        ["new/arrays.npz", "new/figures/adjacent.png", "new/figures/scores.png"],
    ),
    "plan": Verb(["plan", "an", "--skip", "0.3", "-o", "plan.json"], ["plan.json"]),
    "prune": Verb(
        ["prune", "old/best.pt", "--plan", "plan.json", "-o", "pruned.pt"], ["pruned.pt"]
    ),
    "costs": Verb(["costs", "old/best.pt", "--rounds", "1", "-o", "costs.json", *BATCHES], []),
    "compare": Verb(
        ["compare", "old/best.pt", "old/last.pt", "--repeats", "3", "-o", "comparison.json",
         *BATCHES], [],
    ),
    "ablate": Verb(
        ["ablate", "old/best.pt", "--analysis", "an", "--skip", "0.3", "--random", "1", "-o", "ab",
         "--batch-size", "12", *CPU],
        ["ab/sites.csv", "ab/plans.csv"], "ab/ablation.json",
    ),
    "ablate with tuning": Verb(
        ["ablate", "old/best.pt", "--analysis", "an", "--skip", "0.3", "--tune-epochs", "1",
         "--random", "1", "-o", "ab", *BATCHES],
        ["ab/sites.csv", "ab/plans.csv"], "ab/ablation.json",
    ),
    "report": Verb(["report", "an", "--plan", "plan.json"], ["an/report.html"]),
    "notebook": Verb(["notebook", "an", "--copy", "-o", "mine.ipynb"], []),  # it holds paths
    "demo": Verb(
        ["demo", "--epochs", "1", "--tune-epochs", "1", "-o", "demo", *CPU],
        ["demo/train/best.pt", "demo/tuned.pt", "demo/analysis/arrays.npz"],
    ),
    "benchmarks damage": Verb(
        ["benchmarks", "damage", "--checkpoint", "old/best.pt", "-o", "truth", "--skip", "0.3",
         "--random", "1", "--limit", "20", "--json", "truth.json", *CPU],
        ["truth/0-*/analysis/arrays.npz", "truth/0-*/ablation.json"],
    ),
}  # fmt: skip

# On a directory of transformers: what they write is a folder, which is renamed as a whole.
TEXT = ["--data", "text:text.txt", "--context", "8"]
TUNE = [*TEXT, "--epochs", "1", "--batch-size", "4", *CPU]
WEIGHTS = ("config.json", "model.safetensors", "ela_probe.safetensors")
HF_VERBS = {
    "prune hf": Verb(
        ["prune", "hf:net", "--plan", "net.json", "-o", "smaller"],
        [f"smaller/{name}" for name in WEIGHTS],
    ),
    "prune hf over a directory": Verb(
        ["prune", "hf:net", "--plan", "net.json", "-o", "net-pruned"],
        [f"net-pruned/{name}" for name in WEIGHTS],
    ),
    "finetune hf": Verb(
        ["finetune", "hf:net-pruned", *TUNE, "-o", "tuned"],
        [f"tuned/{name}" for name in WEIGHTS], "tuned-run/resume.ckpt",
    ),
    "finetune hf over a directory": Verb(
        ["finetune", "hf:net", *TUNE, "-o", "net-pruned"],
        ["net-pruned/config.json", "net-pruned/model.safetensors"], "net-pruned-run/resume.ckpt",
    ),
}  # fmt: skip
if find_spec("transformers") is not None:
    VERBS |= HF_VERBS


def write_template(folder: Path) -> Path:
    """A data set, a finished run `old`, its analysis `an`, a plan and a pruned checkpoint."""
    write_images(folder / "set", size=8)
    before = Path.cwd()
    os.chdir(folder)
    try:
        words = [[*TRAIN, "--epochs", "1", "--seed", "1", *BATCHES, "-o", "old"]]
        words[0][2] = "mrla_b_resnet14"
        words += [["analyze", "old/best.pt", "-o", "an", "--no-figures", *BATCHES]]
        words += [["plan", "an", "--skip", "0.5", "-o", "plan.json"]]
        words += [["prune", "old/best.pt", "--plan", "plan.json", "-o", "pruned.pt"]]
        if HF_VERBS.keys() <= VERBS.keys():
            words += words_of_a_directory()
        assert [main(line) for line in words] == [0] * len(words)
    finally:
        os.chdir(before)
    return folder


def words_of_a_directory() -> list[list[str]]:
    """Write a small network `net` of transformers and a text; what makes its plan, and prunes it.

    Only `affine` has parameters, which lie in a file of their own.
    """
    from tests.support.transformers_models import inkling, save_model

    save_model(Path("net"), inkling(std=0.1))
    Path("text.txt").write_text("Now is the winter of our discontent, made glorious summer.\n" * 8)
    analyze = ["analyze", "hf:net", *TEXT, "--limit", "8", "--no-figures", "-o", "net-an", *CPU]
    plan = ["plan", "net-an", "--skip", "0.4", "--action", "affine", "-o", "net.json"]
    return [analyze, plan, ["prune", "hf:net", "--plan", "net.json", "-o", "net-pruned"]]


class Harness:
    """A process that runs cases, each in forked processes on a copy of the template."""

    def __init__(self, template: Path, scratch: Path, process: "subprocess.Popen[str]") -> None:
        self.template, self.scratch, self.process = template, scratch, process
        self.cases = 0

    def run(self, verb: str, kind: str, number: int | None = None) -> Any:
        """The outcome of a verb with a fault; see `tests.support.faults`."""
        self.cases += 1
        words, results, resumable = VERBS[verb]
        case = {
            "template": str(self.template), "scratch": str(self.scratch / str(self.cases)),
            "words": list(words), "results": list(results), "resumable": resumable, "kind": kind,
            "number": number,
        }  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextmanager
def harness(template: Path, scratch: Path) -> Iterator[Harness]:
    """A process that runs cases, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.faults"], text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        yield Harness(template, scratch, process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
