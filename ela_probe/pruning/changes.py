"""What differs between two analyses: redundancy, damage, and the plans that follow from them."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from ela_probe.analysis.damage import REMOVING
from ela_probe.analysis.findings import CERTAINTY
from ela_probe.analysis.result import Analysis
from ela_probe.errors import AnalysisError
from ela_probe.pruning.budgets import plans_by_count
from ela_probe.pruning.plan import Estimate
from ela_probe.sites import LISTED, Action, describe
from ela_probe.system.numbers import counted, finite_or_none, readable
from ela_probe.system.validation import Finite, Strict

FEWEST = 4  # sites, for a rank correlation


class Change(Strict):
    """A figure of one site in the first and in the second analysis, in nats.

    reach: two standard errors of the change, as if the two analyses had independent samples; on
    the same samples the errors are alike, and the reach is rather too long. None: unknown.
    """

    first: Finite | None = None
    second: Finite | None = None
    reach: Finite | None = None

    @property
    def change(self) -> float | None:
        """The second less the first; None where one is unknown."""
        return None if self.first is None or self.second is None else self.second - self.first

    @property
    def is_clear(self) -> bool:
        """Whether the change is larger than its reach."""
        return self.change is not None and self.reach is not None and abs(self.change) > self.reach

    @classmethod
    def of(cls, first: Estimate | None, second: Estimate | None) -> Change:
        """From the two estimates."""
        errors = [math.nan if e is None or e.se is None else e.se for e in (first, second)]
        return cls(
            first=None if first is None else first.mean,
            second=None if second is None else second.mean,
            reach=finite_or_none(CERTAINTY * math.hypot(*errors)),
        )


class SiteChange(Strict):
    """A site of both analyses.

    kl: from the one before it. damage: of its cheapest removing action. The actions are those of
    the plans that `AnalysisChanges` describes.
    """

    site: str
    stage: str
    kl: Change
    damage: Change
    first_action: Action
    second_action: Action


class AnalysisChanges(Strict):
    """Two analyses side by side, over the sites that both have.

    first_only, second_only: sites of one analysis. first_skipped, second_skipped: how many
    retrievals its plan skips, of the default planner for the same share. first_loss, second_loss:
    what the plans add to the loss, as predicted. kl_ranks, damage_ranks: Spearman's rank
    correlation between the analyses, None for fewer than four sites or equal values.
    """

    first: str
    second: str
    share: float
    first_only: tuple[str, ...]
    second_only: tuple[str, ...]
    first_skipped: int
    second_skipped: int
    first_loss: Estimate | None
    second_loss: Estimate | None
    kl_ranks: Finite | None
    damage_ranks: Finite | None
    sites: tuple[SiteChange, ...]

    def sentences(self) -> list[str]:
        """What changed, in plain words."""
        found = [
            f"{counted(len(self.sites), 'retrieval')} {_verb(len(self.sites), 'is', 'are')} in "
            f"both analyses; {len(self.first_only)} only in {self.first}, "
            f"{len(self.second_only)} only in {self.second}.",
            "Divergence from the one before: " + _moved([s.kl for s in self.sites], self.kl_ranks),
        ]
        if any(s.damage.change is not None for s in self.sites):
            found.append("Damage: " + _moved([s.damage for s in self.sites], self.damage_ranks))
        else:
            found.append("Damage was not measured in both.")
        changed = [s for s in self.sites if s.first_action != s.second_action]
        listed = ", ".join(f"{s.site} ({s.first_action} → {s.second_action})"
                           for s in changed[:LISTED])  # fmt: skip
        more = f" and {len(changed) - LISTED} more" if len(changed) > LISTED else ""
        found.append(
            f"Plans for a share of {self.share:g}: {self.first} skips {self.first_skipped}"
            f"{_predicted(self.first_loss)}, {self.second} skips {self.second_skipped}"
            f"{_predicted(self.second_loss)}; "
            + (f"other actions at {len(changed)} of {len(self.sites)}: {listed}{more}."
               if changed else "the actions are the same.")
        )  # fmt: skip
        return found


def compare_analyses(
    first: Analysis, second: Analysis, *, names: tuple[str, str] = ("A", "B"), share: float = 0.3
) -> AnalysisChanges:
    """What changed from the first to the second analysis, site by site.

    The analyses may be of other checkpoints, epochs, seeds or data; sites are matched by name.

    Args:
        names: of the two, for the sentences.
        share: of all retrievals, for which both are planned by the default planner; where the
            guards allow fewer, as many as they allow.

    Raises:
        AnalysisError: no site is in both, or the share is not from 0 to less than 1.
    """
    if not 0 <= share < 1:
        raise AnalysisError(f"got a share of {share}; expected at least 0 and less than 1")
    known = [describe(part.stage for part in analysis.stages) for analysis in (first, second)]
    common = [name for name in known[0] if known[1].get(name) == known[0][name]]
    if not common:
        raise AnalysisError(
            f"no retrieval is in both analyses: {names[0]} has {', '.join([*known[0]][:LISTED])}, "
            f"..., {names[1]} has {', '.join([*known[1]][:LISTED])}, ...; expected analyses of the "
            "same network, pruned or not, trained in any way"
        )
    figures = [_figures(analysis) for analysis in (first, second)]
    plans = []
    for analysis, sites in zip((first, second), known, strict=True):
        by_count = plans_by_count(analysis)
        wanted = math.floor(share * len(sites) + 0.5)
        plans.append(by_count[max(count for count in by_count if count <= wanted)])
    stage_of = {s.name: p.stage.name for p in first.stages for s in p.stage.sites}
    rows = tuple(
        SiteChange(
            site=name,
            stage=stage_of[name],
            kl=Change.of(figures[0][name][0], figures[1][name][0]),
            damage=Change.of(figures[0][name][1], figures[1][name][1]),
            first_action=plans[0].actions[name],
            second_action=plans[1].actions[name],
        )
        for name in common
    )
    return AnalysisChanges(
        first=names[0],
        second=names[1],
        share=share,
        first_only=tuple(name for name in known[0] if name not in common),
        second_only=tuple(name for name in known[1] if name not in common),
        first_skipped=len(plans[0].skipped),
        second_skipped=len(plans[1].skipped),
        first_loss=plans[0].origin.predicted_loss,
        second_loss=plans[1].origin.predicted_loss,
        kl_ranks=_ranks([row.kl for row in rows]),
        damage_ranks=_ranks([row.damage for row in rows]),
        sites=rows,
    )


def _figures(analysis: Analysis) -> dict[str, tuple[Estimate | None, Estimate | None]]:
    """By site name the divergence from the one before, and the least damage of removing it."""
    result = {}
    for part in analysis.stages:
        kl, error = part.adjacent("kl"), part.adjacent("kl_se")
        for t, site in enumerate(part.stage.sites):
            found = (
                None
                if part.damage is None
                else part.damage.cheapest(t, REMOVING, kind=part.stage.kind)
            )
            result[site.name] = (
                Estimate(mean=float(kl[t]), se=finite_or_none(error[t]))
                if np.isfinite(kl[t])
                else None,
                Estimate(mean=found[1].mean, se=finite_or_none(found[1].se)) if found else None,
            )
    return result


def _ranks(changes: list[Change]) -> float | None:
    """Spearman's rank correlation of the first with the second figures."""
    known = [c for c in changes if c.change is not None]
    first, second = [c.first or 0.0 for c in known], [c.second or 0.0 for c in known]
    if len(known) < FEWEST or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return finite_or_none(float(stats.spearmanr(first, second).statistic))


def _moved(changes: list[Change], ranks: float | None) -> str:
    """How many figures clearly fell and rose, and whether the order of sites is the same."""
    known = [c for c in changes if c.change is not None]
    clear = [c.change for c in known if c.is_clear and c.change is not None]
    fell, rose = sum(x < 0 for x in clear), sum(x > 0 for x in clear)
    text = (
        f"clearly smaller in the second at {fell} of {len(known)}, clearly larger at {rose} "
        "(two standard errors, as of independent samples)"
    )
    return text + (f"; rank correlation {readable(ranks, digits=2)}." if ranks is not None else ".")


def _predicted(loss: Estimate | None) -> str:
    if loss is None:
        return ""
    return f" for {readable(loss.mean)} ± {readable(loss.se, digits=1)} nats"


def _verb(count: int, one: str, many: str) -> str:
    return one if count == 1 else many
