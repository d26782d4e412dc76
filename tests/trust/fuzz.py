"""Fuzz the readers: `python -m tests.trust.fuzz`, which `make trust` runs.

Each reader gets mutated inputs in a process of its own, with at most 2 GiB more memory than a valid
input took. Success and an ElaProbeError in a short, printable line are right. Wrong are any other
exception, the end of the process, more than 10 s of its time, too much memory, and a message that
advises to load pickled objects. A wrong input is named by its number:

    python -m tests.trust.fuzz --reader npz --only 1234 --keep DIR
"""

import argparse
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.trust.fuzz_inputs import Reader

MODULE = "tests.trust.fuzz_readers"
SPARE = 2**31  # bytes of memory beyond what a valid input takes
SECONDS = 10  # of the process's time for an input
PATIENCE = 120  # seconds by the clock, in which a process that waits is ended
LONGEST = 1500  # characters of a message
SHOWN = 20  # wrong inputs of a reader that are listed


@dataclass
class Outcome:
    """What became of the inputs of one reader. wrong: of each its number and what happened."""

    reader: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    wrong: list[tuple[int, str]] = field(default_factory=list)


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files by name into a folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def judge(read: Any, folder: Path) -> tuple[str, str]:
    """Read a folder. Returns "accepted", "refused" or "wrong", and what was wrong."""
    from ela_probe.errors import ElaProbeError

    try:
        read(folder)
    except ElaProbeError as error:
        return _judged(error)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return "wrong", _where(error)
    return "accepted", ""


def _judged(error: BaseException) -> tuple[str, str]:
    message = str(error)
    if "weights_only" in message:
        return "wrong", f"advises to set weights_only: {message[:200]!r}"
    if len(message) > LONGEST:
        return "wrong", f"a message of {len(message)} characters: {message[:200]!r}"
    if not message.replace("\n", "").isprintable():
        return "wrong", f"a message that is not printable: {message[:200]!r}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "allocate memory" in str(cause):
            return "wrong", f"memory: {message[:200]}"
        cause = cause.__cause__ or cause.__context__
    return "refused", ""


def _where(error: BaseException) -> str:
    """An error's class, the last place in this package and its text."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "ela_probe" in f.filename or "/cli/" in f.filename]
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "the test"
    return f"{type(error).__name__} at {place}: {str(error)[:160]!r}"


def input_of(reader: Reader, seed: int, number: int) -> dict[str, bytes]:
    """The files of an input. Number 0 is the valid one."""
    return dict(reader.valid) if number == 0 else reader.mutated(Random(f"{seed} {number}"))


def work(
    name: str, reader: Reader, numbers: Sequence[int], *, seed: int, limit: float
) -> Iterator[dict[str, Any]]:
    """Read inputs in this process, which is limited; yields a record before and after each."""
    read = reader.read
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "input"
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        write(input_of(reader, seed, 0), folder)
        outcome, reason = judge(read, folder)
        if outcome != "accepted":
            yield {"reader": name, "number": 0, "outcome": "wrong", "reason": f"valid: {reason}"}
            return
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + SPARE
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        for number in numbers:
            write(input_of(reader, seed, number), folder)
            yield {"reader": name, "starts": number}
            begin = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, limit)
            signal.alarm(PATIENCE)
            outcome, reason = judge(read, folder)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
            seconds = time.process_time() - begin
            yield {"reader": name, "number": number, "outcome": outcome, "reason": reason,
                   "seconds": seconds}  # fmt: skip


def fuzz(
    names: Sequence[str],
    count: int,
    *,
    seed: int,
    limit: float = SECONDS,
    module: str = MODULE,
    verbose: bool = False,
) -> list[Outcome]:
    """Give each reader `count` inputs. A process that ends is started again behind its last.

    verbose: whether a wrong outcome is printed at once.
    """
    results = {name: Outcome(name) for name in names}
    start, left = 1, list(names)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    while left:
        command = [sys.executable, "-m", "tests.trust.fuzz", "--worker", "--seed", str(seed)]
        command += ["--limit", str(limit), "--readers", module]
        command += ["--start", str(start), "-n", str(count)]
        command += [word for name in left for word in ("--reader", name)]
        last = left[0], start
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
            assert process.stdout is not None
            for line in process.stdout:
                record = json.loads(line) if line.startswith('{"reader"') else {}
                if "starts" in record:
                    last = record["reader"], record["starts"]
                if "outcome" in record:
                    _add(results[record["reader"]], record, verbose)
            code = process.wait()
            errors.seek(0)
            said = errors.read()
        if code == 0:
            break
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        kind = f"more than {limit:g} s" if reason in ("SIGPROF", "SIGALRM") else "the process ended"
        text = f"{kind} ({reason}): {' '.join(said.split())[-300:]!r}"
        name, number = last
        _add(results[name], {"number": number, "outcome": "wrong", "reason": text}, verbose)
        left = left[left.index(name) :] if number < count else left[left.index(name) + 1 :]
        start = number + 1 if number < count else 1
    return list(results.values())


def _add(result: Outcome, record: Mapping[str, Any], verbose: bool) -> None:
    result.inputs += 1
    result.slowest = max(result.slowest, record.get("seconds", 0.0))
    if record["outcome"] == "wrong":
        result.wrong.append((record["number"], record["reason"]))
        if verbose:
            print(result.reader, record["number"], record["reason"], flush=True)
    else:
        setattr(result, record["outcome"], getattr(result, record["outcome"]) + 1)


def table(results: Sequence[Outcome]) -> str:
    """The figures of all readers, and below them the first wrong inputs, by what happened."""
    heads = ("reader", "inputs", "accepted", "refused", "wrong", "slowest s")
    rows = [
        (r.reader, r.inputs, r.accepted, r.refused, len(r.wrong), f"{r.slowest:.2f}")
        for r in results
    ]
    lines = [f"{h:>12}" for h in heads]
    text = ["".join(lines), *("".join(f"{cell:>12}" for cell in row) for row in rows)]
    for result in results:
        kinds = Counter(reason.split(": '")[0] for _, reason in result.wrong)
        for kind, count in kinds.most_common(SHOWN):
            number = next(n for n, r in result.wrong if r.split(": '")[0] == kind)
            reason = next(r for n, r in result.wrong if n == number)
            text.append(f"{result.reader} --only {number} ({count} times): {reason}")
    return "\n".join(text)


def main() -> int:
    """The command. Exit code 1 where any outcome is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=300, help="inputs of each reader")
    parser.add_argument("--reader", action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("--only", type=int, help="read this input here, with a traceback")
    parser.add_argument("--keep", type=Path, help="with --only: write its files to this folder")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=SECONDS, help=argparse.SUPPRESS)
    parser.add_argument("--readers", default=MODULE, help=argparse.SUPPRESS)
    options = parser.parse_args()
    readers: Mapping[str, Reader] = importlib.import_module(options.readers).READERS
    names = options.reader or list(readers)
    if unknown := [name for name in names if name not in readers]:
        parser.error(f"there is no reader {unknown[0]!r}; expected {', '.join(readers)}")
    if options.only is not None:
        folder = options.keep or Path(tempfile.mkdtemp())
        write(input_of(readers[names[0]], options.seed, options.only), folder)
        print(f"input {options.only} of {names[0]} in {folder}")
        print(readers[names[0]].read(folder))
        return 0
    if options.worker:
        warnings.simplefilter("ignore")
        for name in names:
            start = options.start if name == names[0] else 1
            numbers = range(start, options.n + 1)
            records = work(name, readers[name], numbers, seed=options.seed, limit=options.limit)
            for record in records:
                print(json.dumps(record), flush=True)
        return 0
    with ThreadPoolExecutor(options.jobs) as pool:
        shares = [names[job :: options.jobs] for job in range(min(options.jobs, len(names)))]
        parts = pool.map(
            lambda share: fuzz(share, options.n, seed=options.seed, verbose=True), shares
        )
        results = sorted((r for part in parts for r in part), key=lambda r: names.index(r.reader))
    print(table(results))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")
    return int(any(result.wrong for result in results))


if __name__ == "__main__":
    sys.exit(main())
