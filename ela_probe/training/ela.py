"""ELA: a Lightning callback that skips redundant retrievals while a network trains.

A sample of the training batches is probed in passing. At the end of an epoch the statistics enter
exponential averages, a plan is made, and what it skips is removed from the network at once.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import nn

from ela_probe.analysis import Analysis, Provenance
from ela_probe.beta import Floats
from ela_probe.ebqm import Target, skip_scores
from ela_probe.errors import CheckpointError, ModelError, OptionError
from ela_probe.measure import from_probe
from ela_probe.nesting import Names, count_of, drawn, part_of, plan_of, proposal
from ela_probe.plan import Constraints, SkipPlan
from ela_probe.probe import AttentionProbe
from ela_probe.pruning import actions_of
from ela_probe.training.clock import Clock
from ela_probe.training.ela_config import ELAConfig, Schedule
from ela_probe.training.network import Network
from ela_probe.training.surgery import in_order, parameter_names


class ELA(pl.Callback):
    """Efficient layer attention in training, for any LightningModule in a Trainer of one process.

        trainer = pl.Trainer(max_epochs=160, callbacks=[ELA(skip=0.5, warmup=10, ramp=30)])

    The network is the first part of the module that an adapter knows. What is removed is gone from
    the module, the optimizers and every checkpoint written after; Lightning's checkpoints resume
    with this callback on an unpruned module. Where the network was compiled, the probed batches
    run uncompiled, and it is compiled again when the plan changes.

    Args:
        config: the settings; or name them, as in `ELA(skip=0.5)`.
        model: the network, where it is not the first that an adapter knows.
        path: file to keep the plan in.
        provenance: what is known of model and data, for the plan.

    Attributes:
        plan: what is in force, in terms of the network as it was at first; None before the
            first skip.
        seconds, trained: what probing and planning took so far, and all of the training (without
            validation).
        row: of the last epoch the share `skipped` in it and its `ebqm_seconds`.

    Raises:
        OptionError: settings that don't fit each other or the trainer.
        ModelError: (when training starts) no part of the module has layer attention.
        PlanError: (when training starts) the network can't be pruned so, or not by so much.
        CheckpointError: (on resuming) the network is pruned further than the checkpoint's.
    """

    def __init__(
        self,
        config: ELAConfig | None = None,
        *,
        model: nn.Module | None = None,
        path: Path | None = None,
        provenance: Provenance = Provenance(),
        **settings: Any,
    ) -> None:
        if config is not None and settings:
            raise OptionError("ELA: a config and settings by name came; expected one of them")
        self.config = config or ELAConfig.of(**settings)
        self.path, self.provenance = path, provenance
        self.constraints = Constraints(max_run=self.config.max_run, min_keep=self.config.min_keep)
        self.plan: SkipPlan | None = None
        self.seconds = self.trained = 0.0
        self.row: dict[str, float] = {}
        self._given = model
        self._network: Network | None = None
        self._final = 0  # retrievals to skip in the end
        self._schedule: Schedule | None = None
        self._proposed: Names = frozenset()
        self._order: list[list[list[str]]] = []
        self._epoch: _Epoch | None = None
        self._in_batch = ExitStack()
        self._unwrap: Callable[[], object] = lambda: None

    @property
    def state_key(self) -> str:
        """Where the state lies in the trainer's checkpoint."""
        return "ela_probe.ELA"

    @property
    def removed(self) -> Names:
        """The sites whose retrieval is not formed any more."""
        return _removed(self.plan)

    @property
    def share(self) -> float:
        """The share of all retrievals that are removed."""
        return 0.0 if self.plan is None else len(self.removed) / len(self.plan.actions)

    @property
    def analysis(self) -> Analysis:
        """The averages over epochs, of all sites.

        Raises:
            ModelError, AnalysisError: training has not started, or no epoch has ended.
        """
        parts = tuple(average.analysis() for average in self._attached().averages)
        provenance = self.provenance.model_copy(
            update={"split": "train", "samples": max(part.samples for part in parts)}
        )
        return Analysis(parts, provenance, self._target())

    def summary(self) -> dict[str, Any]:
        """How it ended, ready for JSON."""
        return {
            "plan": None if self.plan is None else self.path,
            "retrievals": sum(len(stage.sites) for stage in self._attached().stages),
            "skipped": len(self.removed),
            "share": self.share,
            "ebqm_seconds": self.seconds,
            "ebqm_share": self.seconds / self.trained if self.trained else 0.0,
        }

    # Beginning and going on

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """See to it that a checkpoint's weights find the network as it was when they were saved."""
        if stage == "fit" and not isinstance(trainer.strategy, SingleDeviceStrategy):
            raise OptionError(
                "ELA changes the network inside one process on one device, and the trainer's "
                f"strategy is {type(trainer.strategy).__name__}; train with devices=1 and "
                "strategy='auto', or prune before training"
            )
        original = pl_module.on_load_checkpoint

        def rebuild_first(checkpoint: dict[str, Any]) -> None:
            self.rebuild(pl_module, checkpoint.get("callbacks", {}).get(self.state_key))
            original(checkpoint)

        # Lightning loads the weights before a callback hears of its state
        pl_module.on_load_checkpoint = rebuild_first  # type: ignore[method-assign]
        self._unwrap = lambda: vars(pl_module).pop("on_load_checkpoint", None)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave nothing of its own in the module."""
        self._unwrap()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Take the hooks out, and undo what a step skipped at random."""
        self._in_batch.__exit__(type(exception), exception, exception.__traceback__)
        self._unwrap()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the network, and make sure that what is asked for can be done."""
        if self._schedule is None:
            epochs = trainer.max_epochs
            self._schedule = self.config.schedule(None if epochs is None or epochs < 0 else epochs)
        if self._network is None or not self._network.is_in(pl_module):
            self._attach(pl_module)
            if self.path is not None:
                self.path.unlink(missing_ok=True)
        if self.config.stochastic and self._attached().compiled:
            raise OptionError(
                "ELA: stochastic skipping changes the network at every step, and a compiled one "
                "would be compiled as often; leave out stochastic, or torch.compile"
            )
        in_order(pl_module, trainer.optimizers, self._order)

    def rebuild(self, module: nn.Module, state: Mapping[str, Any] | None) -> None:
        """Prune the network in `module` to what it was when the state was saved.

        Args:
            state: what `state_dict` gave; None (of a run without ELA) changes nothing.

        Raises:
            PlanError: the plan was made for other sites.
            CheckpointError: the network is pruned further than that.
        """
        if state is None:
            return
        if self._network is None or not self._network.is_in(module):
            self._attach(module)
        plan = None if state["plan"] is None else SkipPlan.parse(state["plan"], "the saved plan")
        further = sorted(self.removed - _removed(plan))
        if further:
            raise CheckpointError(
                f"the network was pruned further than the checkpoint's, by {', '.join(further)}; "
                "build the module anew before its checkpoint is loaded"
            )
        if plan is not None:
            network = self._attached()
            plan.check_sites(network.stages)
            network.become(actions_of(plan, network.stages))
            self.plan = plan

    def state_dict(self) -> dict[str, Any]:
        """Plan, averages and what else the next epoch needs, as plain values and tensors."""
        averages = () if self._network is None else self._network.averages
        return {
            "plan": None if self.plan is None else self.plan.model_dump_json(),
            "schedule": None if self._schedule is None else vars(self._schedule).copy(),
            "proposed": sorted(self._proposed),
            "averages": [average.state_dict() for average in averages],
            "parameters": self._order,
            "seconds": self.seconds,
            "trained": self.trained,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave; the network is rebuilt already."""
        if state_dict["schedule"] is not None:
            self._schedule = Schedule(**state_dict["schedule"])
        self._proposed = frozenset(state_dict["proposed"])
        self._order = state_dict["parameters"]
        self.seconds, self.trained = state_dict["seconds"], state_dict["trained"]
        for average, kept in zip(
            self._attached().averages if state_dict["averages"] else (),
            state_dict["averages"],
            strict=True,
        ):
            average.load_state_dict(kept)

    # An epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clocks and, while the plan may change, a new probe."""
        network, done = self._attached(), trainer.current_epoch
        self._epoch = epoch = _Epoch(pl_module.device)
        if done >= self._planned().last:
            return
        with epoch.clock:
            with network.uncompiled() as model:
                epoch.probe = AttentionProbe(model)
            epoch.every = self.config.probe_every(trainer.num_training_batches)
            known = all(average.seen for average in network.averages)
            if self.config.stochastic and known and self._planned().part(done):
                target = self._target(self._planned().part(done))
                epoch.scores = [skip_scores(s.quantiles, target) for s in self.analysis.stages]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Probe the batch, or skip at random, or neither."""
        network, epoch = self._attached(), self._running()
        probed = epoch.probe is not None and batch_idx % epoch.every == epoch.every // 2
        epoch.batches += 1
        if network.compiled:
            self._in_batch.enter_context(epoch.steps[probed])
        if probed:
            assert epoch.probe is not None
            with epoch.clock:
                model = self._in_batch.enter_context(network.uncompiled())
                before = model.register_forward_hook(lambda *_: epoch.clock.start())
                self._in_batch.callback(before.remove)
                self._in_batch.enter_context(epoch.probe)
                after = model.register_forward_hook(lambda *_: epoch.clock.stop())
                self._in_batch.callback(after.remove)
        elif epoch.scores:
            with epoch.clock:
                random = np.random.default_rng([self.config.seed, trainer.current_epoch, batch_idx])
                names = [
                    stage.sites[t].name
                    for stage, scores in zip(network.stages, epoch.scores, strict=True)
                    for t in drawn(scores, self.constraints, random)
                ]
                self._in_batch.callback(network.without(names))
                epoch.skips += len(names)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Put back what the start of the batch changed."""
        epoch = self._running()
        if epoch.probe is not None and batch_idx % epoch.every == epoch.every // 2:
            epoch.wait()  # the probe's last look waits for the device: the step is not its affair
        with epoch.clock:
            self._in_batch.close()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is no training: its time does not count."""
        if self._epoch is not None:
            self._epoch.began += -time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on counting."""
        if self._epoch is not None:
            self._epoch.began += time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take in the epoch's statistics; plan; remove what the plan skips."""
        network, epoch = self._attached(), self._running()
        sites = sum(len(stage.sites) for stage in network.stages)
        skipped = (len(self.removed) + epoch.skips / max(1, epoch.batches)) / sites
        epoch.wait()
        if epoch.probe is not None and epoch.probe.passes:
            with epoch.clock:
                network.fold(from_probe(epoch.probe).stages)
                self._plan(trainer.current_epoch + 1, trainer.optimizers)
        self._order = parameter_names(pl_module, trainer.optimizers)
        seconds = epoch.clock.seconds
        if network.compiled:  # what it took to run the probed batches uncompiled
            probed, others = epoch.steps[True].pieces, epoch.steps[False]
            seconds = max(seconds, sum(probed) - len(probed) * others.median)
        self.seconds += seconds
        self.trained += time.perf_counter() - epoch.began
        self.row = {"skipped": skipped, "ebqm_seconds": round(seconds, 6)}
        for name, value in self.row.items():
            pl_module.log(f"ela_{name}", value)
        self._epoch = None

    # What is decided

    def _plan(self, done: int, optimizers: list[torch.optim.Optimizer]) -> None:
        """Propose what to skip in the end, and remove what is due after so many epochs."""
        config, network, schedule, gone = (
            self.config,
            self._attached(),
            self._planned(),
            self.removed,
        )
        analysis = self.analysis
        self._proposed = proposal(
            analysis,
            self._final,
            planner=config.planner,
            before=self._proposed,
            gone=gone,
            hysteresis=config.hysteresis,
            constraints=self.constraints,
        )
        part = 0.0 if config.stochastic and done < schedule.last else schedule.part(done)
        due = math.floor(part * self._final + 0.5)
        if due <= len(gone) and done < schedule.last:
            return
        skipped = part_of(
            self._proposed,
            analysis,
            due,
            planner=config.planner,
            gone=gone,
            constraints=self.constraints,
        )
        plan = plan_of(
            skipped,
            analysis,
            planner=config.planner,
            action=config.action,
            constraints=self.constraints,
            epoch=done,
            last=self.plan,
        )
        network.become(actions_of(plan, network.stages), optimizers)
        self.plan = plan
        if self.path is not None:
            plan.save(self.path)

    def _target(self, part: float = 1.0) -> Target:
        return Target(skip=part * self.config.skip, concentration=self.config.concentration)

    def _planned(self) -> Schedule:
        assert self._schedule is not None  # since on_fit_start
        return self._schedule

    def _running(self) -> "_Epoch":
        assert self._epoch is not None  # since on_train_epoch_start
        return self._epoch

    def _attach(self, module: nn.Module) -> None:
        """Find the network, not pruned by this callback as yet. Raises ModelError, PlanError."""
        self._network = Network(module, self._given, decay=self.config.decay)
        self._final = count_of(self.config.skip, self._network.stages, self.constraints)
        self._network.try_out(self.config.action)
        if self.config.stochastic:
            self._network.try_out("skip")
        self.plan, self._proposed = None, frozenset()

    def _attached(self) -> Network:
        if self._network is None:
            raise ModelError("ELA has not seen the network yet; fit a module with it first")
        return self._network


class _Epoch:
    """What lasts for an epoch: its clocks, its probe (None once the plan is final), its draws.

    began: when, moved on by what doesn't count. steps: a compiled network's steps, probed or not.
    every: batches from one probed one to the next. scores: of every site, where steps skip at
    random.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.began = time.perf_counter()
        self.clock, self.steps = Clock(device), {True: Clock(device), False: Clock(device)}
        self.probe: AttentionProbe | None = None
        self.every, self.batches, self.skips = 1, 0, 0
        self.scores: list[Floats] = []

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _removed(plan: SkipPlan | None) -> Names:
    actions = {} if plan is None else plan.actions
    return frozenset(name for name, action in actions.items() if action != "keep")
