// The pictures of pairs and of fits. `CHOICE` is what the reader has selected.
"use strict";

const CHOICE = { analysis: 0, stage: 0, measure: "kl", earlier: 0, later: 1 };

const chosenStage = () => DATA.analyses[CHOICE.analysis].stages[CHOICE.stage];

function pairsOf(stage) {
  return stage.sites.flatMap((_, j) =>
    d3.range(j).map((i) => {
      const place = pairIndex(i, j);
      const numbers = Object.fromEntries(
        Object.entries(stage.pairs).map(([name, values]) => [name, values[place]]),
      );
      return { i, j, earlier: stage.sites[i], later: stage.sites[j], ...numbers };
    }),
  );
}

const pairWords = (p) =>
  p.kl === undefined
    ? `l2 ${readable(p.l2)} ± ${readable(2 * p.l2_se, 2)} of mixed values; 1 − cosine ${readable(p.cosine)}`
    : `kl ${readable(p.kl)} ± ${readable(2 * p.kl_se, 2)} nats: shape ${readable(p.shape)}, ` +
  `mass ${readable(p.mass)}; js ${readable(p.js)}`;

/** The heatmap of a stage. Its scale is the same for all stages. */
function heatmap(stage, measure, width, mark = null) {
  const size = Math.min(width, 640);
  const count = stage.sites.length;
  const step = Math.ceil(count / Math.max(2, Math.floor(size / 36)));
  const [columns, lines] = [d3.range(1, count), d3.range(count - 1)];
  const long = Math.max(...stage.labels.map((label) => label.length)) > 4;
  const everywhere = DATA.analyses.flatMap((a) => a.stages.flatMap((s) => s.pairs[measure] ?? []));
  const scale = symlog(everywhere, nearOf(measure), 11);
  const points = pairsOf(stage);
  const axis = { tickFormat: (t) => stage.labels[t], tickSize: 0, padding: 0 };
  const labelled = (sites) => sites.filter((t) => (t - sites[0]) % step === 0);
  const margin = long ? 90 : 44;
  return plotOf(size, {
    height: size, marginLeft: margin, marginBottom: margin, marginTop: 10,
    x: { ...axis, domain: columns }, y: { ...axis, domain: lines },
    color: { ...scale, scheme: "viridis", reverse: true, legend: true, width: Math.min(size, 420), label: withUnit(measure) },
    marks: [
      Plot.axisX(labelled(columns), {
        label: "later site", labelAnchor: "center", labelOffset: margin - 4, tickSize: 0, tickRotate: long ? -60 : 0,
      }),
      Plot.axisY(labelled(lines), {
        label: "earlier site", labelAnchor: "center", labelOffset: margin - 6, tickSize: 0,
      }),
      Plot.cell(points, { x: "j", y: "i", fill: measure, inset: count < 40 ? 0.5 : 0, shapeRendering: "crispEdges" }),
      Plot.cell(mark ? [mark] : [], {
        x: "later", y: "earlier", stroke: "#ff3b30", strokeWidth: 2.5, fill: "none",
      }),
      Plot.tip(points, Plot.pointer({
        x: "j", y: "i", maxRadius: 30,
        title: (p) => `${p.earlier}\n→ ${p.later}\n${pairWords(p).replace(/[:;] /g, "\n")}`,
      })),
    ],
  });
}

PICTURES.pairs = {
  draw(width) {
    const drawn = heatmap(chosenStage(), CHOICE.measure, width, CHOICE);
    drawn.addEventListener("click", () => {
      if (drawn.value) choose({ earlier: drawn.value.i, later: drawn.value.j });
    });
    return drawn;
  },
  says() {
    const stage = chosenStage();
    const points = pairsOf(stage).map((p) => ({ ...p, name: `${p.earlier} → ${p.later}` }));
    return `${CHOICE.measure} of the pairs of ${stage.name}: ${extremes(points, (p) => p[CHOICE.measure], unitOf(CHOICE.measure))}`;
  },
  table() {
    const stage = chosenStage();
    const near = d3.sort(pairsOf(stage), (p) => p[CHOICE.measure]);
    const [main, ...others] = stage.measures;
    return {
      name: `pairs-${stage.name}`,
      columns: ["earlier", "later", main, "standard error", ...others],
      rows: near.map((p) => [p.earlier, p.later, p[main], p[`${main}_se`], ...others.map((m) => p[m])]),
    };
  },
};

PICTURES.weights = {
  rows() {
    const stage = chosenStage();
    const [earlier, later] = [stage.weights[CHOICE.earlier] ?? [], stage.weights[CHOICE.later] ?? []];
    return d3.range(Math.max(earlier.length, later.length)).map((source) => ({
      source, earlier: earlier[source] ?? null, later: later[source] ?? null,
    }));
  },
  draw(width) {
    const rows = this.rows();
    const stage = chosenStage();
    const known = rows.flatMap((row) => [row.earlier, row.later]);
    const names = [`earlier: ${stage.labels[CHOICE.earlier]}`, `later: ${stage.labels[CHOICE.later]}`];
    const bar = (name, from, to, label) =>
      Plot.rectY(rows.filter((row) => row[name] !== null), {
        x1: (row) => row.source + from, x2: (row) => row.source + to, y: name, fill: () => label,
      });
    return plotOf(Math.min(width, 640), {
      height: 300, marginLeft: 50, marginBottom: 40,
      x: { domain: [-0.6, rows.length - 0.4], label: stage.kind === "channel" ? "channel" : "source",
        ticks: d3.ticks(0, rows.length - 1, Math.min(rows.length, 10)).filter(Number.isInteger),
        tickFormat: "d" },
      y: { label: "mean weight", domain: [Math.min(0, ...known), Math.max(1e-9, ...known)] },
      color: { domain: names, range: [BLUE, ORANGE], legend: true },
      marks: [
        bar("earlier", -0.4, 0, names[0]), bar("later", 0, 0.4, names[1]), Plot.ruleY([0]),
        Plot.tip(rows, Plot.pointerX({
          x: "source", y: (row) => Math.max(row.earlier, row.later),
          title: (row) => `source ${row.source}\nearlier ${readable(row.earlier)}\nlater ${readable(row.later)}`,
        })),
      ],
    });
  },
  says() {
    const stage = chosenStage();
    const top = (row) => (row ? d3.maxIndex(row) : "none");
    return (
      `Mean weights by source. ${stage.sites[CHOICE.earlier]} reads most from source ` +
      `${top(stage.weights[CHOICE.earlier])}, ${stage.sites[CHOICE.later] ?? "none"} from source ` +
      `${top(stage.weights[CHOICE.later])}.`
    );
  },
  table() {
    return {
      columns: ["source", "earlier", "later"],
      rows: this.rows().map((row) => [row.source, row.earlier, row.later]),
    };
  },
};

const logistic = (x) => 1 / (1 + Math.exp(-x));
/** An axis of log-odds, labelled by u; labels that would touch are left out. */
const logOddsAxis = (low, high, label, pixels) => {
  const small = [0.1, 0.01, 0.001, 1e-4, 1e-6, 1e-9, 1e-12];
  const all = [0, ...small.flatMap((u) => [Math.log(u / (1 - u)), -Math.log(u / (1 - u))])];
  const kept = [];
  for (const x of all.filter((v) => v >= low && v <= high)) {
    if (kept.every((other) => Math.abs(other - x) > (48 * (high - low)) / pixels)) kept.push(x);
  }
  const between = d3.range(1, 6).map((k) => low + (k * (high - low)) / 6);
  const text = (x) => {
    const rest = logistic(-x);
    return x > 5 ? `1−${readable(rest, 1)}` : readable(Number(logistic(x).toPrecision(3)), 3);
  };
  return { domain: [low, high], label, ticks: kept.length > 2 ? kept : between, tickFormat: text };
};

DATA.analyses[0].stages.forEach((stage, s) => {
  const fit = stage.fit;
  const fitted = fit.alpha ? `Beta(${readable(fit.alpha, 3)}, ${readable(fit.beta, 3)})` : null;
  const sentence = fitted
    ? `${fitted}, fitted to ${readable(fit.n)} values; Kolmogorov-Smirnov distance ${readable(fit.ks, 2)}.`
    : `No fit: ${fit.reason}.`;
  const [zeros, ones] = fit.ends ?? [0, 0];
  const outside = zeros || ones
    ? ` Not drawn: ${readable(100 * zeros, 2)} % at u = 0, ${readable(100 * ones, 2)} % at u = 1.`
    : "";
  PICTURES[`fit-${s}`] = {
    draw(width) {
      const bars = fit.bars ?? [];
      if (!bars.length) return element("span");
      const size = Math.min(width, 560);
      return plotOf(size, {
        height: 260, marginLeft: 50, marginBottom: 40,
        x: logOddsAxis(bars[0][0], bars[bars.length - 1][1], "u (log-odds scale)", size),
        y: { label: "share per unit of log-odds" },
        marks: [
          Plot.rectY(bars, { x1: (b) => b[0], x2: (b) => b[1], y: (b) => b[2], fill: BLUE, fillOpacity: 0.55 }),
          Plot.line(fit.curve ?? [], { stroke: ORANGE, strokeWidth: 2, clip: true }), Plot.ruleY([0]),
        ],
      });
    },
    note: sentence + outside,
    says: () => `Histogram of u of neighbours in ${stage.name}. ${sentence}`,
    table: () => ({
      columns: ["log-odds of u from", "to", "share per unit of log-odds"],
      rows: fit.bars ?? [],
    }),
  };
  PICTURES[`quantiles-${s}`] = {
    draw(width) {
      const rows = fit.quantiles ?? [];
      if (!rows.length) return element("span");
      const [low, high] = d3.extent(rows.flatMap((row) => [row[1], row[2]]));
      return plotOf(Math.min(width, 560), {
        height: 260, marginLeft: 60, marginBottom: 40,
        x: logOddsAxis(low, high, "fitted u", Math.min(width, 560)),
        y: logOddsAxis(low, high, "observed u", 480),
        marks: [
          Plot.link([0], { x1: low, y1: low, x2: high, y2: high, strokeOpacity: 0.5 }),
          Plot.dot(rows, { x: (row) => row[1], y: (row) => row[2], r: 2.5, fill: BLUE, stroke: null }),
        ],
      });
    },
    says: () => `Observed against fitted quantiles of u in ${stage.name}. ${sentence}`,
    table: () => ({
      columns: ["share below", "log-odds of u, fitted", "observed"],
      rows: fit.quantiles ?? [],
    }),
  };
});
