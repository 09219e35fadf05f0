// The tuning page: asks for comparisons, and shows what the model has learned from them.
import { byId, choices, chooseByKey, make, phrase, reasonOf, send, terms } from "./votes.js";

const root = byId("chat");
const log = byId("log");
const percent = (share) => `${Math.round(100 * share)} %`;
const points = (share) => `${share < 0 ? "−" : "+"}${Math.round(100 * Math.abs(share))}`;

async function next() {
  byId("problem").textContent = "";
  byId("retry").hidden = true;
  log.replaceChildren(make("p", "hint", phrase("js.tune.drawing")));
  try {
    const answer = await send("/chat/tune/next", {});
    if (!answer.ok) throw new Error(await reasonOf(answer));
    show(await answer.json());
  } catch (error) {
    const reason = error instanceof TypeError ? phrase("js.chat.offline") : error.message;
    log.replaceChildren();
    byId("problem").textContent = phrase("js.chat.failed", { reason });
    byId("retry").hidden = false;
  }
}

function show(comparison) {
  const turns = comparison.prompt.map(({ role, text }) => {
    const turn = make("div", `turn ${role}`);
    turn.append(make("h2", "", phrase(role === "assistant" ? "js.chat.model" : "js.tune.prompt")), make("div", "text", text));
    return turn;
  });
  const row = make("div", "pair");
  comparison.answers.forEach((answer, place) => {
    const turn = make("div", "turn assistant");
    const text = make("div", "md");
    text.innerHTML = answer.html; // rendered by the server, safe
    turn.append(make("h2", "", phrase(place ? "js.chat.answer_b" : "js.chat.answer_a")), text);
    if (answer.finish_reason === "length") turn.append(make("p", "hint", phrase("js.chat.cut")));
    row.append(turn);
  });
  log.replaceChildren(...turns, row, choices(comparison.token, () => { refresh(); next(); }));
  turns[0].scrollIntoView({ block: "nearest" });
}

function verdict({ verdict: kind, choices: count, accuracy, start }) {
  if (!accuracy) return phrase("js.tune.waiting");
  const [value, low, high] = accuracy.map(percent);
  return phrase(`js.tune.${kind}`, { value, low, high, count, start: percent(start) });
}

function figures({ gain, preferred, rounds, round }) {
  const lines = rounds.map((row) => phrase("js.tune.round", { round: row.round, right: row.right, count: row.choices }));
  if (gain) lines.push(phrase("js.tune.gain", { value: points(gain[0]), low: points(gain[1]), high: points(gain[2]) }));
  if (preferred) {
    const { rate, low, high, n } = preferred;
    lines.push(phrase("js.tune.preferred", { round, before: round - 1, value: percent(rate), low: percent(low), high: percent(high), count: n }));
  }
  return lines.map((line) => make("li", "", line));
}

function example({ prompt, before, after }) {
  const box = make("div", "example");
  box.append(make("p", "text", prompt));
  const row = make("div", "pair");
  for (const [key, text] of [["js.tune.before", before], ["js.tune.after", after]]) {
    const side = make("div", "turn");
    side.append(make("h3", "", phrase(key)), make("div", "text", text));
    row.append(side);
  }
  box.append(row);
  return box;
}

let shown = "";

async function refresh() {
  let state;
  try {
    const answer = await fetch("/chat/tune/progress");
    if (!answer.ok) return;
    state = await answer.json();
  } catch { return; } // the next comparison says that the server is gone
  if (JSON.stringify(state) === shown) return;
  shown = JSON.stringify(state);
  const count = Math.min(state.new, state.every);
  byId("share").value = count;
  const failed = state.problem ? ` ${phrase("js.tune.failed", { reason: state.problem })}` : "";
  byId("phase").textContent = phrase(`js.tune.${state.phase}`, { count, every: state.every }) + failed;
  byId("verdict").textContent = verdict(state);
  byId("verdict").dataset.verdict = state.verdict;
  byId("figures").replaceChildren(...figures(state));
  byId("before-after").hidden = !state.examples.length;
  byId("examples").replaceChildren(...state.examples.map(example));
}

document.addEventListener("keydown", (event) => chooseByKey(event, log));
byId("retry").onclick = next;
terms();
if (root.dataset.agreed) next();
refresh();
setInterval(refresh, 3000);
