"use strict";
/* The page of `trimtab watch`: fetches new rows when the server says that a run has changed. */

const PREFERRED = { align: ["reward", "reward/heldout", "gold", "kl", "length", "ended", "distinct", "entropy", "policy_loss", "loss", "accuracy"], sft: ["loss", "grad_norm", "lr"], reward: ["loss", "accuracy", "margin", "grad_norm"] };
const NEWEST = 3; /* alarms shown before all are asked for, so that the charts stay in sight */
const byId = (id) => document.getElementById(id);

async function fetchJson(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" } });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.detail || `the server answered ${answer.status}`);
  return body;
}

const board = { runs: [], range: null, selected: null, alarms: [], smooth: false, charts: [], stage: "align", following: true, meanings: {}, keys: [] };
let states = [], allAlarms = false;
const view = new StepView(fetchJson, byId);

/* Charts ----------------------------------------------------------------------------------- */

let drawing = false;
function redraw() { if (drawing) return; drawing = true; requestAnimationFrame(() => { drawing = false; for (const chart of board.charts) chart.draw(); }); }

board.zoom = (range) => { board.range = range; byId("whole").hidden = range === null; redraw(); };
board.remove = (chart) => { board.charts = board.charts.filter((other) => other !== chart); chart.figure.remove(); choices(); };
board.pick = (step) => { follow(false); select(step); };

function addChart(key) {
  const chart = new Chart(key, board); chart.describe(board.meanings[key] || { title: key, unit: "", meaning: "" });
  board.charts.push(chart); byId("charts").append(chart.figure);
}

function choices() {
  const shown = new Set(board.charts.map((chart) => chart.key)), select = byId("add");
  select.replaceChildren(new Option("choose …", ""));
  for (const key of board.keys) if (!shown.has(key)) select.add(new Option(board.meanings[key] ? `${board.meanings[key].title} (${key})` : key, key));
}

function emptySeries() { return { generation: null, steps: [], columns: {} }; }

/* Rows of a run that are not here yet, of the charts' columns. */
async function fetchSeries(number) {
  const series = board.runs[number], keys = board.charts.map((chart) => chart.key), stage = board.stage;
  const missing = keys.some((key) => !(key in series.columns));
  const start = missing ? 0 : series.steps.length;
  const query = `run=${number}&stage=${encodeURIComponent(stage)}&keys=${encodeURIComponent(keys.join(","))}&start=${start}${series.generation === null ? "" : `&generation=${series.generation}`}`;
  const news = await fetchJson(`/api/series?${query}`);
  if (stage !== board.stage) return;
  if (news.start === 0) { series.steps = []; series.columns = Object.fromEntries(keys.map((key) => [key, []])); }
  if (news.start !== series.steps.length) return fetchSeries(number); // two answers crossed
  series.generation = news.generation;
  series.steps = series.steps.concat(news.steps);
  for (const [key, values] of Object.entries(news.columns)) series.columns[key] = (series.columns[key] || []).concat(values);
  Object.assign(board.meanings, news.meanings);
  for (const key of news.keys) if (!board.keys.includes(key)) board.keys.push(key);
  if (!board.charts.length && board.keys.length) {
    const wanted = (PREFERRED[stage] || []).filter((key) => board.keys.includes(key));
    for (const key of (wanted.length ? wanted : board.keys).slice(0, 8)) addChart(key);
    return fetchSeries(number);
  }
}

/* Last logged step of a run, and of all runs. */
function lastOf(number) { const steps = board.runs[number] ? board.runs[number].steps : []; return steps[steps.length - 1] || 0; }
function newest() { return Math.max(0, ...board.runs.map((_, number) => lastOf(number))); }
function chosenRun() { return Number(byId("which").value || 0); }

async function refresh(numbers) {
  states = await fetchJson("/api/runs");
  showStates();
  await numbers.reduce((before, number) => before.then(() => fetchSeries(number)), Promise.resolve());
  choices(); redraw();
  byId("waiting").hidden = newest() > 0;
  const last = lastOf(chosenRun());
  if (board.following && last > 0 && last !== board.selected) select(last);
}

/* State and alarms -------------------------------------------------------------------------- */

function stateOf(state) {
  const last = state.stages[state.stages.length - 1];
  if (!last) return state.running ? "starting" : "nothing yet";
  const total = last.stage === "align" && state.steps ? ` of ${state.steps}` : "";
  const steps = last.steps ? `, step ${last.steps}${total}` : "";
  const how = last.state === "running" ? "running" : last.state === "interrupted" ? "interrupted; the same command continues it" : state.running ? "running" : "finished";
  return `${last.stage}${steps} · ${how}`;
}

function showStates() {
  byId("runs").replaceChildren(...states.map((state, number) => {
    const item = element("li", `run-${number}`);
    item.append(element("span", "key"), element("b", "", state.name), element("span", "state", ` ${stateOf(state)}`));
    item.title = state.about; return item;
  }));
  const names = [...new Set(states.flatMap((state) => state.stages.filter((s) => s.steps > 0).map((s) => s.stage)))];
  const stage = byId("stage");
  if (names.join() !== [...stage.options].map((option) => option.value).join()) {
    stage.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.length && !names.includes(board.stage)) changeStage(names[names.length - 1]);
    stage.value = board.stage;
  }
  const which = byId("which");
  if (which.options.length !== states.length) which.replaceChildren(...states.map((state, number) => new Option(state.name, String(number))));
  byId("which-label").hidden = states.length < 2;
  showAlarms();
}

function showAlarms() {
  const all = states.flatMap((state, number) => state.alarms.map((alarm) => ({ ...alarm, run: number, name: state.name })));
  board.alarms = board.stage === "align" ? all : [];
  byId("alarms").hidden = all.length === 0;
  byId("alarms-title").textContent = `Alarms (${all.length})`;
  const shown = all.sort((a, b) => b.step - a.step).slice(0, allAlarms ? all.length : NEWEST);
  byId("all-alarms").hidden = shown.length === all.length;
  byId("all-alarms").textContent = `Show all ${all.length} alarms`;
  byId("alarm-list").replaceChildren(...shown.map((alarm) => {
    const item = element("li"), head = element("p");
    head.append(element("span", `level ${alarm.level}`, `${alarm.level} `), element("b", "", alarm.title), document.createTextNode(` at step ${alarm.step}${states.length > 1 ? ` of ${alarm.name}` : ""}`));
    const button = element("button", "", `Read the ${alarm.samples.length} answers behind it`); button.type = "button";
    button.onclick = () => { follow(false); changeStage("align"); byId("which").value = String(alarm.run); select(alarm.step, alarm.samples, true); };
    item.append(head, element("p", "", alarm.message), element("p", "hint", alarm.advice), button); return item;
  }));
}

function changeStage(name) {
  if (name === board.stage) return;
  board.stage = name; board.range = null; board.selected = null; board.keys = []; board.charts = []; byId("charts").replaceChildren(); byId("step").hidden = true;
  board.runs = board.runs.map(emptySeries); byId("whole").hidden = true; byId("stage").value = name;
  update(board.runs.map((_, number) => number));
}

/* Steps -------------------------------------------------------------------------------------- */

function follow(on) { board.following = on; byId("follow").checked = on; }

/* Show a step of the chosen run; its last one if the run is not that far. */
async function select(step, samples = null, scroll = false) {
  const run = chosenRun();
  step = Math.min(step, lastOf(run) || step);
  board.selected = step; redraw();
  try { await view.load(run, board.stage, step, samples); } catch (error) { lost(error); return; }
  if (scroll) byId("step").scrollIntoView({ block: "start" });
}

function move(by) { const step = Math.max(1, (board.selected || newest()) + by); follow(false); select(step); }

byId("before").onclick = () => move(-1);
byId("after").onclick = () => move(1);
byId("number").onchange = () => { const step = Number(byId("number").value); if (Number.isInteger(step) && step > 0) { follow(false); select(step); } };
byId("which").onchange = () => { if (board.selected) select(board.following ? lastOf(chosenRun()) : board.selected); };
byId("follow").onchange = () => { follow(byId("follow").checked); if (board.following && newest()) select(newest()); };
byId("all-alarms").onclick = () => { allAlarms = true; showAlarms(); };
byId("stage").onchange = () => changeStage(byId("stage").value);
byId("smooth").onchange = () => { board.smooth = byId("smooth").checked; redraw(); };
byId("whole").onclick = () => board.zoom(null);
byId("add").onchange = () => { const key = byId("add").value; if (key) { addChart(key); update(board.runs.map((_, number) => number)); } };
window.addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey || !board.selected) return;
  if (event.key === "ArrowLeft") { move(-1); event.preventDefault(); }
  if (event.key === "ArrowRight") { move(1); event.preventDefault(); }
});

/* News: one update at a time, and what comes meanwhile is remembered --------------------------- */

let busy = false; const waiting = new Set();
async function update(numbers) {
  for (const number of numbers) waiting.add(number);
  if (busy) return;
  busy = true;
  try {
    while (waiting.size) { const now = [...waiting]; waiting.clear(); await refresh(now); }
    connected();
  } catch (error) { lost(error); }
  busy = false;
}

function connected() { const sign = byId("connection"); sign.className = ""; sign.textContent = states.some((state) => state.running) ? "live" : "connected"; }
function lost(error) { const sign = byId("connection"); sign.className = "lost"; sign.textContent = error ? error.message : "connection lost, trying again"; }

function listen() {
  const events = new EventSource("/api/events");
  events.onmessage = (event) => { const changed = JSON.parse(event.data); while (board.runs.length <= Math.max(...changed)) board.runs.push(emptySeries()); update(changed); };
  events.onerror = () => { lost(); if (events.readyState === EventSource.CLOSED) setTimeout(listen, 2000); }; // refused or ended: the browser does not try again by itself
}
listen();
