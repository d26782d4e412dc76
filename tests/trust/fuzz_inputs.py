"""What a fuzzed reader is: its valid input, how that is mutated, and what is done with it."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

from tests.trust.fuzz_mutations import Mutation

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Reader:
    """One reader: how its valid files are made and a folder of them is read.

    mutations: of the files by suffix, the first that fits. repaired: what the mutated files need so
    that they are not refused for their digests alone.
    """

    make: Callable[[], Files]
    read: Callable[[Path], object]
    mutations: Mapping[str, Mutation]
    repaired: Callable[[dict[str, bytes]], dict[str, bytes]] = dict

    @cached_property
    def valid(self) -> Files:
        """The files of a valid input."""
        return self.make()

    def mutated(self, random: Random) -> dict[str, bytes]:
        """The valid files with one of them changed, seldom two."""
        files = dict(self.valid)
        for name in random.sample(sorted(files), min(len(files), random.choice((1, 1, 1, 2)))):
            change = next(m for suffix, m in self.mutations.items() if name.endswith(suffix))
            files[name] = change(random, files[name])
        return self.repaired(files) if random.random() < 0.9 else files


def input_of(reader: Reader, seed: int, number: int) -> dict[str, bytes]:
    """The files of an input. Number 0 is the valid one."""
    return dict(reader.valid) if number == 0 else reader.mutated(Random(f"{seed} {number}"))


def write(files: Files, folder: Path) -> None:
    """Write files by name into a folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def written(write: Callable[[Path], object]) -> dict[str, bytes]:
    """The files that a function writes into a folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}
