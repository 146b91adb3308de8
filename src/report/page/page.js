"use strict";
// A click on a column's name sorts the table.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, table = head.closest("table"), at = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[at].dataset.sort ?? "";
    const rows = [...table.tBodies[0].rows].sort((one, other) => {
      const [a, b] = [key(one), key(other)];
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows);
  });
}
// Expand everything for printing, and restore it afterwards.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const part of opened) part.open = true;
});
addEventListener("afterprint", () => { for (const part of opened) part.open = false; });
// A click on a tile opens the pair with its neighbors in rank.
const dialog = document.getElementById("pair"), strip = document.getElementById("pair-strip");
const image = document.getElementById("pair-image"), text = document.getElementById("pair-text");
let tiles = [], sheet = null, at = 0;
function address(index) {
  return tiles[index].image ?? sheet.querySelector(`[data-tile="${index}"] img`)?.src ?? null;
}
function show(index) {
  at = index;
  const tile = tiles[at];
  strip.replaceChildren();
  for (let other = Math.max(0, at - 3); other <= Math.min(tiles.length - 1, at + 3); other++) {
    // Skip tiles that are not adjacent in rank.
    if (tiles[other].rank - tile.rank !== other - at) continue;
    const button = document.createElement("button");
    button.className = "tile";
    button.type = "button";
    if (other === at) button.setAttribute("aria-current", "true");
    const source = address(other);
    if (source) {
      const small = document.createElement("img");
      small.src = source;
      small.alt = tiles[other].caption;
      button.append(small);
    } else {
      const missing = document.createElement("span");
      missing.className = "missing";
      missing.textContent = "cannot be read";
      button.append(missing);
    }
    const rank = document.createElement("small");
    rank.textContent = `rank ${tiles[other].rank + 1}`;
    button.append(rank);
    button.addEventListener("click", () => show(other));
    strip.append(button);
  }
  const source = address(at);
  image.hidden = !source;
  if (source) image.src = source;
  image.alt = tile.caption;
  // The caption is last because it may be long.
  const lines = [`id ${tile.id}`, `rank ${tile.rank + 1} of ${sheet.dataset.rows}`, `rating ${tile.rating}`];
  if (tile.loss) lines.push(`loss in training ${tile.loss}`);
  lines.push(...tile.measured);
  if (tile.note) lines.push(tile.note);
  if (tile.missing) lines.push(tile.missing);
  lines.push("", tile.caption);
  text.textContent = lines.join("\n");
  // The focused button was replaced; focus its successor, which receives the keys.
  strip.querySelector("[aria-current]").focus();
}
for (const button of document.querySelectorAll(".sheet .tile")) {
  button.addEventListener("click", () => {
    sheet = button.closest(".sheet");
    tiles = JSON.parse(document.getElementById(sheet.dataset.tiles).textContent);
    dialog.showModal();
    show(Number(button.dataset.tile));
  });
}
dialog.addEventListener("keydown", event => {
  const next = at + { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (next in tiles) show(next);
});
