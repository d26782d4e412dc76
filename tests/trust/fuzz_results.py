"""What became of all inputs so far, in a file that further runs add to, and as a table."""

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.trust.fuzz_worker import Reading

SHOWN = 20  # kinds of wrong inputs of a reader that are listed
HEADS = ("reader", "inputs", "accepted", "refused", "wrong", "mended", "slowest s", "inputs/s")


@dataclass
class Outcome:
    """What became of the first inputs of one reader.

    wrong: what happened, by the number of the input. mended: inputs that were wrong, and are not in
    a later run. slowest, seconds: CPU time of the slowest input, and of all with making them.
    """

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    mended: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    wrong: dict[int, str] = field(default_factory=dict)

    def add(self, reading: Reading) -> None:
        """Count an input: the next one, or one that was wrong and is tried again."""
        again = self.wrong.pop(reading.number, None) is not None
        self.inputs += not again
        self.seconds += reading.spent
        self.slowest = max(self.slowest, reading.seconds)
        if reading.outcome == "wrong":
            self.wrong[reading.number] = reading.reason
            return
        self.mended += again
        setattr(self, reading.outcome, getattr(self, reading.outcome) + 1)

    def row(self, name: str) -> tuple[str, ...]:
        """The cells of the table, as `HEADS` names them."""
        counts = (self.inputs, self.accepted, self.refused, len(self.wrong), self.mended)
        speed = f"{self.inputs / self.seconds:,.0f}" if self.seconds else ""
        return (name, *(f"{count:,}" for count in counts), f"{self.slowest:.2f}", speed)


@dataclass
class Results:
    """The outcomes of readers by name, of inputs of one seed. commits: of the code that read."""

    seed: int = 0
    commits: list[str] = field(default_factory=list)
    readers: dict[str, Outcome] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read a file that `save` wrote."""
        document = json.loads(path.read_text(encoding="utf-8"))
        readers = {}
        for name, fields in document["readers"].items():
            fields["wrong"] = {int(number): reason for number, reason in fields["wrong"].items()}
            readers[name] = Outcome(**fields)
        return cls(document["seed"], document["commits"], readers)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        next_one = path.with_name(f"{path.name}.tmp")
        next_one.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        next_one.replace(path)

    def of(self, name: str) -> Outcome:
        """The outcome of a reader, at first without inputs."""
        return self.readers.setdefault(name, Outcome())

    def note_commit(self) -> None:
        """Add the commit of the code that runs now."""
        command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode == 0 and (commit := found.stdout.strip()) not in self.commits:
            self.commits.append(commit)


def table(results: Results) -> str:
    """The outcomes as a Markdown table, whose columns are aligned as text too."""
    rows = [HEADS, *(outcome.row(name) for name, outcome in results.readers.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, _line(["-" * w for w in widths[:1]] + ["-" * (w - 1) + ":" for w in widths[1:]],
                          widths))  # fmt: skip
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        cell.ljust(width) if n == 0 else cell.rjust(width)
        for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return f"| {' | '.join((first, *rest))} |"


def wrong_ones(results: Results) -> str:
    """A line for each kind of wrong outcome: how to repeat its first input, and what happened."""
    lines = []
    for name, outcome in results.readers.items():
        kinds = Counter(reason.split(": '")[0] for reason in outcome.wrong.values())
        for kind, count in kinds.most_common(SHOWN):
            pairs = outcome.wrong.items()
            number, reason = next((n, r) for n, r in pairs if r.split(": '")[0] == kind)
            lines.append(f"--reader {name} --only {number} ({count} times): {reason}")
    return "\n".join(lines)
