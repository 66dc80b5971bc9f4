// Controls, pictures and the address; the networks themselves run in worker.js.

import { decode } from "./styles.js";

const KEYFRAMES = 4; // seeds of the loop
const SECONDS = 2; // from one to the next
const MOST_SEED = 2 ** 32 - 1;
const START = { seed: 0, at: 0, psi: 0.7, other: 1, fine: 0, choice: 0 };
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const $ = (id) => document.getElementById(id);
const worker = new Worker("worker.js", { type: "module" });
let description, ranges, figures;
let state = { ...START, amounts: [] };
let busy = true; // until the worker is ready
let asked = 0; // how often something was to be drawn,
let sent = 0; // and the number of what the worker was given last
let playing = null; // the time of the last frame

// The address

function toHash() {
  const parts = new URLSearchParams();
  for (const [key, usual] of Object.entries(START)) {
    if (state[key] !== usual) parts.set(key, +state[key].toFixed(3));
  }
  state.amounts.forEach((amount, row) => amount && parts.set(`d${row}`, amount));
  return parts.toString();
}

function fromHash() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const number = (key, usual, most) => {
    const value = Number.parseFloat(parts.get(key) ?? usual);
    return Number.isFinite(value) ? Math.min(Math.max(value, 0), most) : usual;
  };
  const limits = { seed: MOST_SEED, at: KEYFRAMES, psi: 1.5, other: MOST_SEED };
  limits.fine = layers();
  limits.choice = Math.max(description.choices.length - 1, 0);
  for (const [key, usual] of Object.entries(START)) {
    const value = number(key, usual, limits[key]);
    state[key] = key === "psi" || key === "at" ? value : Math.floor(value);
  }
  state.amounts = [...ranges].map((most, row) => {
    const amount = Number.parseFloat(parts.get(`d${row}`) ?? 0);
    return Number.isFinite(amount) ? Math.min(Math.max(amount, -most), most) : 0;
  });
}

// Drawing

function layers() {
  return Math.max(...description.networks.map((network) => network.num_ws));
}

function draw() {
  document.body.dataset.asked = ++asked;
  if (!busy) send();
}

function send() {
  [busy, sent] = [true, asked];
  const step = Math.floor(state.at) % KEYFRAMES;
  const share = state.at - Math.floor(state.at);
  const seedAt = (number) => (state.seed + (number % KEYFRAMES)) % (MOST_SEED + 1);
  worker.postMessage({
    kind: "draw",
    state: {
      ...state,
      seed: seedAt(step),
      next: seedAt(step + 1),
      share: share * share * (3 - 2 * share),
      crossover: layers() - state.fine,
      amounts: [...state.amounts.entries()].filter(([, amount]) => amount),
    },
  });
}

function show(pictures) {
  pictures.forEach((picture, index) => {
    figures[index].getContext("2d").putImageData(picture, 0, 0);
    figures[index].setAttribute("aria-label", spoken(description.networks[index].name));
  });
  document.body.dataset.drawn = sent;
  busy = false;
  if (playing !== null) advance();
  else if (sent !== asked) send();
}

function spoken(name) {
  const choice = description.choices.length ? `, ${description.choices[state.choice]}` : "";
  const mixed = state.fine ? `, mixed with seed ${state.other}` : "";
  return `Picture by ${name}: seed ${state.seed}${choice}, psi ${state.psi}${mixed}`;
}

// The loop

function advance() {
  requestAnimationFrame((now) => {
    if (playing === null) return;
    const steps = (now - playing) / 1000 / SECONDS;
    if (!calm.matches) {
      state.at = (state.at + steps) % KEYFRAMES;
    } else if (steps < 1) {
      return void setTimeout(advance, 100);
    } else {
      state.at = (Math.floor(state.at) + 1) % KEYFRAMES; // from picture to picture
    }
    playing = now;
    draw();
  });
}

function play(on) {
  playing = on ? performance.now() : null;
  $("play").setAttribute("aria-pressed", on);
  $("play").textContent = on ? "Pause" : "Play loop";
  if (on && !busy) advance();
  if (!on) changed();
}

// Controls

function refresh() {
  for (const key of ["seed", "psi", "other", "fine", "choice"]) $(key).value = state[key];
  const total = layers();
  describe("psi", state.psi.toFixed(2));
  describe("fine", state.fine ? `${state.fine} of ${total}` : "none");
  state.amounts.forEach((amount, row) => {
    $(`d${row}`).value = amount;
    describe(`d${row}`, amount.toFixed(1));
  });
}

function describe(id, text) {
  document.querySelector(`output[for=${id}]`).textContent = text;
}

function changed() {
  refresh();
  history.replaceState(null, "", `#${toHash()}`);
  draw();
}

function setSeed(seed) {
  state.seed = (Math.floor(seed) + MOST_SEED + 1) % (MOST_SEED + 1);
  state.at = 0;
  changed();
}

function listen(id, kind, action) {
  $(id).addEventListener(kind, (event) => action(event.target.valueAsNumber, event));
}

function connect() {
  const isSeed = (value) => Number.isInteger(value) && value >= 0 && value <= MOST_SEED;
  listen("seed", "input", (value) => isSeed(value) && setSeed(value));
  listen("previous", "click", () => setSeed(state.seed - 1));
  listen("next", "click", () => setSeed(state.seed + 1));
  listen("random", "click", () => setSeed(Math.random() * 100000));
  for (const key of ["psi", "other", "fine"]) {
    listen(key, "input", (value) => {
      if (key === "other" && !isSeed(value)) return;
      state[key] = value;
      changed();
    });
  }
  $("choice").addEventListener("change", () => {
    state.choice = Number($("choice").value);
    changed();
  });
  listen("play", "click", () => play(playing === null));
  listen("link", "click", copyLink);
  listen("reset", "click", () => {
    play(false);
    history.replaceState(null, "", "#");
    fromHash();
    changed();
  });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", () => {
    fromHash();
    refresh();
    draw();
  });
}

async function copyLink() {
  history.replaceState(null, "", `#${toHash()}`);
  try {
    await navigator.clipboard.writeText(location.href);
    $("link").textContent = "Copied";
  } catch {
    $("link").textContent = "See the address";
  }
  setTimeout(() => ($("link").textContent = "Copy link"), 2000);
}

function onKey(event) {
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  const psi = { ArrowUp: 0.05, ArrowDown: -0.05 };
  if (event.key in steps) setSeed(state.seed + steps[event.key]);
  else if (event.key in psi) {
    state.psi = +Math.min(Math.max(state.psi + psi[event.key], 0), 1.5).toFixed(2);
    changed();
  } else return;
  event.preventDefault();
}

// Building the page

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function figure(network) {
  const canvas = element("canvas", { width: network.resolution, height: network.resolution });
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Picture by ${network.name}`);
  canvas.addEventListener("keydown", onKey);
  const save = element("button", { type: "button", textContent: "Save PNG" });
  save.setAttribute("aria-label", `Save PNG: ${network.name}`);
  save.addEventListener("click", () => {
    canvas.toBlob((blob) => {
      const href = URL.createObjectURL(blob);
      const name = network.name.replace(/[^\p{L}\p{N}._-]+/gu, "_");
      element("a", { href, download: `${name}-seed${state.seed}.png` }).click();
      setTimeout(() => URL.revokeObjectURL(href), 1000);
    });
  });
  const caption = element("figcaption", {}, element("span", { textContent: network.name }), save);
  $("pictures").append(element("figure", {}, canvas, caption));
  return canvas;
}

function slider(most, row) {
  const id = `d${row}`;
  const input = element("input", { id, type: "range", min: -most, max: most, step: 0.1 });
  input.addEventListener("input", () => {
    state.amounts[row] = input.valueAsNumber;
    changed();
  });
  const label = element("label", { htmlFor: id, textContent: `Direction ${row}` });
  const output = element("output");
  output.setAttribute("for", id);
  $("directions").append(element("div", { className: "control" }, label, output, input));
}

function build() {
  document.title = $("title").textContent = description.title;
  figures = description.networks.map(figure);
  $("fine").max = layers();
  ranges.forEach(slider);
  $("directions").hidden = !ranges.length;
  $("choice-control").hidden = !description.choices.length;
  $("choice-label").textContent = description.choice_label;
  description.choices.forEach((name, value) => {
    $("choice").append(element("option", { value, textContent: name }));
  });
  $("about").textContent = description.about;
  fromHash();
  refresh();
  connect();
}

function trouble(text) {
  if ($("status").className === "trouble") return; // the first one names the cause
  playing = null;
  for (const id of ["pictures", "controls"]) $(id).hidden = true;
  $("status").hidden = false;
  $("status").className = "trouble";
  $("status").textContent = text;
}

worker.addEventListener("error", () => trouble("The worker could not be started. Reload the page."));
worker.addEventListener("message", ({ data }) => {
  if (data.kind === "trouble") return trouble(data.text);
  if (data.kind === "ready") {
    busy = false;
    return draw();
  }
  $("status").hidden = true;
  $("pictures").hidden = $("controls").hidden = false;
  show(data.pictures);
});

async function main() {
  try {
    const response = await fetch("networks.json", { cache: "no-cache" });
    description = await response.json();
    ranges = decode(description.ranges);
    build();
  } catch (error) {
    console.warn(error);
    return trouble("The file networks.json is missing or damaged. Make the page again.");
  }
  $("status").textContent = `Loading ${description.size}…`;
  worker.postMessage({ kind: "start", description });
}

main();
