/* The form of a new run. The server reads the values, as it reads a job file; this script only sends and shows. */
(() => {
"use strict";
const $ = id => document.getElementById(id), { add, t } = window.zlaunch, form = $("new");
const controls = [...form.querySelectorAll(".field [name]")];
const backend = () => form.elements.where.value;
const valueOf = control => control.type === "checkbox" ? String(control.checked) : control.value;
const values = () => Object.fromEntries(controls.filter(c => !c.closest("[data-backend]") || c.closest("[data-backend]").dataset.backend === backend()).map(c => [c.name, valueOf(c)]));
const fill = (key, value) => {
  const control = $("f-" + key);
  if (control.type === "checkbox") control.checked = String(value) === "true"; else control.value = String(value);
  touched.add(key);
};
const ask = async (path, body, signal) => {
  const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
  const found = await answer.json().catch(() => ({ error: `${answer.status} ${answer.statusText}` }));
  if (!answer.ok) throw Object.assign(new Error(found.error || String(answer.status)), { message_zh: found.error_zh, hint: found.hint, hint_zh: found.hint_zh });
  return found;
};

/* ---- errors at their fields */
const touched = new Set();
let tried = false, problems = [];
const showProblems = () => {
  for (const control of controls) {
    const place = $("e-" + control.name), here = problems.filter(p => p.key === control.name && (tried || touched.has(p.key)));
    place.hidden = !here.length;
    place.replaceChildren();
    for (const problem of here) { add(place, "span", said(problem, "message")); if (problem.hint) add(place, "small", said(problem, "hint")); offer(place, problem); }
    control[here.length ? "setAttribute" : "removeAttribute"]("aria-invalid", "true");
  }
  const rest = problems.filter(p => !$("f-" + p.key));
  refuse(tried ? rest : []);
};
/* A text of the server in the language of the page. */
const said = (value, key) => t(value[key], value[key + "_zh"] || value[key]);
/* What the advice of an error names, as buttons that fill it in. */
const offer = (place, problem) => {
  const fixes = Object.entries(problem.fixes || {});
  if (!fixes.length) return;
  const list = add(place, "ul", null, { class: "swaps" });
  for (const [key, value] of fixes) swap(list, `${key}: ${value}`, { [key]: value });
};
let refused = [];
const refuse = list => {
  refused = list;
  $("refused").replaceChildren();
  for (const problem of list) {
    const place = add($("refused"), "div", null, { class: "notice bad small" });
    add(place, "p", said(problem, "message"), { style: "white-space:pre-wrap;margin:0" });
    if (problem.hint) add(place, "span", said(problem, "hint"), { class: "soft block" });
    offer(place, problem);
  }
};
const toProblem = () => {
  const first = controls.find(c => c.getAttribute("aria-invalid"));
  if (!first) { $("refused").scrollIntoView({ block: "nearest" }); return; }
  for (let up = first.closest("details"); up; up = up.parentElement.closest("details")) up.open = true;
  first.focus();
};

/* ---- the plan */
const gib = bytes => (bytes / 2 ** 30).toFixed(1);
const PARTS = { weights: ["weights", "权重"], adapter: ["adapter", "适配器"], gradients: ["gradients", "梯度"], optimizer: ["optimizer", "优化器"], activations: ["activations", "激活值"], logits: ["logits", "logits"], buffers: ["buffers", "缓冲"] };
const partName = name => PARTS[name] ? t(...PARTS[name]) : name;
const swap = (list, text, values) => {
  const button = add(add(list, "li"), "button", text, { type: "button" });
  button.addEventListener("click", () => { Object.entries(values).forEach(([key, value]) => fill(key, value)); changed(); });
};
let plan = { kind: "none" }, work = {};
const hours = count => count < 1 / 60 ? t("less than a minute", "不到一分钟") : count < 1 ? t(`about ${(60 * count).toFixed(0)} min`, `约 ${(60 * count).toFixed(0)} 分`) : t(`about ${count.toFixed(1)} h`, `约 ${count.toFixed(1)} 小时`);
const drawWork = place => {
  if (!work.steps) return;
  const steps = t(`${work.steps.toLocaleString("en")} step${work.steps > 1 ? "s" : ""}`, `${work.steps.toLocaleString("en")} 步`);
  const gpus = plan.kind === "plan" ? `${plan.world_size} × ${plan.gpu}` : "";
  add(place, "p", work.hours === null || !gpus ? steps : t(`${steps}, ${hours(work.hours)} on ${gpus}`, `${steps}，在 ${gpus} 上${hours(work.hours)}`), { id: "work" });
  if (work.remark) add(place, "p", t(...work.remark), { class: "small warn" });
};
const drawPlan = () => {
  const place = $("plan"), open = place.querySelector("details[open]");
  place.replaceChildren();
  drawPlanOf(place, open);
  drawWork(place);
};
const drawPlanOf = (place, open) => {
  if (plan.kind === "none") add(place, "p", t("Choose a model, and its plan is here.", "选择模型后，这里显示计划。"), { class: "soft small" });
  else if (plan.kind === "cpu") add(place, "p", t("No GPU here: the run trains on the CPU, and no memory is planned. Choose a GPU below to see what it would take there.", "本机没有 GPU：将在 CPU 上训练，不计划显存。可在下面选择 GPU 查看所需显存。"), { class: "soft small" });
  else if (plan.kind === "tiny") add(place, "p", t("A random model is tiny; it fits everywhere.", "随机模型非常小，任何设备都放得下。"), { class: "soft small" });
  else if (plan.kind === "error") { add(place, "p", t(...plan.message), { class: "small" }); if (plan.hint[0]) add(place, "p", t(...plan.hint), { class: "small soft" }); }
  else drawBar(place, open);
};
const drawBar = (place, open) => {
  const used = plan.predicted_peak_bytes, room = plan.room_bytes, most = Math.max(used, room), nf4 = (plan.quantized_bytes || {}).nf4;
  const now = add(place, "p", null, { class: "now" + (plan.fits ? "" : " over") });
  now.append(gib(used) + " ");
  add(now, "small", t(`of ${gib(room)} GiB`, `/ ${gib(room)} GiB`) + (nf4 ? t(`; nf4 would take ${gib(nf4)}`, `；nf4 约需 ${gib(nf4)}`) : ""));
  const bar = add(place, "div", null, { class: "stack-bar", role: "img", "aria-label": Object.entries(plan.parts).map(([name, size]) => `${partName(name)} ${gib(size)} GiB`).join(", ") });
  const legend = add(place, "ul", null, { class: "legend small" });
  Object.entries(plan.parts).forEach(([name, size], number) => {
    add(bar, "i", null, { style: `width:${100 * size / most}%;background:var(--c${number})`, title: `${partName(name)} ${gib(size)} GiB` });
    if (size / used > 0.004) { const item = add(legend, "li"); add(item, "i", null, { style: `background:var(--c${number})` }); item.append(`${partName(name)} ${gib(size)}`); }
  });
  if (used > room) add(bar, "b", null, { style: `left:${100 * room / most}%` });
  add(place, "p", `${plan.world_size} × ${plan.gpu}${plan.gpu_assumed ? t(" (assumed; choose the GPU below)", "（假定；可在下面选择）") : ""} · ${(plan.parameters / 1e9).toFixed(2)} ${t("billion parameters", "十亿参数")}${plan.tokens_per_second ? " · " + t(`about ${plan.tokens_per_second.toLocaleString("en")} tokens/s`, `约 ${plan.tokens_per_second.toLocaleString("en")} 词元/秒`) : ""}`, { class: "small soft" });
  if (!plan.fits) {
    add(place, "p", t("It does not fit. What would help:", "放不下。可行的改法："), { class: "bad" });
    const list = add(place, "ul", null, { class: "swaps" });
    for (const change of plan.changes) {
      const text = `${t(...change.change)} → ${gib(change.predicted_peak_bytes)} GiB`;
      if (Object.keys(change.values).length) swap(list, text, change.values); else add(list, "li", text, { class: "small soft" });
    }
    return;
  }
  const sizes = Object.entries(plan.quantized_bytes || {});
  if (sizes.length) { const list = add(place, "ul", null, { class: "swaps" }); for (const [name, size] of sizes) swap(list, `${name}: ${gib(size)} GiB`, { "model.quantization": name }); }
  if (plan.fp8_gain) { const list = add(place, "ul", null, { class: "swaps" }); swap(list, t(`fp8: ${plan.fp8_gain} times as fast`, `fp8：约快 ${plan.fp8_gain} 倍`), { "model.quantization": "fp8" }); }
  const details = add(place, "details");
  details.open = Boolean(open);
  add(details, "summary", t("What is chosen, and why", "自动选择与理由"));
  const table = add(add(details, "table"), "tbody");
  for (const [key, item] of Object.entries(plan.settings)) {
    const row = add(table, "tr"), cell = add(row, "td");
    add(cell, "code", key); cell.append(" "); add(cell, "strong", String(item.value)); add(cell, "span", t(...item.reason), { class: "soft block" });
  }
};

/* ---- asking the server whenever the form has changed */
let waiting = null, asking = null;
const changed = () => {
  keep();
  $("plan").classList.add("stale");
  clearTimeout(waiting);
  waiting = setTimeout(check, 300);
};
const check = async () => {
  if (asking) asking.abort();
  const mine = asking = new AbortController();
  try {
    const found = await ask("/new/check", { values: values(), backend: backend(), gpu: $("gpu").value }, mine.signal);
    problems = found.problems;
    showProblems();
    if (found.plan.kind !== "none" || !problems.some(p => p.key !== "data.train")) plan = found.plan;
    work = {};
    drawPlan();
    $("job").querySelector("pre").textContent = found.job;
    $("command").querySelector("pre").textContent = found.command;
    $("plan").classList.remove("stale");
    form.dataset.checked = String(Number(form.dataset.checked || 0) + 1);
    work = problems.length ? {} : await ask("/new/work", { values: values(), backend: backend(), gpu: $("gpu").value }, mine.signal);
    drawPlan();
  } catch (error) {
    if (error.name !== "AbortError") refuse([error]);
  }
};
const showBackend = () => {
  for (const item of form.querySelectorAll("[data-backend]")) item.hidden = item.dataset.backend !== backend();
};
form.addEventListener("submit", event => event.preventDefault());
form.addEventListener("input", event => { if (event.target.name) touched.add(event.target.name); if (event.target.name === "where") showBackend(); changed(); });
form.addEventListener("focusout", event => { if (event.target.value && event.target.name) { touched.add(event.target.name); showProblems(); } });

/* ---- records */
$("see-records").addEventListener("click", async () => {
  const button = $("see-records"), state = $("records-state"), list = $("records");
  button.disabled = true;
  state.textContent = t("Loading the tokenizer and reading …", "正在加载分词器并读取……");
  try {
    const found = await ask("/new/records", { values: values(), backend: backend(), first: 3 });
    list.replaceChildren();
    state.textContent = "";
    if (found.problems.length) { problems = found.problems; tried = true; showProblems(); toProblem(); return; }
    const legend = add(list, "p", null, { class: "small soft" });
    add(legend, "span", t("marked", "标记"), { class: "swatch" });
    legend.append(" " + t("tokens carry loss: this is what the model learns to write", "的词元计入损失：模型学习写出的正是它们"));
    found.records.forEach(record => drawRecord(list, record));
  } catch (error) {
    state.textContent = "";
    list.replaceChildren();
    const place = add(list, "p", said(error, "message"), { class: "notice bad small", style: "white-space:pre-wrap" });
    if (error.hint) add(place, "span", said(error, "hint"), { class: "soft block" });
  } finally { button.disabled = false; form.dataset.records = "1"; }
});
const drawRecord = (list, record) => {
  const made = add(list, "div", null, { class: "record" }), place = add(made, "p", null, { class: "place" });
  add(place, "span", record.place);
  if (record.problem) { add(made, "p", said(record.problem, "message"), { class: "bad small" }); if (made === list.querySelector(".record")) offer(made, record.problem); return; }
  add(place, "span", t(`${record.tokens} tokens, ${record.trained} with loss`, `${record.tokens} 个词元，${record.trained} 个计入损失`));
  if (record.ignored.length) add(place, "span", t("not used: ", "未使用：") + record.ignored.join(", "), { class: "warn" });
  const text = add(made, "p", null, { class: "tokens", tabindex: "0" });
  for (const span of record.spans) {
    const part = add(text, span.loss ? "mark" : "span");
    for (const token of span.texts) add(part, "i", token);
  }
  if (record.left_out) add(made, "p", t(`${record.left_out} more tokens`, `另有 ${record.left_out} 个词元`), { class: "small soft" });
};

/* ---- start */
$("start").addEventListener("click", async () => {
  const button = $("start"), state = $("start-state");
  tried = true;
  button.disabled = true;
  refuse([]);
  state.textContent = t("Checking the records and starting …", "正在检查记录并启动……");
  try {
    const found = await ask("/new/start", { values: values(), backend: backend() });
    if (found.run) {
      forget();
      location.href = "/run/" + encodeURIComponent(found.run);
      return;
    }
    problems = found.problems;
    showProblems();
    toProblem();
  } catch (error) { refuse([error]); toProblem(); }
  state.textContent = "";
  button.disabled = false;
});

/* ---- a reload keeps what was typed in this tab */
const NAME = "zlaunch.new" + location.search;
const keep = () => { try { sessionStorage.setItem(NAME, JSON.stringify({ where: backend(), gpu: $("gpu").value, values: Object.fromEntries(controls.map(c => [c.name, valueOf(c)])) })); } catch { /* storage may be off */ } };
const forget = () => { try { sessionStorage.removeItem(NAME); } catch { /* storage may be off */ } };
try {
  const kept = JSON.parse(sessionStorage.getItem(NAME));
  if (kept) {
    form.elements.where.value = kept.where;
    $("gpu").value = kept.gpu;
    for (const [key, value] of Object.entries(kept.values)) if ($("f-" + key)) { fill(key, value); if (!value) touched.delete(key); }
  }
} catch { /* as if nothing was kept */ }
document.addEventListener("zlaunch-language", () => { const kept = refused; drawPlan(); showLabels(); showProblems(); refuse(kept); });
const showLabels = () => { for (const option of document.querySelectorAll("option[data-label-zh]")) option.label = option.dataset[document.documentElement.dataset.lang === "zh" ? "labelZh" : "labelEn"]; };
showBackend();
showLabels();
check();
})();
