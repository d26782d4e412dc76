"""A process of its own that reads inputs of one reader within limits of time and memory.

It is forked, so that the imports are made once. What ends it names the input that it was reading.
"""

import os
import resource
import signal
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from tests.trust.fuzz_inputs import Reader, input_of, write
from tests.trust.fuzz_judge import judge

SPARE = 2**31  # bytes of memory beyond what a valid input takes
TURN = 60  # seconds of a process's time, after which another reader has its turn
PATIENCE = 120  # seconds by the clock, in which a process that waits is ended
FORK = get_context("fork")
IN_MEMORY = Path("/dev/shm")  # a folder of files that are on no disk
FOLDER = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None


@dataclass(frozen=True)
class Reading:
    """What became of one input. seconds: of the reader; spent: with making the input."""

    number: int
    outcome: str
    reason: str = ""
    seconds: float = 0.0
    spent: float = 0.0


class Worker:
    """A process that reads inputs of a reader, in the order of their numbers, for one turn.

    Attributes:
        name: of the reader. results: where each `Reading` arrives; it ends with the process.
    """

    def __init__(
        self, name: str, reader: Reader, numbers: Sequence[int], *, seed: int, limit: float
    ) -> None:
        self.name, self.numbers, self.limit = name, numbers, limit
        self.results: Connection
        self.results, sending = FORK.Pipe(duplex=False)
        self._number = FORK.RawValue("q", 0)
        self._errors = tempfile.TemporaryFile("w+b")  # noqa: SIM115
        work = (reader, numbers, seed, limit, sending, self._number, self._errors)
        self._process = FORK.Process(target=_work, args=work, daemon=True)
        self._process.start()
        sending.close()

    def ended(self) -> Reading | None:
        """What ended the process before its last input; None if nothing did."""
        self._process.join()
        code = self._process.exitcode or 0
        self._errors.seek(0)
        said = " ".join(self._errors.read().decode(errors="replace").split())[-300:]
        self._close()
        if code == 0:
            return None
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        late = reason in ("SIGPROF", "SIGALRM")
        kind = f"more than {self.limit:g} s" if late else "the process ended"
        return Reading(self._number.value, "wrong", f"{kind} ({reason}): {said!r}")

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._close()

    def _close(self) -> None:
        self.results.close()
        self._errors.close()
        self._process.close()


def _work(
    reader: Reader,
    numbers: Sequence[int],
    seed: int,
    limit: float,
    results: Connection,
    current: Any,
    errors: IO[bytes],
) -> None:
    """Read the inputs in this process, which is limited. The valid one comes first."""
    os.dup2(errors.fileno(), 1)
    os.dup2(errors.fileno(), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir=FOLDER) as parent:
        folder = Path(parent) / "input"
        write(input_of(reader, seed, 0), folder)
        outcome, reason = judge(reader.read, folder)
        if outcome != "accepted":
            results.send(Reading(0, "wrong", f"the valid input: {reason}"))
            return
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + SPARE
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        turn = time.process_time() + TURN
        for number in numbers:
            if time.process_time() > turn:
                break
            current.value = number
            start = time.process_time()
            write(input_of(reader, seed, number), folder)
            begin = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, limit)
            signal.alarm(PATIENCE)
            outcome, reason = judge(reader.read, folder)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
            end = time.process_time()
            results.send(Reading(number, outcome, reason, end - begin, end - start))
