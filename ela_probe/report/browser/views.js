// The pictures that look closer at neighbours: by head, by class, and the most unusual samples.
"use strict";

/** Rows (heads or classes) by sites: the kl of every site from the one before it. */
function closerLook(stage, rows, names, what) {
  const cells = rows.flatMap((row, r) =>
    row.map((kl, t) => ({ row: names[r], kl, site: t + 1, name: `${what} ${names[r]}, ${stage.sites[t + 1]}` })),
  );
  const sites = d3.range(1, stage.sites.length);
  const longest = Math.max(...names.map((name) => name.length));
  return {
    draw(width) {
      const rotate = Math.max(...stage.labels.map((label) => label.length)) > 4;
      const step = Math.ceil(sites.length / Math.max(2, Math.floor(width / 40)));
      return plotOf(width, {
        height: 110 + Math.min(700, Math.max(16, 120 / names.length) * names.length),
        marginLeft: 40 + 7 * Math.min(longest, 20), marginBottom: rotate ? 80 : 40,
        x: { domain: sites }, y: { domain: names },
        color: {
          ...symlog(cells.map((c) => c.kl), DATA.near, 11), scheme: "viridis", reverse: true, legend: true,
          width: Math.min(width, 420), label: "kl [nats]",
        },
        marks: [
          Plot.axisX(sites.filter((_, k) => k % step === 0), {
            label: "site", tickSize: 0, tickFormat: (t) => stage.labels[t], tickRotate: rotate ? -60 : 0,
          }),
          Plot.axisY(names, { label: what, tickSize: 0, tickFormat: (name) => name.slice(0, 20) }),
          Plot.cell(cells, { x: "site", y: "row", fill: "kl", shapeRendering: "crispEdges" }),
          Plot.tip(cells, Plot.pointer({
            x: "site", y: "row", maxRadius: 30, title: (c) => `${c.name}\nkl ${readable(c.kl)} nats`,
          })),
        ],
      });
    },
    says: () => `Divergence of neighbours in ${stage.name}, by ${what}: ${extremes(cells, (c) => c.kl, "nats")}`,
    table: () => ({
      columns: [what, ...stage.sites.slice(1)],
      rows: rows.map((row, r) => [names[r], ...row]),
    }),
  };
}

/** A bar for each of the most unusual samples, from the mean of all to its own, with its image. */
function unusualSamples(stage) {
  const { mean, samples } = stage.unusual;
  const label = (s) => `sample ${s.position}${s.words ? `: ${s.words}` : ""}`;
  const points = samples.map((s) => ({ ...s, name: label(s) }));
  const reach = 1.1 * Math.max(1e-9, 0.01 * mean, ...points.map((p) => Math.abs(p.kl - mean)));
  const pictured = points.some((p) => p.image);
  return {
    draw: (width) =>
      plotOf(Math.min(width, 700), {
        height: 80 + (pictured ? 44 : 26) * points.length, marginLeft: pictured ? 270 : 220, marginBottom: 50,
        x: {
          domain: [mean - reach, mean + reach], ticks: 5,
          label: "mean kl of neighbours [nats]; line: all samples", labelAnchor: "center", labelOffset: 38,
        },
        y: { domain: points.map((p) => p.name), label: null, axis: null },
        marks: [
          Plot.axisY(points.map((p) => p.name), {
            tickSize: 0, label: null, dx: pictured ? -44 : 0,
            tickFormat: (name) => (name.length > 32 ? `${name.slice(0, 31)}…` : name),
          }),
          Plot.barX(points, { x1: mean, x2: "kl", y: "name", fill: BLUE, insetTop: 6, insetBottom: 6 }),
          Plot.ruleX([mean]),
          Plot.image(points.filter((p) => p.image), {
            y: "name", src: "image", frameAnchor: "left", dx: -26, width: 38, height: 38, imageRendering: "pixelated",
          }),
          Plot.tip(points, Plot.pointer({
            x: "kl", y: "name", title: (p) => `${p.name}\n${readable(p.kl)} nats; all samples ${readable(mean)}`,
          })),
        ],
      }),
    says: () => `The samples of ${stage.name} farthest from the mean of ${readable(mean)} nats: ${extremes(points, (p) => p.kl, "nats")}`,
    table: () => ({
      columns: ["sample", "what it shows", "mean kl", "from the mean of all"],
      rows: points.map((p) => [p.position, p.words, p.kl, p.kl - mean]),
    }),
  };
}

DATA.analyses[0].stages.forEach((stage, s) => {
  if (stage.heads.length) {
    PICTURES[`heads-${s}`] = closerLook(stage, stage.heads, stage.heads.map((_, h) => String(h)), "head");
  }
  if (stage.classes.kl.length) {
    PICTURES[`classes-${s}`] = closerLook(stage, stage.classes.kl, stage.classes.names, "class");
  }
  if (stage.unusual) PICTURES[`samples-${s}`] = unusualSamples(stage);
});
