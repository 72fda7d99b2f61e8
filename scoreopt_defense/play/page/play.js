"use strict";

const $ = (id) => document.getElementById(id);
const form = $("form"), fields = form.elements, key = location.hash.slice(1);
const NORMS = { linf: "L∞", l2: "L2" }, SIGNS = "●■◆▲▼★", DASHES = ["", "7 4", "2 3", "7 3 2 3", "", "7 4"], LINES = 6;
let domains = [], fresh = 0, own = null, job = null, trail = [], label = 0;

function make(tag, given = {}, ...inside) {
  const element = Object.assign(document.createElement(tag), given);
  element.append(...inside);
  return element;
}

async function ask(path, given = {}) {
  const answer = await fetch(path, { ...given, headers: { "X-Key": key, ...given.headers } });
  if (!answer.ok) throw new Error((await answer.json()).why);
  return answer;
}

const domain = () => domains.find((one) => one.classifiers.includes(fields.classifier.value));
const name = (place) => domain().classes[place] ?? String(place);
const say = (text) => { $("status").textContent = text; };
const percent = (share) => (100 * share).toFixed(share > 0.9995 || share < 0.0005 ? 0 : 1);

// What there is to choose.

function options(select, names, chosen) {
  select.replaceChildren(...names.map(([value, text]) => new Option(text, value)));
  if (names.some(([value]) => value === chosen)) select.value = chosen;
}

function choose() {
  const { samples, attacks, defences, classes } = domain(), named = (of) => Object.keys(of).map((one) => [one, one]);
  $("samples").replaceChildren(...samples.map(([src, y], place) => {
    const radio = make("input", { type: "radio", name: "sample", value: place, checked: !place });
    radio.setAttribute("aria-label", `${name(y)}, sample ${place + 1}`);
    radio.addEventListener("change", () => pick(src, String(y)));
    return make("label", {}, radio, make("img", { src, alt: "" }));
  }));
  options(fields.label, [["", "what the classifier says"], ...classes.map((one, place) => [String(place), one])]);
  options(fields.attack, named(attacks), fields.attack.value || "transfer-pgd-linf");
  options(fields.defence, named(defences), fields.defence.value || Object.keys(defences)[1]);
  $("bad").hidden = true;
  $("file").value = "";
  own = null;
  if (samples.length) pick(samples[0][0], String(samples[0][1]));
  settings();
}

function pick(src, y) {
  own = src;
  fields.label.value = y;
}

function put(input, value) {
  input.disabled = value == null;
  input.value = value == null ? "" : +Number(value).toFixed(4);
}

function settings() {
  const attack = domain().attacks[fields.attack.value], defence = domain().defences[fields.defence.value];
  put(fields.eps, attack.eps);
  put(fields.attack_steps, attack.steps);
  put(fields.eot, attack.eot);
  put(fields.steps, defence.steps);
  put(fields.lr, defence.lr);
  put(fields.low, defence.sigma?.[0]);
  put(fields.high, defence.sigma?.[1]);
  hint();
}

function hint() {
  const attack = domain().attacks[fields.attack.value], eps = Number(fields.eps.value);
  const norm = attack.threat?.split(" ")[0], inLevels = norm === "linf" ? `, ${(255 * eps).toFixed(1)} of 255 levels` : "";
  $("of-attack").textContent = !attack.threat ? "The image stays as it is."
    : attack.eps == null ? attack.threat
    : `Within ${NORMS[norm] ?? norm} ≤ ε = ${fields.eps.value}${inLevels}.`;
}

async function upload(file) {
  if (!file) return;
  $("bad").hidden = true;
  try {
    const path = `/api/image?classifier=${encodeURIComponent(fields.classifier.value)}`;
    const { image } = await (await ask(path, { method: "POST", body: file })).json();
    [...form.querySelectorAll("[name=sample]")].forEach((radio) => { radio.checked = false; });
    pick(image, "");
    say(`${file.name} is the image now.`);
    begin("clean");
    picture("clean", "Your image, as the network takes it", image);
  } catch (error) {
    $("bad").textContent = error.message;
    $("bad").hidden = false;
  }
}

// What is found.

function begin() {
  trail = [];
  ["pictures", "strip", "chart", "legend", "table", "votes"].forEach((id) => $(id).replaceChildren());
  $("agree").textContent = "";
  $("empty").hidden = true;
  $("found").hidden = false;
  $("purification").hidden = fields.defence.value === "none";
}

function answer(place, more = "") {
  const isRight = place === label;
  return make("span", { className: isRight ? "right" : "wrong" }, `${isRight ? "✓" : "✗"} ${name(place)}${more}`);
}

function verdict(probabilities) {
  const highest = Math.max(...probabilities);
  return answer(probabilities.indexOf(highest), `, ${percent(highest)}\u00a0%`);
}

function picture(id, title, src, ...about) {
  const figure = make("figure", { id: `of-${id}` }, make("img", { src, alt: title }), make("figcaption", {}, make("b", {}, title), ...about));
  $(`of-${id}`)?.remove();
  $("pictures").append(figure);
}

function svg(tag, given, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(given).forEach(([key, value]) => element.setAttribute(key, value));
  element.textContent = text;
  return element;
}

// The likeliest classes along the steps, the true one first.
function draw() {
  const box = $("chart"), wide = box.clientWidth, [left, right, top, bottom] = [44, wide - 14, 10, 215];
  const highest = (place) => Math.max(...trail.map((at) => at.probabilities[place]));
  const places = trail[0].probabilities.map((_, place) => place).filter((place) => place !== label && highest(place) > 0.02)
    .sort((a, b) => highest(b) - highest(a));
  const shown = [label, ...places].slice(0, LINES);
  const across = (i) => left + (right - left) * i / Math.max(trail.length - 1, 1), down = (share) => bottom - (bottom - top) * share;
  const parts = [0, 0.25, 0.5, 0.75, 1].flatMap((share) => [
    svg("line", { class: "grid", x1: left, x2: right, y1: down(share), y2: down(share) }),
    svg("text", { class: "down", x: left - 12, y: down(share) }, 100 * share),
  ]);
  const every = Math.ceil(trail.length / Math.max(1, Math.floor(wide / 70)));
  trail.forEach((at, i) => {
    const isEnd = i === trail.length - 1;
    if (isEnd || (i % every === 0 && i + every / 2 < trail.length)) parts.push(svg("text", { x: Math.min(across(i), wide - 28), y: bottom + 20 }, at.called));
  });
  shown.forEach((place, line) => {
    const points = trail.map((at, i) => [across(i), down(at.probabilities[place])]);
    const group = svg("g", { class: `t${line}` });
    group.append(svg("polyline", { points: points.join(" "), "stroke-dasharray": DASHES[line] }));
    points.forEach(([x, y], i) => {
      if (i % Math.ceil(trail.length / 40)) return;
      const sign = svg("text", { class: "sign", x, y }, SIGNS[line]);
      sign.append(svg("title", {}, `${name(place)}, ${trail[i].called}: ${percent(trail[i].probabilities[place])} %`));
      group.append(sign);
    });
    parts.push(group);
  });
  box.replaceChildren(...parts);
  $("legend").replaceChildren(...shown.map((place, line) => make("span", { className: `t${line}` }, `${SIGNS[line]} ${name(place)}${line ? "" : " (true class)"}`)));
  const heads = ["class", ...trail.map((at) => at.called)].map((text) => make("th", { scope: "col" }, text));
  $("table").replaceChildren(make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...shown.map((place) =>
    make("tr", {}, make("th", { scope: "row" }, name(place)), ...trail.map((at) => make("td", {}, percent(at.probabilities[place])))))));
}

function along(called, event, ...images) {
  trail.push({ called, probabilities: event.probabilities });
  const pictures = images.map(([src, alt]) => make("img", { src, alt }));
  $("strip").append(make("figure", {}, make("figcaption", {}, make("b", {}, called), verdict(event.probabilities)), ...pictures));
  draw();
}

const told = {
  job: ({ id }) => { job = id; say("Begins."); },
  waiting: ({ ahead }) => say(`${ahead} before you in the line.`),
  clean: (event) => {
    label = event.label;
    say("Attacking.");
    picture("clean", "Clean", event.image, verdict(event.probabilities));
  },
  attacking: ({ done, of }) => {
    Object.assign($("progress"), { hidden: false, max: of, value: done });
    say(`Attacking: ${done.toLocaleString("en")} of ${of.toLocaleString("en")} queries.`);
  },
  attacked: (event) => {
    $("progress").hidden = true;
    say("Purifying.");
    picture("attacked", "Attacked", event.image, verdict(event.probabilities));
    const size = `largest ${(255 * event.linf).toFixed(1)} of 255 levels, L2 ${event.l2.toFixed(2)}`;
    picture("difference", "Difference", event.difference, event.linf ? `times ${event.factor.toFixed(1)}; ${size}` : "none");
    along("attacked", event, [event.image, "attacked"]);
  },
  step: (event) => along(`step ${trail.length}`, event, [event.image, `after step ${trail.length}`], [event.noised, "with its noise"]),
  purified: (event) => {
    along("purified", event, [event.image, "purified"]);
    picture("purified", "Purified", event.image, verdict(event.probabilities));
    say(`Purifying it ${fresh} times afresh.`);
  },
  fresh: ({ classes }) => {
    const right = classes.filter((place) => place === label).length;
    $("agree").textContent = `${right} of ${classes.length} fresh purifications of the attacked image are taken for the true class, ${name(label)}.`
      + (right && right < classes.length ? " The answer depends on the noise that is drawn." : "");
    $("votes").replaceChildren(...classes.map((place) => answer(place)));
  },
  done: () => say("Done."),
  stopped: ({ why }) => say(`${why[0].toUpperCase()}${why.slice(1)}.`),
  failed: ({ why }) => say(`This cannot be done: ${why}`),
};

async function run() {
  const number = (field) => (field.value === "" ? null : Number(field.value)), { low, high } = fields;
  const asked = {
    image: own, classifier: fields.classifier.value, attack: fields.attack.value, defence: fields.defence.value,
    label: number(fields.label), eps: number(fields.eps), attack_steps: number(fields.attack_steps), eot: number(fields.eot),
    steps: number(fields.steps), lr: number(fields.lr), seed: number(fields.seed),
    sigma: low.value === "" ? null : [Number(low.value), Number(high.value || low.value)],
  };
  if (!own) return say("Pick an image first, or drop one of your own.");
  begin();
  if ($("results").getBoundingClientRect().top > innerHeight / 2) $("results").scrollIntoView();
  $("go").disabled = true;
  $("stop").disabled = false;
  try {
    const answer = await ask("/api/experiments", { method: "POST", body: JSON.stringify(asked), headers: { "Content-Type": "application/json" } });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "", part; !(part = await reader.read()).done;) {
      const lines = (rest + part.value).split("\n");
      rest = lines.pop();
      lines.map((line) => JSON.parse(line)).forEach((event) => told[event.kind](event));
    }
  } catch (error) {
    say(`This cannot be done: ${error.message}`);
  }
  job = null;
  $("progress").hidden = true;
  $("go").disabled = false;
  $("stop").disabled = true;
}

form.addEventListener("submit", (event) => { event.preventDefault(); run(); });
$("stop").addEventListener("click", () => { say("Stopping."); if (job) ask(`/api/experiments/${job}/stop`, { method: "POST" }); });
fields.classifier.addEventListener("change", choose);
["attack", "defence"].forEach((one) => fields[one].addEventListener("change", settings));
fields.eps.addEventListener("input", hint);
$("file").addEventListener("change", ({ target }) => upload(target.files[0]));
addEventListener("resize", () => { if (trail.length) draw(); });
addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", () => $("drop").classList.remove("over"));
addEventListener("drop", (event) => { event.preventDefault(); $("drop").classList.remove("over"); upload(event.dataTransfer.files[0]); });

ask("/api/choices").then((answer) => answer.json()).then((choices) => {
  ({ domains, fresh } = choices);
  options(fields.classifier, domains.flatMap((one) => one.classifiers.map((value) => [value, value])), "mnist-tiny");
  choose();
  say("Ready.");
}).catch((error) => say(error.message));
