// The annotation page: keyboard, drafts, sending without losing anything. No library, no build.
"use strict";

const body = document.body;
const strings = JSON.parse(body.dataset.strings || "{}");
const say = (key, values = {}) => (strings[key] || key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
const mine = (name) => `trimtab/${body.dataset.person}/${name}`;
// What this page needs is in memory; the browser's storage has a copy for later pages, where it is allowed and not full.
const memory = new Map();
const store = {
  get(name) {
    if (memory.has(name)) return memory.get(name);
    try { return JSON.parse(localStorage.getItem(mine(name))); } catch { return null; }
  },
  set(name, value) {
    memory.set(name, value);
    try { localStorage.setItem(mine(name), JSON.stringify(value)); } catch { /* the page still works */ }
  },
  drop(name) { memory.set(name, null); try { localStorage.removeItem(mine(name)); } catch { /* as above */ } },
  names(start) {
    let kept = [];
    try { kept = Object.keys(localStorage).filter((k) => k.startsWith(mine(start))).map((k) => k.slice(mine("").length)); } catch { /* as above */ }
    return [...new Set([...memory.keys(), ...kept])].filter((name) => name.startsWith(start) && store.get(name));
  },
};

// Colours: kept in this browser, and set before the page is used.
function paint() {
  let wanted = null;
  try { wanted = localStorage.getItem("trimtab/theme"); } catch { /* no storage */ }
  if (wanted && wanted !== "auto") document.documentElement.dataset.theme = wanted;
  else delete document.documentElement.dataset.theme;
  const choice = document.getElementById("theme");
  if (choice) {
    choice.value = wanted || "auto";
    choice.onchange = () => { try { localStorage.setItem("trimtab/theme", choice.value); } catch { /* no storage */ } paint(); };
  }
}
paint();

const work = document.getElementById("work");
if (work) start();

function start() {
  const place = document.getElementById("place");
  const status = document.getElementById("status");
  const help = document.getElementById("help");
  const keysOn = document.getElementById("keys-on");
  let last = work.dataset.last === "" ? null : Number(work.dataset.last);
  let active = 0;
  let busy = false;
  let looked = 0; // milliseconds this task has been in front of somebody
  let since = performance.now();
  let timer = null;
  let wait = 1000;

  const task = () => document.getElementById("task");
  const form = () => document.getElementById("form");
  const rows = () => [...place.querySelectorAll("fieldset.row")];
  const chosen = (row) => row.querySelector("input:checked");

  function tell(text, kind = "") { status.textContent = text; status.className = kind; }

  keysOn.checked = store.get("keys") !== false;
  keysOn.onchange = () => store.set("keys", keysOn.checked);

  // Time spent looking: the clock stops while the page is hidden.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) looked += performance.now() - since;
    else since = performance.now();
  });
  const seconds = () => (looked + (document.hidden ? 0 : performance.now() - since)) / 1000;

  // What is in the form, as the server wants it. Returns the missing row instead, if one is.
  function collect(verdict) {
    const t = task();
    const made = {
      item: t.dataset.item, verdict, comment: form().elements.comment.value, seconds: Math.round(seconds() * 10) / 10,
    };
    if (work.dataset.guideline) made.guideline = work.dataset.guideline;
    if (t.dataset.version !== "") made.version = Number(t.dataset.version);
    if (verdict === "flag") made.reason = form().elements.reason.value;
    if (verdict !== "judged") return made;
    const answers = new Map();
    for (const row of rows()) {
      const input = chosen(row);
      if (!input) return { missing: row };
      const { type, criterion, position } = row.dataset;
      const value = input.dataset;
      if (type === "pair") {
        const answer = { criterion, ranks: value.ranks.split(",").map(Number) };
        if (value.strength) answer.strength = Number(value.strength);
        answers.set(criterion, answer);
      } else if (type === "rank" || type === "scale") {
        const name = type === "rank" ? "ranks" : "scores";
        if (!answers.has(criterion)) answers.set(criterion, { criterion, [name]: [] });
        answers.get(criterion)[name][Number(position)] = Number(value.rank ?? value.score);
      } else if (type === "thumb") made.good = value.good === "true";
      else if (type === "step") { if (value.step !== "") made.first_wrong = Number(value.step); }
      else if (type === "cause") made.reason = value.cause;
    }
    for (const answer of answers.values()) if (answer.ranks) answer.ranks = dense(answer.ranks);
    if (answers.size) made.answers = [...answers.values()];
    const text = form().elements.rewrite;
    if (text && text.closest("details").open && text.value.trim()) {
      made.rewrite = { of: Number(text.dataset.of || bestPosition() || 0), text: text.value };
    }
    return made;
  }
  // Ranks without gaps: 1, 3, 3 means 0, 1, 1.
  function dense(ranks) {
    const levels = [...new Set(ranks)].sort((a, b) => a - b);
    return ranks.map((rank) => levels.indexOf(rank));
  }
  // Where the answer judged best stands; null if it is not known.
  function bestPosition() {
    for (const row of rows()) {
      const input = chosen(row);
      if (row.dataset.type === "pair" && input) return input.dataset.ranks.split(",").indexOf("0");
      if (row.dataset.type === "rank" && input?.dataset.rank === "0") return Number(row.dataset.position);
      if (row.dataset.type === "thumb") return 0;
    }
    return place.querySelectorAll(".answer").length === 1 ? 0 : null;
  }

  // Put a form's values back: a draft of this browser, or what the server sent.
  function fill(saved) {
    if (saved.comment) form().elements.comment.value = saved.comment;
    const text = form().elements.rewrite;
    if (text && saved.rewrite) {
      text.value = saved.rewrite.text; text.dataset.of = saved.rewrite.of; text.closest("details").open = true;
    }
    if (saved.verdict && saved.verdict !== "judged") return;
    for (const row of rows()) {
      const { type, criterion, position } = row.dataset;
      const answer = (saved.answers || []).find((a) => (a.criterion || "overall") === criterion);
      const at = saved.rows?.[rows().indexOf(row)];
      for (const input of row.querySelectorAll("input")) {
        const value = input.dataset;
        input.checked = at !== undefined ? Number(input.value) === at
          : type === "pair" ? Boolean(answer) && value.ranks === answer.ranks.join(",") && same(value.strength, answer.strength)
          : type === "rank" ? answer?.ranks?.[position] === Number(value.rank)
          : type === "scale" ? answer?.scores?.[position] === Number(value.score)
          : type === "thumb" ? "good" in saved && saved.good !== null && String(saved.good) === value.good
          : type === "step" ? saved.verdict === "judged" && String(saved.first_wrong ?? "") === value.step
          : false;
      }
    }
  }
  const same = (shown, given) => shown === "" || given == null ? !given && shown === "" : Math.abs(Number(shown) - given) < 0.001;

  const draftOf = (item) => `draft/${item}`;
  function keepDraft() {
    if (task()?.dataset.state !== "task") return;
    const text = form().elements.rewrite;
    store.set(draftOf(task().dataset.item), {
      at: Date.now(),
      rows: rows().map((row) => { const i = chosen(row); return i ? Number(i.value) : undefined; }),
      comment: form().elements.comment.value,
      rewrite: text && text.value ? { of: Number(text.dataset.of || 0), text: text.value } : undefined,
    });
  }

  function activate(index, focus = false) {
    const all = rows();
    if (!all.length) return;
    active = Math.max(0, Math.min(all.length - 1, index));
    all.forEach((row, i) => row.classList.toggle("active", i === active));
    if (focus) all[active].scrollIntoView({ block: "nearest" });
  }
  function choose(input) {
    input.checked = true;
    if (document.activeElement?.matches("input")) document.activeElement.blur(); // arrows go to the rows again
    changed();
  }
  function changed() { if (status.className === "bad" && !waiting().length) tell(""); board(); keepDraft(); }

  // A new task is on the page.
  function ready() {
    looked = 0; since = performance.now();
    if (task()?.dataset.state !== "task") return;
    const fromServer = task().dataset.draft;
    const draft = store.get(draftOf(task().dataset.item));
    if (draft) { fill(draft); if (draft.rows.some((r) => r != null) || draft.comment) tell(say("js.draft")); }
    else if (fromServer) fill(JSON.parse(fromServer));
    activate(0);
    makeBoard();
    form().addEventListener("change", (event) => {
      const row = event.target.closest("fieldset.row");
      if (row) activate(rows().indexOf(row));
      changed();
    });
    form().addEventListener("input", keepDraft);
    form().addEventListener("submit", (event) => { event.preventDefault(); send("judged"); });
    for (const row of rows()) row.addEventListener("focusin", () => activate(rows().indexOf(row)));
  }

  function show(reply) {
    if (reply.guideline && reply.guideline !== work.dataset.guideline) { // new rules: open them beside the task
      store.set("guidelines", true); location.assign(work.dataset.url); return;
    }
    place.innerHTML = reply.html; // rendered and escaped by the server
    window.scrollTo({ top: 0 });
    ready();
    document.getElementById("main").focus({ preventScroll: true });
  }

  // Sending. A form is first written down, then sent until the server has said what became of it; each by its own key.
  const waiting = () => store.names("pending/");
  function send(verdict) {
    if (busy || task()?.dataset.state !== "task") return;
    if (waiting().length) { deliver(); return; }
    const made = collect(verdict);
    if (made.missing) {
      const row = made.missing;
      activate(rows().indexOf(row), true);
      tell(say("js.incomplete", { what: row.querySelector("legend").textContent }), "bad");
      return;
    }
    made.key = key();
    store.set(`pending/${made.key}`, { url: `${work.dataset.url}/submit`, form: made });
    deliver();
  }
  const key = () => [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");

  async function deliver() {
    const [name] = waiting();
    if (!name || busy) return;
    const pending = store.get(name);
    busy = true; work.classList.add("busy");
    clearTimeout(timer);
    let reply = null; let answer = null; let reason = "";
    try {
      answer = await fetch(pending.url, {
        method: "POST", headers: { "Content-Type": "application/json", "X-CSRF-Token": body.dataset.csrf }, body: JSON.stringify(pending.form),
      });
      reply = await answer.json();
      reason = typeof reply.detail === "string" ? reply.detail : "";
    } catch { answer = null; }
    busy = false; work.classList.remove("busy");
    const waited = wait > 1000;
    if (answer === null || answer.status >= 500 || answer.status === 429) {
      tell(answer === null ? say("js.offline") : say("js.unsaved", { reason }), "bad");
      wait = Math.min(30000, wait * 2);
      timer = setTimeout(deliver, wait);
      return;
    }
    wait = 1000;
    if (answer.status === 401 || (answer.status === 403 && !reply.stored)) {
      tell(answer.status === 401 ? say("js.signedout") : reason, "bad");
      timer = setTimeout(renew, 5000);
      return;
    }
    store.drop(name);
    if (!answer.ok) {
      tell(say(answer.status === 409 ? "js.conflict" : "js.refused", { reason }), "bad");
      if (task()?.dataset.item !== pending.form.item) refresh();
      return;
    }
    store.drop(draftOf(pending.form.item));
    if (reply.to) { location.href = reply.to; return; }
    if (pending.form.version === undefined || pending.form.version === null) {
      const count = document.getElementById("count");
      if (count) count.textContent = Number(count.textContent) + 1;
    }
    if (reply.stored === "stored" && pending.form.verdict) last = reply.version;
    tell(reply.stored === "late" ? say("js.late") : waited ? say("js.back") : say("js.saved"), reply.stored === "late" ? "bad" : "good");
    if (location.search) history.replaceState(null, "", work.dataset.url);
    show(reply);
    deliver(); // what other pages could not send
  }
  window.addEventListener("online", () => { wait = 1000; deliver(); });

  // After signing in again in another tab, the page needs that session's token.
  async function renew() {
    try {
      const page = new DOMParser().parseFromString(await (await fetch("/profile")).text(), "text/html");
      const fresh = page.body.dataset;
      if (fresh.csrf && fresh.person === body.dataset.person) body.dataset.csrf = fresh.csrf;
    } catch { /* no connection: try again below */ }
    deliver();
  }

  async function call(url, method = "GET", content = undefined) {
    const headers = { "X-CSRF-Token": body.dataset.csrf };
    if (content) headers["Content-Type"] = "application/json";
    try {
      const answer = await fetch(url, { method, headers, body: content && JSON.stringify(content) });
      const reply = await answer.json();
      if (!answer.ok) { tell(say("js.refused", { reason: typeof reply.detail === "string" ? reply.detail : answer.status }), "bad"); return null; }
      return reply;
    } catch { tell(say("js.offline"), "bad"); return null; }
  }
  async function refresh() { const reply = await call("/work/next"); if (reply) show(reply); }

  async function undo() {
    if (last === null || busy || waiting().length) { tell(say("js.nothing")); return; }
    const reply = await call("/work/undo", "POST", { version: last });
    if (!reply) return;
    last = null;
    const count = document.getElementById("count");
    count.textContent = Math.max(0, Number(count.textContent) - 1);
    show(reply);
    tell(say("js.undone"), "good");
  }

  function rewriteFrom(position) {
    const details = place.querySelector("details.rewrite");
    if (!details) return;
    details.open = true;
    const text = form().elements.rewrite;
    if (position === null) { if (!text.value) tell(say("js.better")); text.focus(); return; }
    const raw = (p) => place.querySelector(`.answer[data-position="${p}"] textarea.raw`)?.value;
    if (!text.value || text.value === raw(text.dataset.of)) { // nothing of one's own is lost
      text.value = raw(position);
      text.dataset.of = position;
    } else if (text.dataset.of !== String(position)) tell(say("js.rewrite_kept"));
    text.focus(); keepDraft();
  }

  const acts = {
    undo,
    guidelines() {
      const aside = document.getElementById("guidelines");
      if (!aside) return;
      aside.hidden = !aside.hidden;
      work.querySelector("[data-act=guidelines]").setAttribute("aria-expanded", String(!aside.hidden));
      store.set("guidelines", !aside.hidden);
    },
    help() { help.open ? help.close() : help.showModal(); },
    submit() { send("judged"); },
    skip() { send("skip"); },
    unsure() { send("unsure"); },
    flag() {
      const box = place.querySelector("fieldset.flag");
      if (!box) return;
      box.hidden = false;
      place.querySelector("[data-act=flag]").setAttribute("aria-expanded", "true");
      form().elements.reason.focus();
    },
    "cancel-flag"() { place.querySelector("fieldset.flag").hidden = true; place.querySelector("[data-act=flag]").focus(); },
    "send-flag"() { send("flag"); },
    "rewrite-from"(button) { rewriteFrom(Number(button.dataset.position)); },
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-act]");
    if (button && button.type !== "submit") { event.preventDefault(); acts[button.dataset.act](button); }
  });
  // Opening the editor by the mouse fills in the better answer too.
  place.addEventListener("toggle", (event) => {
    if (event.target.matches("details.rewrite") && event.target.open && !form().elements.rewrite.value) rewriteFrom(bestPosition());
  }, true);

  const keys = { s: "skip", n: "unsure", f: "flag", z: "undo", g: "guidelines", "?": "help" };
  document.addEventListener("keydown", (event) => {
    const at = event.target;
    const typing = at.matches("textarea, select, input:not([type=radio]):not([type=checkbox])");
    if (typing && event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); send("judged"); return; }
    if (typing && event.key === "Escape") { at.blur(); return; }
    if (typing || event.altKey || (event.ctrlKey && event.key !== "z") || event.metaKey) return;
    if (help.open) { if (event.key === "?") { event.preventDefault(); help.close(); } return; }
    if (!keysOn.checked) return;
    if (event.key === "Enter") {
      if (at.matches("button, a, summary")) return;
      event.preventDefault(); send("judged"); return;
    }
    if (event.key === "ArrowDown" || event.key === "ArrowUp") { // these also scroll, and choose among radio buttons
      if (rows().length < 2 || at.matches("input, .chip, .answer, pre, aside")) return;
      event.preventDefault(); activate(active + (event.key === "ArrowDown" ? 1 : -1), true); return;
    }
    if (/^[0-9]$/.test(event.key)) {
      const row = rows()[active];
      const option = row && [...row.querySelectorAll("label.option")].find((l) => l.querySelector("kbd")?.textContent === event.key);
      if (option) { event.preventDefault(); const index = active; choose(option.querySelector("input")); activate(Math.min(index + 1, rows().length - 1), true); }
      return;
    }
    const letter = event.key.toLowerCase();
    if (letter === "c" && form()) { event.preventDefault(); form().elements.comment.focus(); return; }
    if (letter === "r" && form()?.elements.rewrite) { event.preventDefault(); rewriteFrom(bestPosition()); return; }
    if (["s", "n", "f"].includes(letter) && !place.querySelector(`[data-act=${keys[letter]}]`)) return; // an adjudicator decides
    if (keys[letter]) { event.preventDefault(); acts[keys[letter]](); }
  });

  // The board for rankings: the same choices as in the rows, moved by hand. Columns are ranks.
  function makeBoard() {
    const box = place.querySelector(".board");
    if (!box) return;
    box.hidden = false; place.querySelector(".board-hint").hidden = false;
    board();
  }
  function board() {
    const box = place.querySelector(".board");
    if (!box || box.hidden) return;
    const ranking = rows().filter((row) => row.dataset.type === "rank" && row.dataset.criterion === rows()[0].dataset.criterion);
    const focused = document.activeElement?.dataset?.chip;
    box.replaceChildren();
    for (let column = -1; column < ranking.length; column += 1) {
      const lane = document.createElement("div");
      lane.className = column < 0 ? "lane tray" : "lane";
      lane.dataset.rank = column;
      const name = document.createElement("small");
      name.textContent = column < 0 ? "?" : ranking[0].querySelectorAll("label.option span")[column].textContent;
      lane.append(name);
      for (const row of ranking) {
        const rank = chosen(row) ? Number(chosen(row).dataset.rank) : -1;
        if (rank === column) lane.append(chip(row));
      }
      box.append(lane);
    }
    if (focused) box.querySelector(`[data-chip="${focused}"]`)?.focus({ preventScroll: true });
  }
  function chip(row) {
    const made = document.createElement("button");
    made.type = "button"; made.className = "chip";
    made.dataset.chip = row.dataset.position;
    made.textContent = "ABCDEFGHI"[Number(row.dataset.position)];
    made.setAttribute("aria-label", row.querySelector("legend").textContent);
    const to = (rank) => {
      for (const input of row.querySelectorAll("input")) input.checked = Number(input.dataset.rank) === rank;
      changed();
    };
    made.addEventListener("keydown", (event) => {
      const now = chosen(row) ? Number(chosen(row).dataset.rank) : -1;
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) { event.preventDefault(); event.stopPropagation(); to(Math.max(0, Math.min(row.querySelectorAll("input").length - 1, now + step))); }
    });
    made.addEventListener("pointerdown", (event) => {
      event.preventDefault(); made.setPointerCapture(event.pointerId); made.classList.add("dragged");
      const x = event.clientX, y = event.clientY;
      const lane = (e) => document.elementsFromPoint(e.clientX, e.clientY).find((el) => el.classList.contains("lane"));
      const move = (e) => {
        made.style.transform = `translate(${e.clientX - x}px, ${e.clientY - y}px)`;
        for (const el of place.querySelectorAll(".lane")) el.classList.toggle("over", el === lane(e));
      };
      const drop = (e) => {
        made.removeEventListener("pointermove", move);
        const onto = e.type === "pointerup" ? lane(e) : null;
        made.style.transform = ""; made.classList.remove("dragged");
        if (onto) to(Number(onto.dataset.rank)); else board();
      };
      made.addEventListener("pointermove", move);
      made.addEventListener("pointerup", drop, { once: true });
      made.addEventListener("pointercancel", drop, { once: true });
    });
    return made;
  }

  for (const name of store.names("draft/")) if (store.get(name).at < Date.now() - 14 * 864e5) store.drop(name);
  if (store.get("guidelines") && document.getElementById("guidelines")) acts.guidelines();
  ready();
  deliver(); // what an earlier page could not send
}
