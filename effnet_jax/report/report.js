"use strict";

// Tables sort by their heads: by `data-value` where a cell has one, numbers as numbers.
const key = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.value ?? cell.textContent.trim();
};

const compare = (first, second) => {
  const [a, b] = [Number(first), Number(second)];
  if (first !== "" && second !== "" && !Number.isNaN(a) && !Number.isNaN(b)) return a - b;
  return first.localeCompare(second, undefined, { numeric: true });
};

for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const rows = [...table.tBodies[0].rows];
      // The first click on a column of numbers shows the largest.
      const wanted = head.classList.contains("number") ? "descending" : "ascending";
      const other = wanted === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === wanted ? other : wanted;
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((first, second) => sign * compare(key(first, column), key(second, column)));
      heads.forEach((one) => one.setAttribute("aria-sort", one === head ? order : "none"));
      table.tBodies[0].append(...rows);
    });
  });
}

// A cell of the matrix is told in words at once, also where there is no pointer that hovers.
const readout = document.querySelector(".readout");
const tell = (event) => {
  const title = event.target.closest("rect")?.querySelector("title");
  if (title) readout.textContent = title.textContent;
};
for (const matrix of document.querySelectorAll("svg.matrix")) {
  matrix.addEventListener("pointerover", tell);
  matrix.addEventListener("click", tell);
}

for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const text = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "copied";
    } catch {
      // A browser may refuse this to a file: then it is selected, to be copied by hand.
      getSelection().selectAllChildren(text);
      button.textContent = "selected";
    }
  });
}

// What is folded is printed too.
const folded = [...document.querySelectorAll("details")];
addEventListener("beforeprint", () => {
  for (const one of folded) {
    one.dataset.was = one.open ? "open" : "";
    one.open = true;
  }
});
addEventListener("afterprint", () => {
  for (const one of folded) one.open = one.dataset.was === "open";
});
