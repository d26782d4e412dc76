"""Fuzz the readers: `python -m tests.trust.fuzz`, which `make trust` runs.

Each reader gets mutated inputs in a process of its own, with at most 2 GiB more memory than a valid
input took. Success and an ElaProbeError in a short, printable line are right. Wrong are any other
exception, the end of the process, more than 10 s of its time, too much memory, and a message that
advises to load pickled objects. A wrong input is named by its number:

    python -m tests.trust.fuzz --reader npz --only 1234 --keep DIR

With --json the results are added to those in a file, which is written again and again: a run that
is stopped, at any moment, goes on where it was. It first tries what was wrong again.

    python -m tests.trust.fuzz --total 100000 --json build/trust.json --minutes 480
    python -m tests.trust.fuzz --table build/trust.json
"""

import argparse
import importlib
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tests.trust.fuzz_inputs import Reader, input_of, write
from tests.trust.fuzz_results import Outcome, Results, table, wrong_ones
from tests.trust.fuzz_worker import Worker

MODULE = "tests.trust.fuzz_readers"
SECONDS = 10  # of the process's time for an input
CHUNK = 2000  # inputs that a process reads at most before another reader has its turn
PAUSE = 10.0  # seconds between two times that the results are saved


class Fuzzing:
    """Gives readers their inputs, to several at a time, the one that had least time first.

    Args:
        totals: how many inputs each reader shall have had, by name.
        results: of earlier inputs; further ones are added.
        path: where they are saved, if anywhere.
    """

    def __init__(
        self,
        readers: Mapping[str, Reader],
        totals: Mapping[str, int],
        results: Results,
        *,
        limit: float = SECONDS,
        path: Path | None = None,
    ) -> None:
        self.readers, self.totals, self.results = readers, totals, results
        self.limit, self.path = limit, path
        self.again = {name: sorted(results.of(name).wrong) for name in totals}
        self.running: dict[Any, Worker] = {}

    def run(self, *, jobs: int, minutes: float | None = None) -> None:
        """Until all have had theirs, or for so many minutes."""
        start = saved = time.monotonic()
        end = start + 60 * minutes if minutes is not None else None
        try:
            while end is None or time.monotonic() < end:
                while len(self.running) < jobs and (worker := self._next()) is not None:
                    self.running[worker.results] = worker
                if not self.running:
                    break
                for connection in wait(list(self.running), timeout=PAUSE):
                    self._take(connection)
                if time.monotonic() > saved + PAUSE:
                    saved = time.monotonic()
                    self._save()
        finally:
            for worker in self.running.values():
                worker.stop()
            self._save()

    def _next(self) -> Worker | None:
        """A process for the reader that had least time; None where all have had their inputs."""
        busy = {worker.name for worker in self.running.values()}
        left = {name: self._left(name) for name in self.totals if name not in busy}
        names = [name for name, numbers in left.items() if numbers]
        if not names:
            return None
        name = min(names, key=lambda name: self.results.of(name).seconds)
        return self._worker(name, left[name])

    def _left(self, name: str) -> Sequence[int]:
        """The numbers of a reader's next inputs."""
        done = self.results.of(name).inputs
        return [*self.again[name], *range(done + 1, min(done + CHUNK, self.totals[name]) + 1)]

    def _worker(self, name: str, numbers: Sequence[int]) -> Worker:
        seed = self.results.seed
        return Worker(name, self.readers[name], numbers, seed=seed, limit=self.limit)

    def _take(self, connection: Any) -> None:
        """Count what a process has sent; where it has ended, what it had not read is left."""
        worker = self.running[connection]
        try:
            reading = connection.recv()
        except (EOFError, OSError):
            del self.running[connection]
            reading = worker.ended()
            if reading is None:
                return
        name = worker.name
        if reading.number == 0:  # there is no sense in going on with this reader
            self.totals = {n: total for n, total in self.totals.items() if n != name}
            self.results.of(name).wrong[0] = reading.reason
        else:
            self.again[name] = [n for n in self.again[name] if n != reading.number]
            self.results.of(name).add(reading)
        if reading.outcome == "wrong":
            print(name, reading.number, reading.reason, flush=True)

    def _save(self) -> None:
        if self.path is not None:
            self.results.save(self.path)


def import_once(modules: Sequence[str]) -> None:
    """Import what readers need, where it is installed, so that forked processes have it."""
    for name in modules:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)


def parsed() -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=300, help="further inputs of each reader")
    parser.add_argument("--total", type=int, help="instead: until each has had so many")
    parser.add_argument("--minutes", type=float, help="stop after so many, at whatever input")
    parser.add_argument("--reader", action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="add the results to those in this file")
    parser.add_argument("--table", type=Path, help="only print the table of this file")
    parser.add_argument("--only", type=int, help="read this input here, with a traceback")
    parser.add_argument("--keep", type=Path, help="with --only: write its files to this folder")
    parser.add_argument("--limit", type=float, default=SECONDS, help=argparse.SUPPRESS)
    parser.add_argument("--readers", default=MODULE, help=argparse.SUPPRESS)
    return parser.parse_args()


def read_one(name: str, reader: Reader, options: argparse.Namespace) -> None:
    """Read one input in this process."""
    folder = options.keep or Path(tempfile.mkdtemp())
    write(input_of(reader, options.seed, options.only), folder)
    print(f"input {options.only} of {name} in {folder}")
    print(reader.read(folder))


def report(results: Results) -> int:
    """Print the table, and what was wrong. Returns the exit code: 1 where anything was."""
    print(table(results))
    print(f"\nInputs of seed {results.seed}, read at {', '.join(results.commits) or 'no commit'}.")
    wrong = wrong_ones(results)
    if wrong:
        print(f"\nWrong:\n{wrong}")
    return int(bool(wrong))


def main() -> int:
    """The command. Exit code 1 where any outcome is wrong."""
    options = parsed()
    if options.table is not None:
        return report(Results.load(options.table))
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    module = importlib.import_module(options.readers)
    readers: Mapping[str, Reader] = module.READERS
    names = options.reader or list(readers)
    if unknown := [name for name in names if name not in readers]:
        sys.exit(f"there is no reader {unknown[0]!r}; expected {', '.join(readers)}")
    if options.only is not None:
        read_one(names[0], readers[names[0]], options)
        return 0
    path = options.json
    earlier = path is not None and path.exists()
    results = Results.load(path) if earlier else Results(options.seed)
    if results.seed != options.seed:
        sys.exit(f"{path} is of seed {results.seed}, not {options.seed}; give another --json")
    results.readers = {name: results.of(name) for name in [*readers, *results.readers]}
    for outcome in results.readers.values():
        outcome.wrong.pop(0, None)  # the valid input: it is read again
    results.note_commit()
    totals = {
        name: results.of(name).inputs + options.n if options.total is None else options.total
        for name in names
    }
    import_once(getattr(module, "IMPORTS", ()))
    fuzzing = Fuzzing(readers, totals, results, limit=options.limit, path=path)
    try:
        fuzzing.run(jobs=options.jobs, minutes=options.minutes)
    except KeyboardInterrupt:
        print("stopped; the same command goes on" if path is not None else "stopped")
    results.readers = {n: r for n, r in results.readers.items() if r != Outcome()}
    return report(results)


if __name__ == "__main__":
    sys.exit(main())
