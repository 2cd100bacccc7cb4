/* Pages of `zlaunch ui`: what page.js shows, kept up to date by server-sent events. */
(() => {
"use strict";
const $ = id => document.getElementById(id), { add, t, format, words, refresh } = window.zlaunch;
/* A browser has six connections to a server, over all its tabs: a page that is hidden or left gives up its stream. */
const follow = (path, show) => {
  let source = null;
  const close = () => { if (source) source.close(); source = null; };
  const open = () => {
    if (source || document.hidden) return;
    source = new EventSource(path);
    source.onmessage = event => {
      document.documentElement.dataset.live = "1";
      const value = JSON.parse(event.data);
      trouble(value.error || "");
      if (!value.error) show(value, close);
    };
    source.onerror = () => { document.documentElement.dataset.live = "0"; };
  };
  document.addEventListener("visibilitychange", () => document.hidden ? close() : open());
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  open();
};
/* The answer as a value; {error, hint} of a refusal, also where the server is gone. */
let posting = 0;
const post = async (path, value) => {
  posting++;
  try {
    const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });
    return answer.headers.get("Content-Type").startsWith("application/json") ? await answer.json() : { error: await answer.text() };
  } catch (problem) { return { error: t("the server does not answer", "服务器没有响应"), hint: "zlaunch ui" }; } finally { posting--; }
};
/* Load the page again, but under no open question and no request. */
const again = () => posting || document.querySelector("dialog[open]") ? setTimeout(again, 200) : location.reload();
Object.assign(window.zlaunch, { post });
const trouble = text => {
  const place = $("trouble");
  place.hidden = !text;
  if (place.textContent !== text) place.textContent = text;
};

/* ---- one run */
const duration = seconds => seconds < 90 ? t(`${Math.round(seconds)} s`, `${Math.round(seconds)} 秒`)
  : seconds < 5400 ? t(`${Math.round(seconds / 60)} min`, `${Math.round(seconds / 60)} 分`)
  : t(`${(seconds / 3600).toFixed(1)} h`, `${(seconds / 3600).toFixed(1)} 小时`);
const progress = live => {
  const bar = $("bar"), text = $("progress");
  if (!bar || live.final) return;
  bar.hidden = !live.total;
  if (live.total) { bar.max = live.total; bar.value = live.done; }
  text.textContent = [words(live.phase), live.total ? `${live.done} / ${live.total}` : "",
    live.loss === null ? "" : `${t("loss", "损失")} ${format(live.loss)}`,
    live.tokens_per_second ? `${format(live.tokens_per_second, 3)} ${t("tokens/s", "词元/秒")}` : "",
    live.seconds_left === null ? "" : t(`about ${duration(live.seconds_left)} left`, `约剩 ${duration(live.seconds_left)}`)].filter(Boolean).join(" · ");
};
const whole = JSON.stringify(window.zlaunch.whole);
const showRun = (live, close) => {
  if (whole !== JSON.stringify(live.whole)) { close(); again(); return; }
  const curves = JSON.stringify(live.curves);
  if (drawn !== curves) { drawn = curves; refresh(live.curves); }
  last = live;
  progress(live);
  drawRanks(live);
  readLog();
  document.dispatchEvent(new CustomEvent("zlaunch-run", { detail: live }));
};
let drawn = null, lastNodes = null, last = null;
document.addEventListener("zlaunch-language", () => { if (last) { progress(last); drawRanks(last); } });
const GIB = 2 ** 30, gib = bytes => (bytes / GIB).toFixed(1);
const meter = (parent, share, text, mark) => {
  add(parent, "span", text, { class: "small soft" });
  const box = add(parent, "div", null, { class: "meter" });
  add(box, "i", null, { style: `width:${Math.min(100, Math.max(0, 100 * share)).toFixed(1)}%` });
  if (mark) add(box, "b", null, { style: `left:calc(${Math.min(100, 100 * mark).toFixed(1)}% - 2px)` });
};
const drawRanks = live => {
  const body = $("rank-rows"), text = JSON.stringify([live.nodes, document.documentElement.lang]);
  if (!body || text === lastNodes) return;
  lastNodes = text;
  body.replaceChildren();
  for (const node of live.nodes) for (const rank of node.ranks) {
    const row = add(body, "tr"), use = add(row, "td", null, { "data-label": t("GPU at work", "GPU 利用率") }), memory = add(row, "td", null, { class: "draw" });
    use.before(add(null, "th", String(rank.rank), { scope: "row" }), add(null, "td", node.host || "", { class: "wrap" }));
    if (rank.gpu_use !== null) meter(use, rank.gpu_use / 100, `${rank.gpu_use}%`);
    else use.append(live.device === "cpu" ? t("no GPU", "无 GPU") : t("not known", "未知"));
    if (rank.gpu_bytes !== null && rank.capacity_bytes) meter(memory, rank.gpu_bytes / rank.capacity_bytes, t(`${gib(rank.gpu_bytes)} of ${gib(rank.capacity_bytes)} GiB`, `${gib(rank.gpu_bytes)} / ${gib(rank.capacity_bytes)} GiB`)
      + (live.planned_bytes ? t(`, planned ${gib(live.planned_bytes)}`, `，计划 ${gib(live.planned_bytes)}`) : ""), live.planned_bytes && live.planned_bytes / rank.capacity_bytes);
    else memory.append(live.device === "cpu" ? t("no GPU", "无 GPU") : t("not known", "未知"));
  }
  $("ranks").hidden = !body.childElementCount;
  $("rank-note").textContent = live.nodes.filter(node => node.gpu_trouble).map(node => `${node.host}: ${node.gpu_trouble}`).join(" · ");
};
let reading = false;
const readLog = async () => {
  const select = $("log-of"), place = $("log");
  if (!select || !select.closest("details").open || reading) return;
  reading = true;
  try {
    const answer = await fetch(`${location.pathname.replace(/\/$/, "")}/log/${select.value}`);
    const atEnd = place.scrollHeight - place.scrollTop - place.clientHeight < 40;
    place.textContent = await answer.text();
    if (atEnd) place.scrollTop = place.scrollHeight;
  } finally { reading = false; }
};
if ($("log-of")) {
  $("log-of").addEventListener("change", readLog);
  $("log-of").closest("details").addEventListener("toggle", readLog);
}

/* ---- all runs */
const ticked = new Set();
let rows = [];
const TONES = { SUCCEEDED: "good", FAILED: "bad", LOST: "bad", CANCELLED: "warn", RUNNING: "accent" };
const drawRuns = () => {
  const wanted = $("filter").value.toLocaleLowerCase().split(/\s+/).filter(Boolean), body = $("all-runs"), at = document.activeElement && document.activeElement.value;
  const found = rows.filter(row => wanted.every(word => `${row.id} ${row.name} ${row.state} ${row.backend} ${words(row.state)}`.toLocaleLowerCase().includes(word)));
  body.replaceChildren();
  for (const row of found) {
    const line = add(body, "tr"), box = add(add(line, "td"), "input", null, { type: "checkbox", name: "run", value: row.id, "aria-label": row.id });
    box.checked = ticked.has(row.id);
    box.addEventListener("change", () => { ticked[box.checked ? "add" : "delete"](row.id); $("do-compare").disabled = ticked.size < 2; });
    const head = add(line, "th", null, { scope: "row", class: "wrap" });
    add(head, "a", row.name || row.id, { href: `/run/${encodeURIComponent(row.id)}`, title: row.id });
    add(head, "span", row.error || row.id, { class: row.error ? "small bad block" : "small soft block" });
    const state = add(line, "td");
    if (row.state) add(state, "span", words(row.state), { class: "chip " + (TONES[row.state] || "soft") });
    else if (!row.error) add(state, "span", t("asking …", "查询中……"), { class: "small soft" });
    add(line, "td", row.backend || "");
    add(line, "td", row.started ? new Date(row.started * 1000).toLocaleString(t("en-GB", "zh-CN"), { dateStyle: "medium", timeStyle: "short" }) : "", { class: "soft" });
    add(line, "td", row.step === null ? "–" : String(row.step), { class: "n", "data-label": t("Step", "步") });
    add(line, "td", format(row.loss), { class: "n", "data-label": t("Loss", "损失") });
    if (at === row.id) box.focus();
  }
  $("none").hidden = rows.length > 0;
};
if ($("all-runs")) {
  $("filter").addEventListener("input", drawRuns);
  document.addEventListener("zlaunch-language", drawRuns);
  follow("/stream", found => { rows = found; drawRuns(); });
} else if ($("progress")) follow(location.pathname.replace(/\/$/, "") + "/stream", showRun);
})();
