"""Cost models with given prices."""

from ela_probe.evaluation.profiling import describe_machine
from ela_probe.pruning.cost_model import CostModel, Seconds, SiteChoices, StageCosts
from ela_probe.sites import Action, Stage, fingerprint

ALL_ACTIONS: tuple[Action, ...] = ("keep", "recur", "skip", "drop")
# In seconds: keep, source, skip, recur, start.
PRICES = (0.2, 0.03, 0.01, 0.1, 0.02)


def seconds(value: float) -> Seconds:
    """A time that is known exactly."""
    return Seconds(value=value, lower=value, upper=value)


def costs_of(
    stages: list[StageCosts], *, of: list[Stage] | None = None, base: float = 1.0
) -> CostModel:
    """A cost model without measurement error, for the stages `of`."""
    once = seconds(1.0)
    return CostModel(
        fingerprint="0" if of is None else fingerprint(of),
        machine=describe_machine(),
        batch_shape=(2, 3),
        rounds=1,
        ela_probe="0",
        unpruned=once,
        base=seconds(base),
        error=0.0,
        stages=tuple(stages),
    )


def priced(stage: Stage, prices: tuple[float, ...], **fields: object) -> StageCosts:
    """Costs of a stage whose adapter knows every action; the prices are ordered as `PRICES` is."""
    sites = tuple(
        SiteChoices(name=s.name, sources=s.sources, actions=ALL_ACTIONS if t else ("keep",))
        for t, s in enumerate(stage.sites)
    )
    values = dict(
        zip(("keep", "source", "skip", "recur", "start"), map(seconds, prices), strict=True)
    )
    fields = {"recur_after_skip": True, "sites": sites, **values, **fields}
    fields = {"carried_over": stage.carried_over, **fields}
    return StageCosts(name=stage.name, kind=stage.kind, **fields)
