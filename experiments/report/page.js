// Tables that sort, lists that filter. Without this script the page shows all it has, in its first order.
"use strict";

const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

function cellValue(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value ?? cell.textContent.trim();
}

function compare(a, b) {
  if (a === "" || b === "") return (a === "") - (b === ""); // what has no value comes last
  const [x, y] = [Number(a), Number(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? collator.compare(a, b) : x - y;
}

function makeSortable(table) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    header.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach((other) => other.setAttribute("aria-sort", "none"));
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [cellValue(a, column), cellValue(b, column)];
        return x === "" || y === "" || up ? compare(x, y) : compare(y, x);
      });
      body.append(...rows);
    });
  });
}

function makeFilter(form) {
  const items = [...document.querySelectorAll(form.dataset.items)];
  const texts = new Map(items.map((item) => [item, item.textContent.toLowerCase()]));
  const sources = [...new Set(items.map((item) => item.parentElement))];
  const order = new Map(items.map((item, place) => [item, place]));
  function apply() {
    const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const choices = [...form.querySelectorAll("select[data-key]")].filter((select) => select.value);
    let shown = 0;
    for (const item of items) {
      const kept = words.every((word) => texts.get(item).includes(word))
        && choices.every((select) => item.dataset[select.dataset.key] === select.value);
      item.hidden = !kept;
      shown += kept;
      const section = item.dataset.section && document.getElementById(item.dataset.section);
      if (section) section.hidden = !kept;
    }
    for (const group of document.querySelectorAll("[data-group]")) {
      group.hidden = !group.querySelector("[data-item]:not([hidden])");
    }
    form.querySelector("output").textContent = `${shown} of ${items.length} ${form.dataset.name}`;
  }
  const sort = form.querySelector("select[data-sort]");
  sort?.addEventListener("change", () => {
    const place = (item) => Number(sort.value ? item.dataset[sort.value] : order.get(item));
    const sorted = [...items].sort((a, b) => place(a) - place(b));
    for (const parent of sources) parent.append(...sorted.filter((item) => item.parentElement === parent));
  });
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("form.filter").forEach(makeFilter);

// An equation that is still too wide scrolls, and takes the focus so that keys can do it.
function markScrollers() {
  for (const box of document.querySelectorAll(".equation")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
markScrollers();
addEventListener("resize", markScrollers);

