// What changed between two analyses, and over the epochs of the training run.
"use strict";

/** Arrows along depth from the first to the second analysis. */
function changePicture(figure, constant, words) {
  return {
    points: (DATA.changes ?? []).flatMap((change) => {
      const [first, second, reach] = change[figure];
      const site = AT.get(change.site);
      return first === null || second === null ? [] : [{ ...site, first, second, reach }];
    }),
    draw(width) {
      const depth = alongDepth(SITES, width);
      const clear = (p) => p.reach !== null && Math.abs(p.second - p.first) > p.reach;
      return plotOf(width, {
        ...depth.frame, height: 300, x: depth.axis,
        y: { ...symlog(this.points.flatMap((p) => [p.first, p.second]), constant), label: `${figure} [nats]` },
        marks: [
          ...depth.marks, Plot.ruleY([0]),
          Plot.arrow(this.points, {
            x1: "x", x2: "x", y1: "first", y2: "second", headLength: 6,
            stroke: (p) => (p.second > p.first ? ORANGE : BLUE), strokeWidth: 2,
            strokeOpacity: (p) => (clear(p) ? 1 : 0.35),
          }),
          Plot.dot(this.points, { x: "x", y: "first", r: 2.5, fill: "currentColor" }),
          Plot.tip(this.points, Plot.pointerX({
            x: "x", y: "second",
            title: (p) => `${p.name}\n${readable(p.first)} → ${readable(p.second)}\n± ${readable(p.reach, 2)}`,
          })),
        ],
      });
    },
    says() {
      const rose = this.points.filter((p) => p.second > p.first).length;
      return `${words}: larger in the second analysis at ${rose} of ${this.points.length} retrievals.`;
    },
    table() {
      return {
        columns: ["site", "first", "second", "two standard errors"],
        rows: this.points.map((p) => [p.name, p.first, p.second, p.reach]),
      };
    },
  };
}

PICTURES["changed-kl"] = changePicture("kl", DATA.near, "Divergence from the one before");
PICTURES["changed-damage"] = changePicture("damage", DATA.smallLoss, "Damage");

/** Lines over the epochs of the training run. */
function historyPicture(columns, label) {
  const rows = DATA.history ?? [];
  const known = columns.filter((column) => rows.some((row) => row[column] != null));
  const points = known.flatMap((column) =>
    rows.map((row) => ({ epoch: row.epoch, value: row[column] ?? null, column })),
  ).filter((point) => point.value !== null);
  return {
    draw: (width) =>
      plotOf(width, {
        height: 240, marginLeft: 56, marginBottom: 40,
        x: { label: "epoch", tickFormat: "d", ticks: Math.min(rows.length, 12) }, y: { label, grid: true },
        color: { domain: known, range: [BLUE, ORANGE], legend: known.length > 1 },
        marks: [
          Plot.lineY(points, { x: "epoch", y: "value", stroke: "column", marker: points.length < 80 }),
          Plot.tip(points, Plot.pointer({
            x: "epoch", y: "value", title: (p) => `epoch ${p.epoch}\n${p.column} ${readable(p.value)}`,
          })),
        ],
      }),
    says() {
      const last = known.map((c) => [c, rows.map((row) => row[c]).findLast((v) => v != null)]);
      return `${label} over ${rows.length} epochs; at the end ${last.map(([c, v]) => `${c} is ${readable(v)}`).join(", ")}.`;
    },
    table: () => ({
      columns: ["epoch", ...known],
      rows: rows.map((row) => [row.epoch, ...known.map((c) => row[c] ?? null)]),
    }),
  };
}

/** A figure of every site after every epoch of a run with ELA. */
function siteHistory(figure, constant) {
  const points = (DATA.siteHistory ?? []).map((p) => ({ ...p, value: p[figure] ?? null, name: p.site }));
  const sites = [...new Set(points.map((p) => p.site))];
  const label = (name) => {
    const site = AT.get(name);
    return site ? `${site.stage.name.slice(-8)} ${site.label}` : name.slice(-14);
  };
  return {
    draw: (width) =>
      plotOf(width, {
        height: 70 + Math.max(150, Math.min(700, 16 * sites.length)), marginLeft: 90, marginBottom: 40,
        x: { label: "epoch", tickSize: 0 }, y: { domain: sites, label: null, axis: null },
        color: {
          ...symlog(points.map((p) => p.value), constant, 11), scheme: "viridis", reverse: true, legend: true,
          width: Math.min(width, 420), label: `${figure} [nats]`,
        },
        marks: [
          Plot.axisY(sites.filter((_, k) => k % Math.ceil(sites.length / 40) === 0), { tickFormat: label, tickSize: 0, label: null }),
          Plot.cell(points.filter((p) => p.value !== null), { x: "epoch", y: "site", fill: "value" }),
          Plot.dot(points.filter((p) => p.action !== "keep"), {
            x: "epoch", y: "site", r: 4, fill: (p) => COLOURS[p.action], stroke: "white", strokeWidth: 1.5,
          }),
          Plot.tip(points, Plot.pointer({
            x: "epoch", y: "site",
            title: (p) => `${p.site}, epoch ${p.epoch}\n${p.action}; ${figure} ${readable(p.value)}`,
          })),
        ],
      }),
    says: () => {
      const last = d3.max(points, (p) => p.epoch);
      const removed = points.filter((p) => p.epoch === last && p.action !== "keep").length;
      return `${figure} of ${sites.length} sites over the epochs; after epoch ${last} ${removed} are removed. ${extremes(points, (p) => p.value, "nats")}`;
    },
    table: () => ({
      columns: ["site", "epoch", "action", figure],
      rows: points.map((p) => [p.site, p.epoch, p.action, p.value]),
    }),
  };
}

PICTURES["history-kl"] = siteHistory("kl", DATA.near);
PICTURES["history-damage"] = siteHistory("damage", DATA.smallLoss);

PICTURES["history-loss"] = historyPicture(["train_loss", "val_loss"], "loss [nats]");
PICTURES["history-accuracy"] = historyPicture(["train_accuracy", "val_accuracy", "val_ap"], "accuracy or AP");
PICTURES["history-skipped"] = historyPicture(["skipped"], "share skipped");
