"""Commands that meet a fault: `python -m tests.support.faults`, a list of cases as JSON on stdin.

A case is a folder, which is copied, and the words of a command, which is run in the copy by a
forked process (so that the imports are made once). *Events* are the operations that change files
in the copy: opening for writing, renaming, linking, making and removing. An audit hook sees all
of them before they happen, whoever asks for them. The fault comes at one event:

    kill      SIGKILL: no chance to tidy up
    full      the disk is full from then on: nothing can be created or written
    readonly  the folder is read-only from then on
    int, term the signal
    size:N    (no event) no file can grow beyond N bytes
    after:S   (no event) SIGKILL after S seconds

Then the files are checked, and the command is run again without a fault.
"""

import errno
import hashlib
import json
import os
import resource
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CREATING = ("os.mkdir", "os.link", "os.symlink")
CHANGING = ("os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SIGNALS = {"kill": signal.SIGKILL, "int": signal.SIGINT, "term": signal.SIGTERM}
ERRORS = {"full": errno.ENOSPC, "readonly": errno.EROFS}


def events_in(folder: Path, happen: Callable[[str, str], None]) -> None:
    """From now on, call `happen(event, path)` before a file in the folder is changed."""
    inside = os.path.realpath(folder) + os.sep

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | bytes | os.PathLike) or not flags & WRITING:
                return
        elif event in CREATING or event in CHANGING:
            path = arguments[1] if event in ("os.link", "os.rename") else arguments[0]
        else:
            return
        full = os.path.abspath(os.fsdecode(path))
        if (full + os.sep).startswith(inside):
            happen(event, full[len(inside) :])

    sys.addaudithook(hook)


def fault_at(kind: str, number: int | None, seen: Callable[[str], object]) -> Callable[..., None]:
    """What happens at each event: `kind` at event `number`, from 0; at none where it is None."""
    count = 0

    def happen(event: str, path: str) -> None:
        nonlocal count
        here, count = count, count + 1
        seen(f"{event} {path}")
        if number is None or here < number:
            return
        if kind in SIGNALS and here == number:
            os.kill(os.getpid(), SIGNALS[kind])
        if kind in ERRORS and not (kind == "full" and event in CHANGING):
            raise OSError(ERRORS[kind], os.strerror(ERRORS[kind]), path)

    return happen


def forked(folder: Path, work: Callable[[], int], *, kill_after: float | None = None) -> Any:
    """Exit code (or minus the signal), stderr and seconds of work in a forked process."""
    reading, writing = os.pipe()
    start, child = time.monotonic(), os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            os.close(reading)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            os.chdir(folder)
            code = work()
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            code = 1
        os._exit(code)
    os.close(writing)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with open(reading, "rb") as output:
        text = output.read().decode(errors="replace")
    status = os.waitpid(child, 0)[1]
    return {
        "code": os.waitstatus_to_exitcode(status), "text": text,
        "seconds": time.monotonic() - start,
    }  # fmt: skip


def command(words: list[str]) -> int:
    """The exit code of `ela-probe WORDS`, or of `python -m benchmarks` with the words after it."""
    if words[0] != "benchmarks":
        from ela_probe_cli import main

        return main(words)
    sys.argv = words
    try:
        runpy.run_module(words[0], run_name="__main__")
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


def with_fault(folder: Path, words: list[str], kind: str, number: int | None) -> Any:
    """Run a command with a fault in a forked process."""
    name, _, value = kind.partition(":")

    def work() -> int:
        if name == "size":
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(value), int(value)))
        elif name == "events":
            with open(os.environ["EVENTS"], "w") as file:
                events_in(folder, fault_at(kind, None, lambda event: print(event, file=file)))
                return command(words)
        elif name != "after":
            events_in(folder, fault_at(kind, number, lambda event: None))
        return command(words)

    return forked(folder, work, kill_after=float(value) if name == "after" else None)


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def temporary(folder: Path) -> list[str]:
    """Files and folders that a writer should have removed."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.name.endswith(".tmp") or path.name.startswith(".next-")
    ]


def half_written(folder: Path) -> Iterator[str]:
    """Files under their final names that their readers neither read nor refuse as not whole."""
    from ela_probe.analysis.result import Analysis
    from ela_probe.errors import AnalysisError

    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.is_file():
            try:
                read(path)
            except Exception as error:
                yield f"{path.relative_to(folder)}: {type(error).__name__}: {error}"
        elif (path / "arrays.npz").exists() or (path / "analysis.json").exists():
            try:
                Analysis.load(path)
            except AnalysisError as error:
                if "is not whole" not in str(error) and "is missing" not in str(error):
                    yield f"{path.relative_to(folder)}: {error}"


def read(path: Path) -> object:
    """Read a file with its reader."""
    import torch

    from ela_probe.checkpoint import read_checkpoint
    from ela_probe.errors import ModelError
    from ela_probe.evaluation.comparison import Comparison
    from ela_probe.pruning.ablation import Ablation
    from ela_probe.pruning.cost_model import CostModel
    from ela_probe.pruning.plan import SkipPlan
    from ela_probe.report.history import History
    from ela_probe.system.checkpoint_file import read_file

    if path.suffix == ".ckpt":
        return torch.load(path, weights_only=True)
    if path.suffix == ".pt":
        try:
            return read_checkpoint(path)
        except ModelError:  # of a run on a directory, which alone knows its network
            return read_file(path)
    if path.name == "config.json":  # of a directory of transformers
        return read_checkpoint(f"hf:{path.parent}")
    if path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>")
    if path.suffix == ".svg":
        assert path.read_text().rstrip().endswith("</svg>")
    if path.suffix == ".png":
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
    if path.name == "metrics.csv":
        return History.load(path)
    documents: dict[str, Any] = {
        "plan": SkipPlan, "costs": CostModel, "ablation": Ablation, "comparison": Comparison,
    }  # fmt: skip
    kind = path.stem.partition("-")[0]
    if path.suffix == ".json" and kind in documents:
        return documents[kind].load(path)
    if path.suffix in (".json", ".ipynb"):
        return json.loads(path.read_text())
    return path.read_bytes()


def signature(path: Path) -> str:
    """What two runs of a command must have in common: tensors, tables without times, figures."""
    if path.suffix in (".pt", ".ckpt"):
        import torch

        content = torch.load(path, weights_only=True)
        tensors = content.get("state_dict", content)
        digest = hashlib.sha256()
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()
    if path.name == "metrics.csv":
        import pandas as pd

        table = pd.read_csv(path)
        return table.drop(columns=[name for name in table if "seconds" in str(name)]).to_csv()
    if path.name == "plan.json":  # without the path of the data, which is that of the copy
        document = json.loads(path.read_text())
        return json.dumps([document["fingerprint"], document["stages"]])
    if path.name == "config.json":  # the same of its header
        document = json.loads(path.read_text())
        plans = document.pop("ela_probe", {}).get("plans", ())
        return json.dumps([document, [plan["stages"] for plan in plans]])
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """One case: the fault, what is on the disk after it, and the command again."""
    scratch = Path(case["scratch"])
    shutil.copytree(case["template"], scratch)
    os.environ["EVENTS"] = f"{scratch}.events"
    before = digests(scratch)
    found: dict[str, Any] = with_fault(scratch, case["words"], case["kind"], case.get("number"))
    if case["kind"] == "events":
        found["events"] = Path(f"{scratch}.events").read_text().splitlines()
    after = digests(scratch)
    found["lost"] = sorted(set(before.values()) - set(after.values()))
    found["temporary"] = temporary(scratch)

    def look() -> int:
        problems = list(half_written(scratch))
        sys.stderr.write(json.dumps(problems))
        return 0

    looked = forked(scratch, look)
    found["half"] = json.loads(looked["text"]) if looked["text"].startswith("[") else [looked]
    resumable = case.get("resumable")
    can_resume = resumable is not None and (scratch / resumable).exists()
    again = [*case["words"], *(["--resume"] if can_resume else [])]
    if case["kind"] != "events":
        found["again"] = with_fault(scratch, again, "none", None)
    results = [path for name in case["results"] for path in sorted(scratch.glob(name))]

    def sign() -> int:
        sys.stderr.write(json.dumps([signature(path) for path in results]))
        return 0

    signed = forked(scratch, sign)
    found["results"] = signed["text"]
    shutil.rmtree(scratch)
    return found


def main() -> None:
    import ela_probe_cli  # noqa: F401
    import matplotlib
    import pytorch_lightning  # noqa: F401
    import seaborn  # noqa: F401
    import sklearn.datasets  # noqa: F401

    import benchmarks.cases.damage  # noqa: F401
    import ela_probe.pipeline.ablate
    import ela_probe.pipeline.train
    import ela_probe.report.page
    import ela_probe.report.plots  # noqa: F401

    if find_spec("transformers") is not None:
        import transformers.modeling_utils  # noqa: F401
    matplotlib.use("agg")
    for line in sys.stdin:
        print(json.dumps(run_case(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
