"""All that the docs want of a GPU, in order of worth, within some minutes. A second call goes on.

Each part is a command of `python -m benchmarks` in a process of its own. Its result is written when
it ends, so that a call that runs out of time keeps what it has.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from benchmarks.published.checkouts import References
from benchmarks.support.method import DIA, MRLA_B, Method
from benchmarks.support.results import JsonPath, publish, without_absolute_paths
from ela_probe.data.source_names import absolute_source
from ela_probe.system.device import resolve_device
from ela_probe.system.storage import output_directory
from ela_probe.training.run_folder import LAST

STOPPING = 30  # seconds that a part has to end once it is told to
FAILED_LINES = 2  # of its log, shown where a part fails


@dataclass(frozen=True)
class Part:
    """A command and the name of its files.

    words: the command, as after `python -m benchmarks`. share: the largest part of the remaining
    time that it may take. so_far: the command that shows what an interrupted one has done.
    """

    name: str
    words: tuple[str, ...]
    share: float = 1.0
    so_far: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Size:
    """How large everything is.

    networks: of `speed`. depths: of `depth`. backbones: that methods are compared on.
    """

    networks: tuple[str, ...]
    images: int
    large_images: int
    depths: tuple[int, ...]
    rounds: int
    analysed: int
    streams: tuple[int, int]
    backbones: tuple[str, ...]
    seeds: tuple[int, ...]
    epochs: int
    limit: int | None
    test_limit: int | None
    random: int


FULL = Size(
    networks=("resnet56", "resnet110"),
    images=128,
    large_images=64,
    depths=(20, 56, 110, 218),
    rounds=11,
    analysed=10_000,
    streams=(5_000, 50_000),
    backbones=("resnet56", "resnet110"),
    seeds=(0, 1, 2),
    epochs=10,
    limit=None,
    test_limit=None,
    random=5,
)
SMALL = Size(
    networks=("resnet20",),
    images=4,
    large_images=2,
    depths=(8, 14),
    rounds=2,
    analysed=8,
    streams=(8, 0),
    backbones=("resnet14",),
    seeds=(0,),
    epochs=2,
    limit=100,
    test_limit=40,
    random=1,
)


def run(
    minutes: Annotated[float, typer.Option(min=0.1, help="No part runs longer than this call.")],
    out: Annotated[Path, typer.Option("--out", help="A folder for results, logs and runs.")],
    cifar10: Annotated[
        str | None, typer.Option(help="Where CIFAR-10 is, as npz:PREFIX; else no methods on it.")
    ] = None,
    cifar100: Annotated[str | None, typer.Option(help="The same for CIFAR-100.")] = None,
    reference: References = None,
    epochs: Annotated[
        int | None, typer.Option(min=2, help=f"Of the methods. Default: {FULL.epochs}.")
    ] = None,
    compiled: Annotated[bool, typer.Option(help="Also time compiled networks.")] = True,
    small: Annotated[
        bool, typer.Option("--small", help="Everything tiny: tries the command, on any machine.")
    ] = False,
    device: str = "auto",
    json: JsonPath = None,
) -> None:
    """Speed, growth with depth, cost of the analysis, methods, and planned against random skips.

    Finished parts are not repeated; interrupted trainings are resumed.
    """
    deadline = time.monotonic() + 60 * minutes
    where = resolve_device(device)
    folder = output_directory(out)
    data = {
        name: absolute_source(source)
        for name, source in (("cifar10", cifar10), ("cifar100", cifar100))
        if source is not None
    }
    size = SMALL if small else FULL
    rows = []
    for part in parts(
        size,
        folder,
        data,
        epochs=epochs or size.epochs,
        compiled=compiled,
        references=[path.resolve() for path in reference or []],
        device=str(where),
    ):
        rows.append(carried_out(part, folder, deadline))
        typer.echo(f"{part.name}: {rows[-1]['outcome']}", err=True)
        if part.so_far and not rows[-1]["done"]:
            shown = Part(f"{part.name}-so-far", part.so_far)
            (folder / f"{shown.name}.json").unlink(missing_ok=True)
            rows.append(carried_out(shown, folder, deadline))
    publish("gpu", {"Parts": rows}, json_path=json or folder / "gpu.json", seed=0, device=where)
    raise typer.Exit(0 if all(row["done"] for row in rows) else 1)


def parts(
    size: Size,
    folder: Path,
    data: dict[str, str],
    *,
    epochs: int,
    compiled: bool,
    references: Sequence[Path],
    device: str,
) -> list[Part]:
    """All parts, the most valuable first.

    Args:
        folder: of the results. data: the sources by name, `cifar10` and `cifar100`.
    """
    on = ("--device", device)
    known = words("--reference", references)
    timed = ("--rounds", str(size.rounds), *on)
    speed = ("speed", *timed, *known)
    images = ("--images", str(size.images))
    first = size.networks[0]
    found = [
        Part("speed", (*speed, "--no-compiled", *words("--network", size.networks), *images)),
        Part("depth", ("depth", *timed, *known, *words("--depth", size.depths))),
        Part("analysis", ("analysis", *analysed(size), *timed, "--memory-rounds", "1")),
    ]
    if compiled:
        found.append(
            Part("compiled", (*speed, "--compiled", "--network", first, *images), share=0.4)
        )
    for index, backbone in enumerate(size.backbones):
        for name, source in data.items():
            one = f"methods-{name}-{backbone}"
            training = methods_words(size, backbone, name, source, folder / one, epochs=epochs)
            found.append(
                Part(
                    one,
                    (*training, "--jobs", str(len(size.seeds)), *timed),
                    share=0.6,
                    so_far=(*training, "--finished", *timed, *known),
                )
            )
            if index == 0:
                found.append(plans_part(size, backbone, folder / one, one, on))
    large = ("--network", "resnet50", "--images", str(size.large_images), "--no-compiled")
    return [*found, Part("speed-imagenet", (*speed, *large))]


def words(option: str, values: Sequence[object]) -> tuple[str, ...]:
    """An option given once for each value."""
    return tuple(word for value in values for word in (option, str(value)))


def analysed(size: Size) -> tuple[str, ...]:
    short, long = size.streams
    sizes = {"--images": size.analysed, "--short": short, "--long": long}
    return tuple(word for name, value in sizes.items() for word in (name, str(value)))


def methods_words(
    size: Size, backbone: str, name: str, source: str, runs: Path, *, epochs: int
) -> tuple[str, ...]:
    """The command that trains all methods on one backbone and one set of images."""
    base = f"{MRLA_B}{backbone}"
    models = [
        *(backbone, f"se_{backbone}", f"{DIA}{backbone}", f"mrla_l_{backbone}", base),
        f"{base}+ela:skip=0.5,warmup=1,ramp=1",
        f"{base}+ela:loss=0.05,warmup=0.5",
    ]
    limits = {"--limit": size.limit, "--test-limit": size.test_limit}
    return (
        *("methods", "--recipe", f"{name}-quick-gpu", "--data", source, "-o", str(runs)),
        *("--epochs", str(epochs), *words("--seed", size.seeds), *words("--model", models)),
        *(w for option, n in limits.items() if n for w in (option, str(n))),
    )


def plans_part(size: Size, backbone: str, runs: Path, name: str, on: tuple[str, ...]) -> Part:
    """Planned against random skips, on the trained MRLA-B of every seed."""
    method = Method.parse(f"{MRLA_B}{backbone}")
    trained = [runs / f"{method.folder}-s{seed}" / LAST for seed in size.seeds]
    limit = () if size.test_limit is None else ("--test-limit", str(size.test_limit))
    return Part(
        name.replace("methods", "plans"),
        (
            *("plans", "-o", str(runs.parent / name.replace("methods", "plans"))),
            *words("--checkpoint", trained),
            *("--skip", "0.5", "--random", str(size.random), "--epochs", "1", *limit, *on),
        ),
        share=0.5,
    )


def carried_out(part: Part, folder: Path, deadline: float) -> dict[str, Any]:
    """Run a part unless its result is there; its name, seconds and outcome."""
    result, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    row: dict[str, Any] = {
        "part": part.name,
        "seconds": 0.0,
        "done": True,
        "outcome": "done before",
    }
    if result.is_file():
        return row
    start = time.monotonic()
    allowed = part.share * (deadline - start) - STOPPING
    if allowed <= 0:
        return row | {"done": False, "outcome": "not started: no time remains"}
    command = [sys.executable, "-m", "benchmarks", *part.words, "--json", str(result)]
    with log.open("a") as lines:
        lines.write(f"$ {' '.join(command)}\n")
        lines.flush()
        code = code_within(allowed, command, lines)
    row |= {"seconds": round(time.monotonic() - start, 1), "done": result.is_file()}
    if row["done"]:
        return row | {"outcome": "done"}
    if code is None:
        return row | {"outcome": "interrupted: out of time; the same command goes on"}
    last = without_absolute_paths(" | ".join(log.read_text().splitlines()[-FAILED_LINES:]))
    return row | {"outcome": f"failed with exit code {code}: {last}"}


def code_within(seconds: float, command: Sequence[str], output: IO[str]) -> int | None:
    """The exit code of a command; None if it was ended, with all its processes, out of time."""
    process = subprocess.Popen(
        command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOPPING)
