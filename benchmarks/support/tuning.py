"""A checkpoint pruned by a plan, evaluated, fine-tuned and evaluated again. Can be resumed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.support.candidates import Candidate, PlannedCheckpoint
from benchmarks.support.records import RESULT, read_record
from ela_probe.checkpoint import read_checkpoint
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.pipeline.prune import prune_checkpoint
from ela_probe.pipeline.train import finetune
from ela_probe.system.device import resolve_device
from ela_probe.system.storage import write_json
from ela_probe.training.config import TrainConfig
from ela_probe.training.run_folder import RESUME

PRUNED, TUNED = "pruned.pt", "tuned.pt"


@dataclass(frozen=True)
class Tuning:
    """Fine-tuning of a checkpoint pruned by a plan. test_limit: test images; None for all."""

    checkpoint: PlannedCheckpoint
    candidate: Candidate
    config: TrainConfig
    test_limit: int | None

    @property
    def folder(self) -> Path:
        """The same for equal actions, whichever planner chose them."""
        actions = json.dumps(self.candidate.actions, sort_keys=True)
        return self.checkpoint.folder / hashlib.sha256(actions.encode()).hexdigest()[:12]

    @property
    def settings(self) -> dict[str, Any]:
        """All that its result depends on."""
        return {
            "checkpoint": self.checkpoint.loaded.sha256,
            "actions": self.candidate.actions,
            "config": self.config.result_settings(),
            "test_limit": self.test_limit,
        }

    @property
    def record(self) -> dict[str, Any] | None:
        """The finished run's; None if it is not finished. Raises OptionError: other settings."""
        defaults = {"config": TrainConfig().result_settings()}
        return read_record(self.folder, self.settings, defaults=defaults)

    def run(self) -> dict[str, Any]:
        """Prune, evaluate, fine-tune or resume that, and evaluate the last epoch's weights."""
        pruned, tuned = self.folder / PRUNED, self.folder / TUNED
        smaller = prune_checkpoint(self.checkpoint.loaded, self.candidate.plan, output=pruned)
        before = self.evaluate(pruned)
        state = self.folder / f"{tuned.stem}-run" / RESUME
        result = finetune(
            smaller,
            self.config,
            output=tuned,
            data=self.checkpoint.data,
            device=self.checkpoint.device,
            resume=state.is_file(),
        )
        record = {
            "checkpoint": self.checkpoint.name,
            "before": before,
            "after": self.evaluate(result.last),
            "seconds": sum(row["seconds"] for row in result.history),
            "settings": self.settings,
        }
        write_json(self.folder / RESULT, record)
        return record

    def evaluate(self, path: Path) -> Mapping[str, float]:
        """Accuracy and loss on the test split."""
        tests = self.checkpoint.data.loader("test", batch_size=256, limit=self.test_limit)
        where = resolve_device(self.checkpoint.device)
        found = evaluate(read_checkpoint(path).model, tests, where)
        return {name: found[name] for name in ("accuracy", "loss", "samples")}
