// The slider: the plan of every budget, what it costs and saves, and saving it.
"use strict";

const PLANS = DATA.plans;
let budget = DATA.start; // the position of the chosen plan

/** The actions of a plan, one for each site along depth. */
const actionsOf = (index) =>
  PLANS.budgets[index].chosen.map((variant, s) => PLANS.variants[s][variant].action);

/** The document of a plan, as `ela-probe plan` writes it. */
function planDocument(index) {
  const { chosen, scores, target, charge, origin } = PLANS.budgets[index];
  const entries = chosen.map((variant, s) => {
    const entry = PLANS.variants[s][variant];
    const standIn = entry.action === "affine" ? PLANS.stand_ins[s] : null;
    return { ...entry, score: scores[s], stand_in: standIn };
  });
  let start = 0;
  const stages = PLANS.document.stages.map((stage) => {
    const sites = entries.slice(start, start + stage.sites);
    start += stage.sites;
    return { ...stage, sites };
  });
  return { ...PLANS.document, target, charge, origin, stages };
}

/** What a plan adds to the loss (mean, standard error), or the divergence that it is charged. */
function lossOf(plan) {
  const loss = plan.origin.predicted_loss;
  return loss ? [loss.mean, loss.se] : [plan.charge, null];
}

/** The chosen plan in one sentence. */
function budgetWords() {
  const plan = PLANS.budgets[budget];
  const total = SITES.length;
  const [loss, se] = lossOf(plan);
  const words = [`${plan.count} of ${total} (${Math.round((100 * plan.count) / total)} %)`];
  if (plan.origin.predicted_loss) {
    const now = DATA.loss === null ? "" : ` (now ${readable(DATA.loss, 3)})`;
    words.push(`loss + ${readable(loss, 3)} ± ${readable(se === null ? null : 2 * se, 2)} nats${now}`);
  } else words.push(`${readable(loss, 3)} nats of divergence charged`);
  if (plan.origin.predicted_ratio !== null) {
    const ratio = plan.origin.predicted_ratio;
    words.push(
      `a training step takes ${readable(1000 * plan.origin.predicted_seconds, 3)} ms, ` +
        `${readable(100 * ratio, 3)} % of now (± ${readable(100 * DATA.timeError * ratio, 2)})`,
    );
  }
  return words.join("; ");
}

PICTURES.plan = {
  points: () => {
    const actions = actionsOf(budget);
    return SITES.map((site) => ({ ...site, action: actions[site.x] }));
  },
  draw(width) {
    const points = this.points();
    const longest = Math.max(...DATA.analyses[0].stages.map((stage) => stage.sites.length));
    const names = DATA.analyses[0].stages.map((stage) => stage.name);
    const short = (s) => (names[s].length > 18 ? `…${names[s].slice(-17)}` : names[s]);
    const used = Object.keys(COLOURS).filter(
      (action) => PLANS.variants.some((own) => own.some((entry) => entry.action === action)),
    );
    const cellWidth = (width - 130) / longest;
    return plotOf(width, {
      height: 56 + 34 * names.length, marginLeft: 130, marginTop: 6, marginBottom: 44,
      x: { domain: d3.range(longest), padding: 0.06 },
      y: { domain: d3.range(names.length), label: null, tickFormat: short, tickSize: 0, padding: 0.15 },
      color: { domain: used, range: used.map((action) => COLOURS[action]), legend: true },
      marks: [
        Plot.axisX(d3.range(0, longest, Math.ceil(longest / Math.max(2, width / 40))), {
          label: "site of the stage", labelAnchor: "center", labelOffset: 36, tickSize: 0,
        }),
        Plot.cell(points, { x: "t", y: "s", fill: "action" }),
        Plot.text(cellWidth > 12 ? points : [], {
          x: "t", y: "s", text: (p) => p.action[0], fill: (p) => (p.action === "keep" ? "white" : "black"),
        }),
        Plot.tip(points, Plot.pointer({ x: "t", y: "s", title: (p) => `${p.name}\n${p.action}` })),
      ],
    });
  },
  says() {
    const changed = this.points().filter((p) => p.action !== "keep");
    const listed = changed.slice(0, 8).map((p) => `${p.name}: ${p.action}`).join(", ");
    return `Plan that changes ${changed.length} of ${SITES.length} retrievals: ${listed || "none"}${changed.length > 8 ? ", ..." : ""}.`;
  },
  table() {
    const entries = PLANS.budgets[budget].chosen.map((v, s) => PLANS.variants[s][v]);
    const stable = budget === DATA.start ? DATA.stability : null;
    const measures = ["kl", "l2"].filter((m) => SITES.some((site) => site.stage.pairs[m]));
    return {
      name: `plan-${PLANS.budgets[budget].count}`,
      columns: [
        "site", "stage", "action", "damage", "standard error", "compared with", ...measures,
        ...(stable ? ["kept in resamples"] : []),
      ],
      rows: SITES.map((site) => {
        const entry = entries[site.x];
        return [
          site.name, site.stage.name, entry.action, entry.damage?.mean ?? null,
          entry.damage?.se ?? null, entry.reference, ...measures.map((m) => entry[m]?.mean ?? null),
          ...(stable ? [stable[site.name]] : []),
        ];
      }),
    };
  },
};

/** A figure of the plans over the budget, with the chosen one marked. */
function budgetPicture(value, error, label, words, scale) {
  const points = PLANS.budgets
    .map((plan, index) => ({ index, count: plan.count, value: value(plan), error: error(plan) }))
    .filter((point) => point.value !== null && point.value !== undefined);
  const reach = (p) => ends(p.value, p.error);
  return {
    draw: (width) => {
      const drawn = plotOf(width, {
        height: 240, marginLeft: 56, marginBottom: 40,
        x: { label: "retrievals skipped", tickFormat: "d", domain: [0, d3.max(points, (p) => p.count) || 1],
          ticks: d3.ticks(0, d3.max(points, (p) => p.count) || 1, 12).filter(Number.isInteger) },
        y: { label, ...scale(points.flatMap(reach)) },
        marks: [
          Plot.ruleY([0]),
          Plot.areaY(points, { x: "count", y1: (p) => reach(p)[0], y2: (p) => reach(p)[1], fill: BLUE, fillOpacity: 0.25 }),
          Plot.lineY(points, { x: "count", y: "value", stroke: BLUE, strokeWidth: 2 }),
          Plot.dot(points.filter((p) => p.index === budget), { x: "count", y: "value", fill: ORANGE, r: 6 }),
          Plot.tip(points, Plot.pointerX({
            x: "count", y: "value",
            title: (p) => `skip ${p.count}\n${readable(p.value)}${p.error === null ? "" : ` ± ${readable(2 * p.error, 2)}`}`,
          })),
        ],
      });
      drawn.addEventListener("click", () => drawn.value && chooseBudget(drawn.value.index));
      return drawn;
    },
    says: () => {
      const now = points.find((p) => p.index === budget);
      return `${words} for 0 to ${points[points.length - 1].count} skipped retrievals; ${readable(now?.value)} for ${now?.count}.`;
    },
    table: () => ({
      columns: ["skipped", label, "standard error"],
      rows: points.map((p) => [p.count, p.value, p.error]),
    }),
  };
}

PICTURES.budgets = budgetPicture(
  (plan) => lossOf(plan)[0], (plan) => lossOf(plan)[1],
  PLANS.budgets[0].origin.predicted_loss ? "change of the loss [nats]" : "divergence charged [nats]",
  "Predicted cost of the plan", (values) => symlog(values, DATA.smallLoss),
);
PICTURES.times = budgetPicture(
  (plan) => plan.origin.predicted_ratio,
  (plan) => (plan.origin.predicted_ratio === null ? null : (DATA.timeError * plan.origin.predicted_ratio) / 2),
  "share of the unpruned step's time", "Predicted time", () => ({ zero: true }),
);
