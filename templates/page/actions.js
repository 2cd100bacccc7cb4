/* What the page of a run has zlaunch do, and the output of it. */
(() => {
"use strict";
const $ = id => document.getElementById(id), { add, t, post } = window.zlaunch;
const place = $("actions"), here = location.pathname.replace(/\/$/, "");
if (!place) return;
const refuse = text => { $("refused").textContent = text; $("refused").hidden = !text; };
const start = async (name, options) => {
  refuse("");
  const answer = await post(`${here}/do/${name}`, options);
  if (answer.error) refuse(t(answer.error, answer.error_zh || answer.error) + (answer.hint ? ` → ${t(answer.hint, answer.hint_zh || answer.hint)}` : ""));
};
document.querySelectorAll("[data-ask]").forEach(button => button.addEventListener("click", () => $("ask-" + button.dataset.ask).showModal()));
document.querySelectorAll("button[data-do]").forEach(button => button.addEventListener("click", () => start(button.dataset.do, {})));
document.querySelectorAll("dialog [data-close]").forEach(button => button.addEventListener("click", () => button.closest("dialog").close()));
document.querySelectorAll("dialog form").forEach(form => form.addEventListener("submit", event => {
  event.preventDefault();
  const given = new FormData(form), name = form.dataset.do;
  form.closest("dialog").close();
  start(name, name === "stop" ? { now: given.has("now") } : name === "export" ? { to: given.get("to"), out: given.get("out").trim() }
    : given.get("amount") ? { [given.get("unit")]: Number(given.get("amount")) } : {});
}));

const NAMES = { stop: ["Stop", "停止"], resume: ["Resume", "继续训练"], export: ["Export", "导出"], pull: ["Fetch", "取回"] };
const open = new Set();
let shown = null, last = [];
const draw = () => {
  place.replaceChildren(...last.map((action, index) => {
    const card = add(null, "details", null, { class: "card act" }), head = add(card, "summary"), key = action.name + action.started;
    const working = action.code === null, tone = working ? "accent" : action.code ? "bad" : "good";
    card.open = index === 0 ? !open.has("-" + key) : open.has(key);
    card.addEventListener("toggle", () => { open.delete(key); open.delete("-" + key); open.add(card.open ? key : "-" + key); });
    const name = NAMES[action.name] || [action.name, action.name];
    add(head, "strong", t(...name));
    add(head, "span", working ? t("at work", "进行中") : action.code ? t(`failed, status ${action.code}`, `失败，状态 ${action.code}`) : t("done", "完成"), { class: "chip " + tone });
    add(head, "span", new Date(action.started * 1000).toLocaleTimeString(t("en-GB", "zh-CN")), { class: "soft small" });
    add(card, "code", action.command, { class: "block small soft" });
    const output = add(card, "pre", null, { class: "fold" });
    for (const [line, chinese] of action.lines) {
      const kind = line.startsWith("error: ") ? "bad" : line.startsWith("  -> ") ? "accent" : "";
      add(output, "span", t(line, chinese) + "\n", { class: kind });
    }
    if (action.lines.some(([line, chinese]) => line === chinese && /[a-z] [a-z]/i.test(line)))
      add(card, "p", t("", "英文各行是命令本身的输出。"), { class: "small soft", lang: "zh" });
    if (!action.lines.length) output.textContent = working ? "…" : t("(no output)", "（无输出）");
    return card;
  }));
};
document.addEventListener("zlaunch-run", event => {
  const text = JSON.stringify(event.detail.actions);
  if (text === shown) return;
  shown = text;
  last = event.detail.actions;
  draw();
});
document.addEventListener("zlaunch-language", draw);
})();
