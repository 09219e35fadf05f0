"use strict";
/* One chart of `trimtab watch`: a line for each run on a canvas, however many steps there are.
   For each column of pixels the lowest and the highest value are drawn, so ten thousand steps cost as much as a thousand. */

const DASHES = [[], [6, 3], [2, 2], [8, 3, 2, 3]];
const SMOOTHING = 0.9;

function token(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

function show(value, unit) {
  if (value === null || value === undefined) return "–";
  if (unit === "share") return (100 * value).toFixed(1) + " %";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4)));
}

/* Exponential moving average, started at the first value and corrected for it. */
function smoothed(values) {
  let sum = 0, weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = SMOOTHING * sum + (1 - SMOOTHING) * value;
    weight = SMOOTHING * weight + (1 - SMOOTHING);
    return sum / weight;
  });
}

/* Index of the first step that is at or after x; steps rise. */
function place(steps, x) {
  let low = 0, high = steps.length;
  while (low < high) { const middle = (low + high) >> 1; if (steps[middle] < x) low = middle + 1; else high = middle; }
  return low;
}

class Chart {
  /* key: of the metric; board: what all charts share: runs, range, selected, alarms, smooth, pick(step), zoom(range), remove(chart). */
  constructor(key, board) {
    this.key = key; this.board = board; this.hover = null; this.dragged = null; this.meaning = { title: key, unit: "", meaning: "" };
    this.figure = document.createElement("figure"); this.figure.className = "chart"; this.figure.dataset.key = key;
    const caption = document.createElement("figcaption");
    this.title = document.createElement("b"); this.value = document.createElement("span"); this.value.className = "value";
    const close = document.createElement("button"); close.type = "button"; close.textContent = "×"; close.title = "Remove this chart";
    close.setAttribute("aria-label", `Remove the chart ${key}`); close.onclick = () => board.remove(this);
    caption.append(this.title, this.value, close);
    this.canvas = document.createElement("canvas"); this.canvas.setAttribute("role", "img");
    this.figure.append(caption, this.canvas);
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    this.canvas.addEventListener("pointerleave", () => { this.hover = null; this.draw(); });
    this.canvas.addEventListener("pointerdown", (event) => { if (event.button === 0) this.dragged = this.stepAt(event); });
    this.canvas.addEventListener("pointerup", (event) => this.release(event));
  }

  describe(meaning) {
    this.meaning = meaning || this.meaning;
    this.title.textContent = this.meaning.title; this.title.title = this.meaning.meaning;
  }

  range() {
    if (this.board.range) return this.board.range;
    let last = 1, first = Infinity;
    for (const run of this.board.runs) if (run.steps.length) { first = Math.min(first, run.steps[0]); last = Math.max(last, run.steps[run.steps.length - 1]); }
    return [Math.min(first, last), Math.max(last, first === last ? first + 1 : last)];
  }

  stepAt(event) {
    const box = this.canvas.getBoundingClientRect(), [first, last] = this.range();
    const share = (event.clientX - box.left - this.left) / Math.max(1, box.width - this.left - 6);
    return Math.round(first + Math.min(1, Math.max(0, share)) * (last - first));
  }

  move(event) { this.hover = this.stepAt(event); this.draw(); }

  release(event) {
    const from = this.dragged, to = this.stepAt(event); this.dragged = null;
    if (from === null) return;
    const [first, last] = this.range();
    if (Math.abs(to - from) > Math.max(1, (last - first) / 40)) this.board.zoom([Math.min(from, to), Math.max(from, to)]);
    else this.board.pick(to);
  }

  draw() {
    const { canvas } = this, ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width) return;
    if (canvas.width !== Math.round(width * ratio)) { canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio); }
    const context = canvas.getContext("2d"); context.setTransform(ratio, 0, 0, ratio, 0, 0); context.clearRect(0, 0, width, height);
    context.font = "11px system-ui, sans-serif";
    const [first, last] = this.range(), lines = this.board.runs.map((run) => this.line(run, first, last));
    let low = Infinity, high = -Infinity;
    for (const { values, from, to } of lines) for (let i = from; i < to; i++) if (values[i] !== null) { low = Math.min(low, values[i]); high = Math.max(high, values[i]); }
    this.say(lines);
    if (low > high) { this.left = 0; context.fillStyle = token("--soft"); context.fillText("no value yet", 8, height / 2); return; }
    if (high - low < 1e-12 * Math.max(1, Math.abs(high))) { const air = Math.abs(high) / 2 || 0.5; low -= air; high += air; }
    if (this.meaning.unit === "share") { low = Math.max(0, low); high = Math.min(1, high); }
    const air = 0.06 * (high - low); low -= air; high += air;
    const texts = [high - air, (high + low) / 2, low + air].map((value) => [value, show(value, this.meaning.unit)]);
    this.left = 6 + Math.max(...texts.map(([, text]) => context.measureText(text).width));
    const x = (step) => this.left + ((step - first) / (last - first)) * (width - this.left - 6);
    const y = (value) => 4 + ((high - value) / (high - low)) * (height - 22);
    context.strokeStyle = token("--grid"); context.fillStyle = token("--soft"); context.lineWidth = 1; context.textAlign = "right";
    for (const [value, text] of texts) { context.beginPath(); context.moveTo(this.left, y(value)); context.lineTo(width - 6, y(value)); context.stroke(); context.fillText(text, this.left - 4, y(value) + 4); }
    context.textAlign = "left"; context.fillText(String(first), this.left, height - 5); context.textAlign = "right"; context.fillText(String(last), width - 6, height - 5);
    for (const alarm of this.board.alarms) if (alarm.step >= first && alarm.step <= last) this.vertical(context, x(alarm.step), height, token("--bad"), [2, 2]);
    context.save(); context.beginPath(); context.rect(this.left, 0, width - this.left, height - 16); context.clip();
    lines.forEach((line, number) => this.stroke(context, line, number, x, y)); context.restore();
    if (this.board.selected !== null) this.vertical(context, x(this.board.selected), height, token("--text"), []);
    if (this.hover !== null) this.vertical(context, x(this.hover), height, token("--soft"), [4, 3]);
  }

  line(run, first, last) {
    const raw = run.columns[this.key] || [];
    const values = this.board.smooth ? smoothed(raw) : raw;
    return { run, values, from: place(run.steps, first), to: Math.min(place(run.steps, last + 1), values.length) };
  }

  /* The path of one run: every point where there are few, else the lowest and highest value of each column of pixels. */
  stroke(context, { run, values, from, to }, number, x, y) {
    context.strokeStyle = token(`--run-${number}`); context.lineWidth = 1.6; context.setLineDash(DASHES[number]); context.lineJoin = "round";
    context.beginPath();
    let pen = false, column = null, low = 0, high = 0, end = 0;
    const flush = () => { if (column === null) return; if (pen) context.lineTo(column, y(low)); else context.moveTo(column, y(low)); if (high !== low) context.lineTo(column, y(high)); if (end !== high) context.lineTo(column, y(end)); pen = true; column = null; };
    for (let i = from; i < to; i++) {
      const value = values[i];
      if (value === null) { flush(); pen = false; continue; }
      const at = Math.round(x(run.steps[i]));
      if (at !== column) { flush(); column = at; low = high = value; } else { low = Math.min(low, value); high = Math.max(high, value); }
      end = value;
    }
    flush(); context.stroke(); context.setLineDash([]);
    if (to - from === 1 && values[from] !== null) { context.fillStyle = token(`--run-${number}`); context.beginPath(); context.arc(x(run.steps[from]), y(values[from]), 3, 0, 7); context.fill(); }
  }

  vertical(context, at, height, colour, dash) {
    context.strokeStyle = colour; context.lineWidth = 1; context.setLineDash(dash);
    context.beginPath(); context.moveTo(Math.round(at) + 0.5, 2); context.lineTo(Math.round(at) + 0.5, height - 16); context.stroke(); context.setLineDash([]);
  }

  /* The values under the pointer, at the selected step, or the last ones. */
  say(lines) {
    const wanted = this.hover ?? this.board.selected;
    const parts = lines.map(({ run, values }) => {
      if (!values.length) return "–";
      const i = wanted === null ? values.length - 1 : place(run.steps, wanted);
      return i < values.length && (wanted === null || run.steps[i] === wanted) ? show(values[i], this.meaning.unit) : "–";
    });
    const text = `${parts.join(" · ")}${wanted === null ? "" : ` at ${wanted}`}`;
    this.value.textContent = text;
    this.canvas.setAttribute("aria-label", `${this.meaning.title}, ${this.meaning.unit}: ${text}`);
  }
}
