"""The plans that `plans` compares on a checkpoint: of planners, by measured loss, at random."""

import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from ela_probe.analysis.result import Analysis
from ela_probe.checkpoint import Checkpoint, read_checkpoint
from ela_probe.data.opening import Data
from ela_probe.errors import OptionError
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.pipeline.analyze import analyze_checkpoint
from ela_probe.pipeline.inputs import data_for
from ela_probe.pruning.plan import Constraints, SkipPlan
from ela_probe.pruning.planners import as_plan, make_plan, skip_decisions
from ela_probe.pruning.prune import prune
from ela_probe.pruning.site_budget import within_budget
from ela_probe.sites import Action
from ela_probe.system.device import resolve_device
from ela_probe.system.progress import track
from ela_probe.system.storage import write_json

Skipping = Literal["skip", "drop", "recur"]

PLANNED = ("budget", "score")
BASELINES = ("loss", "alternate", "deepest")
RANDOM, UNPRUNED = "random", "unpruned"


@dataclass(frozen=True)
class Candidate:
    """A plan for a share of the retrievals, and the planner that made it."""

    planner: str
    share: float
    plan: SkipPlan

    @property
    def actions(self) -> dict[str, Action]:
        """Candidates with equal actions are the same network."""
        return self.plan.changes

    @property
    def divergence(self) -> float:
        """The total in nats: of each skipped site from the last kept one."""
        assert self.plan.charge is not None
        return self.plan.charge


@dataclass(frozen=True)
class PlannedCheckpoint:
    """A checkpoint to make plans for, and measurements on its training images.

    output: the measurements are kept in a folder there. limit: training images. action: of every
    plan. data: those that the checkpoint names.
    """

    path: Path
    output: Path
    limit: int
    action: Skipping
    device: str
    loaded: Checkpoint = field(repr=False)
    data: Data = field(repr=False)

    @classmethod
    def read(
        cls, path: Path, *, output: Path, limit: int, action: Skipping, device: str
    ) -> "PlannedCheckpoint":
        """Raises CheckpointError, DataError: it can't be read, or its data are missing."""
        loaded = read_checkpoint(path)
        return cls(path, output, limit, action, device, loaded, data_for(loaded))

    @property
    def name(self) -> str:
        """`mrla_b_resnet20-s0-last-1c9d08` of a last.pt, with the start of its SHA-256."""
        return f"{self.path.absolute().parent.name}-{self.path.stem}-{self.loaded.sha256[:6]}"

    @property
    def folder(self) -> Path:
        return self.output / self.name

    @cached_property
    def analysis(self) -> Analysis:
        """The analysis of its training images."""
        kept = self.folder / f"analysis-{self.limit}"
        if (kept / "analysis.json").is_file():
            return Analysis.load(kept)
        found = analyze_checkpoint(
            self.loaded, data=self.data, limit=self.limit, device=self.device
        )
        found.save(kept)
        return found

    @cached_property
    def losses(self) -> list[list[float]]:
        """By stage and site, the rise of the training loss in nats if only that is skipped."""
        kept = self.folder / f"losses-{self.action}-{self.limit}.json"
        if kept.is_file():
            read: list[list[float]] = json.loads(kept.read_text())
            return read
        images = self.data.loader("train", batch_size=256, limit=self.limit)
        where = resolve_device(self.device)
        model = self.loaded.model
        whole = evaluate(model, images, where)["loss"]
        stages = self.analysis.stages
        found = [[0.0] * len(part.stage.sites) for part in stages]
        sites = [(s, t) for s, part in enumerate(found) for t in range(1, len(part))]
        for s, t in track(sites, "skipping single sites"):
            one = [(t,) if stage == s else () for stage in range(len(stages))]
            pruned = prune(model, self.plan_skipping(one, "loss"))
            found[s][t] = evaluate(pruned, images, where, progress=False)["loss"] - whole
        write_json(kept, found)
        return found

    def candidates(
        self, share: float, *, planners: Sequence[str], draws: int, seed: int
    ) -> Iterator[Candidate]:
        """A plan of every planner, and random plans, which differ between checkpoints.

        Raises:
            PlanError: a plan can't skip so many retrievals.
        """
        for planner in planners:
            yield Candidate(planner, share, self.plan(planner, share))
        for draw in range(draws):
            number = zlib.crc32(f"{self.loaded.sha256} {seed} {draw}".encode())
            yield Candidate(RANDOM, share, self.plan(RANDOM, share, seed=number))

    def plan(self, planner: str, share: float, *, seed: int = 0) -> SkipPlan:
        if planner != "loss":
            return make_plan(
                self.analysis,
                skip=share,
                planner=planner,  # type: ignore[arg-type]
                action=self.action,
                seed=seed,
            )
        prices = [np.tile(row, (len(row), 1)) for row in self.losses]
        count = math.floor(share * sum(map(len, prices)) + 0.5)
        return self.plan_skipping(within_budget(prices, count), planner)

    def unpruned(self) -> Candidate:
        nothing: list[tuple[int, ...]] = [() for _ in self.analysis.stages]
        return Candidate(UNPRUNED, 0.0, self.plan_skipping(nothing, UNPRUNED))

    def plan_skipping(self, chosen: Sequence[tuple[int, ...]], planner: str) -> SkipPlan:
        """The plan that skips these positions of every stage."""
        parts = self.analysis.stages
        return as_plan(
            self.analysis,
            [
                skip_decisions(part, positions, self.action)
                for positions, part in zip(chosen, parts, strict=True)
            ],
            target=self.analysis.target,
            constraints=Constraints(),
            planner=planner,
        )


def check_planners(names: Sequence[str]) -> None:
    """Raises OptionError: one of them is unknown, or needs more than a share."""
    known = (*PLANNED, *BASELINES)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise OptionError(f"got planner {unknown[0]!r}, expected one of {', '.join(known)}")
