"use strict";

const all = (what, where = document) => [...where.querySelectorAll(what)];

// A mark of a plot says its figure; a name hides its line.
all("figure.plot").forEach((figure) => {
  figure.querySelector("svg").addEventListener("pointerover", ({ target }) => {
    const mark = target.closest(".mark");
    if (mark) figure.querySelector("output").textContent = mark.querySelector("title").textContent;
  });
  all("input", figure).forEach((box) => box.addEventListener("change", () => {
    document.getElementById(box.value).style.display = box.checked ? "" : "none";
  }));
});

// A table is sorted by the column whose name is pressed; what has no figure comes last.
all("table.sortable").forEach((table) => {
  const heads = all("thead th", table);
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim(), number = parseFloat(text);
    return column ? (isNaN(number) ? 1000 : number) : text.toLowerCase();
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.ariaSort === "ascending" ? -1 : 1, body = table.tBodies[0];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [value(row, column), row]);
      rows.sort(([a], [b]) => sign * (a < b ? -1 : a > b ? 1 : 0));
      body.append(...rows.map(([, row]) => row));
    });
  });
});

// The gallery shows what is picked, which the page's address keeps.
const asked = () => new URLSearchParams(location.hash.slice(1));
const picks = all(".filter select");

function filter() {
  const walls = all(".wall");
  walls.forEach((wall) => {
    wall.hidden = picks.some(({ name, value }) => value && value !== wall.dataset[name]);
  });
  const left = walls.filter((wall) => !wall.hidden).length;
  document.getElementById("picked").textContent = `${left} of ${walls.length} tables shown`;
}

picks.forEach((pick) => pick.addEventListener("change", () => {
  const picked = picks.map(({ name, value }) => [name, value]);
  history.replaceState(null, "", `#${new URLSearchParams([["gallery", ""], ...picked])}`);
  filter();
}));

// What the address points at is unfolded.
function show() {
  picks.forEach((pick) => {
    const value = asked().get(pick.name);
    if (all("option", pick).some((option) => option.value === value)) pick.value = value;
  });
  if (picks.length) filter();
  const target = document.getElementById(asked().keys().next().value ?? "");
  if (!target) return;
  for (let fold = target.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  target.scrollIntoView();
}

addEventListener("hashchange", show);
show();
addEventListener("beforeprint", () => all("details").forEach((fold) => { fold.open = true; }));

all("button.copy").forEach((button) => {
  const text = document.getElementById(button.value);
  button.hidden = false;
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(text);
    try {
      await navigator.clipboard.writeText(text.textContent);
    } catch {
      document.execCommand("copy");
    }
    button.textContent = "Copied";
  });
});
