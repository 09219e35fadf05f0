// The chat page: streams answers and sends votes. No library, no build. Answers arrive as text; once complete, the
// server sends them rendered, with everything in them made harmless (as on the annotation page).
"use strict";

const root = document.getElementById("chat");
const words = JSON.parse(document.body.dataset.strings);
const phrase = (key, values = {}) => (words[key] || key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
const byId = (id) => document.getElementById(id);
const log = byId("log");
let turns = [];
let running = null; // of the request that is being answered
let pending = null; // a comparison that waits for a choice: the conversation goes on with the chosen answer

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");

async function send(path, content, signal) {
  return fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content), signal });
}

async function reasonOf(answer) {
  try { return (await answer.json()).error.message; } catch { return `HTTP ${answer.status}`; }
}

// Calls `take` with each event of a stream.
async function eventsOf(answer, take) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) take(JSON.parse(part.slice("data: ".length)));
  }
}

function showTurn(role, label) {
  const turn = make("div", `turn ${role}`);
  const text = make("div", "text streaming");
  turn.append(make("h2", "", label), text);
  return [turn, text];
}

async function ask(text) {
  byId("problem").textContent = "";
  settle("left");
  const [mine, said] = showTurn("user", phrase("js.chat.you"));
  said.textContent = text;
  log.append(mine);
  turns.push({ role: "user", content: text });
  const compare = byId("compare")?.checked || false;
  const row = make("div", compare ? "pair" : "");
  const places = (compare ? ["js.chat.answer_a", "js.chat.answer_b"] : ["js.chat.model"]).map((key) => {
    const [turn, place] = showTurn("assistant", phrase(key));
    row.append(turn);
    return place;
  });
  log.append(row);
  row.scrollIntoView({ block: "end" });
  running = new AbortController();
  byId("send").disabled = true;
  byId("stop").hidden = false;
  let end = null;
  try {
    const answer = await send("/chat/answer", { messages: turns, compare }, running.signal);
    if (!answer.ok) throw new Error(await reasonOf(answer));
    await eventsOf(answer, (event) => {
      if (event.error) throw new Error(event.error.message);
      if (event.answers) end = event;
      else places[event.place].textContent += event.text;
    });
    if (!end) throw new Error(phrase("js.chat.offline"));
    finish(row, places, end, compare);
  } catch (error) {
    turns.pop();
    row.remove();
    if (error.name !== "AbortError") byId("problem").textContent = phrase("js.chat.failed", { reason: error.message });
    byId("message").value = text;
    mine.remove();
  } finally {
    running = null;
    byId("send").disabled = false;
    byId("stop").hidden = true;
  }
}

function finish(row, places, end, compare) {
  end.answers.forEach((answer, place) => {
    places[place].className = "md";
    if (answer.blocked) {
      places[place].className = "blocked";
      places[place].textContent = phrase("js.chat.blocked", { reason: answer.text });
    } else {
      places[place].innerHTML = answer.html; // rendered by the server, safe
    }
    if (answer.finish_reason === "length") places[place].after(make("p", "hint", phrase("js.chat.cut")));
  });
  const comparison = compare ? { answers: end.answers } : null;
  if (compare) pending = comparison;
  else turns.push({ role: "assistant", content: end.answers[0].text });
  const blocked = end.answers.some((answer) => answer.blocked);
  row.after(compare && !blocked ? choices(end.token, comparison) : thumbs(end.token, blocked));
}

// The conversation goes on with one of two answers, unless it has gone on since this comparison.
function settle(choice, comparison = pending) {
  if (!pending || pending !== comparison) return;
  turns.push({ role: "assistant", content: pending.answers[choice === "right" ? 1 : 0].text });
  pending = null;
}

function votes(token, fill) {
  const box = make("div", "votes");
  const status = make("p", "hint");
  status.setAttribute("role", "status");
  const keys = new Map(); // the same vote keeps its key, so that sending it again stores it once
  let stored = false;
  const vote = async (button, content, then) => {
    if (stored) return;
    if (!token) { status.textContent = phrase("js.chat.agree_first"); then?.(); return; }
    const name = JSON.stringify(content);
    if (!keys.has(name)) keys.set(name, newKey());
    try {
      const answer = await send("/chat/vote", { token, key: keys.get(name), ...content });
      if (!answer.ok) throw new Error(await reasonOf(answer));
      stored = true;
      button.setAttribute("aria-pressed", "true");
      for (const other of box.querySelectorAll("button")) other.disabled = true;
      status.textContent = phrase("js.chat.saved");
      then?.();
    } catch (error) {
      const reason = error instanceof TypeError ? phrase("js.chat.offline") : error.message;
      status.textContent = phrase("js.chat.not_saved", { reason });
    }
  };
  fill(box, vote);
  box.append(status);
  return box;
}

// A blocked answer is the guard's, so the only vote on it is that the refusal was wrong.
function thumbs(token, blocked) {
  return votes(token, (box, vote) => {
    if (blocked) {
      const wrong = make("button", "", phrase("js.chat.unjustified_refusal"));
      wrong.dataset.reason = "unjustified_refusal";
      wrong.onclick = () => vote(wrong, { good: false, reason: "unjustified_refusal" });
      box.append(wrong);
      return;
    }
    const good = make("button", "", `👍 ${phrase("js.chat.good")}`);
    const bad = make("button", "", `👎 ${phrase("js.chat.bad")}`);
    good.onclick = () => vote(good, { good: true });
    bad.onclick = () => {
      bad.setAttribute("aria-expanded", "true");
      bad.onclick = null;
      const question = make("p", "hint", phrase("js.chat.why"));
      const reasons = root.dataset.reasons.split(",").map((reason) => {
        const button = make("button", "", phrase(`js.chat.${reason}`));
        button.dataset.reason = reason;
        button.onclick = () => vote(button, { good: false, reason });
        return button;
      });
      bad.after(question, ...reasons);
      reasons[0].focus();
    };
    box.append(good, bad);
  });
}

function choices(token, comparison) {
  return votes(token, (box, vote) => {
    box.classList.add("choices-of-pair");
    box.append(make("p", "hint", phrase("js.chat.choose")));
    ["left", "right", "tie", "both_bad"].forEach((choice, number) => {
      const button = make("button", "", "");
      button.append(make("kbd", "", String(number + 1)), ` ${phrase(`js.chat.${choice}`)}`);
      button.dataset.choice = choice;
      button.onclick = () => vote(button, { choice }, () => settle(choice, comparison));
      box.append(button);
    });
  });
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("message").value.trim();
  if (!text || running) return;
  byId("message").value = "";
  ask(text);
});

byId("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("ask").requestSubmit();
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
  if (event.ctrlKey || event.metaKey || event.altKey || /^(textarea|input)$/i.test(event.target.tagName)) return;
  const boxes = log.querySelectorAll(".choices-of-pair");
  const button = boxes[boxes.length - 1]?.querySelectorAll("button")[Number(event.key) - 1];
  if (button && !button.disabled) button.click();
});

byId("stop").onclick = () => running?.abort();
byId("new").onclick = () => { running?.abort(); turns = []; pending = null; log.replaceChildren(); byId("message").focus(); };
byId("agree").onchange = () => { byId("consent").disabled = !byId("agree").checked; };

byId("consent").onclick = async () => {
  const answer = await send("/chat/consent", { version: root.dataset.version });
  if (answer.ok) location.reload();
  else byId("withdrawn").textContent = await reasonOf(answer);
};

byId("withdrawal").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await send("/chat/withdraw", { code: event.target.elements.code.value.trim() });
  if (!answer.ok) { byId("withdrawn").textContent = await reasonOf(answer); return; }
  const { votes: count, exposures, exports, runs } = await answer.json();
  const about = exports.length ? phrase("js.chat.exports", { list: exports.join(", ") }) : phrase("js.chat.no_exports");
  const trained = runs.length ? ` ${phrase("js.chat.runs", { list: runs.join(", ") })}` : "";
  byId("withdrawn").textContent = phrase("js.chat.withdrawn", { votes: count, exposures, exports: about }) + trained;
  byId("agreed").hidden = true;
  byId("unagreed").hidden = false;
});
