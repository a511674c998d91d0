// Filters and search of the catalogue: without it, everything is shown.
"use strict";
(() => {
  const form = document.getElementById("filters");
  const index = JSON.parse(document.getElementById("index").textContent);
  const count = document.getElementById("count");
  const none = document.getElementById("none");
  const items = [...document.querySelectorAll("[data-i]")];
  const rows = [...document.querySelectorAll(".map tbody tr")];
  const columns = [...document.querySelectorAll(".map thead [data-column]")].map((head) => head.dataset.column);
  const choices = ["chip", "model", "precision"];

  const asked = () => {
    const data = new FormData(form);
    const found = { words: data.get("q").toLowerCase().split(/\s+/).filter(Boolean), states: new Set(data.getAll("state")) };
    for (const name of choices) found[name] = data.get(name);
    return found;
  };
  const fits = (one, want) =>
    want.states.has(one.state) &&
    choices.every((name) => !want[name] || one[name] === want[name]) &&
    want.words.every((word) => one.text.includes(word));

  const show = () => {
    const want = asked();
    const wanted = index.map((one) => fits(one, want));
    for (const item of items) item.hidden = !wanted[Number(item.dataset.i)];
    for (const row of rows) row.hidden = !row.querySelector("a:not([hidden])");
    const used = new Set([...document.querySelectorAll(".map a:not([hidden])")].map((tile) => tile.parentElement.dataset.column));
    for (const name of columns)
      for (const cell of document.querySelectorAll(`.map [data-column="${CSS.escape(name)}"]`)) cell.hidden = !used.has(name);
    const number = wanted.filter(Boolean).length;
    count.textContent = `${number} ${count.dataset.of} ${index.length} ${count.dataset.shown}`;
    none.hidden = number > 0;
  };

  // What is asked stands in the address, so that it can be kept and passed on.
  const keep = () => {
    const data = new URLSearchParams();
    for (const name of ["q", ...choices]) if (form.elements[name].value) data.set(name, form.elements[name].value);
    const boxes = [...form.querySelectorAll("[name=state]")];
    if (boxes.some((box) => !box.checked)) data.set("state", boxes.filter((box) => box.checked).map((box) => box.value).join(" "));
    history.replaceState(null, "", String(data) ? `#${data}` : location.pathname.split("/").pop() || ".");
  };
  const recall = () => {
    if (!location.hash.includes("=")) return;
    const data = new URLSearchParams(location.hash.slice(1));
    for (const name of ["q", ...choices]) form.elements[name].value = data.get(name) || "";
    if (data.has("state")) for (const box of form.querySelectorAll("[name=state]")) box.checked = data.get("state").split(" ").includes(box.value);
  };

  // Arrows go from tile to tile, to the nearest in that direction.
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  document.querySelector(".map").addEventListener("keydown", (event) => {
    const [dx, dy] = way[event.key] || [0, 0];
    const from = event.target.closest("a");
    if (!from || (!dx && !dy)) return;
    event.preventDefault();
    const at = (tile) => { const box = tile.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; };
    const [x, y] = at(from);
    let best = null, least = Infinity;
    for (const tile of document.querySelectorAll(".map a:not([hidden])")) {
      const [left, top] = at(tile);
      const along = (left - x) * dx + (top - y) * dy, aside = Math.abs((left - x) * dy) + Math.abs((top - y) * dx);
      if (along > 4 && along + 3 * aside < least) { least = along + 3 * aside; best = tile; }
    }
    if (best) best.focus();
  });

  form.addEventListener("input", () => { show(); keep(); });
  form.addEventListener("reset", () => setTimeout(() => { show(); keep(); }));
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", () => { recall(); show(); });
  form.hidden = false;
  recall();
  show();
})();
