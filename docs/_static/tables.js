// Tables on narrow screens. A table that does not fit becomes a list of its rows, each value below the name of its column.

const LONG = 28; // longest identifier that stays on one line, in characters

function labelCells(table) {
  const columns = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
  for (const row of table.tBodies[0]?.rows ?? []) {
    [...row.cells].forEach((cell, index) => (cell.dataset.column = columns[index] ?? ""));
  }
}

// Lets a long identifier break after a separator, and nowhere else.
function allowBreaks(code) {
  if (code.textContent.length <= LONG) return;
  const texts = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
  const nodes = [];
  while (texts.nextNode()) nodes.push(texts.currentNode);
  for (const node of nodes) {
    const parts = node.data.split(/(?<=[_./,:-])/);
    node.replaceWith(...parts.flatMap((part, index) => (index ? [document.createElement("wbr"), part] : [part])));
  }
  code.classList.add("breakable");
}

function fit() {
  const narrow = matchMedia("(max-width: 46em)").matches;
  for (const wrapper of document.querySelectorAll("article .table-wrapper")) {
    wrapper.classList.remove("stacked");
    wrapper.classList.toggle("stacked", narrow && wrapper.scrollWidth > wrapper.clientWidth + 1);
  }
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("article table.docutils").forEach(labelCells);
  document.querySelectorAll("article table.docutils td code").forEach(allowBreaks);
  fit();
  document.getElementById(location.hash.slice(1))?.scrollIntoView(); // the tables above it have another height now
  addEventListener("resize", fit);
});
