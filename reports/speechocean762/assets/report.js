// Folding and sorting. Every page reads well without it.
"use strict";

function startFolding() {
  const button = document.querySelector("button.fold");
  const cells = document.querySelectorAll("details.code");
  if (!button || !cells.length) return;
  button.hidden = false;
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-pressed") !== "true";
    cells.forEach((cell) => { cell.open = open; });
    button.setAttribute("aria-pressed", String(open));
    button.textContent = open ? "Close all code" : "Open all code";
  });
}

// A cell's value for sorting: the number that it begins with, else its text; nothing at all is null and sorts last.
function valueOf(row, column) {
  const text = row.cells[column]?.textContent.trim() ?? "";
  if (text === "" || text === "–") return null;
  const number = /^[-+−]?[\d,]*\.?\d/.test(text) ? parseFloat(text.replace(/,/g, "").replace("−", "-")) : NaN;
  return Number.isNaN(number) ? text : number;
}

function compareValues(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortTable(table, column, descending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return (descending ? -1 : 1) * compareValues(a, b);
  });
  body.append(...rows.map(([, row]) => row));
  [...table.tHead.rows[0].cells].forEach((head, nth) => {
    if (nth === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
}

function startSorting() {
  document.querySelectorAll(".result table").forEach((table) => {
    if (table.tHead?.rows.length !== 1 || !(table.tBodies[0]?.rows.length > 1)) return;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const numeric = typeof valueOf(table.tBodies[0].rows[0], column) === "number";
        sortTable(table, column, before ? before === "ascending" : numeric);
      });
    });
  });
}

// On a phone the row of pages is wider than the screen: bring the present one into it.
function showPlace() {
  const here = document.querySelector("nav.sub [aria-current]");
  if (here) here.closest("ul").scrollLeft = here.offsetLeft - 16;
}

startFolding();
startSorting();
showPlace();
