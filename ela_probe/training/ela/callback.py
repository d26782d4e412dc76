"""ELA: a Lightning callback that skips redundant retrievals while a network trains.

A sample of the training batches is probed while they train. At the end of an epoch the statistics
enter exponential averages, a plan is made, and the retrievals that it skips are removed at once.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn

from ela_probe.analysis.probe import AttentionProbe
from ela_probe.analysis.result import Analysis, Provenance
from ela_probe.errors import CheckpointError, ModelError, OptionError
from ela_probe.pruning.plan import SkipPlan
from ela_probe.system.processes import is_first
from ela_probe.system.validation import differing_settings
from ela_probe.training.ela.config import BEFORE, ELAConfig
from ela_probe.training.ela.damage import StandInGradients, TrainingDamage
from ela_probe.training.ela.epoch import Epoch
from ela_probe.training.ela.gradual_pruning import GradualPruning
from ela_probe.training.ela.surgery import parameter_names, restore_parameter_order
from ela_probe.training.ela.wrapping import check_strategy, rewrap

SHARE_OF_COSTS = 0.01  # of all training steps, for measuring costs


class ELA(pl.Callback):
    """Efficient layer attention in training, for any LightningModule in a Trainer.

        trainer = pl.Trainer(max_epochs=160, callbacks=[ELA(skip=0.5, warmup=10, ramp=30)])

    The network is the first part of the module that an adapter supports. Removed retrievals are
    gone from the module, the optimizers and all later checkpoints; Lightning's checkpoints resume
    with this callback on an unpruned module. If the network was compiled, the probed batches run
    uncompiled, and it is compiled again when the plan changes. Under DDP the statistics are those
    of all processes, every process follows the plan of the first, and the network is wrapped again
    when it changes.

    Args:
        config: the settings; or give them by name, as in `ELA(skip=0.5)`.
        model: the network, if it is not the first part that an adapter supports.
        path: file to write the plan to.
        provenance: what is known of model and data, for the plan.

    Attributes:
        seconds: time of probing and planning so far.
        trained: time of training so far, without validation.
        row: of the last epoch the share that was `skipped` in it, and its `ebqm_seconds`.
        site_rows: of the last epoch a row for every site (`GradualPruning.site_rows`); empty once
            the plan is final.
        measured: whether the last epoch was probed, so that `analysis` is new.

    Raises:
        OptionError: settings that don't fit each other or the trainer.
        ModelError: (when training starts) no part of the module has layer attention.
        PlanError: (when training starts) the adapter does not support the action, or the share is
            too large or too small.
        CheckpointError: (on resuming) the settings are not those of the checkpoint, or the network
            is pruned further than the checkpoint's.
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
            raise OptionError("ELA: got a config and settings by name, expected one of them")
        self.config = config or ELAConfig.of(**settings)
        self.path, self.provenance = path, provenance
        self.seconds = self.trained = 0.0
        self.row: dict[str, float] = {}
        self.site_rows: list[dict[str, Any]] = []
        self.measured = False
        self._model = model
        self._pruning: GradualPruning | None = None
        self._parameter_names: list[list[list[str]]] = []
        self._epoch: Epoch | None = None
        self._during_batch = ExitStack()
        self._restore_hook: Callable[[], object] = lambda: None

    @property
    def plan(self) -> SkipPlan | None:
        """The plan so far, in terms of the unpruned network; None before the first one."""
        return None if self._pruning is None else self._pruning.plan

    @property
    def share(self) -> float:
        """The share of all retrievals that are removed."""
        return 0.0 if self._pruning is None else len(self._pruning.removed) / self._pruning.sites

    @property
    def analysis(self) -> Analysis:
        """The averages over epochs, of all sites of the unpruned network.

        Raises:
            ModelError, AnalysisError: training has not started, or no epoch has ended.
        """
        return self._started_pruning().analysis

    def summary(self) -> dict[str, Any]:
        """The result in types of JSON. Raises ModelError: training has not started."""
        pruning = self._started_pruning()
        return {
            "plan": None if pruning.plan is None else self.path,
            "retrievals": pruning.sites,
            "skipped": len(pruning.removed),
            "share": self.share,
            "time": pruning.time,
            "requested_time": self.config.time,
            "ebqm_seconds": self.seconds,
            "ebqm_share": self.seconds / self.trained if self.trained else 0.0,
        }

    # Starting and resuming

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the strategy; have the network pruned before a checkpoint's weights are loaded."""
        if stage == "fit":
            check_strategy(trainer.strategy, stochastic=self.config.stochastic)
        original = pl_module.on_load_checkpoint

        def rebuild_first(checkpoint: dict[str, Any]) -> None:
            self.rebuild(pl_module, checkpoint.get("callbacks", {}).get(self.state_key))
            original(checkpoint)

        # Lightning loads the weights before it gives a callback its state
        pl_module.on_load_checkpoint = rebuild_first  # type: ignore[method-assign]
        self._restore_hook = lambda: vars(pl_module).pop("on_load_checkpoint", None)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the module's hook."""
        self._restore_hook()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Remove the probe, and undo what a step skipped at random."""
        self._during_batch.__exit__(type(exception), exception, exception.__traceback__)
        self._restore_hook()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the network, and check that the settings can be carried out on it."""
        epochs = trainer.max_epochs
        if self._pruning is None or not self._pruning.network.is_in(pl_module):
            self._start_pruning(pl_module)
        pruning = self._started_pruning()
        if self.path is not None and is_first():  # an interrupted run may have left a later plan
            if pruning.plan is None:
                self.path.unlink(missing_ok=True)
            else:
                pruning.plan.save(self.path)
        if pruning.schedule is None:
            pruning.schedule = self.config.schedule(None if epochs == -1 else epochs)
        if self.config.stochastic and pruning.network.compiled:
            raise OptionError(
                "ELA: stochastic skipping changes the network at every step, and a compiled one "
                "would be compiled as often; leave out stochastic, or torch.compile"
            )
        restore_parameter_order(pl_module, trainer.optimizers, self._parameter_names)

    def rebuild(self, module: nn.Module, state: Mapping[str, Any] | None) -> None:
        """Prune the network in `module` to what it was when the state was saved.

        Args:
            state: the result of `state_dict`; None (from a run without ELA) changes nothing.

        Raises:
            PlanError: the plan was made for other sites.
            CheckpointError: ELA had other settings, or the network is pruned further than that.
        """
        if state is None:
            return
        if "settings" in state:  # a state that an older version wrote has none
            now = self.config.model_dump(mode="json")
            then = state["settings"]
            differing = differing_settings(
                {**BEFORE, **then} if isinstance(then, Mapping) else {}, now
            )
            if differing:
                raise CheckpointError(
                    f"the checkpoint was written with other ELA settings ({'; '.join(differing)}): "
                    "repeat the settings that the run was started with"
                )
        if state["course"] is None:
            return
        if self._pruning is None or not self._pruning.network.is_in(module):
            self._start_pruning(module)
        self._started_pruning().rebuild(state["course"]["plan"])

    @property
    def state_key(self) -> str:
        """The key of the state in the trainer's checkpoint."""
        return "ela_probe.ELA"

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch needs, as plain values and tensors."""
        return {
            "settings": self.config.model_dump(mode="json"),
            "course": None if self._pruning is None else self._pruning.state_dict(),
            "parameters": self._parameter_names,
            "seconds": self.seconds,
            "trained": self.trained,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the result of `state_dict`; the network was pruned by `rebuild` before."""
        if state_dict["course"] is not None:
            self._started_pruning().load_state_dict(state_dict["course"])
        self._parameter_names = state_dict["parameters"]
        self.seconds, self.trained = state_dict["seconds"], state_dict["trained"]

    # During an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clocks and, as long as the plan may change, a new probe."""
        pruning, done = self._started_pruning(), trainer.current_epoch
        self._epoch = epoch = Epoch(pl_module.device)
        if pruning.is_final(done):
            return
        batches = trainer.num_training_batches
        if done == 0:
            epoch.first_batches = pruning.first_batches(batches)
        self._open_probe(epoch, batches if epoch.first_batches is None else epoch.first_batches)
        with epoch.overhead:
            epoch.scores = pruning.scores(done)

    def _open_probe(self, epoch: Epoch, batches: float) -> None:
        """Start a new probe for so many batches."""
        pruning = self._started_pruning()
        with epoch.overhead:
            with pruning.network.uncompiled() as model:
                epoch.probe = AttentionProbe(model)
            if self.config.measures_damage:
                epoch.damage = TrainingDamage(
                    pruning.network.model, pruning.network.handovers(), clock=epoch.overhead
                )
            if self.config.regrow:
                epoch.gradients = StandInGradients(pruning.network.stand_ins, clock=epoch.overhead)
            epoch.every = self.config.probe_every(batches)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Probe the batch, or skip retrievals at random, or neither."""
        pruning, epoch = self._started_pruning(), self._current_epoch()
        probe = epoch.probe_for(batch_idx)
        epoch.batches += 1
        epoch.skipped += len(pruning.removed)
        if pruning.network.compiled:
            self._during_batch.enter_context(epoch.step_clocks[probe is not None])
        if probe is not None:
            with epoch.overhead:
                model = self._during_batch.enter_context(pruning.network.uncompiled())
                before = model.register_forward_hook(lambda *_: epoch.overhead.start())
                self._during_batch.callback(before.remove)
                self._during_batch.enter_context(probe)
                for measured in (epoch.damage, epoch.gradients):
                    if measured is not None:
                        self._during_batch.enter_context(measured)
                after = model.register_forward_hook(lambda *_: epoch.overhead.stop())
                self._during_batch.callback(after.remove)
        elif epoch.scores:
            with epoch.overhead:
                names = pruning.draw(epoch.scores, trainer.current_epoch, batch_idx)
                self._during_batch.callback(pruning.network.without(names))
                epoch.skipped += len(names)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the damage of a probed batch. Its loss is taken for a mean over its samples."""
        if self._epoch is None:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        for measured in (self._epoch.damage, self._epoch.gradients):
            if measured is not None:
                measured.add(trainer.accumulate_grad_batches / scale)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Undo what the start of the batch changed; plan, where the warm-up ends with it."""
        pruning, epoch = self._started_pruning(), self._current_epoch()
        if epoch.probe_for(batch_idx) is not None:
            epoch.synchronize()  # leaving the probe waits too; the step itself is no overhead
            epoch.last_batch = batch if pruning.needs_costs else None
        with epoch.overhead:
            self._during_batch.close()
        if epoch.batches == epoch.first_batches:
            batches = trainer.num_training_batches
            self._plan(trainer, epoch, epoch.batches / batches)
            epoch.probe = epoch.damage = epoch.gradients = None
            if not pruning.is_final(epoch.batches / batches):
                self._open_probe(epoch, batches - epoch.batches)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop counting: validation is no training."""
        if self._epoch is not None:
            self._epoch.validation_seconds -= time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue to count."""
        if self._epoch is not None:
            self._epoch.validation_seconds += time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Average the epoch's statistics, plan, and remove the retrievals that the plan skips."""
        pruning, epoch, self._epoch = self._started_pruning(), self._current_epoch(), None
        skipped = epoch.skipped / max(1, epoch.batches) / pruning.sites
        epoch.synchronize()
        early = epoch.first_batches is not None and epoch.batches >= epoch.first_batches
        self.measured = self._plan(trainer, epoch, trainer.current_epoch + 1) or early
        self.site_rows = pruning.site_rows(trainer.current_epoch + 1) if self.measured else []
        self._parameter_names = parameter_names(pl_module, trainer.optimizers)
        seconds = epoch.overhead_seconds(compiled=pruning.network.compiled)
        self.seconds += seconds
        self.trained += epoch.training_seconds()
        self.row = {"skipped": skipped, "ebqm_seconds": round(seconds, 6)}
        for name, value in self.row.items():
            pl_module.log(f"ela_{name}", value, sync_dist=True)

    def _plan(self, trainer: pl.Trainer, epoch: Epoch, done: float) -> bool:
        """Average what was probed, plan, and remove what is due; whether anything was probed."""
        if epoch.probe is None or not epoch.probe.passes:
            return False
        pruning = self._started_pruning()
        with epoch.overhead:
            found = epoch.probe.analysis().stages
            if epoch.damage is not None:
                damage = epoch.damage.compute([part.stage for part in found])
                found = tuple(replace(p, damage=damage.get(p.stage.name)) for p in found)
            if pruning.needs_costs and done >= pruning.warmup:
                steps = SHARE_OF_COSTS * trainer.estimated_stepping_batches
                pruning.measure_costs(epoch.last_batch, steps=steps)
            gradients = {} if epoch.gradients is None else epoch.gradients.compute()
            if pruning.step(found, done, trainer.optimizers, gradients=gradients):
                rewrap(trainer.strategy)
                if self.path is not None and pruning.plan is not None and is_first():
                    pruning.plan.save(self.path)
        return True

    def _start_pruning(self, module: nn.Module) -> None:
        self._pruning = GradualPruning(
            self.config, module, given=self._model, provenance=self.provenance
        )

    def _started_pruning(self) -> GradualPruning:
        if self._pruning is None:
            raise ModelError("ELA has not seen the network yet; fit a module with it first")
        return self._pruning

    def _current_epoch(self) -> Epoch:
        assert self._epoch is not None  # set by on_train_epoch_start
        return self._epoch
