// Pictures: what all of them share, and those along depth, of fits, of an ablation and of a run.
// A picture is `{draw(width), says(), table()}`: an SVG, a sentence about it, and its numbers.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
// Told apart by colour-blind readers, and visible on white and on black (Okabe and Ito).
const COLOURS = {
  keep: "#0173b2", recur: "#56b4e9", skip: "#de8f05", affine: "#029e73", drop: "#cc78bc",
};
const [BLUE, ORANGE] = [COLOURS.keep, COLOURS.skip];
const SYMBOLS = { keep: "star", recur: "circle", skip: "square", affine: "triangle", drop: "diamond" };
const FULL = 1180; // the widest picture that is not enlarged
const PICTURES = {};

/** The sites of an analysis in one row, along depth. */
function sitesOf(analysis) {
  return analysis.stages.flatMap((stage, s) =>
    stage.sites.map((name, t) => ({ stage, s, t, name, label: stage.labels[t] })),
  ).map((site, x) => ({ ...site, x }));
}

const SITES = sitesOf(DATA.analyses[0]);
const AT = new Map(SITES.map((site) => [site.name, site]));

/** The place of a pair in a stage's lists: (0, 1), (0, 2), (1, 2), (0, 3), ... */
const pairIndex = (earlier, later) => (later * (later - 1)) / 2 + earlier;

/** A measure between a site and the one before it; null for the first of a stage, or without it. */
const adjacent = (site, measure) =>
  (site.t ? site.stage.pairs[measure]?.[pairIndex(site.t - 1, site.t)] : null) ?? null;

/** Below this value of a measure a retrieval nearly repeats the one before. */
const nearOf = (measure) => (["l2", "cosine"].includes(measure) ? DATA.nearValues : DATA.near);
/** The unit of a measure in words: nats of a divergence; a distance of mixed values has none. */
const unitOf = (measure) => (["l2", "cosine"].includes(measure) ? "" : "nats");
const withUnit = (measure) => (unitOf(measure) ? `${measure} [nats]` : measure);

/**
 * A scale that is linear near 0 and logarithmic above, so that no value flattens the others.
 * `room`: about how many labels its axis has room for.
 */
function symlog(values, constant, room = 14) {
  const known = values.filter((v) => v !== null && Number.isFinite(v));
  const low = Math.min(0, ...known);
  const high = Math.max(constant, ...known);
  const place = (v) => Math.sign(v) * Math.log1p(Math.abs(v) / constant);
  const apart = (place(high) - place(low)) / room;
  const powers = d3.range(-4, 5).map((k) => 10 ** k);
  const ticks = [];
  for (const v of [0, constant, ...powers, ...powers.map((p) => 5 * p), ...powers.map((p) => 2 * p)]) {
    for (const tick of [v, -v]) {
      if (tick < low || tick > high) continue;
      if (ticks.every((other) => Math.abs(place(other) - place(tick)) > apart)) ticks.push(tick);
    }
  }
  const tickFormat = (v) => String(Number(v.toPrecision(2)));
  return { type: "symlog", constant, domain: [low, high], nice: false, ticks, tickFormat };
}

/** Whiskers that stay finite: the lower and upper end of two standard errors. */
const ends = (mean, se) => [mean - 2 * (se ?? 0), mean + 2 * (se ?? 0)];

/** The options of a picture along depth: labels as there is room, a line before every stage. */
function alongDepth(sites, width) {
  const room = Math.max(2, Math.floor(width / 34));
  const step = Math.ceil(sites.length / room);
  const ticks = sites.filter((site) => site.x % step === 0).map((site) => site.x);
  const rotate = Math.max(...sites.map((site) => site.label.length)) > 4 ? -40 : 0;
  const first = sites.filter((site) => site.t === 0);
  const letters = (site, i) => {
    const next = i + 1 < first.length ? first[i + 1].x : sites.length;
    const most = Math.floor(((next - site.x) / sites.length) * (width / 7.5));
    const name = site.stage.name;
    return most < 4 ? "" : name.length <= most ? name : `…${name.slice(1 - most)}`;
  };
  return {
    axis: {
      domain: [-0.6, sites.length - 0.4], ticks, tickFormat: (x) => sites[x]?.label ?? "",
      tickRotate: rotate, label: null, tickSize: 3,
    },
    marks: [
      Plot.ruleX(first.filter((site) => site.x), { x: (site) => site.x - 0.5, strokeOpacity: 0.25 }),
      Plot.text(first, {
        x: (site) => site.x - 0.4, text: letters, frameAnchor: "top", textAnchor: "start", dy: -16,
        fill: "currentColor", fillOpacity: 0.75,
      }),
    ],
    frame: { marginTop: 44, marginLeft: 56, marginBottom: rotate ? 50 : 30 },
  };
}

const plotOf = (width, options) =>
  Plot.plot({ width, style: { background: "transparent", fontSize: "12px" }, ...options });

/** How many of how many sites, and the extreme one, in words. */
function extremes(points, value, unit) {
  const known = points.filter((point) => value(point) !== null);
  if (!known.length) return "No values.";
  const sorted = d3.sort(known, value);
  const [least, most] = [sorted[0], sorted[sorted.length - 1]];
  return (
    `${known.length} values, median ${readable(d3.median(known, value), 3)}${unit && ` ${unit}`}; ` +
    `the least is ${readable(value(least), 3)} at ${least.name}, ` +
    `the largest ${readable(value(most), 3)} at ${most.name}.`
  );
}

PICTURES.divergence = {
  points: SITES.filter((site) => site.t && site.stage.pairs.kl).map((site) => ({
    ...site, kl: adjacent(site, "kl"), se: adjacent(site, "kl_se"),
    shape: adjacent(site, "shape"), mass: adjacent(site, "mass"),
  })),
  draw(width) {
    const depth = alongDepth(SITES, width);
    const scale = symlog(this.points.map((p) => ends(p.kl, p.se)[1]), DATA.near);
    const bar = (measure, fillOpacity) =>
      Plot.rectY(this.points, {
        x1: (p) => p.x - 0.4, x2: (p) => p.x + 0.4, y1: 0, y2: measure, fill: BLUE, fillOpacity,
      });
    return plotOf(width, {
      ...depth.frame, height: 300, x: depth.axis, y: { ...scale, label: "kl [nats]" },
      marks: [
        ...depth.marks, bar("kl", 0.45), bar("shape", 1),
        Plot.ruleX(this.points, {
          x: "x", y1: (p) => Math.max(0, ends(p.kl, p.se)[0]), y2: (p) => ends(p.kl, p.se)[1],
        }),
        Plot.ruleY([0]), Plot.ruleY([DATA.near], { strokeDasharray: "4 3" }),
        Plot.tip(this.points, Plot.pointerX({
          x: "x", y: "kl",
          title: (p) =>
            `${p.name}\nkl ${readable(p.kl)} ± ${readable(2 * p.se, 2)}\n` +
            `shape ${readable(p.shape)}, mass ${readable(p.mass)}`,
        })),
      ],
    });
  },
  says() {
    const near = this.points.filter((p) => p.kl < DATA.near).length;
    return (
      `Divergence of each retrieval from the one before, along depth: ` +
      `${extremes(this.points, (p) => p.kl, "nats")} ${near} are below ${DATA.near}.`
    );
  },
  table() {
    return {
      columns: ["site", "stage", "kl", "standard error", "shape", "mass"],
      rows: this.points.map((p) => [p.name, p.stage.name, p.kl, p.se, p.shape, p.mass]),
    };
  },
};

PICTURES.distance = {
  points: SITES.filter((site) => site.t && site.stage.pairs.l2).map((site) => ({
    ...site, l2: adjacent(site, "l2"), se: adjacent(site, "l2_se"), cosine: adjacent(site, "cosine"),
  })),
  draw(width) {
    const depth = alongDepth(SITES, width);
    const scale = symlog(this.points.map((p) => ends(p.l2, p.se)[1]), DATA.nearValues);
    return plotOf(width, {
      ...depth.frame, height: 300, x: depth.axis, y: { ...scale, label: "l2 of mixed values" },
      marks: [
        ...depth.marks,
        Plot.rectY(this.points, {
          x1: (p) => p.x - 0.4, x2: (p) => p.x + 0.4, y1: 0, y2: "l2", fill: BLUE, fillOpacity: 0.45,
        }),
        Plot.ruleX(this.points, {
          x: "x", y1: (p) => Math.max(0, ends(p.l2, p.se)[0]), y2: (p) => ends(p.l2, p.se)[1],
        }),
        Plot.ruleY([0]), Plot.ruleY([DATA.nearValues], { strokeDasharray: "4 3" }),
        Plot.tip(this.points, Plot.pointerX({
          x: "x", y: "l2",
          title: (p) =>
            `${p.name}\nl2 ${readable(p.l2)} ± ${readable(2 * p.se, 2)}\n1 − cosine ${readable(p.cosine)}`,
        })),
      ],
    });
  },
  says() {
    return (
      `Distance of each site's mixed values from those before, along depth: ` +
      extremes(this.points, (p) => p.l2, "")
    );
  },
  table() {
    return {
      columns: ["site", "stage", "l2", "standard error", "1 − cosine"],
      rows: this.points.map((p) => [p.name, p.stage.name, p.l2, p.se, p.cosine]),
    };
  },
};

/** Damage of every action at every site; measured figures where there is an ablation. */
function damagePoints() {
  const measured = new Map((DATA.measured ?? []).map((m) => [`${m.action} ${m.site}`, m]));
  return SITES.flatMap((site) =>
    Object.entries(site.stage.damage).flatMap(([action, found]) => {
      if (!found[site.t]) return [];
      const [mean, se] = found[site.t];
      const seen = measured.get(`${action} ${site.name}`);
      return [{
        ...site, action, mean, se, measured: seen?.loss_change ?? null,
        measured_se: seen?.loss_change_se ?? null, ap: seen?.ap_change ?? null,
      }];
    }),
  );
}

const damageText = (p) =>
  `${p.name}\n${p.action}: ${readable(p.mean)} ± ${readable(2 * p.se, 2)} nats` +
  (p.measured === null ? "" : `\nmeasured ${readable(p.measured)} ± ${readable(2 * p.measured_se, 2)}`) +
  (p.ap === null ? "" : `\nmeasured change of AP ${readable(p.ap)}`);

/** The scales of colour and symbol for the actions of some points. */
const actionScales = (points) => {
  const domain = Object.keys(COLOURS).filter((a) => points.some((p) => p.action === a));
  return {
    color: { domain, range: domain.map((a) => COLOURS[a]) },
    symbol: { domain, range: domain.map((a) => SYMBOLS[a]), legend: true },
  };
};

PICTURES.damage = {
  points: damagePoints(),
  draw(width) {
    const depth = alongDepth(SITES, width);
    const actions = actionScales(this.points).color.domain;
    const shift = (p) => p.x + 0.22 * (actions.indexOf(p.action) - (actions.length - 1) / 2);
    const scale = symlog(
      this.points.flatMap((p) => [...ends(p.mean, p.se), p.measured]), DATA.smallLoss,
    );
    return plotOf(width, {
      ...depth.frame, height: 320, x: depth.axis, ...actionScales(this.points),
      y: { ...scale, label: "change of the loss [nats]" },
      marks: [
        ...depth.marks, Plot.ruleY([0]),
        Plot.ruleX(this.points, {
          x: shift, y1: (p) => ends(p.mean, p.se)[0], y2: (p) => ends(p.mean, p.se)[1],
          stroke: "action",
        }),
        Plot.dot(this.points, { x: shift, y: "mean", fill: "action", symbol: "action", r: 3 }),
        ...actions.map((action) =>
          Plot.dot(this.points.filter((p) => p.action === action && p.measured !== null), {
            x: shift, y: "measured", stroke: COLOURS[action], symbol: SYMBOLS[action], r: 5,
          }),
        ),
        Plot.tip(this.points, Plot.pointer({ x: shift, y: "mean", title: damageText })),
      ],
    });
  },
  says() {
    return (
      "Predicted change of the loss under each action at each retrieval, along depth: " +
      extremes(this.points, (p) => p.mean, "nats")
    );
  },
  table() {
    const detects = this.points.some((p) => p.ap !== null);
    return {
      columns: [
        "site", "stage", "action", "damage", "standard error", "measured", "its standard error",
        ...(detects ? ["change of AP"] : []),
      ],
      rows: this.points.map((p) => [
        p.name, p.stage.name, p.action, p.mean, p.se, p.measured, p.measured_se,
        ...(detects ? [p.ap] : []),
      ]),
    };
  },
};

PICTURES.scatter = {
  measure: SITES.some((site) => site.stage.pairs.kl) ? "kl" : "l2",
  get points() {
    const measured = damagePoints().filter((p) => p.t && p.stage.pairs[this.measure]);
    return measured.map((p) => ({ ...p, apart: adjacent(p, this.measure) }));
  },
  draw(width) {
    const points = this.points;
    const near = nearOf(this.measure);
    return plotOf(width, {
      height: 360, marginLeft: 56, marginBottom: 40, ...actionScales(points),
      x: { ...symlog(points.map((p) => p.apart), near), label: `from the one before, ${withUnit(this.measure)}` },
      y: { ...symlog(points.map((p) => p.mean), DATA.smallLoss), label: "damage [nats]" },
      marks: [
        Plot.ruleY([0]), Plot.ruleX([near], { strokeDasharray: "4 3" }),
        Plot.dot(points, { x: "apart", y: "mean", fill: "action", symbol: "action", r: 4 }),
        Plot.tip(points, Plot.pointer({
          x: "apart", y: "mean", title: (p) => `${damageText(p)}\n${this.measure} ${readable(p.apart)}`,
        })),
      ],
    });
  },
  says() {
    const what = this.measure === "kl" ? "divergence" : "distance of mixed values";
    return `Damage against ${what} of ${this.points.length} actions: ${extremes(this.points, (p) => p.mean, "nats")}`;
  },
  table() {
    return {
      columns: ["site", "action", this.measure, "damage"],
      rows: this.points.map((p) => [p.name, p.action, p.apart, p.mean]),
    };
  },
};

PICTURES.measured = {
  points: damagePoints().filter((p) => p.measured !== null),
  draw(width) {
    const scale = symlog(this.points.flatMap((p) => [p.mean, p.measured]), DATA.smallLoss);
    const [low, high] = scale.domain;
    return plotOf(Math.min(width, 700), {
      height: 460, marginLeft: 56, marginBottom: 40, ...actionScales(this.points),
      x: { ...scale, label: "predicted [nats]" }, y: { ...scale, label: "measured [nats]" },
      marks: [
        Plot.link([0], { x1: low, y1: low, x2: high, y2: high, strokeOpacity: 0.5 }),
        Plot.ruleX(this.points, {
          x: "mean", y1: (p) => Math.max(low, ends(p.measured, p.measured_se)[0]),
          y2: (p) => Math.min(high, ends(p.measured, p.measured_se)[1]), stroke: "action",
        }),
        Plot.dot(this.points, { x: "mean", y: "measured", fill: "action", symbol: "action", r: 4 }),
        Plot.tip(this.points, Plot.pointer({ x: "mean", y: "measured", title: damageText })),
      ],
    });
  },
  says() {
    const above = this.points.filter((p) => p.measured > p.mean).length;
    return (
      `Measured against predicted change of the loss of ${this.points.length} actions; ` +
      `measured is larger at ${above}.`
    );
  },
  table: () => PICTURES.damage.table(),
};
