"use strict";
// The page of `pizero playground`: draws the states that the server sends, and sends what is typed, chosen and dragged.

const at = (id) => document.getElementById(id);
const SLIDERS = ["num_steps", "execution_horizon", "delay", "noise"];
const GRAB = 0.25; // table units around an object's centre
const DENOISE = 600; // most milliseconds in which a chunk is shown to come out of its noise
let socket, about, state, dragged = null, sent = 0;
const lanes = [];

function send(command) { if (socket && socket.readyState === 1) socket.send(JSON.stringify(command)); }
function badge(word, kind) { at("status").textContent = word; at("status").className = `badge ${kind}`; }
function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
function make(tag, options = {}, ...children) { const node = Object.assign(document.createElement(tag), options); node.append(...children); return node; }

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
  socket.onmessage = (event) => {
    const message = JSON.parse(event.data);
    if (message.about) begin(message.about);
    else show(message);
  };
  socket.onclose = () => { badge("no connection", "bad"); setTimeout(connect, 1500); };
}

function begin(told) {
  about = told;
  at("num_steps").max = about.most_steps;
  at("execution_horizon").max = about.horizon;
  at("delay").max = about.horizon - 1;
  const options = Object.entries(about.scenes).flatMap(([scene, tasks]) => [
    new Option(`${scene}, any task`, `${scene}:`), ...tasks.map((task) => new Option(`${scene}: ${task.replaceAll("_", " ")}`, `${scene}:${task}`))]);
  at("scene").replaceChildren(...options);
}

function show(next) {
  state = next;
  badge(state.paused ? "paused" : state.resting ? "done" : "live", state.paused ? "" : "good");
  at("pause").textContent = state.paused ? "Go on" : "Pause";
  at("note").textContent = state.note || (state.own_words ? "Words of your own: nothing in the scene judges them." : "");
  if (document.activeElement !== at("words") && at("words").dataset.edited !== "yes") at("words").value = state.prompt;
  at("scene").value = `${state.scene}:${state.task}`;
  if (document.activeElement !== at("seed")) at("seed").value = state.seed;
  for (const name of SLIDERS) {
    if (document.activeElement !== at(name)) at(name).value = state.settings[name];
    at(`${name}-value`).textContent = shown(name, state.settings[name]);
  }
  suggest(state.suggestions);
  while (lanes.length < state.lanes.length) addLane(lanes.length);
  state.lanes.forEach((lane, i) => showLane(lanes[i], lane));
}

function shown(name, value) { return name === "num_steps" && !value ? "each policy's own" : value; }

function suggest(texts) {
  const box = at("suggestions");
  if (box.dataset.texts === texts.join("|")) return;
  box.dataset.texts = texts.join("|");
  box.replaceChildren(...texts.map((text) => make("button", { type: "button", textContent: text, onclick: () => instruct(text) })));
}

function instruct(text) {
  at("words").value = text;
  at("words").dataset.edited = "";
  at("words").blur();
  send({ do: "instruct", text });
}

function addLane() {
  const canvas = make("canvas", { width: 640, height: 640, className: "scene" }), hand = make("img", { alt: "camera on the hand" });
  canvas.setAttribute("aria-label", "the table from above; objects can be dragged");
  const name = make("span"), speed = make("small"), outcome = make("p", { className: "outcome" }), more = make("p"), dims = make("div", { className: "dims" });
  const plots = about.action_names.map((label) => {
    const plot = make("canvas", { width: 200, height: 90 });
    dims.append(make("div", {}, make("span", { textContent: label }), plot));
    return plot;
  });
  const left = make("div", {}, make("h2", {}, name, speed), canvas);
  const side = make("div", { className: "side" }, hand, make("div", {}, outcome, more), dims);
  at("lanes").append(make("section", { className: "card lane" }, left, side));
  const lane = { canvas, hand, name, speed, outcome, more, plots, image: new Image(), course: null, since: 0, told: null };
  lanes.push(lane);
  at("lanes").className = lanes.length === 1 ? "one" : "";
  lane.image.onload = () => draw(lane);
  watchPointer(canvas, lane);
}

function showLane(lane, told) {
  lane.told = told;
  lane.image.src = told.pictures.top;
  lane.hand.src = told.pictures.ego;
  lane.name.textContent = told.name;
  lane.speed.textContent = told.ms ? `${told.ms.toFixed(1)} ms a chunk${told.num_steps ? `, ${told.num_steps} integration step${told.num_steps > 1 ? "s" : ""}` : ""}` : "";
  const solved = told.solved_after !== null;
  lane.outcome.textContent = solved ? `solved in ${told.solved_after} steps` : `step ${told.steps}`;
  lane.outcome.className = solved ? "outcome good" : "outcome";
  lane.more.textContent = [told.subtask && `it writes: ${told.subtask}`, told.held ? `held for ${told.held} steps, waiting` : `next chunk in ${told.ahead}`].filter(Boolean).join(" · ");
  if (told.course) {
    lane.course = told.course;
    lane.since = performance.now();
    animate(lane);
  }
}

function span() { return Math.min(DENOISE, (600 * state.settings.execution_horizon) / about.fps); }

function animate(lane) {
  draw(lane);
  if (performance.now() - lane.since < span()) requestAnimationFrame(() => animate(lane));
}

function pixel(canvas, x, y) {
  const [left, right, top, bottom] = about.view;
  return [((x - left) / (right - left)) * canvas.width, ((y - top) / (bottom - top)) * canvas.height];
}

function draw(lane) {
  const { canvas, course } = lane, pen = canvas.getContext("2d");
  if (lane.image.complete && lane.image.naturalWidth) pen.drawImage(lane.image, 0, 0, canvas.width, canvas.height);
  if (!course) return;
  const share = Math.min((performance.now() - lane.since) / span(), 1), step = Math.round(share * (course.length - 1));
  const points = course[step].map(([x, y]) => pixel(canvas, x, y));
  pen.strokeStyle = pen.fillStyle = step === course.length - 1 ? "#ff4f8b" : "#ffffff";
  pen.lineWidth = 4;
  pen.globalAlpha = 0.9;
  pen.beginPath();
  for (const point of points) pen.lineTo(...point);
  pen.stroke();
  points.forEach(([x, y], i) => {
    pen.globalAlpha = 1 - (0.65 * i) / points.length;
    pen.beginPath();
    pen.arc(x, y, 7, 0, 7);
    pen.fill();
  });
  pen.globalAlpha = 1;
  lane.plots.forEach((plot, dim) => drawDimension(plot, course, dim, step));
}

function drawDimension(canvas, course, dim, shown) {
  const pen = canvas.getContext("2d"), { width, height } = canvas, last = course[0].length - 1;
  const at = (step, i) => [6 + ((width - 12) * i) / Math.max(last, 1), height / 2 - (height / 2 - 6) * Math.max(-1, Math.min(1, course[step][i][dim] / 1.2))];
  pen.clearRect(0, 0, width, height);
  pen.strokeStyle = colour("--rule");
  pen.strokeRect(0.5, 0.5, width - 1, height - 1);
  for (let step = 0; step <= shown; step++) {
    pen.strokeStyle = step === shown ? "#d6336c" : colour("--muted");
    pen.globalAlpha = step === shown ? 1 : 0.25;
    pen.lineWidth = step === shown ? 3 : 1;
    pen.beginPath();
    for (let i = 0; i <= last; i++) pen.lineTo(...at(step, i));
    pen.stroke();
  }
  pen.globalAlpha = 1;
}

// ---------------------------------------------------------------- dragging

function place(canvas, event) { // in table units
  const box = canvas.getBoundingClientRect(), [left, right, top, bottom] = about.view;
  return [left + ((event.clientX - box.left) / box.width) * (right - left), top + ((event.clientY - box.top) / box.height) * (bottom - top)];
}

function nearest(lane, x, y) {
  let found = -1, least = GRAB;
  lane.told.objects.forEach((thing, i) => {
    const distance = Math.hypot(thing.x - x, thing.y - y);
    if (distance < least) [found, least] = [i, distance];
  });
  return found;
}

function watchPointer(canvas, lane) {
  canvas.addEventListener("touchstart", (event) => { // the page may be scrolled where there is no object
    if (lane.told && nearest(lane, ...place(canvas, event.touches[0])) >= 0) event.preventDefault();
  }, { passive: false });
  canvas.onpointerdown = (event) => {
    const object = lane.told ? nearest(lane, ...place(canvas, event)) : -1;
    if (object < 0) return;
    dragged = object;
    canvas.setPointerCapture(event.pointerId);
  };
  canvas.onpointermove = (event) => {
    const [x, y] = place(canvas, event);
    if (dragged === null) canvas.classList.toggle("over", Boolean(lane.told) && nearest(lane, x, y) >= 0);
    else if (performance.now() - sent > 60) {
      sent = performance.now();
      send({ do: "move", object: dragged, x, y });
    }
  };
  canvas.onpointerup = (event) => {
    if (dragged === null) return;
    const [x, y] = place(canvas, event);
    send({ do: "move", object: dragged, x, y });
    dragged = null;
  };
  canvas.onpointercancel = () => { dragged = null; };
}

// ---------------------------------------------------------------- what is typed and chosen

function scene(seed) {
  const [name, task] = at("scene").value.split(":");
  at("words").dataset.edited = "";
  send({ do: "scene", scene: name, task, seed });
}
at("words").oninput = () => { at("words").dataset.edited = "yes"; };
at("words-form").onsubmit = (event) => { event.preventDefault(); instruct(at("words").value); };
at("pause").onclick = () => send({ do: "pause", on: !state.paused });
at("again").onclick = () => scene(state.seed);
at("next").onclick = () => scene(state.seed + 1);
at("scene").onchange = () => scene(state.seed);
at("seed").onchange = () => { scene(Math.max(0, Number(at("seed").value) || 0)); at("seed").blur(); };
for (const name of SLIDERS) {
  at(name).oninput = () => { at(`${name}-value`).textContent = shown(name, Number(at(name).value)); };
  at(name).onchange = () => { send({ do: "set", [name]: Number(at(name).value) }); at(name).blur(); };
}
connect();
