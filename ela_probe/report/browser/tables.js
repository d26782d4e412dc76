// Tables: sorted by a click on a heading, filtered, saved as CSV and JSON.
// The exact number of a cell is in its `data-value`; other cells are text.
"use strict";

const MISSING = "–";
const SHOWN = 100; // rows of a long table that are shown at first

/** A number with four significant digits, as the Python side writes it. */
function readable(value, digits = 4) {
  if (value === null || value === undefined) return MISSING;
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  const size = Math.abs(Number(value.toPrecision(digits)));
  if (size >= 10 ** (digits - 1)) return Math.round(value).toLocaleString("en-US");
  if (size >= 1e-3) return String(Number(value.toPrecision(digits)));
  return value.toExponential(digits - 1).replace(/\.?0+e/, "e");
}

/** An element with attributes and children; text is never read as markup. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** A table of values: rows are lists, one value for each column; the first one names the row. */
function tableOf({ name, caption, columns, rows }) {
  const texts = columns.map((_, c) => rows.some((row) => typeof row[c] === "string"));
  const cell = (value, c) =>
    element(
      c === 0 ? "th" : "td",
      {
        scope: c === 0 ? "row" : null,
        class: texts[c] ? "text" : null,
        "data-value": typeof value === "number" ? value : null,
      },
      typeof value === "string" ? value : readable(value),
    );
  const line = (row) => element("tr", {}, ...row.map(cell));
  const body = element("tbody", {}, ...rows.slice(0, SHOWN).map(line));
  const box = element(
    "div",
    { class: "table", "data-name": name },
    element(
      "table",
      {},
      element("caption", {}, caption),
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          ...columns.map((heading, c) =>
            element("th", { scope: "col", class: texts[c] ? "text" : null }, heading),
          ),
        ),
      ),
      body,
    ),
  );
  const rest = rows.slice(SHOWN);
  activate(box, {
    all: rest.length ? { columns, rows } : null,
    addRest: () => body.append(...rest.splice(0).map(line)),
  });
  return box;
}

/** Give a table its buttons. `all`: its values, where not every row is shown yet. */
function activate(box, { all = null, addRest = () => {} } = {}) {
  const table = box.querySelector("table");
  const caption = table.caption.textContent;
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const names = headings.map((heading) => heading.textContent.trim());
  const scroll = element("div", {
    class: "scroll", tabindex: "0", role: "region", "aria-label": caption,
  });
  const status = element("span", { class: "muted", "aria-live": "polite" });
  const count = () => {
    const shown = [...body.rows].filter((row) => !row.hidden).length;
    const total = all && !whole ? all.rows.length : body.rows.length;
    status.textContent = shown === total ? `${total} rows` : `${shown} of ${total} rows`;
  };
  let whole = all === null;
  const showAll = () => {
    if (!whole) addRest();
    whole = true;
    more.hidden = true;
    count();
  };
  const more = element("button", { type: "button", onclick: showAll }, "Show all rows");
  more.hidden = whole;
  const filter = element("input", {
    type: "search",
    placeholder: "text, or kl < 0.05",
    "aria-label": `Filter the rows: ${caption}`,
    oninput: () => {
      showAll();
      const accepts = condition(filter.value, names);
      for (const row of body.rows) row.hidden = !accepts(row);
      count();
    },
  });
  const values = () =>
    all ? all.rows : [...body.rows].map((row) => [...row.cells].map(cellValue));
  const save = (kind, make, type) =>
    element(
      "button",
      {
        type: "button",
        onclick: () => saveFile(`${box.dataset.name}.${kind}`, make(names, values()), type),
      },
      `Save ${kind.toUpperCase()}`,
    );
  headings.forEach((heading, c) => {
    heading.setAttribute("aria-sort", "none");
    heading.textContent = "";
    const sort = () => {
      showAll();
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...[...body.rows].sort((a, b) => compared(a.cells[c], b.cells[c], down)));
    };
    heading.append(element("button", { type: "button", onclick: sort }, names[c]));
  });
  table.replaceWith(scroll);
  scroll.append(table);
  scroll.before(
    element(
      "div", { class: "tools" }, filter, save("csv", csvText, "text/csv"),
      save("json", jsonText, "application/json"), more, status,
    ),
  );
  count();
}

/** What a filter accepts: `column < number`, or else a row with the text anywhere. */
function condition(text, names) {
  const found = /^\s*(.+?)\s*(<=|>=|<|>|=)\s*(-?[\d.]+(?:e-?\d+)?)\s*$/i.exec(text);
  const column = found ? names.indexOf(found[1]) : -1;
  if (column >= 0) {
    const limit = Number(found[3]);
    const holds = {
      "<": (x) => x < limit, ">": (x) => x > limit, "<=": (x) => x <= limit,
      ">=": (x) => x >= limit, "=": (x) => x === limit,
    }[found[2]];
    return (row) => "value" in row.cells[column].dataset && holds(cellValue(row.cells[column]));
  }
  const wanted = text.trim().toLowerCase();
  return (row) => row.textContent.toLowerCase().includes(wanted);
}

function cellValue(cell) {
  if ("value" in cell.dataset) return Number(cell.dataset.value);
  return cell.textContent === MISSING ? null : cell.textContent;
}

/** The order of two cells: numbers by size, text by letters, missing values last. */
function compared(first, second, down) {
  const [a, b] = [cellValue(first), cellValue(second)];
  if (a === null || b === null) return (a === null) - (b === null);
  const order =
    typeof a === "number" && typeof b === "number"
      ? a - b
      : String(a).localeCompare(String(b), "en", { numeric: true });
  return down ? -order : order;
}

/** Comma-separated values. Text that a spreadsheet would run as a formula is marked as text. */
function csvText(names, rows) {
  const quoted = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const harmless = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\r\n]/.test(harmless) ? `"${harmless.replaceAll('"', '""')}"` : harmless;
  };
  return [names, ...rows].map((row) => `${row.map(quoted).join(",")}\r\n`).join("");
}

function jsonText(names, rows) {
  const objects = rows.map((row) => Object.fromEntries(names.map((name, c) => [name, row[c]])));
  return `${JSON.stringify(objects, null, 2)}\n`;
}

/** Have the browser save a text as a file. */
function saveFile(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = element("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
