
"use strict";
const list = document.getElementById("cases");
const cards = [...list.children];
const tiles = [...document.querySelectorAll(".tile")];
const sort = document.getElementById("sort");
const find = document.getElementById("find");
const shown = document.getElementById("shown");
let state = "all";

const number = (key, sign) => (a, b) => sign * (a.dataset[key] - b.dataset[key]) || a.dataset.order - b.dataset.order;
const orders = {
  order: number("order", 1),
  name: (a, b) => (a.dataset.name < b.dataset.name ? -1 : 1),
  volume: number("volume", 1),
  nqm: number("nqm", -1),
};

function filter() {
  const text = find.value.trim().toLowerCase();
  let count = 0;
  for (const card of cards) {
    card.hidden = (state !== "all" && card.dataset.state !== state) || !card.dataset.name.toLowerCase().includes(text);
    count += !card.hidden;
  }
  for (const tile of tiles) tile.setAttribute("aria-pressed", tile.dataset.state === state);
  shown.textContent = `${count} of ${cards.length} cases`;
  shown.hidden = count === cards.length;
}

for (const tile of tiles) {
  tile.disabled = false;
  tile.addEventListener("click", () => {
    state = tile.dataset.state;
    filter();
  });
}
sort.addEventListener("change", () => list.append(...cards.sort(orders[sort.value])));
find.addEventListener("input", filter);
document.querySelector(".controls").hidden = false;
