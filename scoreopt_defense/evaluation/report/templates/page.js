"use strict";

// The colours of the page, which follow the reader's light or dark setting.
function theme() {
  const style = getComputedStyle(document.documentElement);
  const [text, line, page] = ["--text", "--line", "--page"].map((n) => style.getPropertyValue(n).trim());
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", "font.color": text,
    "xaxis.gridcolor": line, "yaxis.gridcolor": line,
    "hoverlabel.bgcolor": page, "hoverlabel.font.color": text,
  };
}

function draw(place) {
  const { data, layout } = JSON.parse(document.getElementById(place.dataset.figure).textContent);
  return Plotly.newPlot(place, data, layout, { responsive: true, displayModeBar: false })
    .then(() => Plotly.relayout(place, theme()));
}

const plots = [...document.querySelectorAll(".plot")];
plots.forEach(draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
  plots.forEach((place) => Plotly.relayout(place, theme())));

const picks = ["defence", "attack"].map((name) => [name, document.getElementById(`pick-${name}`)]);

function filter() {
  const walls = [...document.querySelectorAll(".wall")];
  walls.forEach((wall) => {
    wall.hidden = picks.some(([name, pick]) =>
      pick.value === "sides" ? !("side" in wall.dataset) : pick.value && pick.value !== wall.dataset[name]);
  });
  const left = walls.filter((wall) => !wall.hidden).length;
  document.getElementById("picked").textContent = `${left} of ${walls.length} tables shown`;
}

if (picks.every(([, pick]) => pick)) {
  picks.forEach(([, pick]) => pick.addEventListener("change", filter));
  filter();
}
