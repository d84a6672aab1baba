"use strict";
// The page of `pizero serve`: shows the states that the server tells over /live, and sends commands.

const at = (id) => document.getElementById(id);
const HISTORY = 180; // seconds of latency that are shown
const history = { time: [], latency: [] };
const STALE = 2000; // milliseconds without a state after which what is shown is called old
const forms = [ // words of a robot that a person may replace
  { what: "prompt", form: "prompt", input: "words", clear: "own" },
  { what: "subtask", form: "plan", input: "subtask", clear: "unsaid" },
];
let socket, watched = 0, plots = [], historyPlot, pause = 500, last = {}, uptime = 0, received = 0;

function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
function send(command) { if (socket && socket.readyState === 1) socket.send(JSON.stringify(command)); }
function text(id, value) { if (at(id).textContent !== String(value)) at(id).textContent = value; }
function badge(word, kind) { text("status", word); at("status").className = "badge " + kind; }

function connect() {
  const address = (location.protocol === "https:" ? "wss://" : "ws://") + location.host;
  text("uri", address);
  socket = new WebSocket(address + "/live");
  socket.onopen = () => { send({ key: sessionStorage.getItem("key") || "" }); send({ do: "watch", robot: watched }); };
  socket.onmessage = (event) => {
    const state = JSON.parse(event.data);
    document.body.classList.toggle("locked", Boolean(state.key)); // nothing is known yet
    if (state.key) { at("door").hidden = false; badge("locked", "bad"); at("key").focus(); return; }
    pause = 500;
    received = performance.now();
    at("door").hidden = true;
    show(state);
  };
  socket.onclose = () => {
    received = 0;
    if (!at("door").hidden) return; // goes on when a key is entered
    badge("no connection", "bad");
    setTimeout(connect, pause);
    pause = Math.min(2 * pause, 5000);
  };
}

function show(state) {
  badge(state.draining ? "ending" : "live", state.draining ? "bad" : "good");
  if (state.seconds < uptime) history.time.length = history.latency.length = 0; // the server was started anew
  uptime = state.seconds;
  last = state;
  const about = state.checkpoints.map((c) => `${c.checkpoint} · ${c.embodiment} · ${c.action_horizon} × ${c.action_dim} actions` +
    (c.replica ? ` · replica ${c.replica}` : ""));
  text("about", `${about.join(" | ")} · up ${span(state.seconds)}`);
  text("robots-count", state.robots.length);
  text("rate", state.rate.toFixed(1));
  text("latency", state.latency ? state.latency.toFixed(1) : "–");
  text("queue", state.queue);
  showSimulation(state.simulation);
  showRobots(state.robots);
  showWatched(state);
  remember(state);
}

function span(seconds) {
  if (seconds < 90) return `${Math.floor(seconds)}\u00a0s`;
  if (seconds < 5400) return `${Math.floor(seconds / 60)}\u00a0min`;
  return `${(seconds / 3600).toFixed(1)}\u00a0h`;
}

function showSimulation(simulation) {
  const button = at("start"), running = simulation.robot !== null, choice = at("checkpoint");
  const names = simulation.checkpoints;
  button.textContent = running ? "Stop the simulated robot" : "Start a simulated robot";
  button.className = running ? "stop" : "";
  button.disabled = !names.length;
  button.title = names.length ? "" : "No checkpoint here is of the built-in simulator's robot (tabletop)";
  choice.hidden = names.length < 2 || running;
  if (choice.children.length !== names.length) choice.replaceChildren(...names.map((name) => new Option(name, name)));
}

function showRobots(robots) {
  at("nobody").hidden = robots.length > 0;
  at("robots").hidden = !robots.length;
  if (!robots.some((robot) => robot.robot === watched)) watch(robots.length ? robots[0].robot : 0);
  const body = at("robots").tBodies[0];
  while (body.rows.length > robots.length) body.deleteRow(-1);
  robots.forEach((robot, index) => {
    const row = body.rows[index] || newRow(body);
    row.dataset.robot = robot.robot;
    row.className = robot.robot === watched ? "on" : "";
    const name = robot.simulated ? `${robot.robot} · simulated` : `${robot.robot} · ${robot.address}`;
    const cells = [name, robot.checkpoint, robot.requests, robot.rate.toFixed(1), robot.p50.toFixed(1),
      robot.p95.toFixed(1), robot.errors];
    cells.forEach((value, column) => {
      const cell = column ? row.cells[column] : row.cells[0].firstChild;
      if (cell.textContent !== String(value)) cell.textContent = value;
    });
  });
}

function newRow(body) {
  const row = body.insertRow();
  for (let column = 0; column < 7; column++) row.insertCell().className = column > 1 ? "n" : "";
  row.cells[0].append(document.createElement("button"));
  row.onclick = () => watch(Number(row.dataset.robot));
  return row;
}

function watch(robot) {
  watched = robot;
  send({ do: "watch", robot });
  at("watched").hidden = !robot;
  for (const { input } of forms) { at(input).value = ""; at(input).dataset.edited = ""; }
  at("images").replaceChildren();
  at("chunk").replaceChildren();
  plots = [];
}

function showWatched(state) {
  const robot = state.robots.find((one) => one.robot === watched);
  if (!robot) return;
  text("watched-name", robot.simulated ? "Simulated robot" : `Robot ${robot.robot}, ${robot.address}`);
  showWords(forms[0], robot.prompt, robot.new_prompt);
  const simulation = robot.simulated && state.simulation.episodes ? ` ${state.simulation.successes} of ${state.simulation.episodes} episodes solved.` : "";
  text("told", (robot.new_prompt === null ? "The robot's own words." : `From this page, in place of “${robot.prompt}”.`) + simulation);
  at("plan").hidden = robot.subtask === null; // of a policy that takes none
  showWords(forms[1], robot.subtask || "", robot.new_subtask);
  const by = robot.written ? "Written by the policy" : "The robot's own words";
  text("said", robot.new_subtask !== null ? "From this page, in place of the policy's own." :
    robot.subtask ? `${by}: “${robot.subtask}”.` : robot.requests ? "None: it acts without one." : "");
  const seen = state.watched;
  if (!seen || seen.robot !== watched || !seen.chunk) return;
  showImages(seen.images);
  showChunk(seen.chunk, seen.before);
  const stages = Object.entries(seen.timing).filter(([name]) => name.endsWith("_ms") && name !== "prev_total_ms");
  const batch = seen.timing.batch ? ` · ${seen.timing.batch} in its batch` : "";
  text("stages", stages.map(([name, ms]) => `${name.replace("_ms", "")} ${ms.toFixed(1)} ms`).join(" · ") + batch);
}

function showWords({ input, clear }, own, told) {
  const words = at(input);
  if (document.activeElement !== words && words.dataset.edited !== "yes") words.value = told === null ? own : told;
  at(clear).hidden = told === null;
}

function showImages(images) {
  const box = at("images");
  for (const [name, source] of Object.entries(images)) {
    let figure = [...box.children].find((one) => one.dataset.name === name);
    if (!figure) {
      figure = document.createElement("figure");
      figure.dataset.name = name;
      figure.className = name;
      const image = new Image(), caption = document.createElement("figcaption");
      image.alt = `camera ${name}`;
      caption.textContent = name;
      figure.append(image, caption);
      box.append(figure);
    }
    figure.firstChild.src = source;
  }
}

function showChunk(chunk, before) {
  if (plots.length !== chunk.length) makePlots(chunk.length);
  chunk.forEach((values, dimension) => {
    const past = before ? before[dimension] : [];
    const x = [...past.map((_, i) => i - past.length), ...values.map((_, i) => i)];
    const plot = plots[dimension];
    plot.name.textContent = values[0].toFixed(3);
    plot.chart.setData([x, [...past, ...values.map(() => null)], [...past.map(() => null), ...values]]);
  });
}

function boundary(chart) {
  const x = Math.round(chart.valToPos(-0.5, "x", true)), { top, height } = chart.bbox;
  if (x < chart.bbox.left) return;
  chart.ctx.save();
  chart.ctx.strokeStyle = colour("--muted");
  chart.ctx.setLineDash([4, 4]);
  chart.ctx.beginPath();
  chart.ctx.moveTo(x, top);
  chart.ctx.lineTo(x, top + height);
  chart.ctx.stroke();
  chart.ctx.restore();
}

function axes(size) {
  const style = { stroke: colour("--muted"), grid: { stroke: colour("--rule"), width: 1 }, ticks: { show: false },
    font: "11px system-ui, sans-serif" };
  return [{ ...style, size: 20, incrs: [1, 2, 5, 10, 20, 50], space: 30 }, { ...style, size, space: 24 }];
}

function makePlots(count) {
  at("chunk").replaceChildren();
  plots = [];
  for (let dimension = 0; dimension < count; dimension++) {
    const box = document.createElement("div"), head = document.createElement("div"), label = document.createElement("span");
    const name = document.createElement("b");
    head.className = "plot-name";
    label.textContent = `action ${dimension}`;
    head.append(label, name);
    box.append(head);
    at("chunk").append(box);
    const points = { show: true, size: 4 };
    const chart = new uPlot({
      width: box.clientWidth || 180, height: 104, padding: [8, 8, 0, 0], cursor: { show: false }, legend: { show: false },
      scales: { x: { time: false }, y: { range: (_, low, high) => padded(low, high) } }, axes: axes(38),
      series: [{}, { stroke: colour("--muted"), width: 1.5, points }, { stroke: colour("--accent"), width: 2, points }],
      hooks: { draw: [boundary] },
    }, [[], [], []], box);
    plots.push({ chart, name, box });
  }
}

function padded(low, high) {
  const room = Math.max(0.08 * (high - low), 0.02);
  return [low - room, high + room];
}

function remember(state) {
  const now = Math.floor(Date.now() / 1000);
  if (history.time[history.time.length - 1] === now) return;
  if (!history.time.length) { history.time.push(now - 60); history.latency.push(null); } // of one point uPlot makes years
  history.time.push(now);
  history.latency.push(state.latency || null);
  if (history.time.length > HISTORY) { history.time.shift(); history.latency.shift(); }
  if (!historyPlot) {
    historyPlot = new uPlot({
      width: at("history").clientWidth, height: 150, padding: [8, 12, 0, 0], legend: { show: false }, cursor: { show: false },
      scales: { x: { time: true, range: (_, low, high) => [Math.min(low, high - 60), high] },
        y: { range: (_, low, high) => [0, Math.max(1.2 * (high || 0), 1)] } },
      axes: [{ ...axes(44)[0], incrs: undefined, space: 70 }, axes(44)[1]],
      series: [{}, { stroke: colour("--accent"), width: 2, spanGaps: false, points: { show: true, size: 4 } }],
    }, [[], []], at("history"));
  }
  historyPlot.setData([history.time, history.latency]);
}

at("door").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", at("key").value);
  at("door").hidden = true;
  if (socket.readyState === 3) connect(); // else it is about to close, and comes again by itself
};
for (const { what, form, input, clear } of forms) {
  at(input).oninput = () => { at(input).dataset.edited = "yes"; };
  at(form).onsubmit = (event) => {
    event.preventDefault();
    send({ do: what, robot: watched, text: at(input).value });
    at(input).dataset.edited = "";
    at(input).blur();
  };
  at(clear).onclick = () => { at(input).dataset.edited = ""; send({ do: what, robot: watched, text: "" }); };
}
at("start").onclick = () => {
  const simulation = last.simulation;
  if (!simulation) return;
  if (simulation.robot !== null) send({ do: "stop" });
  else send({ do: "simulate", checkpoint: at("checkpoint").value || simulation.checkpoints[0] });
};
setInterval(() => {
  const age = performance.now() - received;
  if (received && age > STALE) badge(`${Math.round(age / 1000)} s old`, "bad");
}, 500);
addEventListener("resize", () => {
  for (const { chart, box } of plots) chart.setSize({ width: box.clientWidth, height: 104 });
  if (historyPlot) historyPlot.setSize({ width: at("history").clientWidth, height: 150 });
});
connect();
