"""What a notebook shows of a plan and of measured costs: one table each."""

from typing import get_args

from ela_probe.pruning.cost_model import CostModel, Seconds
from ela_probe.pruning.plan import SkipPlan
from ela_probe.sites import Action
from ela_probe.system.html import Cell, html_table
from ela_probe.system.numbers import readable

TERMS = ("keep", "source", "skip", "recur", "start", "affine")


def plan_html(plan: SkipPlan) -> str:
    """One row for each stage: how many sites have which action, and the names of those changed."""
    used = [a for a in get_args(Action) if a in plan.actions.values()]
    rows: list[list[Cell]] = []
    for stage in plan.stages:
        actions = [site.action for site in stage.sites]
        changed = [f"{s.name}: {s.action}" for s in stage.sites if s.action != "keep"]
        rows.append([stage.name, *(actions.count(a) for a in used), ", ".join(changed) or "none"])
    loss = plan.origin.predicted_loss
    note = f"{len(plan.skipped)} of {len(plan.actions)} retrievals ({plan.share:.0%}) not formed"
    if loss is not None:
        error = "" if loss.se is None else f" ± {readable(2 * loss.se)}"
        note += f"; predicted loss change {readable(loss.mean)}{error} nats"
    if plan.origin.predicted_ratio is not None:
        note += f"; predicted time {plan.origin.predicted_ratio:.0%} of the unpruned step's"
    title = f"Skip plan by {plan.origin.planner} for {plan.origin.model or 'a model'}"
    return html_table(title, ["stage", *used, "changed sites"], rows, note=note)


def costs_html(costs: CostModel) -> str:
    """One row for each stage: milliseconds of every term (see `StageCosts`)."""

    def milliseconds(value: Seconds | None) -> Cell:
        return None if value is None else 1000 * value.value

    rows: list[list[Cell]] = [
        [stage.name, *(milliseconds(getattr(stage, term)) for term in TERMS)]
        for stage in costs.stages
    ]
    note = (
        f"unpruned step {readable(1000 * costs.unpruned.value)} ms, without retrievals after the "
        f"first {readable(1000 * costs.base.value)} ms; predictions are off by at most "
        f"{costs.error:.1%}; {costs.machine.device_name}"
    )
    headings = ["stage", *(f"{term} [ms]" for term in TERMS)]
    return html_table(f"Costs of actions in {costs.model or 'a model'}", headings, rows, note=note)
