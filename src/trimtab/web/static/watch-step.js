"use strict";
/* The answers of one step: histogram, order, groups, KL by token. Texts go onto the page as text, never as markup. */

const BINS = 20, PAGE = 12;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/* A shuffle that is the same each time a step is shown. */
function shuffled(items, seed) {
  const out = items.slice(); let state = (seed * 2654435761 + 1) >>> 0;
  for (let i = out.length - 1; i > 0; i--) { state = (Math.imul(state, 1664525) + 1013904223) >>> 0; const j = state % (i + 1); [out[i], out[j]] = [out[j], out[i]]; }
  return out;
}

class StepView {
  /* fetchJson(path): the server's answer; byId(id): an element of the page. */
  constructor(fetchJson, byId) {
    this.fetchJson = fetchJson; this.byId = byId; this.data = null; this.run = 0; this.wanted = ""; this.bin = null; this.only = null; this.shown = PAGE;
    byId("order").onchange = () => { this.shown = PAGE; this.list(); };
    byId("more").onclick = () => { this.shown += PAGE; this.list(); };
    byId("every").onclick = () => { this.bin = this.only = null; this.shown = PAGE; this.histogram(); this.list(); };
  }

  /* Show a step; `only`: ids of the answers behind an alarm. */
  async load(run, stage, step, only = null) {
    const wanted = (this.wanted = `${run} ${stage} ${step}`);
    const data = await this.fetchJson(`/api/step?run=${run}&stage=${encodeURIComponent(stage)}&step=${step}`);
    if (this.wanted !== wanted) return; // a later click was faster
    this.run = run; this.data = data; this.bin = null; this.only = only; this.shown = PAGE;
    const { byId } = this;
    byId("step").hidden = false; byId("step-title").textContent = `Step ${step}`; 
    if (document.activeElement !== byId("number")) byId("number").value = step; // someone may be typing
    byId("missing").hidden = !data.missing; byId("missing").textContent = data.missing;
    byId("reading").hidden = data.answers.length === 0;
    const body = byId("numbers").querySelector("tbody"); body.replaceChildren();
    for (const [key, value] of Object.entries(data.numbers)) {
      const row = element("tr"); row.append(element("th", "", key), element("td", "num", show(value, ""))); body.append(row);
    }
    this.histogram(); this.list();
  }

  edges() {
    const rewards = this.data.answers.map((a) => a.reward);
    const low = Math.min(...rewards), high = Math.max(...rewards);
    return [low, high > low ? (high - low) / BINS : 1];
  }

  binOf(reward) { const [low, width] = this.edges(); return Math.min(BINS - 1, Math.floor((reward - low) / width)); }

  histogram() {
    const box = this.byId("histogram"); box.replaceChildren();
    if (!this.data.answers.length) return;
    const [low, width] = this.edges(), counts = new Array(BINS).fill(0);
    for (const answer of this.data.answers) counts[this.binOf(answer.reward)]++;
    const most = Math.max(...counts);
    counts.forEach((count, bin) => {
      const bar = element("button"); bar.type = "button"; bar.disabled = count === 0;
      const label = `${count} answers with reward ${show(low + bin * width, "")} to ${show(low + (bin + 1) * width, "")}`;
      bar.title = label; bar.setAttribute("aria-label", label); bar.setAttribute("aria-pressed", String(this.bin === bin));
      const fill = element("span"); fill.style.height = `${count ? Math.max(4, (100 * count) / most) : 0}%`; bar.append(fill);
      bar.onclick = () => { this.bin = this.bin === bin ? null : bin; this.only = null; this.shown = PAGE; this.histogram(); this.list(); };
      box.append(bar);
    });
    box.append(element("span", "end", show(low, "")), element("span", "end high", show(low + BINS * width, "")));
  }

  chosen() {
    let answers = this.data.answers;
    if (this.only) answers = answers.filter((a) => this.only.includes(a.id));
    if (this.bin !== null) answers = answers.filter((a) => this.binOf(a.reward) === this.bin);
    const order = this.byId("order").value, best = (a, b) => b.reward - a.reward || a.index - b.index;
    if (order === "random") return shuffled(answers, this.data.step);
    if (order === "worst") return answers.slice().sort((a, b) => -best(a, b));
    if (order === "groups") return answers.slice().sort((a, b) => a.prompt - b.prompt || best(a, b));
    return answers.slice().sort(best);
  }

  list() {
    const { byId } = this, list = byId("answers"), chosen = this.chosen(), groups = byId("order").value === "groups";
    list.replaceChildren(); let prompt = null;
    for (const answer of chosen.slice(0, this.shown)) {
      if (groups && answer.prompt !== prompt) { prompt = answer.prompt; const head = element("li", "group"); head.append(element("div", "text", this.data.prompts[prompt])); list.append(head); }
      list.append(this.card(answer, groups));
    }
    byId("count").textContent = this.only ? `${chosen.length} answers behind the alarm` : `${Math.min(this.shown, chosen.length)} of ${chosen.length}${this.bin === null ? "" : " in this bar"} shown`;
    byId("more").hidden = chosen.length <= this.shown;
    byId("every").hidden = this.bin === null && this.only === null;
  }

  card(answer, groups) {
    const item = element("li"), facts = element("div", "facts");
    facts.append(element("b", "", `reward ${show(answer.reward, "")}`));
    const parts = Object.entries(answer.rewards);
    if (parts.length > 1) for (const [name, value] of parts) facts.append(element("span", "", `${name} ${show(value, "")}`));
    facts.append(element("span", "", `${answer.tokens} tokens`));
    if (answer.kl !== null) facts.append(element("span", "", `KL ${answer.kl.toFixed(2)} nats`));
    if (answer.finish !== "stop") facts.append(element("span", "cut", "cut at the limit"));
    item.append(facts);
    const text = element("div", "text answer", answer.text || "(empty)");
    if (!groups) { const details = element("details"); details.append(element("summary", "hint", "Prompt"), element("div", "text prompt", this.data.prompts[answer.prompt])); item.append(details); }
    item.append(text);
    if (answer.kl !== null) {
      const button = element("button", "", "KL by token"); button.type = "button";
      button.onclick = () => this.tokens(answer, text, button); item.append(button);
    }
    return item;
  }

  async tokens(answer, text, button) {
    let tokens;
    try { tokens = await this.fetchJson(`/api/tokens?run=${this.run}&step=${this.data.step}&index=${answer.index}`); }
    catch (error) { button.replaceWith(element("p", "legend", error.message)); return; }
    text.replaceChildren();
    for (const [piece, kl] of tokens) {
      const span = element("span", "", piece), share = Math.min(75, 60 * Math.sqrt(Math.abs(kl)));
      span.title = `${kl.toFixed(2)} nats`;
      span.style.backgroundColor = `color-mix(in srgb, var(${kl > 0 ? "--run-1" : "--run-0"}) ${share.toFixed(0)}%, transparent)`;
      text.append(span);
    }
    button.replaceWith(element("p", "legend", "Orange: likelier under the policy than under the reference. Blue: less likely. The deeper, the more nats."));
  }
}
