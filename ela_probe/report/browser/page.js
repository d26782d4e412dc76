// The page: it draws each picture with its tools and its table, and answers what the reader does.
"use strict";

const byId = (id) => document.getElementById(id);
const redrawn = new Map(); // by name of a picture, a function that draws it again
const filled = []; // functions that make the table of a picture

/** Draw a picture into its figure, with a table that is made when it is opened. */
function show(figure) {
  const name = figure.dataset.picture;
  const picture = PICTURES[name];
  const place = figure.querySelector(".drawing");
  const caption = figure.querySelector("figcaption").textContent;
  const details = element("details", {}, element("summary", {}, "Numbers of this picture"));
  let fresh = false; // whether the table shows the numbers of the picture
  const fill = () => {
    if (fresh) return;
    details.querySelector(".table")?.remove();
    details.append(tableOf({ name, caption, ...picture.table() }));
    fresh = true;
  };
  filled.push(fill);
  details.addEventListener("toggle", () => details.open && fill());
  const drawn = (width) => {
    const made = picture.draw(width);
    const svg = made.tagName === "svg" ? made : d3.select(made).selectChild("svg").node();
    svg?.setAttribute("role", "img");
    svg?.setAttribute("aria-label", picture.says());
    return made;
  };
  const enlarge = () => {
    const dialog = byId("enlarged");
    dialog.lastElementChild.className = "drawing";
    dialog.lastElementChild.replaceChildren(drawn(window.innerWidth * 0.9));
    dialog.showModal();
  };
  const svgOf = () => d3.select(place).selectAll("svg").nodes().at(-1);
  const saveSvg = () => {
    const copy = svgOf().cloneNode(true);
    copy.style.color = "black";
    copy.style.background = "white";
    saveFile(`${name}.svg`, new XMLSerializer().serializeToString(copy), "image/svg+xml");
  };
  figure.append(
    element(
      "div", { class: "tools" },
      element("button", { type: "button", onclick: enlarge, "aria-label": `Enlarge: ${caption}` }, "Enlarge"),
      element("button", { type: "button", onclick: saveSvg, "aria-label": `Save as SVG: ${caption}` }, "Save SVG"),
    ),
    details,
  );
  redrawn.set(name, () => {
    place.replaceChildren(drawn(Math.min(FULL, figure.clientWidth || FULL)));
    if (picture.note) place.append(element("p", { class: "muted" }, picture.note));
    fresh = false;
    if (details.open) fill();
  });
}

const waiting = new Set(); // names of pictures that are not drawn yet

/** Draw pictures again, of these names or all; those that still wait are drawn in their turn. */
function redraw(...names) {
  for (const [name, draw] of redrawn) {
    if (!waiting.has(name) && (!names.length || names.includes(name))) draw();
  }
}

function drawWaiting(name) {
  if (waiting.delete(name)) redraw(name);
  if (!waiting.size) document.documentElement.dataset.ready = "";
}

/** Draw what the reader sees at once, and the rest one by one as long as nothing else is to do. */
function drawInTurn() {
  for (const name of redrawn.keys()) waiting.add(name);
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) drawWaiting(entry.target.dataset.picture);
    }
  }, { rootMargin: "300px" });
  for (const figure of document.querySelectorAll("[data-picture]")) seen.observe(figure);
  const next = () => {
    const [name] = waiting;
    if (name === undefined) return;
    drawWaiting(name);
    setTimeout(next);
  };
  window.addEventListener("load", () => setTimeout(next));
}

/** Choose a stage, a measure or a pair; what does not exist is brought into range. */
function choose(change) {
  Object.assign(CHOICE, change);
  const stages = DATA.analyses[CHOICE.analysis].stages;
  CHOICE.stage = Math.min(CHOICE.stage, stages.length - 1);
  const count = chosenStage().sites.length;
  if ("later" in change) CHOICE.earlier = Math.min(CHOICE.earlier, CHOICE.later - 1);
  CHOICE.earlier = Math.max(0, Math.min(CHOICE.earlier, count - 2));
  CHOICE.later = Math.min(Math.max(CHOICE.later, CHOICE.earlier + 1), count - 1);
  const measures = chosenStage().measures;
  if (!measures.includes(CHOICE.measure)) CHOICE.measure = measures[0];
  options("measure", measures, measures.indexOf(CHOICE.measure));
  options("stage", stages.map((stage) => stage.name), CHOICE.stage);
  options("earlier", chosenStage().sites, CHOICE.earlier);
  options("later", chosenStage().sites, CHOICE.later);
  const pair = pairsOf(chosenStage()).find((p) => p.i === CHOICE.earlier && p.j === CHOICE.later);
  const distinct = chosenStage().distinct;
  byId("pair-words").textContent = pair
    ? `${pair.earlier} → ${pair.later}: ${pairWords(pair)}.` +
      (distinct === null ? "" : ` The stage has about ${readable(distinct, 2)} distinct retrievals of ${count} (Vendi score).`)
    : "This stage has one retrieval only; there is nothing to compare.";
  redraw("pairs", "weights");
}

function options(id, names, chosen) {
  byId(id).replaceChildren(
    ...names.map((name, value) => {
      const option = element("option", { value }, name);
      option.selected = value === chosen;
      return option;
    }),
  );
}

function chooseBudget(index) {
  budget = index;
  byId("budget").value = index;
  byId("budget").setAttribute("aria-valuetext", budgetWords());
  byId("budget-words").textContent = budgetWords();
  redraw("plan", "budgets", "times");
}

/** The table of contents, from the headings. */
function listContents() {
  for (const heading of document.querySelectorAll("main h2")) {
    const link = element("a", { href: `#${heading.parentElement.id}` }, heading.textContent);
    byId("contents").append(element("li", {}, link));
  }
}

function chooseTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const update = () => {
    byId("theme").textContent = isDark() ? "Light" : "Dark";
    byId("theme").setAttribute("aria-label", isDark() ? "Light colours" : "Dark colours");
    byId("theme").setAttribute("aria-pressed", String(isDark()));
  };
  byId("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    update();
  });
  system.addEventListener("change", update);
  update();
}

/** On paper everything is drawn and open, and every stage has its heatmap. */
function printWhole() {
  for (const name of [...waiting]) drawWaiting(name);
  for (const fill of filled) fill();
  for (const details of document.querySelectorAll("details")) {
    if (!details.open) details.dataset.closed = "";
    details.open = true;
  }
  const others = DATA.analyses.flatMap((analysis, a) =>
    analysis.stages.filter(
      (stage, s) => stage.sites.length > 1 && (a !== CHOICE.analysis || s !== CHOICE.stage),
    ).map((stage) => ({ analysis, stage })),
  );
  byId("printed-pairs").className = "drawing two";
  byId("printed-pairs").replaceChildren(
    ...others.map(({ analysis, stage }) => {
      const measure = stage.measures.includes(CHOICE.measure) ? CHOICE.measure : stage.measures[0];
      const made = heatmap(stage, measure, 480);
      const name = DATA.analyses.length > 1 ? `${analysis.label}: ${stage.name}` : stage.name;
      return element("figure", {}, made, element("figcaption", {}, `${name}: ${measure} of every pair`));
    }),
  );
}

function afterPrinting() {
  byId("printed-pairs").replaceChildren();
  for (const details of document.querySelectorAll("details[data-closed]")) {
    details.open = false;
    delete details.dataset.closed;
  }
}

chooseTheme();
listContents();
for (const box of document.querySelectorAll(".table")) activate(box);
for (const figure of document.querySelectorAll("[data-picture]")) show(figure);
options("which", DATA.analyses.map((analysis) => analysis.label), 0);
byId("which-label").hidden = DATA.analyses.length < 2;
byId("which").addEventListener("change", (event) => choose({ analysis: Number(event.target.value) }));
byId("stage").addEventListener("change", (event) => choose({ stage: Number(event.target.value) }));
byId("measure").addEventListener("change", (event) => choose({ measure: chosenStage().measures[event.target.value] }));
byId("earlier").addEventListener("change", (event) => choose({ earlier: Number(event.target.value) }));
byId("later").addEventListener("change", (event) => choose({ later: Number(event.target.value) }));
byId("budget").max = PLANS.budgets.length - 1;
byId("budget").addEventListener("input", (event) => chooseBudget(Number(event.target.value)));
byId("save-plan").addEventListener("click", () => {
  const text = `${JSON.stringify(planDocument(budget), null, 2)}\n`;
  saveFile(`plan-${PLANS.budgets[budget].count}.json`, text, "application/json");
});
drawInTurn();
choose({});
chooseBudget(budget);

let width = window.innerWidth;
window.addEventListener("resize", () => {
  if (Math.abs(window.innerWidth - width) < 8) return;
  width = window.innerWidth;
  redraw();
});
window.addEventListener("beforeprint", printWhole);
window.addEventListener("afterprint", afterPrinting);
matchMedia("print").addEventListener("change", (event) => (event.matches ? printWhole() : afterPrinting()));
