"use strict";
// The page of `pizero inspect` with an observation: draws what was measured, at the step, layer and head that are chosen.

const data = JSON.parse(document.getElementById("data").textContent);
const MEAN = -1;
const COLOURS = { camera: ["#3b6fb6", "#6f97cf", "#9db9e0", "#c4d5ed"], prompt: "#2a9d8f", state: "#e0982f", actions: "#c8475b" };
const chosen = { step: data.steps, layer: MEAN, head: MEAN };
const redraws = [];

function make(tag, options = {}, ...children) {
  const node = Object.assign(document.createElement(tag), options);
  node.append(...children);
  return node;
}
function redraw() { for (const draw of redraws) draw(); }
function amount(value) { return value >= 1e9 ? `${(value / 1e9).toFixed(2)} G` : value >= 1e6 ? `${(value / 1e6).toFixed(2)} M` : value.toLocaleString("en"); }
function shape(values) { return values ? `[${values.join(", ")}]` : ""; }

// ---------------------------------------------------------------- the model

function drawFigure() {
  const root = document.getElementById("figure");
  const placed = data.boxes.every((box) => box.place);
  const figure = make("div", { className: placed ? "figure" : "figure row" }), details = make("div", { className: "details", hidden: true });
  for (const box of data.boxes) {
    const input = box.place.startsWith("in") || (!box.ms && !box.code), last = box.parts[box.parts.length - 1] || {};
    const button = make("button", { type: "button", className: input ? "box input" : "box" }, make("b", { textContent: box.name }));
    button.append(make("span", { textContent: (last.tensors > 1 ? `${last.tensors} × ` : "") + (shape(last.output) || shape(last.input)) }));
    if (placed && !["in1", "in2", "in3", "in4", "flow"].includes(box.place)) button.classList.add("arrow");
    if (box.parameters) button.append(make("span", { textContent: `${amount(box.parameters)} parameters` }));
    if (box.ms) {
      const bar = make("i"), share = (100 * box.ms) / data.total;
      bar.style.width = `${share}%`;
      button.append(make("span", { textContent: `${box.ms.toFixed(2)} ms, ${share.toFixed(0)} %` }), bar);
    }
    if (box.place) button.style.gridArea = box.place;
    button.disabled = input;
    button.onclick = () => showBox(box, details, button, figure);
    button.setAttribute("aria-pressed", "false");
    figure.append(button);
  }
  if (placed) figure.append(make("div", { className: "cache", textContent: "↓ keys, values: once per observation" }),
    make("div", { className: "loop", textContent: `↻ suffix, expert, velocity: ${data.steps} times` }));
  root.replaceChildren(figure, details);
}

function showBox(box, details, button, figure) {
  const open = button.getAttribute("aria-pressed") === "true";
  for (const other of figure.querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
  details.hidden = open;
  if (open) return;
  button.setAttribute("aria-pressed", "true");
  const table = make("table"), head = table.createTHead().insertRow();
  for (const name of ["part", "input", "output", "parameters", "FLOP"]) head.append(make("th", { textContent: name }));
  for (const part of box.parts) {
    const row = table.insertRow(), many = part.tensors > 1 ? `${part.tensors} × ` : "";
    for (const value of [part.part, shape(part.input), many + shape(part.output), part.parameters ? part.parameters.toLocaleString("en") : "",
      part.flops ? amount(part.flops) + (part.runs > 1 ? ` in ${part.runs} runs` : "") : ""]) row.insertCell().textContent = value;
  }
  details.replaceChildren(make("h3", { textContent: box.name }));
  if (box.ms) details.append(make("p", { textContent: `${box.ms.toFixed(3)} ms of ${data.total.toFixed(1)} ms` }));
  if (box.parts.length) details.append(make("div", { className: "wide" }, table));
  if (box.code) details.append(make("p", { textContent: box.file }), make("pre", {}, make("code", { textContent: box.code })));
}

// ---------------------------------------------------------------- attention and occlusion

const attention = data.attention;
const levels = attention ? Uint8Array.from(atob(attention.levels), (c) => c.charCodeAt(0)) : null;

function weights() { // [T] at the chosen step, layer and head; MEAN averages
  const [steps, layers, heads, keys] = attention.shape;
  const step = Math.min(Math.floor(chosen.step / attention.every), steps - 1), sum = new Float32Array(keys);
  let count = 0;
  for (let layer = 0; layer < layers; layer++) {
    if (chosen.layer !== MEAN && chosen.layer !== layer) continue;
    for (let head = 0; head < heads; head++) {
      if (chosen.head !== MEAN && chosen.head !== head) continue;
      const map = (step * layers + layer) * heads + head, scale = attention.largest[map] / 255 ** 2;
      for (let key = 0; key < keys; key++) sum[key] += levels[map * keys + key] ** 2 * scale; // square roots, see page.py
      count += 1;
    }
  }
  return sum.map((value) => value / count);
}

function heat(canvas, image, map, rows, columns) {
  const width = Math.max(image.naturalWidth, 256), height = Math.round((width * image.naturalHeight) / image.naturalWidth);
  canvas.width = width;
  canvas.height = height;
  const pen = canvas.getContext("2d"), largest = Math.max(...map, 1e-12);
  pen.imageSmoothingEnabled = false;
  pen.filter = "grayscale(0.6) brightness(0.8)";
  pen.drawImage(image, 0, 0, width, height);
  pen.filter = "none";
  for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
    pen.fillStyle = `rgba(255, 60, 200, ${(0.75 * map[row * columns + column]) / largest})`;
    const left = Math.round((column * width) / columns), top = Math.round((row * height) / rows);
    pen.fillRect(left, top, Math.round(((column + 1) * width) / columns) - left, Math.round(((row + 1) * height) / rows) - top);
  }
}

function picture(source, then) {
  const image = new Image();
  image.onload = () => then(image);
  image.src = source;
}

function stepControl() {
  const range = make("input", { type: "range", min: 0, max: data.steps, value: chosen.step }), text = make("span");
  range.setAttribute("aria-label", "flow step");
  const show = () => { range.value = chosen.step; text.textContent = `flow step ${chosen.step} of ${data.steps}, t = ${(1 - chosen.step / data.steps).toFixed(2)}`; };
  range.oninput = () => { chosen.step = Number(range.value); redraw(); };
  redraws.push(show);
  const play = make("button", { type: "button", textContent: "Play", onclick: () => animate(0) });
  return [make("label", {}, text, range), play];
}

function animate(step) {
  chosen.step = step;
  redraw();
  if (step < data.steps) setTimeout(() => animate(step + 1), Math.max(60, 2400 / data.steps));
}

function choice(name, count) {
  const select = make("select", {}, new Option(`mean of ${count}`, MEAN), ...Array.from({ length: count }, (_, i) => new Option(i, i)));
  select.id = name;
  select.onchange = () => { chosen[name] = Number(select.value); redraw(); };
  return make("label", {}, name, select);
}

function drawLooks() {
  const root = document.getElementById("looks"), controls = make("div", { className: "controls" }), pairs = make("div", { className: "pairs" });
  root.replaceChildren();
  if (attention) {
    controls.append(...stepControl(), choice("layer", attention.shape[1]), choice("head", attention.shape[2]));
    root.append(controls, ...mass());
  }
  for (const camera of data.cameras) {
    const pair = make("div", { className: camera.keys ? "pair" : "pair one" }, make("h3", { textContent: camera.name }));
    const flat = camera.occlusion.flat(), right = make("canvas"), under = make("p", { className: "under" });
    picture(camera.image, (image) => {
      if (camera.keys) {
        const left = make("canvas"), below = make("p", { className: "under" });
        const [start, end] = camera.keys, columns = Math.round(Math.sqrt(((end - start) * camera.width) / camera.height));
        pair.insertBefore(make("div", {}, left, below), pair.children[1]);
        redraws.push(() => {
          const map = weights().slice(start, end), whole = map.reduce((a, b) => a + b, 0);
          heat(left, image, map, (end - start) / columns, columns);
          below.textContent = `attention: ${(100 * whole).toFixed(1)} % of it, most ${(100 * Math.max(...map)).toFixed(1)} % on one patch`;
        });
      }
      heat(right, image, flat, camera.occlusion.length, camera.occlusion[0].length);
      redraw();
    });
    under.textContent = `occlusion: moves by up to ${Math.max(...flat).toFixed(3)}; without this image ${camera.whole.toFixed(3)}`;
    pair.append(make("div", {}, right, under));
    pairs.append(pair);
  }
  root.append(pairs, ...words());
}

function mass() {
  const bar = make("div", { className: "mass" }), legend = make("div", { className: "legend" });
  redraws.push(() => {
    const all = weights();
    let camera = 0;
    bar.replaceChildren();
    legend.replaceChildren();
    for (const [name, [start, end]] of Object.entries(data.groups)) {
      const share = 100 * all.slice(start, end).reduce((a, b) => a + b, 0);
      const colour = name.startsWith("camera") ? COLOURS.camera[camera++ % 4] : COLOURS[name], part = make("div"), dot = make("i");
      part.style.cssText = `width:${share}%;background:${colour}`;
      dot.style.background = colour;
      bar.append(part);
      legend.append(make("span", {}, dot, `${name} ${share.toFixed(1)} %`));
    }
  });
  return [make("h3", { className: "subhead", textContent: "Where the attention of the action tokens goes" }), bar, legend];
}

function words() {
  if (!data.word_occlusion.length) return [];
  const row = make("div", { className: "words" }), most = Math.max(...data.word_occlusion, 1e-12);
  const spans = data.words.map((word, i) => {
    const span = make("span", { textContent: word.trim() ? word : i ? "␣" : "start", title: `taken away, the chunk moves by ${data.word_occlusion[i].toFixed(3)}` });
    span.style.borderBottomColor = `rgba(200, 71, 91, ${data.word_occlusion[i] / most})`;
    row.append(span);
    return span;
  });
  if (attention) redraws.push(() => {
    const [start, end] = data.groups.prompt, map = weights().slice(start, end), largest = Math.max(...map, 1e-12);
    spans.forEach((span, i) => { span.style.background = `rgba(42, 157, 143, ${(0.6 * map[i]) / largest})`; });
  });
  const what = `${attention ? "Green: attention. " : ""}Red line: how far the chunk moves without the token, at most ${most.toFixed(3)}.`;
  return [make("h3", { className: "subhead", textContent: "The prompt's tokens" }), row, make("p", { className: "under", textContent: what })];
}

// ---------------------------------------------------------------- the flow

function drawFlow() {
  const root = document.getElementById("flow"), flow = data.flow;
  if (!flow) return;
  const controls = make("div", { className: "controls" }, ...stepControl()), dims = make("div", { className: "dims" });
  root.replaceChildren(controls);
  if (flow.path) drawPath(root, flow.path);
  const count = flow.actions[0][0].length;
  for (let dim = 0; dim < count; dim++) {
    const canvas = make("canvas", { width: 340, height: 170 });
    dims.append(make("div", {}, make("p", { className: "under", textContent: flow.names[dim] || `action ${dim}` }), canvas));
    redraws.push(() => drawDimension(canvas, flow.actions, dim));
  }
  root.append(dims);
}

function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

function drawDimension(canvas, actions, dim) { // robot units; the axis ends at the least and the largest value of all steps
  const pen = canvas.getContext("2d"), { width, height } = canvas, last = actions[0].length - 1;
  const all = actions.flatMap((chunk) => chunk.map((action) => action[dim])), low = Math.min(...all), high = Math.max(...all);
  const level = (value) => height - 10 - (height - 20) * ((value - low) / Math.max(high - low, 1e-9));
  const at = (step, i) => [8 + ((width - 16) * i) / Math.max(last, 1), level(actions[step][i][dim])];
  pen.clearRect(0, 0, width, height);
  pen.strokeStyle = colour("--rule");
  pen.strokeRect(0.5, 0.5, width - 1, height - 1);
  if (low < 0 && high > 0) {
    pen.beginPath();
    pen.moveTo(0, level(0));
    pen.lineTo(width, level(0));
    pen.stroke();
  }
  for (let step = 0; step <= chosen.step; step++) {
    pen.strokeStyle = step === chosen.step ? COLOURS.actions : colour("--muted");
    pen.globalAlpha = step === chosen.step ? 1 : 0.25;
    pen.lineWidth = step === chosen.step ? 4 : 1.5;
    pen.beginPath();
    for (let i = 0; i <= last; i++) pen.lineTo(...at(step, i));
    pen.stroke();
  }
  pen.globalAlpha = 1;
  pen.fillStyle = colour("--muted");
  pen.font = "18px system-ui, sans-serif";
  pen.fillText(high.toPrecision(3), 8, 22);
  pen.fillText(low.toPrecision(3), 8, height - 8);
}

function drawPath(root, path) {
  const camera = data.cameras.find((one) => one.name === path.camera);
  if (!camera) return;
  const canvas = make("canvas", { width: 512, height: Math.round((512 * camera.height) / camera.width) });
  root.append(make("div", { className: "path" }, canvas, make("p", { className: "under", textContent: "positions of the chunk in the scene" })));
  picture(camera.image, (image) => {
    const draw = () => {
      const pen = canvas.getContext("2d"), points = path.points[chosen.step];
      pen.imageSmoothingEnabled = false;
      pen.drawImage(image, 0, 0, canvas.width, canvas.height);
      pen.strokeStyle = pen.fillStyle = COLOURS.actions;
      pen.lineWidth = 3;
      pen.beginPath();
      for (const [u, v] of points) pen.lineTo(u * canvas.width, v * canvas.height);
      pen.stroke();
      points.forEach(([u, v], i) => {
        pen.globalAlpha = 1 - (0.7 * i) / points.length;
        pen.beginPath();
        pen.arc(u * canvas.width, v * canvas.height, 6, 0, 7);
        pen.fill();
      });
      pen.globalAlpha = 1;
    };
    redraws.push(draw);
    draw();
  });
}

drawFigure();
drawLooks();
drawFlow();
redraw();
matchMedia("(prefers-color-scheme: dark)").onchange = redraw;
