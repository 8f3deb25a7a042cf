// Theme, folding, sorting and the choice of runs. Every page reads well without it.
"use strict";

const root = document.documentElement;

function isDark() {
  const chosen = root.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function labelTheme(button) {
  const other = isDark() ? "light" : "dark";
  button.setAttribute("aria-label", `Change to the ${other} theme`);
  button.querySelector(".word").textContent = other === "dark" ? "Dark" : "Light";
}

function startTheme() {
  const button = document.querySelector("button.theme");
  labelTheme(button);
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("theme", root.dataset.theme);
    } catch (error) {
      // A page opened from disk may have no storage; the choice then holds for this page alone.
    }
    labelTheme(button);
  });
}

function startFolding() {
  const contents = document.querySelector(".toc details");
  if (contents && matchMedia("(min-width: 68rem)").matches) contents.open = true;
  const button = document.querySelector("button.fold");
  if (!button) return;
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-pressed") !== "true";
    document.querySelectorAll("details.code").forEach((cell) => { cell.open = open; });
    button.setAttribute("aria-pressed", String(open));
    button.textContent = open ? "Close all code" : "Open all code";
  });
}

// A cell's value for sorting: its exact number where it has one, else its text; nothing at all sorts last.
function valueOf(row, column) {
  const cell = row.cells[column];
  if (!cell) return null;
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  const text = cell.textContent.trim();
  return text === "" || text === "–" ? null : text;
}

function compareValues(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

// A box that holds more than it shows gets a frame, so that one sees where to scroll.
function frameBoxes() {
  document.querySelectorAll(".table-box").forEach((box) => {
    const more = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
    box.classList.toggle("scrolls", more);
  });
}

function sortTable(table, column, descending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
  rows.sort(([a], [b]) => (a === null || b === null ? compareValues(a, b) : (descending ? -1 : 1) * compareValues(a, b)));
  body.append(...rows.map(([, row]) => row));
  [...table.tHead.rows[0].cells].forEach((head, nth) => {
    if (nth === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
}

function startSorting() {
  document.querySelectorAll("table.table").forEach((table) => {
    if (!table.tHead || table.tHead.rows.length !== 1 || !table.tBodies[0] || table.tBodies[0].rows.length < 2) return;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      if (head.querySelector("a") || !head.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const numeric = head.classList.contains("number");
        const before = head.getAttribute("aria-sort");
        sortTable(table, column, before ? before === "ascending" : numeric);
      });
    });
  });
}

// Show the chosen runs' columns, the pairs among them, and the parameters on which they disagree.
function showRuns(boxes) {
  const chosen = new Set([...boxes].filter((box) => box.checked).map((box) => box.value));
  document.querySelectorAll("[data-run]").forEach((cell) => { cell.hidden = !chosen.has(cell.dataset.run); });
  document.querySelectorAll("[data-pair]").forEach((row) => {
    row.hidden = !row.dataset.pair.split(" ").every((name) => chosen.has(name));
  });
  document.querySelectorAll("table.differ tbody tr").forEach((row) => {
    const values = [...row.querySelectorAll("td")].filter((cell) => !cell.hidden).map((cell) => cell.textContent);
    row.hidden = new Set(values).size < 2;
  });
}

function startChoice() {
  const boxes = document.querySelectorAll('.choose input[type="checkbox"]');
  if (!boxes.length) return;
  boxes.forEach((box) => box.addEventListener("change", () => showRuns(boxes)));
  showRuns(boxes);
}

// On a phone the row of pages is wider than the screen: bring the present one into it.
function showPlace() {
  const here = document.querySelector("nav.sub [aria-current]");
  if (here) here.closest("ul").scrollLeft = here.offsetLeft - 16;
}

startTheme();
showPlace();
startFolding();
startSorting();
startChoice();
frameBoxes();
addEventListener("resize", frameBoxes);
