// What the chat page and the tuning page share: votes, consent and requests. No library, no build.
"use strict";

const words = JSON.parse(document.body.dataset.strings);
export const phrase = (key, values = {}) => (words[key] || key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
export const byId = (id) => document.getElementById(id);

export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");

export async function send(path, content, signal) {
  return fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content), signal });
}

export async function reasonOf(answer) {
  try { return (await answer.json()).error.message; } catch { return `HTTP ${answer.status}`; }
}

// Calls `take` with each event of a stream.
export async function eventsOf(answer, take) {
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

// The buttons of one vote; `fill` adds them to the box and calls `vote` when one is chosen.
export function votes(token, fill) {
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
      if (stored) return; // the button was pressed twice
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

// The choices between two answers; `then` is called with the one that was stored.
export function choices(token, then) {
  return votes(token, (box, vote) => {
    box.classList.add("choices-of-pair");
    box.append(make("p", "hint", phrase("js.chat.choose")));
    ["left", "right", "tie", "both_bad"].forEach((choice, number) => {
      const button = make("button", "", "");
      button.append(make("kbd", "", String(number + 1)), ` ${phrase(`js.chat.${choice}`)}`);
      button.dataset.choice = choice;
      button.onclick = () => vote(button, { choice }, () => then(choice));
      box.append(button);
    });
  });
}

// The keys 1 to 4 choose in the last comparison of an element, except while someone types.
export function chooseByKey(event, element) {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || /^(textarea|input)$/i.test(event.target.tagName)) return;
  const boxes = element.querySelectorAll(".choices-of-pair");
  const button = boxes[boxes.length - 1]?.querySelectorAll("button")[Number(event.key) - 1];
  if (button && !button.disabled) button.click();
}

// Consent and withdrawal.
export function terms() {
  byId("agree").onchange = () => { byId("consent").disabled = !byId("agree").checked; };

  byId("consent").onclick = async () => {
    const answer = await send("/chat/consent", { version: byId("terms").dataset.version });
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
}
