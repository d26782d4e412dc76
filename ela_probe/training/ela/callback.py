"""ELA: a Lightning callback that skips redundant retrievals while a network trains.

A sample of the training batches is probed in passing. At the end of an epoch the statistics enter
exponential averages, a plan is made, and what it skips is removed from the network at once.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
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
from ela_probe.training.ela.config import ELAConfig
from ela_probe.training.ela.epoch import Epoch
from ela_probe.training.ela.gradual_pruning import GradualPruning
from ela_probe.training.ela.surgery import parameter_names, restore_parameter_order
from ela_probe.training.ela.wrapping import check_strategy, rewrap


class ELA(pl.Callback):
    """Efficient layer attention in training, for any LightningModule in a Trainer.

        trainer = pl.Trainer(max_epochs=160, callbacks=[ELA(skip=0.5, warmup=10, ramp=30)])

    The network is the first part of the module that an adapter knows. What is removed is gone from
    the module, the optimizers and every checkpoint written after; Lightning's checkpoints resume
    with this callback on an unpruned module. Where the network was compiled, the probed batches
    run uncompiled, and it is compiled again when the plan changes. Under DDP the statistics are of
    what all processes probed, the first one's plan is everyone's, and the network is wrapped again
    when it changes.

    Args:
        config: the settings; or name them, as in `ELA(skip=0.5)`.
        model: the network, where it is not the first that an adapter knows.
        path: file to keep the plan in.
        provenance: what is known of model and data, for the plan.

    Attributes:
        seconds, trained: what probing and planning took so far, and all of the training (without
            validation).
        row: of the last epoch the share `skipped` in it and its `ebqm_seconds`.

    Raises:
        OptionError: settings that don't fit each other or the trainer.
        ModelError: (when training starts) no part of the module has layer attention.
        PlanError: (when training starts) the network can't be pruned so, or not by so much.
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
            raise OptionError("ELA: a config and settings by name came; expected one of them")
        self.config = config or ELAConfig.of(**settings)
        self.path, self.provenance = path, provenance
        self.seconds = self.trained = 0.0
        self.row: dict[str, float] = {}
        self._given = model
        self._pruning: GradualPruning | None = None
        self._order: list[list[list[str]]] = []
        self._epoch: Epoch | None = None
        self._in_batch = ExitStack()
        self._unwrap: Callable[[], object] = lambda: None

    @property
    def plan(self) -> SkipPlan | None:
        """What is in force, in terms of the network as it was at first; None before any skip."""
        return None if self._pruning is None else self._pruning.plan

    @property
    def share(self) -> float:
        """The share of all retrievals that are removed."""
        return 0.0 if self._pruning is None else len(self._pruning.removed) / self._pruning.sites

    @property
    def analysis(self) -> Analysis:
        """The averages over epochs, of all sites.

        Raises:
            ModelError, AnalysisError: training has not started, or no epoch has ended.
        """
        return self._begun().analysis

    def summary(self) -> dict[str, Any]:
        """How it ended, ready for JSON. Raises ModelError: training has not started."""
        pruning = self._begun()
        return {
            "plan": None if pruning.plan is None else self.path,
            "retrievals": pruning.sites,
            "skipped": len(pruning.removed),
            "share": self.share,
            "ebqm_seconds": self.seconds,
            "ebqm_share": self.seconds / self.trained if self.trained else 0.0,
        }

    # Beginning and going on

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """See to it that a checkpoint's weights find the network as it was when they were saved."""
        if stage == "fit":
            check_strategy(trainer.strategy, stochastic=self.config.stochastic)
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
        epochs = trainer.max_epochs
        if self._pruning is None or not self._pruning.network.is_in(pl_module):
            self._begin(pl_module)
            if self.path is not None and is_first():
                self.path.unlink(missing_ok=True)
        pruning = self._begun()
        if pruning.schedule is None:
            pruning.schedule = self.config.schedule(None if epochs == -1 else epochs)
        if self.config.stochastic and pruning.network.compiled:
            raise OptionError(
                "ELA: stochastic skipping changes the network at every step, and a compiled one "
                "would be compiled as often; leave out stochastic, or torch.compile"
            )
        restore_parameter_order(pl_module, trainer.optimizers, self._order)

    def rebuild(self, module: nn.Module, state: Mapping[str, Any] | None) -> None:
        """Prune the network in `module` to what it was when the state was saved.

        Args:
            state: what `state_dict` gave; None (of a run without ELA) changes nothing.

        Raises:
            PlanError: the plan was made for other sites.
            CheckpointError: ELA had other settings, or the network is pruned further than that.
        """
        if state is None:
            return
        if "settings" in state:  # a state that an older version wrote has none
            now = self.config.model_dump(mode="json")
            differing = differing_settings(state["settings"], now)
            if differing:
                raise CheckpointError(
                    f"the checkpoint was written with other ELA settings ({'; '.join(differing)}): "
                    "repeat the settings that the run was started with"
                )
        if state["course"] is None:
            return
        if self._pruning is None or not self._pruning.network.is_in(module):
            self._begin(module)
        self._begun().rebuild(state["course"]["plan"])

    @property
    def state_key(self) -> str:
        """Where the state lies in the trainer's checkpoint."""
        return "ela_probe.ELA"

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch needs, as plain values and tensors."""
        return {
            "settings": self.config.model_dump(mode="json"),
            "course": None if self._pruning is None else self._pruning.state_dict(),
            "parameters": self._order,
            "seconds": self.seconds,
            "trained": self.trained,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave; the network is rebuilt already."""
        if state_dict["course"] is not None:
            self._begun().load_state_dict(state_dict["course"])
        self._order = state_dict["parameters"]
        self.seconds, self.trained = state_dict["seconds"], state_dict["trained"]

    # An epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clocks and, while the plan may change, a new probe."""
        pruning, done = self._begun(), trainer.current_epoch
        self._epoch = epoch = Epoch(pl_module.device)
        if pruning.is_final(done):
            return
        with epoch.clock:
            with pruning.network.uncompiled() as model:
                epoch.probe = AttentionProbe(model)
            epoch.every = self.config.probe_every(trainer.num_training_batches)
            epoch.scores = pruning.scores(done)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Probe the batch, or skip at random, or neither."""
        pruning, epoch = self._begun(), self._running()
        probe = epoch.probe_of(batch_idx)
        epoch.batches += 1
        if pruning.network.compiled:
            self._in_batch.enter_context(epoch.steps[probe is not None])
        if probe is not None:
            with epoch.clock:
                model = self._in_batch.enter_context(pruning.network.uncompiled())
                before = model.register_forward_hook(lambda *_: epoch.clock.start())
                self._in_batch.callback(before.remove)
                self._in_batch.enter_context(probe)
                after = model.register_forward_hook(lambda *_: epoch.clock.stop())
                self._in_batch.callback(after.remove)
        elif epoch.scores:
            with epoch.clock:
                names = pruning.draw(epoch.scores, trainer.current_epoch, batch_idx)
                self._in_batch.callback(pruning.network.without(names))
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
        if epoch.probe_of(batch_idx) is not None:
            epoch.wait()  # as the probe does when it is left: the step is not its affair
        with epoch.clock:
            self._in_batch.close()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is no training: its time does not count."""
        if self._epoch is not None:
            self._epoch.elsewhere -= time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on counting."""
        if self._epoch is not None:
            self._epoch.elsewhere += time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take in the epoch's statistics; plan; remove what the plan skips."""
        pruning, epoch, self._epoch = self._begun(), self._running(), None
        skipped = (len(pruning.removed) + epoch.skips / max(1, epoch.batches)) / pruning.sites
        epoch.wait()
        if epoch.probe is not None and epoch.probe.passes:
            with epoch.clock:
                found = epoch.probe.analysis().stages
                changed = pruning.step(found, trainer.current_epoch + 1, trainer.optimizers)
                if changed:
                    rewrap(trainer.strategy)
                    if self.path is not None and pruning.plan is not None and is_first():
                        pruning.plan.save(self.path)
        self._order = parameter_names(pl_module, trainer.optimizers)
        seconds = epoch.cost(compiled=pruning.network.compiled)
        self.seconds += seconds
        self.trained += time.perf_counter() - epoch.began - epoch.elsewhere
        self.row = {"skipped": skipped, "ebqm_seconds": round(seconds, 6)}
        for name, value in self.row.items():
            pl_module.log(f"ela_{name}", value, sync_dist=True)

    def _begin(self, module: nn.Module) -> None:
        self._pruning = GradualPruning(
            self.config, module, given=self._given, provenance=self.provenance
        )

    def _begun(self) -> GradualPruning:
        if self._pruning is None:
            raise ModelError("ELA has not seen the network yet; fit a module with it first")
        return self._pruning

    def _running(self) -> "Epoch":
        assert self._epoch is not None  # since on_train_epoch_start
        return self._epoch
