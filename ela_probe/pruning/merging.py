"""One plan from plans that were made one after another."""

from collections.abc import Sequence

from ela_probe.analysis.result import Analysis
from ela_probe.pruning.plan import Constraints, Estimate, SkipPlan
from ela_probe.pruning.planners import make_plan


def merged_plan(
    analysis: Analysis, plans: Sequence[SkipPlan], constraints: Constraints
) -> SkipPlan:
    """One plan for the analysed model from plans that were made one after another."""
    changed = {
        site.name: site
        for plan in plans
        for stage in plan.stages
        for site in stage.sites
        if site.action != "keep"
    }
    whole = make_plan(analysis, skip=0.0, planner="damage", constraints=constraints)
    losses = [loss for plan in plans if (loss := plan.origin.predicted_loss) is not None]
    predicted = Estimate.total(losses)
    stages = tuple(
        stage.model_copy(
            update={
                "sites": tuple(
                    site
                    if (new := changed.get(site.name)) is None
                    else new.model_copy(update={"sources": site.sources})
                    for site in stage.sites
                )
            }
        )
        for stage in whole.stages
    )
    return SkipPlan.model_validate(
        whole.model_copy(
            update={
                "stages": stages,
                "charge": predicted.mean,
                "origin": whole.origin.model_copy(
                    update={"rounds": len(plans), "predicted_loss": predicted}
                ),
            }
        ).model_dump()
    )
