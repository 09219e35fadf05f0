// The chat page: streams answers and sends votes. No library, no build. Answers arrive as text; once complete, the
// server sends them rendered, with everything in them made harmless (as on the annotation page).
import { byId, choices, chooseByKey, eventsOf, make, phrase, reasonOf, send, terms, votes } from "./votes.js";

const root = document.getElementById("chat");
const log = byId("log");
let turns = [];
let running = null; // of the request that is being answered
let pending = null; // a comparison that waits for a choice: the conversation continues with the chosen answer

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
  row.after(compare && !blocked ? choices(end.token, (choice) => settle(choice, comparison)) : thumbs(end.token, blocked));
}

// The conversation continues with one of two answers, unless it has continued since this comparison.
function settle(choice, comparison = pending) {
  if (!pending || pending !== comparison) return;
  turns.push({ role: "assistant", content: pending.answers[choice === "right" ? 1 : 0].text });
  pending = null;
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
  chooseByKey(event, log);
});

byId("stop").onclick = () => running?.abort();
byId("new").onclick = () => { running?.abort(); turns = []; pending = null; log.replaceChildren(); byId("message").focus(); };
terms();
