// The annotation page: keys, drafts, and sending without losing anything. No library, no build.
//
// What the screen shows is what is stored:
// - A form that was submitted is locked until the server has said what became of it, and is written down first, so that
//   a closed tab loses nothing. It is sent again under the same key, which the server stores once.
// - Where an answer of the server got lost, or another tab was faster, the page asks what is stored and shows that.
// - Counts and the judgement that can be taken back come from the server with every reply, never from this page.
// - Everything that fails for a while is tried again by itself; no page waits for a reload.
"use strict";

const body = document.body;
const base = body.dataset.base;
const strings = JSON.parse(body.dataset.strings || "{}");
const say = (key, values = {}) => (strings[key] || key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
const own = (name) => `trimtab/${body.dataset.person}/${name}`;
// The browser's storage is shared by all tabs; where it is forbidden or full, this page's memory stands in for it.
const memory = new Map();
const store = {
  get(name) {
    if (memory.has(name)) return memory.get(name);
    try { return JSON.parse(localStorage.getItem(own(name))); } catch { return null; }
  },
  set(name, value) {
    memory.set(name, value);
    try { localStorage.setItem(own(name), JSON.stringify(value)); memory.delete(name); } catch { /* the page still works */ }
  },
  drop(name) { memory.delete(name); try { localStorage.removeItem(own(name)); } catch { /* as above */ } },
  names(start) {
    let kept = [];
    try { kept = Object.keys(localStorage).filter((k) => k.startsWith(own(start))).map((k) => k.slice(own("").length)); } catch { /* as above */ }
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

// Times in the reader's own zone; without this script they stand in UTC.
for (const time of document.querySelectorAll("time[datetime]")) {
  const at = new Date(time.dateTime);
  if (!Number.isNaN(at.valueOf())) {
    time.textContent = at.toLocaleString(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" });
  }
}

// Keys. A key is known by what it types, in any script; and by its place, where what it types is no Latin letter.
const LETTERS = { s: "skip", n: "unsure", f: "flag", z: "undo", g: "guidelines", c: "comment", r: "rewrite", v: "raw" };
const isDigit = (code) => code >= 0 && /^\p{Nd}$/u.test(String.fromCodePoint(code));
function digitOf(event) {
  const code = [...event.key].length === 1 ? event.key.codePointAt(0) : -1;
  if (isDigit(code)) {
    let zero = code; // the digits of a script stand in order
    while (code - zero < 9 && isDigit(zero - 1)) zero -= 1;
    return code - zero;
  }
  const place = /^Digit([0-9])$/.exec(event.code);
  return place ? Number(place[1]) : null;
}
function letterOf(event) {
  if (/^[a-z]$/i.test(event.key)) return event.key.toLowerCase();
  const typesAnother = /^\p{L}\p{M}*$/u.test(event.key) || ["Process", "Dead", "Unidentified"].includes(event.key);
  const place = /^Key([A-Z])$/.exec(event.code);
  return typesAnother && place ? place[1].toLowerCase() : "";
}
const isHelp = (event) => ["?", "؟", "？"].includes(event.key) || (event.shiftKey && event.code === "Slash" && !/^\p{L}$/u.test(event.key));

// An item's page: texts as typed or rendered.
const rawToggle = document.getElementById("raw-toggle");
if (rawToggle) {
  const flip = () => rawToggle.setAttribute("aria-pressed", String(document.getElementById("item-texts").classList.toggle("as-typed")));
  rawToggle.hidden = false;
  rawToggle.onclick = flip;
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("textarea, select, input");
    if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey && !event.repeat && letterOf(event) === "v") flip();
  });
}

const work = document.getElementById("work");
if (work) start();

function start() {
  const PATIENCE = 20000; // milliseconds until a request without a reply is given up and sent again
  const POLL = 20000; // milliseconds between two looks for work where there is none
  const place = document.getElementById("place");
  const status = document.getElementById("status");
  const help = document.getElementById("help");
  const annotating = work.dataset.url === "/work";
  const news = annotating ? "done" : "settled"; // under this name tabs tell each other what was stored
  // Where it is asked what is stored about an item.
  const pathOf = (item) => `${annotating ? "/work/next" : "/adjudicate/task"}?item=${encodeURIComponent(item)}`;
  let last = work.dataset.last === "" ? null : Number(work.dataset.last);
  let active = 0;
  let looked = 0; // milliseconds this task has been in front of someone
  let since = performance.now();
  let shownAt = 0;
  let sent = null; // the form this page waits for: { key, path, form }
  let wanted = null; // a question this page waits for: { path, content, message }
  let reading = null; // what comes after the feedback on a training item: { reply, message }
  let running = false;
  let timer = null;
  let wait = 1000;
  let failed = false;
  let heard = null; // what another tab announced while this page was waiting

  const task = () => document.getElementById("task");
  const form = () => document.getElementById("form");
  const rows = () => [...place.querySelectorAll("fieldset.row")];
  const chosen = (row) => row.querySelector("input:checked");
  const isTask = () => task()?.dataset.state === "task";
  const locked = () => sent !== null || wanted !== null || reading !== null;
  function lock() {
    for (const part of place.querySelectorAll(".choices, .actions")) part.inert = locked();
    work.classList.toggle("busy", sent !== null || wanted !== null);
  }

  function tell(text, kind = "") { status.textContent = text; status.className = kind; }

  // Settings of this browser.
  for (const [id, normal] of [["keys", true], ["auto", false]]) {
    const box = document.getElementById(`${id}-on`);
    box.checked = store.get(id) ?? normal;
    box.onchange = () => store.set(id, box.checked);
  }
  const isOn = (id) => document.getElementById(`${id}-on`).checked;

  // Time spent looking: the clock stops while the page is hidden.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) looked += performance.now() - since;
    else { since = performance.now(); look(); }
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
    const written = rewriting();
    if (written) made.rewrite = written;
    return made;
  }
  // Ranks without gaps: 1, 3, 3 means 0, 1, 1.
  function dense(ranks) {
    const levels = [...new Set(ranks)].sort((a, b) => a - b);
    return ranks.map((rank) => levels.indexOf(rank));
  }
  // The rewritten answer, if it differs from the one it started from. A folded editor counts too.
  function rewriting() {
    const text = form().elements.rewrite;
    if (!text || !text.value.trim()) return undefined;
    const of = Number(text.dataset.of || bestPosition() || 0);
    return text.value === rawText(of) ? undefined : { of, text: text.value };
  }
  const rawText = (position) => place.querySelector(`.answer[data-position="${position}"] textarea.raw`)?.value;
  // Where the answer judged best stands; null if it is not known.
  function bestPosition() {
    for (const row of rows()) {
      const input = chosen(row);
      if (row.dataset.type === "pair" && input) return input.dataset.ranks.split(",").indexOf("0");
      if (row.dataset.type === "rank" && bestRanked(row.dataset.criterion)) return Number(bestRanked(row.dataset.criterion).dataset.position);
      if (row.dataset.type === "thumb") return 0;
    }
    return place.querySelectorAll(".answer").length === 1 ? 0 : null;
  }

  // The row of a ranking's best answer: the one on the first rank, or on the first that is taken.
  function bestRanked(criterion) {
    const ranking = rows().filter((row) => row.dataset.type === "rank" && row.dataset.criterion === criterion);
    const rank = (row) => Number(chosen(row)?.dataset.rank ?? Infinity);
    const best = Math.min(...ranking.map(rank));
    return best === 0 || ranking.every(chosen) ? ranking.find((row) => rank(row) === best) : undefined;
  }

  // Put values back into the form: a draft of this browser, or a form as it was sent.
  function fill(saved) {
    fillTexts(saved);
    if (saved.verdict && saved.verdict !== "judged") return;
    for (const row of rows()) {
      const { type, criterion, position } = row.dataset;
      const answer = (saved.answers || []).find((a) => (a.criterion || "overall") === criterion);
      for (const input of row.querySelectorAll("input")) {
        const value = input.dataset;
        input.checked = saved.picks ? saved.picks[nameOf(row)] === valueOf(input)
          : type === "pair" ? Boolean(answer) && value.ranks === answer.ranks?.join(",") && same(value.strength, answer.strength)
          : type === "rank" ? answer?.ranks?.[position] === Number(value.rank)
          : type === "scale" ? answer?.scores?.[position] === Number(value.score)
          : type === "thumb" ? "good" in saved && saved.good !== null && String(saved.good) === value.good
          : type === "step" ? saved.verdict === "judged" && String(saved.first_wrong ?? "") === value.step
          : type === "cause" ? saved.reason === value.cause
          : false;
      }
    }
  }
  function fillTexts({ comment = "", rewrite }) {
    const remark = form().elements.comment;
    remark.value = comment;
    if (comment) remark.closest("details").open = true;
    const text = form().elements.rewrite;
    if (!text) return;
    text.value = rewrite?.text ?? "";
    if (rewrite?.of === undefined) delete text.dataset.of;
    else text.dataset.of = rewrite.of;
    if (rewrite) text.closest("details").open = true;
  }
  const same = (shown, given) => shown === "" || given == null ? !given && shown === "" : Math.abs(Number(shown) - given) < 0.001;
  const nameOf = ({ dataset }) => [dataset.type, dataset.criterion, dataset.position].join("/");
  const valueOf = ({ dataset }) => Object.values({ ...dataset }).join("/");

  const draftOf = (item) => `draft/${item}`;
  function keepDraft() {
    if (!isTask() || locked()) return;
    const picks = {};
    for (const row of rows()) if (chosen(row)) picks[nameOf(row)] = valueOf(chosen(row));
    const draft = { at: Date.now(), version: task().dataset.version, picks, ...texts() };
    store.set(draftOf(task().dataset.item), draft);
  }
  function texts() {
    const text = form().elements.rewrite;
    const of = text?.dataset.of === undefined ? undefined : Number(text.dataset.of); // without: of the better answer
    return { comment: form().elements.comment.value, rewrite: text?.value ? { of, text: text.value } : undefined };
  }
  // The texts that somebody changed since this form was shown. Stored ones are not among them: they may be old.
  let given = {};
  function typedHere() {
    const { comment, rewrite } = texts();
    const typed = {};
    if (comment !== (given.comment ?? "")) typed.comment = comment;
    if ((rewrite?.text ?? "") !== (given.rewrite?.text ?? "")) typed.rewrite = rewrite;
    return typed;
  }

  function activate(index, scroll = false) {
    const all = rows();
    if (!all.length) return;
    active = Math.max(0, Math.min(all.length - 1, index));
    all.forEach((row, i) => row.classList.toggle("active", i === active));
    if (scroll) all[active].scrollIntoView({ block: "nearest" });
  }
  function choose(input) {
    input.checked = true;
    if (document.activeElement?.matches("input")) document.activeElement.blur(); // arrows go to the rows again
    const row = input.closest("fieldset.row");
    const filled = changed();
    activate(Math.min(rows().indexOf(row) + 1, rows().length - 1), true);
    goOnIf(filled, row);
  }
  // The setting "one choice submits": the last missing choice, or another one in the last row, sends the form.
  const tooEarly = () => isOn("auto") && performance.now() - shownAt < 350; // a press meant for the task before
  function goOnIf(filled, row) {
    if (isOn("auto") && annotating && rows().every(chosen) && (filled || row === rows().pop())) send("judged");
  }
  let complete = false;
  // Show and keep what the form holds now; says whether the last change completed it.
  function changed() {
    const before = complete;
    if (status.className === "bad" && !failed) tell("");
    refreshForm(); keepDraft();
    return complete && !before;
  }
  function refreshForm() {
    complete = rows().every(chosen);
    for (const row of rows()) {
      const picked = row.querySelector(".picked");
      if (picked) picked.textContent = chosen(row)?.closest("label").querySelector(".long").textContent ?? "";
    }
    board();
  }

  // A new task is on the page.
  function ready() {
    looked = 0; since = shownAt = performance.now();
    lock();
    place.classList.toggle("as-typed", Boolean(store.get("raw")));
    if (!isTask()) return;
    const { item, version, draft: stored } = task().dataset;
    const pending = waiting().map((key) => ({ key, ...store.get(`pending/${key}`) }))
      .find((p) => p.form.item === item && p.path === `${work.dataset.url}/submit`);
    const draft = store.get(draftOf(item));
    given = stored ? JSON.parse(stored) : {};
    if (pending) fill(pending.form); // an earlier page could not send it: it is this page's now
    else if (draft && draft.version === version) {
      if (stored) fill(given);
      fill(draft);
      if (Object.keys(draft.picks ?? draft.answers ?? {}).length || draft.comment) tell(say("js.draft"));
    } else if (stored) fill(given);
    activate(0);
    makeBoard();
    refreshForm();
    const question = [...place.querySelectorAll(".turn.user")].pop();
    if (question) question.closest(".prompt").scrollTop = question.offsetTop - question.closest(".prompt").offsetTop;
    form().addEventListener("change", (event) => {
      const row = event.target.closest("fieldset.row");
      if (row && tooEarly()) { event.target.checked = false; return; }
      const filled = changed();
      if (row) { activate(rows().indexOf(row)); goOnIf(filled, row); }
    });
    form().addEventListener("input", keepDraft);
    form().addEventListener("submit", (event) => { event.preventDefault(); send("judged"); });
    for (const row of rows()) row.addEventListener("focusin", () => activate(rows().indexOf(row)));
    if (pending) { sent = pending; lock(); run(); }
  }

  let progress = { as_of: Number(work.dataset.asOf ?? 0) };
  function follow({ last: newest, judged, total, as_of }) {
    if (as_of < progress.as_of) return; // a reply that was overtaken on its way
    progress = { last: newest, judged, total, as_of };
    last = newest;
    document.getElementById("count").textContent = judged;
    document.getElementById("of").textContent = say("js.of", { total: Math.max(total, judged) });
  }
  function announce(item) { store.set(news, { item, at: Date.now(), ...progress }); } // to other tabs
  function show(reply) {
    place.innerHTML = reply.html; // rendered and escaped by the server
    if (annotating && location.search) history.replaceState(null, "", base + work.dataset.url);
    window.scrollTo({ top: 0 });
    ready();
    document.getElementById("main").focus({ preventScroll: true });
    if (reply.guideline && reply.guideline !== work.dataset.guideline) newRules();
  }
  // New guidelines open beside the task; until they are there, judgements name the old ones.
  async function newRules() {
    const { reply } = await ask("/work/guidelines");
    if (!reply) return;
    document.getElementById("guidelines").innerHTML = reply.html;
    work.dataset.guideline = reply.name ?? "";
    showRules(true);
  }
  function showRules(on) {
    const aside = document.getElementById("guidelines");
    if (!aside) return;
    aside.hidden = !on;
    work.querySelector("[data-act=guidelines]").setAttribute("aria-expanded", String(on));
    store.set("guidelines", on);
  }

  // One exchange with the server. { reply }: it answered. { refused }: it will not have this, now or later.
  // { unknown }: nobody knows what became of it, so it is asked again.
  async function ask(path, content) {
    for (let renewed = false; ; renewed = true) {
      let answer; let reply = null;
      try {
        const headers = { "X-CSRF-Token": body.dataset.csrf, Accept: "application/json" };
        if (content) headers["Content-Type"] = "application/json";
        answer = await fetch(base + path, { method: content ? "POST" : "GET", headers, body: content && JSON.stringify(content), signal: AbortSignal.timeout(PATIENCE) });
        reply = JSON.parse(await answer.text());
      } catch { if (!answer || answer.ok) return { unknown: true, reason: "" }; }
      if (answer.ok && reply && typeof reply === "object") return { reply };
      const reason = typeof reply?.detail === "string" ? reply.detail : String(answer.status);
      if (answer.status === 401 || answer.status === 403) {
        const who = await whoIsSignedIn();
        if (who === "changed" && !renewed) continue;
        if (who === "other") location.assign(base + work.dataset.url); // this page belongs to someone else
        if (who !== "same") return { unknown: true, reason, signedOut: who === "nobody" };
      }
      if (answer.ok || answer.status >= 500 || [401, 408, 425, 429].includes(answer.status)) return { unknown: true, reason };
      return { refused: true, status: answer.status, reason };
    }
  }
  // After signing in again in another tab, the page needs that session's token.
  async function whoIsSignedIn() {
    try {
      const html = await (await fetch(`${base}/profile`, { headers: { Accept: "text/html" }, signal: AbortSignal.timeout(PATIENCE) })).text();
      const { csrf, person } = new DOMParser().parseFromString(html, "text/html").body.dataset;
      if (!person) return "nobody";
      if (person !== body.dataset.person) return "other";
      if (csrf === body.dataset.csrf) return "same";
      body.dataset.csrf = csrf;
      return "changed";
    } catch { return "unknown"; }
  }

  // Sending. Forms that earlier pages could not send wait in the browser's storage; any page sends them.
  const waiting = () => store.names("pending/").map((name) => name.slice("pending/".length));
  const key = () => [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
  function send(verdict) {
    if (reading) { goOn(); return; }
    if (locked()) { wait = 1000; run(); return; } // someone impatient: what waits is tried at once
    if (!isTask()) return;
    const made = collect(verdict);
    if (made.missing) {
      const row = made.missing;
      activate(rows().indexOf(row), true);
      tell(say("js.incomplete", { what: row.querySelector(".question").textContent }), "bad");
      return;
    }
    made.key = key();
    keepDraft();
    sent = { key: made.key, path: `${work.dataset.url}/submit`, form: made };
    store.set(`pending/${made.key}`, { path: sent.path, form: made });
    lock();
    run();
  }
  function want(path, { content, message = null } = {}) { wanted = { path, content, message }; lock(); run(); }

  // Does everything that waits, one after the other; what fails is tried again, later each time.
  async function run() {
    if (running) return;
    running = true;
    clearTimeout(timer);
    const tried = new Set();
    let trouble = null;
    for (;;) {
      const next = [sent?.key, ...waiting()].find((k) => k && !tried.has(k));
      if (!next) break;
      tried.add(next);
      const mine = sent?.key === next ? sent : null;
      const entry = mine ?? store.get(`pending/${next}`);
      if (!entry) continue;
      const result = await ask(entry.path, entry.form);
      if (result.unknown) { trouble = result; continue; }
      store.drop(`pending/${next}`);
      if (mine) settle(mine, result);
      else settleAnother(entry, result);
    }
    if (wanted) {
      const question = wanted;
      const result = await ask(question.path, question.content);
      if (result.unknown) trouble = result;
      else if (result.refused && question.content) wanted = { path: "/work/next", message: ["js.refused", { reason: result.reason }, "bad"] };
      else { wanted = null; lock(); if (result.reply) answered(question, result.reply); }
    }
    running = false;
    if (trouble) {
      failed = true;
      const what = trouble.signedOut ? "js.signedout" : trouble.reason ? "js.unsaved" : "js.offline";
      tell(say(what, { reason: trouble.reason }), "bad");
      timer = setTimeout(run, trouble.signedOut ? 5000 : wait);
      wait = Math.min(30000, wait * 2);
      return;
    }
    wait = 1000;
    if ((sent && !tried.has(sent.key)) || wanted) { run(); return; }
    failed = false;
    listen();
  }
  // What became of this page's own form.
  function settle(was, { reply, refused, status: code, reason }) {
    sent = null;
    if (refused) {
      lock();
      tell(say(code === 409 ? "js.conflict" : "js.refused", { reason }), "bad");
      lookUp(was.form.item, [code === 409 ? "js.conflict" : "js.refused", { reason }, "bad"]);
      return;
    }
    store.drop(draftOf(was.form.item));
    if (reply.to) { announce(was.form.item); location.href = base + reply.to; return; }
    follow(reply);
    announce(was.form.item);
    const message = reply.stored === "late" ? ["js.late", {}, "bad"]
      : reply.item === was.form.item && reply.last !== reply.version ? ["js.undone", {}, ""]
      : [failed ? "js.back" : "js.saved", {}, "good"];
    if (reply.feedback) { feedback(reply, message); return; }
    show(reply);
    tell(say(message[0], message[1]), message[2]);
  }
  // What became of a form that an earlier page, or another tab, could not send.
  function settleAnother(entry, { reply, refused, reason }) {
    const { item } = entry.form;
    if (refused) { // nothing is lost: it is a draft again
      if (!store.get(draftOf(item))) store.set(draftOf(item), { ...entry.form, at: Date.now(), version: String(entry.form.version ?? "") });
      tell(say("js.refused", { reason }), "bad");
      return;
    }
    store.drop(draftOf(item));
    if (!annotating && reply.to && task()?.dataset.item === item) location.href = base + reply.to;
    if (!annotating || !reply.html) return;
    follow(reply);
    tell(say("js.back"), "good");
    if (task()?.dataset.item === item && !locked()) show(reply);
  }
  // Show what is stored about an item, or the next one; words typed here stay.
  function lookUp(item, message = null) {
    const typed = isTask() && task().dataset.item === item ? typedHere() : {};
    wanted = { path: pathOf(item), message, typed };
    lock(); run();
  }
  function answered(question, reply) {
    const before = last;
    if (annotating) follow(reply);
    if (question.path === "/work/undo") { store.drop(draftOf(reply.item)); announce(reply.item); }
    else if (annotating) announce(null);
    show(reply);
    const { typed } = question;
    if (typed && Object.keys(typed).length && isTask() && pathOf(task().dataset.item) === question.path) {
      fillTexts({ ...texts(), ...typed }); keepDraft();
    }
    if (question.path === "/work/next" && question.message?.[0] === "js.refused" && before !== null && (last ?? -1) < before) tell(say("js.undone"), "good");
    else if (question.message) {
      const [name, values, kind] = question.message;
      tell(say(reply.state === "settled" && name === "js.conflict" ? "js.refused" : name, values), kind); // no form is left
    }
  }
  window.addEventListener("online", () => { wait = 1000; run(); });
  window.addEventListener("pageshow", (event) => {
    if (!event.persisted || locked()) return;
    if (annotating) want("/work/next");
    else if (isTask()) lookUp(task().dataset.item);
  });
  // Another tab stored or took back what stands here.
  window.addEventListener("storage", (event) => {
    if (event.key !== own(news) || !event.newValue) return;
    heard = JSON.parse(event.newValue);
    listen();
  });
  function listen() {
    if (!heard || locked()) return;
    const done = heard;
    heard = null;
    if (done.last !== undefined) follow(done);
    if (!isTask() || done.item !== task().dataset.item) return;
    const typed = Object.keys(typedHere()).length > 0;
    if (!annotating || typed || task().dataset.version !== "") lookUp(done.item, ["js.elsewhere_stored", {}, ""]);
    else want("/work/next", { message: ["js.elsewhere", {}, ""] });
  }
  // Where there is no work, look for it from time to time.
  async function look() {
    if (!annotating || isTask() || locked() || running || document.hidden) return;
    const { reply } = await ask("/work/next");
    if (!reply || isTask() || locked()) return;
    follow(reply);
    if (reply.state !== task()?.dataset.state) { tell(""); show(reply); }
  }
  setInterval(look, POLL);

  // Training: the right answer is shown beside the given one until the annotator continues.
  function feedback(reply, message) {
    reading = { reply, message };
    lock();
    form().querySelector(".actions").hidden = true;
    form().insertAdjacentHTML("beforeend", reply.feedback);
    tell("");
    form().querySelector("[data-act=go-on]").focus();
  }
  function goOn() {
    const { reply } = reading;
    reading = null;
    show(reply);
  }

  function rewriteFrom(position) {
    const details = place.querySelector("details.rewrite");
    if (!details || locked()) return;
    details.open = true;
    const text = form().elements.rewrite;
    if (position === null) { if (!text.value) tell(say("js.better")); text.focus(); return; }
    if (!text.value || text.value === rawText(text.dataset.of)) { // nothing of one's own is lost
      text.value = rawText(position);
      text.dataset.of = position;
    } else if (text.dataset.of !== String(position)) tell(say("js.rewrite_kept"));
    text.focus(); keepDraft();
  }
  // Scroll all answers together by a share of what is seen of them.
  function scrollAnswers(share) {
    for (const part of place.querySelectorAll(".answers, .answer")) part.scrollBy({ top: share * part.clientHeight });
  }

  const acts = {
    undo() {
      if (locked()) { send("judged"); return; }
      if (last === null) { tell(say("js.nothing")); return; }
      want("/work/undo", { content: { version: last }, message: ["js.undone", {}, "good"] });
    },
    guidelines() { showRules(document.getElementById("guidelines")?.hidden ?? false); },
    help() { help.open ? help.close() : help.showModal(); },
    raw() { store.set("raw", place.classList.toggle("as-typed")); },
    submit() { send("judged"); },
    skip() { if (!locked()) send("skip"); },
    unsure() { if (!locked()) send("unsure"); },
    flag() {
      const box = place.querySelector("fieldset.flag");
      if (!box || locked()) return;
      box.hidden = false;
      place.querySelector("[data-act=flag]").setAttribute("aria-expanded", "true");
      form().elements.reason.focus();
    },
    "cancel-flag"() { place.querySelector("fieldset.flag").hidden = true; place.querySelector("[data-act=flag]").focus(); },
    "send-flag"() { if (!locked()) send("flag"); },
    "go-on"() { if (reading) goOn(); },
    leave() { if (!locked()) want("/work/next"); }, // the judgement stays as it is
    comment() {
      if (!form() || locked()) return;
      form().elements.comment.closest("details").open = true;
      form().elements.comment.focus();
    },
    rewrite() { if (form()?.elements.rewrite) rewriteFrom(bestPosition()); },
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

  document.addEventListener("keydown", (event) => {
    const at = event.target;
    const typing = at.matches("textarea, select, input:not([type=radio]):not([type=checkbox])");
    const command = event.ctrlKey || event.metaKey;
    if (typing && event.key === "Enter" && command && !event.repeat) { event.preventDefault(); send("judged"); return; }
    if (typing && event.key === "Escape") { at.blur(); return; }
    if (typing || event.altKey || event.isComposing || event.getModifierState("AltGraph")) return;
    if (command && letterOf(event) !== "z") return;
    if (help.open) { if (isHelp(event)) { event.preventDefault(); help.close(); } return; }
    if (!isOn("keys")) return;
    const inside = at.matches("button, a, summary");
    if (event.key === "Enter") {
      if (inside) return;
      event.preventDefault();
      if (!event.repeat) send("judged");
      return;
    }
    const scroll = { " ": event.shiftKey ? -0.8 : 0.8, PageDown: 0.8, PageUp: -0.8 }[event.key];
    if (scroll && annotating) {
      if (inside || at.matches("input, pre, aside")) return;
      event.preventDefault(); scrollAnswers(scroll); return;
    }
    if (event.key === "ArrowDown" || event.key === "ArrowUp") { // these also scroll, and choose among radio buttons
      const step = event.key === "ArrowDown" ? 1 : -1;
      if (at.matches("input, .chip, .answer, pre, aside")) return;
      if (rows().length > 1) { event.preventDefault(); activate(active + step, true); }
      else if (annotating) { event.preventDefault(); scrollAnswers(step * 0.15); }
      return;
    }
    if (event.repeat) return;
    if (isHelp(event)) { event.preventDefault(); acts.help(); return; }
    const digit = command ? null : digitOf(event);
    if (digit !== null) {
      const option = rows()[active]?.querySelector(`label.option[data-key="${digit}"]`);
      if (option && !locked() && !tooEarly()) { event.preventDefault(); choose(option.querySelector("input")); }
      return;
    }
    const act = LETTERS[letterOf(event)];
    if (!act || (act === "comment" && !form()) || (["skip", "unsure", "flag", "undo", "guidelines", "raw"].includes(act) && !work.querySelector(`[data-act=${act}]`))) return;
    event.preventDefault();
    acts[act]();
  });

  // The board for rankings: the same choices as in the rows, moved by hand. Columns are ranks.
  function makeBoard() {
    const box = place.querySelector(".board");
    if (!box) return;
    box.closest("details").hidden = false;
    board();
  }
  function board() {
    const box = place.querySelector(".board");
    if (!box) return;
    const ranking = rows().filter((row) => row.dataset.type === "rank" && row.dataset.criterion === rows()[0].dataset.criterion);
    const focused = document.activeElement?.dataset?.chip;
    box.replaceChildren();
    for (let column = -1; column < ranking.length; column += 1) {
      const lane = document.createElement("div");
      lane.className = column < 0 ? "lane tray" : "lane";
      lane.dataset.rank = column;
      const name = document.createElement("small");
      name.textContent = column < 0 ? "?" : ranking[0].querySelectorAll("label.option .long")[column].textContent;
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
    made.setAttribute("aria-label", row.querySelector(".question").textContent);
    const to = (rank) => {
      if (locked()) return;
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
  if (store.get("guidelines")) showRules(true);
  ready();
  const told = store.get(news);
  if (told?.at >= performance.timeOrigin) { // stored while this page was on its way here: the page may be older
    if (told.last !== undefined) follow(told);
    if (isTask() && !locked()) lookUp(task().dataset.item);
  }
  run(); // what an earlier page could not send
}
