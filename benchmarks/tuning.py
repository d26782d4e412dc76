"""A checkpoint under a plan: pruned, evaluated, fine-tuned, evaluated again. Resumable."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.candidates import Candidate, Subject
from benchmarks.records import RESULT, recorded
from ela_probe.checkpoint import read_checkpoint
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.pipeline import finetune, prune_checkpoint
from ela_probe.system.device import resolve_device
from ela_probe.system.storage import write_json
from ela_probe.training.config import TrainConfig
from ela_probe.training.record import RESUME

PRUNED, TUNED = "pruned.pt", "tuned.pt"


@dataclass(frozen=True)
class Tuning:
    """What a plan does to a checkpoint. test_limit: test images, all when None."""

    subject: Subject
    candidate: Candidate
    config: TrainConfig
    test_limit: int | None

    @property
    def folder(self) -> Path:
        """The same for the same actions, whoever planned them."""
        actions = json.dumps(self.candidate.actions, sort_keys=True)
        return self.subject.folder / hashlib.sha256(actions.encode()).hexdigest()[:12]

    @property
    def settings(self) -> dict[str, Any]:
        """What makes its result what it is."""
        return {
            "checkpoint": self.subject.loaded.sha256,
            "actions": self.candidate.actions,
            "config": self.config.result_settings(),
            "test_limit": self.test_limit,
        }

    @property
    def record(self) -> dict[str, Any] | None:
        """Of the finished run; None if it is yet to be done. Raises OptionError: of another."""
        defaults = {"config": TrainConfig().result_settings()}
        return recorded(self.folder, self.settings, defaults=defaults)

    def carry_out(self) -> dict[str, Any]:
        """Prune, evaluate, fine-tune or go on with it, and evaluate the last epoch's weights."""
        pruned, tuned = self.folder / PRUNED, self.folder / TUNED
        smaller = prune_checkpoint(self.subject.loaded, self.candidate.plan, output=pruned)
        before = self.evaluated(pruned)
        state = self.folder / f"{tuned.stem}-run" / RESUME
        result = finetune(
            smaller,
            self.config,
            output=tuned,
            data=self.subject.data,
            device=self.subject.device,
            resume=state.is_file(),
        )
        record = {
            "checkpoint": self.subject.name,
            "before": before,
            "after": self.evaluated(result.last),
            "seconds": sum(row["seconds"] for row in result.history),
            "settings": self.settings,
        }
        write_json(self.folder / RESULT, record)
        return record

    def evaluated(self, path: Path) -> Mapping[str, float]:
        """Accuracy and loss on the test split."""
        tests = self.subject.data.loader("test", batch_size=256, limit=self.test_limit)
        where = resolve_device(self.subject.device)
        found = evaluate(read_checkpoint(path).model, tests, where)
        return {name: found[name] for name in ("accuracy", "loss", "samples")}
