(() => {
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement, $ = id => document.getElementById(id);
const remember = (key, value) => { try { localStorage.setItem("zlaunch." + key, value); } catch { /* a page opened from disk may have no storage */ } };
const remembered = key => { try { return localStorage.getItem("zlaunch." + key); } catch { return null; } };
const add = (parent, tag, text, attributes) => {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  Object.entries(attributes || {}).forEach(([name, value]) => made.setAttribute(name, value));
  if (parent) parent.append(made);
  return made;
};
const style = name => getComputedStyle(root).getPropertyValue(name).trim();
let zh = false;
const t = (en, chinese) => zh ? chinese : en;

/* ---- numbers */
const format = (value, digits = 4) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e5) return value.toLocaleString("en", { notation: "compact", maximumFractionDigits: 1 });
  if (size && size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(digits)));
};
const UNITS = { peak_memory_bytes: value => (value / 2 ** 30).toFixed(2) + " GiB" };
const NAMES = {
  loss: ["Loss", "损失"], training_loss: ["Training loss", "训练损失"], eval_loss: ["Held-out loss", "留出集损失"], grad_norm: ["Gradient norm", "梯度范数"],
  learning_rate: ["Learning rate", "学习率"], tokens_per_second: ["Tokens per second", "每秒词元数"],
  peak_memory_bytes: ["Peak memory, rank 0", "峰值内存（进程 0）"],
};
const named = key => NAMES[key] ? NAMES[key][zh ? 1 : 0] : key;
const shown = (key, value) => value === null || value === undefined ? "–" : (UNITS[key] || format)(value);

/* ---- charts */
const smoothed = (values, weight) => {
  let last = 0, norm = 0;
  return values.map(value => {
    if (value === null) return null;
    last = last * weight + value * (1 - weight);
    norm = norm * weight + 1 - weight;
    return last / norm;
  });
};
/* One line of a chart: {label, key, color, series: {step, value}, smooth, dots}. */
const charts = [];
let weight = null, log = false, zooming = false;
/* All charts show the same steps. */
const bounds = () => {
  const all = (data.runs || [data]).flatMap(one => Object.values(one.curves || {})).filter(curve => curve.step.length);
  const first = Math.min(...all.map(curve => curve.step[0])), last = Math.max(...all.map(curve => curve.step.at(-1)));
  return first === last ? [first - 1, last + 1] : [first, last];
};
const columns = lines => {
  const tables = [], series = [];
  for (const line of lines) {
    const { step, value } = line.series, smooth = line.smooth && weight > 0, table = [step];
    const put = (values, options) => { table.push(values.map(one => log && !(one > 0) ? null : one)); series.push({ spanGaps: line.dots, points: { show: false }, ...options }); };
    if (smooth) put(value, { stroke: line.color + "50", width: 1 });
    put(smooth ? smoothed(value, weight) : value, {
      main: line, stroke: line.color, width: 2, dash: line.dash,
      ...(line.dots || step.length < 2 ? { points: { show: true, size: 7, fill: line.color, stroke: line.color } } : {}),
    });
    tables.push(table);
  }
  /* Null is a gap; a step that only another line has is none. */
  return { columns: uPlot.join(tables, tables.map(table => table.map(() => 2))), series };
};
const chart = (holder, title, lines, options = {}) => {
  const figure = add(holder, "figure", null, options.wide ? { class: "wide" } : {});
  const caption = add(figure, "figcaption", title);
  if (lines.length > 1 && options.wide) for (const line of lines) {
    const key = add(caption, "span", null, { class: "key" });
    add(key, "i", null, { class: line.dots ? "dot" : line.dash ? "dash" : "", style: (line.dots ? "background:" : "border-color:") + line.color });
    key.append(line.label);
  }
  const now = add(caption, "span", "", { class: "now" });
  const all = lines.flatMap(line => line.series.value.filter(value => value !== null));
  const place = add(figure, "div", null, {
    class: "plot", tabindex: "0", role: "img",
    "aria-label": `${title}: ` + lines.map(line => `${line.label} ${shown(line.key, line.series.value.find(v => v !== null))} → ${shown(line.key, line.series.value.findLast(v => v !== null))}`).join("; ")
      + `; ${t("lowest", "最低")} ${shown(lines[0].key, Math.min(...all))}, ${t("highest", "最高")} ${shown(lines[0].key, Math.max(...all))}`,
  });
  const made = columns(lines), [first, last] = bounds(), soft = style("--soft"), grid = { stroke: style("--line"), width: 1 };
  const axis = { stroke: soft, grid, ticks: { show: false }, font: "12px " + style("--sans"), gap: 6 };
  const size = () => ({ width: Math.max(200, place.clientWidth), height: options.wide ? 300 : 180 });
  const plot = new uPlot({
    ...size(), padding: [10, 22, 0, 0], legend: { show: false },
    scales: { x: { time: false, min: first, max: last, auto: false }, y: { distr: log && options.log ? 3 : 1 } },
    cursor: { sync: { key: "steps" }, drag: { x: true, y: false }, bind: { dblclick: () => () => { zoom(0); return null; } }, points: { size: 7 }, y: false },
    series: [{}, ...made.series],
    axes: [{ ...axis, values: (u, ticks) => ticks.map(v => Number.isInteger(v) ? format(v, 6) : "") },
           { ...axis, size: 58, values: (u, ticks) => ticks.map(v => v === null ? "" : shown(lines[0].key, v)) }],
    hooks: {
      setCursor: [u => {
        const index = u.cursor.idx;
        if (index === null || index === undefined) { now.textContent = ""; return; }
        const parts = u.series.map((one, place) => one.main && u.data[place][index] !== null && u.data[place][index] !== undefined
          ? `${lines.length > 1 ? one.main.label + " " : ""}${shown(one.main.key, u.data[place][index])}` : "").filter(Boolean);
        now.textContent = `${t("step", "步")} ${u.data[0][index]}${parts.length ? " · " + parts.join(" · ") : ""}`;
      }],
      setScale: [(u, key) => { if (key === "x" && !zooming) follow(u); }],
    },
  }, made.columns, place);
  charts.push(plot);
  new ResizeObserver(() => { if (Math.abs(place.clientWidth - plot.width) > 1) plot.setSize(size()); }).observe(place);
  place.addEventListener("keydown", event => keys(event, plot));
};
const follow = from => {
  zooming = true;
  const { min, max } = from.scales.x;
  for (const other of charts) if (other !== from && (other.scales.x.min !== min || other.scales.x.max !== max)) other.setScale("x", { min, max });
  zooming = false;
};
const zoom = factor => {
  const plot = charts[0];
  if (!plot) return;
  const [first, last] = bounds();
  const { min, max } = plot.scales.x, middle = (min + max) / 2, half = Math.max(1, (max - min) * factor / 2);
  const to = factor ? { min: Math.max(first, middle - half), max: Math.min(last, middle + half) } : { min: first, max: last };
  zooming = true;
  charts.forEach(one => one.setScale("x", to));
  zooming = false;
};
const keys = (event, plot) => {
  const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key], by = { "+": 0.5, "=": 0.5, "-": 2, "0": 0 }[event.key];
  if (move) {
    const last = plot.data[0].length - 1, index = Math.min(last, Math.max(0, (plot.cursor.idx ?? (move > 0 ? -1 : last + 1)) + move));
    plot.setCursor({ left: plot.valToPos(plot.data[0][index], "x"), top: 10 });
  } else if (by !== undefined) zoom(by);
  else return;
  event.preventDefault();
};
const drawCharts = () => {
  const holder = $("charts");
  if (!holder) return;
  charts.splice(0).forEach(plot => plot.destroy());
  holder.replaceChildren();
  weight = Number($("smooth").value);
  log = $("log").checked;
  (data.runs ? drawRuns : drawRun)(holder);
};
const color = index => style("--c" + index % 8);
const drawRun = holder => {
  const curves = data.curves, lines = [];
  if (curves.loss) lines.push({ label: t("training", "训练"), key: "loss", color: color(0), series: curves.loss, smooth: true });
  if (curves.eval_loss) lines.push({ label: t("held out", "留出集"), key: "loss", color: color(1), series: curves.eval_loss, dots: true });
  if (lines.length) chart(holder, t("Loss", "损失"), lines, { wide: true, log: true });
  for (const key of ["learning_rate", "grad_norm", "tokens_per_second", "peak_memory_bytes"])
    if (curves[key]) chart(holder, named(key), [{ label: named(key), key, color: color(0), series: curves[key], smooth: key !== "learning_rate" && key !== "peak_memory_bytes" }], { log: key === "grad_norm" });
};
const fillNumbers = () => {
  const details = $("numbers");
  if (!details || !details.open) return;
  const curve = data.curves.loss || data.curves.eval_loss, place = details.querySelector("div"), count = curve.step.length;
  place.replaceChildren();
  const table = add(place, "table"), head = add(add(table, "thead"), "tr");
  for (const name of [t("step", "步"), t("loss", "损失")]) add(head, "th", name, { class: "n" });
  const body = add(table, "tbody"), stride = Math.max(1, Math.ceil(count / 60));
  for (let index = 0; index < count; index += stride) {
    const row = add(body, "tr");
    for (const text of [curve.step[index], format(curve.value[index])]) add(row, "td", text, { class: "n" });
  }
};

/* ---- answers */
const PAGE = 30, view = { set: 0, task: "", wrong: false, query: "", count: PAGE };
const CHINESE = /[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]/;
const differing = (expected, given) => {
  if (expected === given || expected.length + given.length > 20000) return null;
  const compare = CHINESE.test(expected + given) ? Diff.diffChars : Diff.diffWordsWithSpace;
  return compare(expected, given, { timeout: 60 }) || null;
};
const side = (parent, title, text, parts, skip, tag) => {
  const box = add(parent, "div");
  add(box, "h4", title);
  const p = add(box, "p", parts ? undefined : text || t("(empty)", "（空）"), { dir: "auto" });
  if (!parts && !text) p.className = "soft";
  for (const part of parts || []) if (!part[skip]) part[skip === "added" ? "removed" : "added"] ? add(p, tag, part.value) : p.append(part.value);
};
const answer = row => {
  const card = add(null, "article", null, { class: "answer" }), meta = add(card, "div", null, { class: "meta" });
  add(meta, "span", row.right ? t("✓ right", "✓ 正确") : t("✗ differs", "✗ 不符"), { class: row.right ? "good" : "bad" });
  if (row.task) add(meta, "span", row.task);
  add(card, "p", row.prompt, { class: "q", dir: "auto" });
  const pair = add(card, "div", null, { class: "pair" }), parts = row.right ? null : differing(row.expected, row.given);
  side(pair, t("expected", "期望"), row.expected, row.given && row.expected && parts, "added", "del");
  side(pair, t("given", "模型回答"), row.given, row.given && row.expected && parts, "removed", "ins");
  if (row.before !== undefined) side(pair, t("before training", "训练前"), row.before, null);
  return card;
};
const matching = () => {
  const wanted = view.query.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  return data.answers[view.set].rows.filter(row => {
    if (view.wrong && row.right || view.task && row.task !== view.task) return false;
    row.text ||= [row.prompt, row.expected, row.given, row.before || ""].join("\n").toLocaleLowerCase();
    return wanted.every(word => row.text.includes(word));
  });
};
const drawAnswers = () => {
  const list = $("list");
  if (!list) return;
  const rows = data.answers[view.set].rows, found = matching();
  $("count").textContent = t(`${found.length} of ${rows.length} answers`, `${rows.length} 条回答中的 ${found.length} 条`)
    + t(`, ${rows.filter(row => row.right).length} right in all`, `，共答对 ${rows.filter(row => row.right).length} 条`);
  list.replaceChildren(...found.slice(0, view.count).map(answer));
  if (!found.length) add(list, "p", t("No answer matches.", "没有符合条件的回答。"), { class: "empty" });
  $("more").hidden = found.length <= view.count;
};
const fillSelect = (select, options, value) => {
  select.replaceChildren();
  for (const [key, text] of options) add(select, "option", text, { value: key });
  select.value = value;
  select.hidden = options.length < 2;
};
const fillSelects = () => {
  if (!$("list")) return;
  fillSelect($("set"), data.answers.map((set, index) => [String(index), set.name || t("of the run", "训练时评估")]), String(view.set));
  const tasks = [...new Set(data.answers[view.set].rows.map(row => row.task).filter(Boolean))].sort();
  fillSelect($("task"), tasks.length > 1 ? [["", t("all tasks", "全部任务")], ...tasks.map(task => [task, task])] : [], view.task);
};
const startAnswers = () => {
  if (!$("list")) return;
  let timer = 0;
  const again = change => { Object.assign(view, change, { count: PAGE }); drawAnswers(); };
  $("search").addEventListener("input", event => { clearTimeout(timer); timer = setTimeout(() => again({ query: event.target.value }), 80); });
  $("wrong").addEventListener("change", event => again({ wrong: event.target.checked }));
  $("task").addEventListener("change", event => again({ task: event.target.value }));
  $("set").addEventListener("change", event => { again({ set: Number(event.target.value), task: "" }); fillSelects(); });
  $("more").addEventListener("click", () => { const at = view.count; view.count += 200; drawAnswers(); $("list").children[at].querySelector("p").scrollIntoView({ block: "nearest" }); });
};

/* ---- several runs */
const hidden = new Set();
const drawRuns = holder => {
  for (const key of ["loss", "eval_loss", "grad_norm", "learning_rate"]) {
    const lines = data.runs.map((run, index) => ({ run, index })).filter(({ run, index }) => run.curves[key] && !hidden.has(index)).map(({ run, index }) => ({
      label: run.name, key, color: color(index), dash: index >= 8 ? [6, 4] : undefined, series: run.curves[key],
      smooth: key === "loss" || key === "grad_norm", dots: key === "eval_loss",
    }));
    if (lines.length) chart(holder, named(key === "loss" ? "training_loss" : key), lines, { wide: key === "loss" || key === "eval_loss", log: key !== "learning_rate" });
  }
};
const LOWER = ["loss", "training_loss"];
const heatValues = key => [...new Set(data.settings[key].map(value => JSON.stringify(value)))].map(text => JSON.parse(text)).sort((a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a) < String(b) ? -1 : 1);
const drawHeat = () => {
  const place = $("heat-table");
  if (!place) return;
  for (const [id, options, pick] of [["heat-metric", data.metrics, data.metric], ["heat-y", data.axes, data.axes[0]], ["heat-x", data.axes, data.axes[1]]]) {
    const select = $(id), value = select.value || pick;
    fillSelect(select, options.map(key => [key, id === "heat-metric" ? words(key) : key]), value);
    select.hidden = false;
  }
  const metric = $("heat-metric").value, x = $("heat-x").value, y = $("heat-y").value, sign = LOWER.includes(metric) ? -1 : 1;
  const cells = new Map(), key = index => JSON.stringify([data.settings[y][index], data.settings[x][index]]);
  // Only scores over the same records stand beside each other: those of most runs.
  const has = run => run.scores[metric] !== undefined && run.scores[metric] !== null, sizes = new Map(), others = [];
  for (const run of data.runs.filter(has)) sizes.set(run.groups[metric], (sizes.get(run.groups[metric]) || 0) + 1);
  const most = Math.max(...sizes.values());
  const values = data.runs.filter(run => has(run) && sizes.get(run.groups[metric]) === most).map(run => sign * run.scores[metric]);
  const first = data.runs.find(run => has(run) && sizes.get(run.groups[metric]) === most && sign * run.scores[metric] === Math.max(...values));
  data.runs.forEach((run, index) => {
    const score = run.scores[metric];
    if (!has(run)) return;
    if (run.groups[metric] !== first.groups[metric]) { others.push(run.name); return; }
    const cell = cells.get(key(index)) || { value: score, count: 0 };
    cells.set(key(index), { value: sign * score > sign * cell.value ? score : cell.value, count: cell.count + 1 });
  });
  const all = [...cells.values()].map(cell => cell.value), low = Math.min(...all), high = Math.max(...all), best = sign > 0 ? high : low;
  place.replaceChildren();
  const table = add(place, "table", null, { class: "heat" }), head = add(add(table, "thead"), "tr"), body = add(table, "tbody");
  add(head, "th", `${y} ╲ ${x}`);
  for (const column of heatValues(x)) add(head, "th", String(column), { scope: "col" });
  for (const line of heatValues(y)) {
    const row = add(body, "tr");
    add(row, "th", String(line), { scope: "row" });
    for (const column of heatValues(x)) {
      const cell = cells.get(JSON.stringify([line, column]));
      if (!cell) { add(row, "td", "–", { class: "soft" }); continue; }
      const share = high === low ? 1 : (sign > 0 ? cell.value - low : high - cell.value) / (high - low);
      add(row, "td", format(cell.value, 3) + (cell.count > 1 ? ` (${cell.count})` : ""), {
        style: `background:color-mix(in srgb,var(--accent) ${Math.round(8 + 47 * share)}%,var(--card))`, ...(cell.value === best ? { class: "best" } : {}),
      });
    }
  }
  if (others.length) add(place, "p", (zh ? "评估数据不同，未列入：" : "Scored on other records, so left out: ") + others.join(zh ? "、" : ", "), { class: "notice", id: "heat-others" });
};
const words = key => data.words && data.words[key] ? data.words[key][zh ? 1 : 0] : key;
document.querySelectorAll("[data-run]").forEach(box => box.addEventListener("change", () => {
  hidden[box.checked ? "delete" : "add"](Number(box.dataset.run));
  drawCharts();
}));
for (const id of ["heat-metric", "heat-x", "heat-y"]) if ($(id)) $(id).addEventListener("change", drawHeat);

/* ---- language, theme, copying */
const setLanguage = chinese => {
  zh = chinese;
  root.lang = zh ? "zh-CN" : "en";
  root.dataset.lang = zh ? "zh" : "en";
  for (const name of ["aria-label", "placeholder", "title", "label", "data-label"])
    for (const item of document.querySelectorAll(`[data-${name}-zh]`)) item.setAttribute(name, item.getAttribute(`data-${name}-${zh ? "zh" : "en"}`));
  drawCharts(); fillNumbers(); fillSelects(); drawAnswers(); drawHeat();
  document.dispatchEvent(new Event("zlaunch-language"));
};
$("language").addEventListener("click", () => { remember("language", zh ? "en" : "zh"); setLanguage(!zh); });
$("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  remember("theme", root.dataset.theme);
  drawCharts();
});
if (["light", "dark"].includes(remembered("theme"))) root.dataset.theme = remembered("theme");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
if ($("charts")) {
  const longest = Math.max(...(data.runs || [data]).map(one => one.curves.loss ? one.curves.loss.step.length : 0));
  $("smooth").value = longest > 30 ? 0.6 : 0;
  $("smooth").addEventListener("input", drawCharts);
  $("log").addEventListener("change", drawCharts);
  document.querySelectorAll("[data-zoom]").forEach(button => button.addEventListener("click", () => zoom(Number(button.dataset.zoom))));
}
if ($("numbers")) $("numbers").addEventListener("toggle", fillNumbers);
document.querySelectorAll(".do-copy").forEach(button => button.addEventListener("click", async () => {
  const text = button.parentElement.querySelector("pre");
  try { await navigator.clipboard.writeText(text.textContent); }
  catch { getSelection().selectAllChildren(text); return; } /* from disk: select, for Ctrl-C */
  const before = [...button.childNodes];
  button.textContent = t("Copied", "已复制");
  setTimeout(() => button.replaceChildren(...before), 1500);
}));
const links = [...document.querySelectorAll("nav.toc a")];
if (links.length) {
  const seen = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting) links.forEach(link => link.classList.toggle("here", link.hash === "#" + entry.target.id));
  }, { rootMargin: "-15% 0px -70% 0px" });
  links.forEach(link => { const at = document.getElementById(link.hash.slice(1)); if (at) seen.observe(at); });
}
startAnswers();
setLanguage(remembered("language") ? remembered("language") === "zh" : /^zh\b/i.test(navigator.language));
/* For live.js. */
window.zlaunch = {
  add, format, words, t, data, whole: data.whole,
  refresh: curves => {
    const zoomed = charts[0] && { min: charts[0].scales.x.min, max: charts[0].scales.x.max }, whole = bounds();
    data.curves = curves;
    drawCharts();
    if (zoomed && (zoomed.min > whole[0] || zoomed.max < whole[1])) { zooming = true; charts.forEach(one => one.setScale("x", zoomed)); zooming = false; }
    fillNumbers();
  },
};
root.dataset.ready = "1";
performance.mark("ready");
})();
