/* A conversation with one model or two. The page keeps it; the server only answers. */
(() => {
"use strict";
const $ = id => document.getElementById(id), { add, t, post, data } = window.zlaunch;
const models = data.models, stored = "zlaunch.chat" + location.search;
const states = models.map(() => ({ state: "loading" }));
const wire = only => models.filter((_, index) => only(index)).map(({ run, base }) => ({ run, base }));
let talk = [], under = null; /* talk: {question, answers: [{text, note}]} */
try { talk = JSON.parse(sessionStorage.getItem(stored)) || []; } catch { /* no storage, or another shape */ }
const keep = () => { try { sessionStorage.setItem(stored, JSON.stringify(talk)); } catch { /* full */ } };

/* ---- the models */
const NAMES = { loading: ["loading", "加载中", "soft"], ready: ["ready", "就绪", "good"], failed: ["failed", "失败", "bad"] };
const showStates = () => {
  document.querySelectorAll("[data-model]").forEach((place, index) => {
    const { state, error, advice } = states[index], [en, zh, tone] = NAMES[state] || NAMES.failed, chip = place.querySelector(".chip"), why = place.querySelector("p");
    chip.textContent = t(en, zh);
    chip.className = "chip " + tone;
    why.hidden = !error;
    why.textContent = error ? error + (advice ? ` → ${advice}` : "") : "";
  });
  $("send").disabled = under !== null || !states.some(one => one.state === "ready") || states.some(one => one.state === "loading");
};
const alive = index => states[index].state !== "failed"; /* a hold would start a model that has failed again */
const hold = async () => {
  const held = models.map((_, index) => index).filter(alive);
  if (!held.length) return;
  const answer = await post("/chat/hold", wire(alive));
  if (Array.isArray(answer)) answer.forEach((state, place) => { states[held[place]] = state; });
  else if (answer.error) held.forEach(index => { states[index] = { state: "failed", error: answer.error, advice: answer.hint }; });
  showStates();
};
const beat = async () => {
  await hold();
  setTimeout(beat, states.some(one => one.state === "loading") ? 700 : 15000);
};
addEventListener("pagehide", () => navigator.sendBeacon("/chat/leave", new Blob([JSON.stringify(wire(() => true))], { type: "application/json" })));
addEventListener("pageshow", event => { if (event.persisted) hold(); });

/* ---- the conversation */
const answerText = (place, answer) => {
  place.replaceChildren();
  place.append(answer.text);
  if (answer.note) add(place, "span", answer.note, { class: "block small " + (answer.bad ? "bad" : "soft") });
};
const cards = [];
const drawTurn = turn => {
  const card = add($("talk"), "article", null, { class: "answer" });
  add(card, "p", turn.question, { class: "q said", dir: "auto" });
  const pair = add(card, "div", null, { class: "pair" });
  const places = models.map((model, index) => {
    const box = add(pair, "div");
    if (models.length > 1) add(box, "h4", model.base ? t("Base model", "基座模型") : model.name);
    const place = add(box, "p", null, { dir: "auto" });
    answerText(place, turn.answers[index] || { text: "" });
    return place;
  });
  cards.push(places);
  return places;
};
const draw = () => {
  $("talk").replaceChildren();
  cards.length = 0;
  talk.forEach(drawTurn);
  $("hint").hidden = talk.length > 0;
};
const turnsFor = index => talk.flatMap(turn => {
  const answer = turn.answers[index];
  return answer && (answer.text || turn === talk.at(-1)) && !(answer.bad && !answer.text && turn !== talk.at(-1))
    ? [["user", turn.question], ...(answer.text ? [["assistant", answer.text]] : [])] : [];
});
const numbers = () => ({ temperature: Number($("temperature").value) || 0, max_new_tokens: Math.max(1, Math.round(Number($("most").value)) || 512) });
const ask = async (index, turn, place, signal) => {
  const answer = turn.answers[index], { run, base } = models[index], began = performance.now();
  const finish = (note, bad) => { answer.note = note; answer.bad = bad; answerText(place, answer); keepAtEnd(); };
  try {
    const reply = await fetch("/chat/answer", { method: "POST", signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify({ run, base, turns: turnsFor(index), ...numbers() }) });
    if (!reply.ok) { const why = await reply.json(); finish(why.error + (why.hint ? ` → ${why.hint}` : ""), true); return; }
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const got = JSON.parse(line);
        if (got.piece !== undefined) { answer.text += got.piece; answerText(place, answer); keepAtEnd(); }
        else if (got.error) { finish(got.error + (got.advice ? ` → ${got.advice}` : ""), true); }
        else finish(got.end === "cut" ? t("cut short", "已中断") : (answer.text ? "" : t("an empty answer · ", "回答为空 · ")) + `${((performance.now() - began) / 1000).toFixed(1)} s`, false);
      }
    }
  } catch (problem) {
    finish(signal.aborted ? t("cut short", "已中断") : t("the server does not answer", "服务器没有响应"), !signal.aborted);
  }
};
/* The last turn stays above the question, which floats over the page; unless one has scrolled up to read. */
let above = 0;
const toEnd = () => { const last = $("talk").lastElementChild; if (last) last.scrollIntoView({ block: "end", behavior: "instant" }); above = scrollY; };
const keepAtEnd = () => { if (scrollY >= above - 40) toEnd(); };
const send = async () => {
  const question = $("question").value.trim();
  if (!question || $("send").disabled) return;
  $("question").value = "";
  const turn = { question, answers: models.map((_, index) => states[index].state === "ready" ? { text: "" } : null) };
  talk.push(turn);
  $("hint").hidden = true;
  const places = drawTurn(turn);
  under = new AbortController();
  $("cut").hidden = false;
  showStates();
  toEnd();
  await Promise.all(models.map((_, index) => turn.answers[index] && ask(index, turn, places[index], under.signal)));
  under = null;
  $("cut").hidden = true;
  keep();
  await hold(); /* a model may have ended */
  $("question").focus();
};
$("say").addEventListener("submit", event => { event.preventDefault(); send(); });
$("question").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
$("cut").addEventListener("click", () => under && under.abort());
$("again").addEventListener("click", () => { if (under) under.abort(); talk = []; keep(); draw(); $("question").focus(); });
document.addEventListener("zlaunch-language", () => { if (!under) draw(); showStates(); });
draw();
showStates();
beat();
$("question").focus();
})();
