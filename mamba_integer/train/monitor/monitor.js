// Mission Control: polls /api/run for what is new and draws it. Strings from runs reach the page as text only (textContent), never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const POLL_MS = 2000;
const FAILING_CLIP = 0.05;
// Dark to light blue-yellow, even in lightness: readable with every kind of colour vision and in grey.
const RAMP = [[0, 32, 77], [38, 61, 107], [86, 92, 108], [124, 123, 120], [164, 156, 115], [209, 193, 90], [255, 234, 70]];
const SITES = ["norm1", "in_proj", "conv", "x", "B", "C", "scan", "gate", "gated", "norm2", "out_proj", "residual", "norm_f", "embedding"];

function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const finite = (v) => typeof v === "number" && Number.isFinite(v);
const count = (v) => (finite(v) ? v.toLocaleString("en") : "–");
function figure(v) {
  if (!finite(v)) return "–";
  const a = Math.abs(v);
  if (a === 0) return "0";
  if (a >= 1e6 || a < 1e-3) return v.toExponential(2);
  return a >= 1000 ? Math.round(v).toLocaleString("en") : v.toPrecision(4).replace(/\.?0+$/, "");
}
const percent = (v) => (finite(v) ? (v === 0 ? "0" : v < 0.0005 ? "<0.1" : (100 * v).toFixed(1)) + " %" : "–");
function duration(s) {
  if (!finite(s)) return "–";
  if (s < 90) return Math.round(s) + " s";
  if (s < 5400) return Math.round(s / 60) + " min";
  return s < 172800 ? (s / 3600).toFixed(1) + " h" : (s / 86400).toFixed(1) + " d";
}
const ramp = (t) => {
  const x = Math.min(Math.max(t, 0), 1) * (RAMP.length - 1);
  const i = Math.min(Math.floor(x), RAMP.length - 2);
  return "rgb(" + RAMP[i].map((a, k) => Math.round(a + (RAMP[i + 1][k] - a) * (x - i))).join(",") + ")";
};
let palette = {};
function readPalette() {
  // light-dark() is resolved by the browser when the colour is used
  const probe = $("foot");
  for (const name of ["--ink", "--soft", "--line", "--panel", "--c0", "--c1", "--c2", "--c3", "--c4", "--c5"]) {
    probe.style.color = `var(${name})`;
    palette[name] = getComputedStyle(probe).color;
  }
  probe.style.color = "";
}

function ticks(low, high, wanted) {
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw) || raw;
  const out = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9 && out.length < 20; v += step) out.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return out;
}

// A chart in a figure: canvas, legend and a line that reads out what is under the pointer, or under the cursor that the arrow keys move.
class Chart {
  constructor(id, height = 210) {
    this.box = $(id);
    this.height = height;
    this.canvas = el("canvas", { tabIndex: 0 });
    this.canvas.setAttribute("role", "img");
    this.legend = el("div", { className: "legend" });
    this.read = el("output", { className: "read" });
    this.box.append(this.canvas, this.legend, this.read);
    this.cursor = null;
    this.canvas.addEventListener("pointermove", (e) => this.point(e.offsetX, e.offsetY));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.canvas.addEventListener("keydown", (e) => {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
      if (e.key === "Escape") this.point(null);
      if (!move || !this.frame) return;
      e.preventDefault();
      const { left, top, width, height } = this.frame;
      const [x, y] = this.cursor || [left + width, top + height / 2];
      this.point(Math.min(Math.max(x + (move[0] * width) / 60, left), left + width), Math.min(Math.max(y + (move[1] * height) / 20, top), top + height));
    });
  }
  point(x, y) {
    this.cursor = x === null ? null : [x, y];
    this.draw();
  }
  begin(left, bottom = 34) {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.max(this.canvas.clientWidth, 120);
    this.canvas.style.height = this.height + "px";
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    const g = this.canvas.getContext("2d");
    g.scale(ratio, ratio);
    g.font = "11px system-ui, 'DejaVu Sans', sans-serif";
    this.frame = { left, top: 8, width: width - left - 14, height: this.height - 8 - bottom };
    return g;
  }
  empty(message) {
    const g = this.begin(10);
    g.fillStyle = palette["--soft"];
    g.fillText(message, 10, 24);
    this.read.textContent = "";
    this.legend.replaceChildren();
    this.canvas.setAttribute("aria-label", message);
  }
  draw() {}
}

class Lines extends Chart {
  constructor(id, unit, { log = false, zero = false, format = figure } = {}) {
    super(id);
    Object.assign(this, { unit, log, zero, format, lines: [] });
  }
  set(lines) {
    this.lines = lines.filter((l) => l.data && l.data.step.length);
    this.draw();
  }
  draw() {
    if (!this.lines.length) return this.empty("no figures yet");
    const good = (v) => finite(v) && (!this.log || v > 0);
    const values = [];
    let first = Infinity, last = -Infinity;
    for (const { data } of this.lines) {
      for (const v of data.mean) if (good(v)) values.push(v);
      first = Math.min(first, data.step[0]);
      last = Math.max(last, data.step[data.step.length - 1]);
    }
    if (!values.length) return this.empty("no finite figures yet");
    values.sort((a, b) => a - b);
    // one wild value must not flatten the rest: the top is the 98th percentile with room
    let low = values[0], high = values[values.length - 1];
    const most = values[Math.floor(0.98 * (values.length - 1))];
    if (!this.log && high > most + 0.5 * (most - low) && most > low) high = most + 0.5 * (most - low);
    if (this.zero) low = Math.min(0, low);
    const y = this.log ? Math.log10 : (v) => v;
    let [y0, y1] = [y(low), y(high)];
    if (!(y1 - y0 > Math.abs(y1) * 1e-9)) { const pad = Math.abs(y1) * 0.05 || 1; y0 -= pad; y1 += pad; }
    if (last === first) last = first + 1;
    const g = this.begin(62);
    const { left, top, width, height } = this.frame;
    const px = (s) => left + ((s - first) / (last - first)) * width;
    const py = (v) => top + height - ((y(v) - y0) / (y1 - y0)) * height;
    g.strokeStyle = palette["--line"];
    g.fillStyle = palette["--soft"];
    g.lineWidth = 1;
    g.textAlign = "right";
    g.textBaseline = "middle";
    const marks = this.log && y1 - y0 > 1 ? ticks(Math.floor(y0), Math.ceil(y1), 5).filter((t) => Number.isInteger(t) && t >= y0 && t <= y1) : ticks(y0, y1, 5);
    for (const t of marks) {
      const at = top + height - ((t - y0) / (y1 - y0)) * height;
      g.beginPath(); g.moveTo(left, at); g.lineTo(left + width, at); g.stroke();
      g.fillText(this.format(this.log ? 10 ** t : t), left - 6, at);
    }
    g.textAlign = "center";
    g.textBaseline = "top";
    for (const t of ticks(first, last, Math.max(2, width / 110))) g.fillText(count(t), px(t), top + height + 5);
    g.textAlign = "right";
    g.fillText("step", left + width, top + height + 19);
    g.textAlign = "left";
    g.fillText(this.unit, 2, top + height + 19);
    g.save();
    g.beginPath(); g.rect(left, top - 3, width, height + 6); g.clip();
    this.lines.forEach((line, i) => {
      const { step, mean, low: lows, high: highs } = line.data;
      g.strokeStyle = g.fillStyle = palette["--c" + (i % 6)];
      if (lows) {
        g.globalAlpha = 0.2;
        for (let k = 0; k < step.length; k++) if (good(lows[k]) && good(highs[k])) g.fillRect(px(step[k]) - 1, py(highs[k]), 2, py(lows[k]) - py(highs[k]));
        g.globalAlpha = 1;
      }
      g.lineWidth = 1.6;
      g.setLineDash(i >= 6 ? [5, 3] : []);
      g.beginPath();
      let pen = false;
      step.forEach((s, k) => {
        if (!good(mean[k])) { pen = false; return; }
        if (pen) g.lineTo(px(s), py(mean[k])); else g.moveTo(px(s), py(mean[k]));
        pen = true;
      });
      g.stroke();
      if (step.length < 40) step.forEach((s, k) => { if (good(mean[k])) { g.beginPath(); g.arc(px(s), py(mean[k]), 2.4, 0, 7); g.fill(); } });
    });
    g.restore();
    g.setLineDash([]);
    this.legend.replaceChildren(...this.lines.map((line, i) => {
      const mark = el("i");
      mark.style.borderColor = palette["--c" + (i % 6)];
      return el("span", {}, mark, line.name);
    }));
    const at = this.cursor ? first + ((this.cursor[0] - left) / width) * (last - first) : last;
    let shown = null;
    const parts = this.lines.map((line) => {
      const k = nearest(line.data.step, at);
      if (shown === null || Math.abs(line.data.step[k] - at) < Math.abs(shown - at)) shown = line.data.step[k];
      return `${line.name} ${this.format(line.data.mean[k])}`;
    });
    if (this.cursor) {
      g.strokeStyle = palette["--soft"];
      g.beginPath(); g.moveTo(px(shown), top); g.lineTo(px(shown), top + height); g.stroke();
    }
    this.read.textContent = `step ${count(shown)}: ${parts.join(", ")} ${this.unit}`;
    this.canvas.setAttribute("aria-label", `${this.box.firstElementChild.textContent}. At ${this.read.textContent}. Arrow keys move the cursor.`);
  }
}

function nearest(steps, at) {
  let a = 0, b = steps.length - 1;
  while (a < b) {
    const m = (a + b) >> 1;
    if (steps[m] < at) a = m + 1; else b = m;
  }
  return a && at - steps[a - 1] < steps[a] - at ? a - 1 : a;
}

// Columns (steps, or numbers) by labelled rows; cells from low to high on the ramp.
class Heat extends Chart {
  constructor(id, unit, { low, high, format = figure, columns = "step", selectable = true }) {
    super(id);
    Object.assign(this, { unit, low, high, format, columns, selectable, rows: [], labels: [], cells: [] });
  }
  set(labels, columns, cells, groups = 0) {
    Object.assign(this, { labels, heads: columns, cells, groups });
    this.draw();
  }
  draw() {
    const { labels, heads = [], cells } = this;
    if (!labels.length || !heads.length) return this.empty("no inspection yet");
    this.height = Math.min(Math.max(150, labels.length * 14 + 46), 420);
    const g = this.begin(94);
    const { left, top, width, height } = this.frame;
    const w = width / heads.length, h = height / labels.length;
    for (let r = 0; r < labels.length; r++) {
      for (let c = 0; c < heads.length; c++) {
        const v = cells[r][c];
        g.fillStyle = finite(v) ? ramp((v - this.low) / (this.high - this.low)) : palette["--line"];
        g.fillRect(left + c * w, top + r * h, Math.ceil(w + 0.3), Math.ceil(h + 0.3));
      }
    }
    g.fillStyle = palette["--panel"];
    if (this.groups) for (let r = this.groups; r < labels.length; r += this.groups) g.fillRect(left, top + r * h - 1, width, 2);
    g.fillStyle = palette["--soft"];
    g.textAlign = "right";
    g.textBaseline = "middle";
    const skip = Math.ceil(12 / h);
    labels.forEach((label, r) => { if ((this.groups && skip > 1 ? r % this.groups : r) % skip === 0) g.fillText(label, left - 6, top + (r + 0.5) * h); });
    g.textBaseline = "top";
    const every = Math.ceil(heads.length / Math.max(2, width / 80));
    g.textAlign = "center";
    heads.forEach((s, c) => { if (c % every === 0) g.fillText(count(s), Math.max(left + 8, left + (c + 0.5) * w), top + height + 5); });
    g.textAlign = "right";
    g.fillText(this.columns, left + width, top + height + 19);
    const scale = el("span", { className: "scale" });
    scale.style.background = `linear-gradient(90deg, ${[0, 1, 2, 3, 4, 5, 6].map((i) => ramp(i / 6)).join(",")})`;
    this.legend.replaceChildren(el("span", {}, this.format(this.low) + " ", scale, ` ${this.format(this.high)} ${this.unit}`));
    let c = this.selectable ? Math.min(selected(), heads.length - 1) : 0, r = 0;
    if (this.cursor) {
      c = Math.min(Math.max(Math.floor((this.cursor[0] - left) / w), 0), heads.length - 1);
      r = Math.min(Math.max(Math.floor((this.cursor[1] - top) / h), 0), labels.length - 1);
      g.strokeStyle = palette["--ink"];
      g.strokeRect(left + c * w, top + r * h, Math.max(w, 2), h);
    }
    this.read.textContent = `${labels[r]}, ${this.columns} ${count(heads[c])}: ${this.format(cells[r][c])} ${this.unit}`;
    this.canvas.setAttribute("aria-label", `${this.box.firstElementChild.textContent}. ${this.read.textContent}. Arrow keys move the cursor.`);
  }
}

const state = { name: null, cursor: "", series: {}, frames: {}, texts: {}, others: new Map(), list: [] };
let charts = {};
const selected = () => ($("at").max > 0 ? Number($("at").value) : 0);

function merge(kept, parts, fields, fresh) {
  for (const [name, part] of Object.entries(parts)) {
    let mine = fresh ? undefined : kept[name];
    if (!mine || mine.step.length < part.from) mine = {};
    for (const f of fields) {
      if (!part[f]) { delete mine[f]; continue; }
      mine[f] = (mine[f] || []).slice(0, part.from).concat(part[f]);
    }
    kept[name] = mine;
  }
}

async function get(path) {
  const response = await fetch(path, { cache: "no-store" });
  if (!response.ok) throw new Error(`${response.status}`);
  return response.json();
}

async function poll() {
  try {
    state.list = (await get("/api/runs")).runs;
    const names = state.list.map((r) => r.name);
    if (!names.includes(state.name)) choose(names.find((n) => n === decodeURIComponent(location.hash.slice(1))) || names[0] || null);
    drawList(names);
    if (state.name !== null) {
      const asked = state.name;
      const data = await get(`/api/run?name=${encodeURIComponent(asked)}&cursor=${encodeURIComponent(state.cursor)}`);
      if (asked === state.name) {
        if (data.fresh) Object.assign(state, { series: Object.create(null), frames: Object.create(null), texts: Object.create(null) });
        const changed = data.fresh || data.cursor !== state.cursor;
        state.cursor = data.cursor;
        merge(state.series, data.series, ["step", "mean", "low", "high"], data.fresh);
        merge(state.frames, data.frames, ["step", "data"], data.fresh);
        merge(state.texts, data.texts, ["step", "data"], data.fresh);
        drawNow(data.run);
        if (changed) drawAll();
      }
    }
    if (names.length > 1) await compare(names);
    $("foot").textContent = names.length ? "" : "no run here yet";
  } catch (error) {
    $("foot").textContent = `no answer from mamba-integer monitor (${error.message}); trying again`;
    $("foot").classList.add("stopped");
  }
  document.body.dataset.ready = "yes";
  setTimeout(poll, POLL_MS);
}

function choose(name) {
  Object.assign(state, { name, cursor: "", series: {}, frames: {}, texts: {} });
  if (name !== null) history.replaceState(null, "", "#" + encodeURIComponent(name));
}

function drawList(names) {
  const box = $("runs");
  if (names.join("\n") !== [...box.options].map((o) => o.value).join("\n")) box.replaceChildren(...names.map((n) => el("option", { value: n, textContent: n })));
  if (state.name !== null) box.value = state.name;
  $("compare").hidden = names.length < 2;
}

function tile(name, value, note) {
  return el("dl", { className: "tile" }, el("dt", { textContent: name }), el("dd", { textContent: value }), note || "");
}

function drawNow(run) {
  $("state").textContent = run.state;
  $("state").className = `pill ${run.state}`;
  document.title = `${run.name}: Mission Control`;
  const m = run.model;
  $("about").textContent = [run.arithmetic && `${run.arithmetic} arithmetic`, m.n_layers && `${m.n_layers} layers`, m.n_heads && `${m.n_heads} heads × ${m.head_dim}`,
    m.d_model && `width ${m.d_model}`].filter(Boolean).join(", ");
  const bar = run.steps ? el("progress", { max: run.steps, value: Math.min(run.step, run.steps) }) : "";
  if (bar) bar.setAttribute("aria-label", "steps done");
  $("tiles").replaceChildren(
    tile("step" + (run.steps ? ` of ${count(run.steps)}` : ""), count(run.step), bar),
    tile("training loss", figure(run.loss), el("small", { textContent: "nats/token" })),
    tile("validation loss", figure(run.valid_loss), el("small", { textContent: "nats/token" })),
    tile("learning rate", figure(run.lr)),
    tile("speed", count(Math.round(run.tokens_per_second ?? NaN)), el("small", { textContent: "tokens/s" })),
    tile("time left", duration(run.seconds_left), el("small", { textContent: finite(run.seconds_since_last_line) ? `last line ${duration(run.seconds_since_last_line)} ago` : "" })),
  );
  const box = $("alerts");
  const text = JSON.stringify(run.alerts);
  if (box.dataset.shown === text) return;
  box.dataset.shown = text;
  box.replaceChildren(...run.alerts.map((a) => el("div", { className: "alert" + (a.critical ? " critical" : "") },
    el("b", { textContent: (a.critical ? "✖ " : "▲ ") + a.kind }), ` ${a.where ? a.where + ", " : ""}step ${count(a.step)}: ${a.message}. `, el("span", { className: "remedy", textContent: "→ " + a.remedy }))));
  if (!run.alerts.length) box.append(el("div", { className: "calm", textContent: "✓ no alerts" }));
}

// [layer][head] frames as rows "layer.head" over inspections
function headRows(frames, value) {
  const data = frames.data, shape = data.length ? data[data.length - 1] : [];
  const labels = [], cells = [];
  shape.forEach((heads, l) => Array.isArray(heads) && heads.forEach((_, h) => {
    labels.push(`layer ${l} head ${h}`);
    cells.push(data.map((frame, i) => value(frame, l, h, i)));
  }));
  return [labels, frames.step, cells];
}
const cell = (frame, l, h) => (Array.isArray(frame) && Array.isArray(frame[l]) ? frame[l][h] : NaN);

function drawAll() {
  const s = state.series, f = state.frames;
  charts.loss.set([{ name: "train", data: s.loss }, { name: "validation", data: s.valid_loss }, { name: "validation, answers", data: s.valid_answer_loss }]);
  charts.lr.set([{ name: "learning rate", data: s.lr }]);
  charts.speed.set([{ name: "speed", data: s.tokens_per_second }]);
  charts.grad.set(["weights", "decays", "biases", "scales"].map((k) => ({ name: { weights: "integer weights" }[k] || k, data: s["grad/" + k] })).concat([{ name: "all", data: s.grad_norm }]));
  const mean = (part) => part && { step: part.step, mean: part.data.map((v) => v.reduce((a, b) => a + b, 0) / v.length) };
  charts.zeros.set(["in_proj", "out_proj"].map((n) => ({ name: n, data: mean(f["zeros/" + n]) })));
  const slider = $("at"), n = f.tau_median ? f.tau_median.step.length : 0;
  const follow = Number(slider.value) >= Number(slider.max);
  slider.max = Math.max(0, n - 1);
  if (follow) slider.value = slider.max;
  drawInside();
}

function drawInside() {
  const f = state.frames, none = { step: [], data: [] };
  const medians = f.tau_median || none, spreads = f.tau_std || none;
  $("at-step").textContent = medians.step.length ? `step ${count(medians.step[selected()])}` : "none yet";
  // heads per octave of τ, a band of octaves for each layer, longest on top
  const OCTAVES = 14, labels = [], cells = [];
  const layers = medians.data.length ? medians.data[medians.data.length - 1].length : 0;
  let most = 1;
  for (let l = 0; l < layers; l++) {
    for (let o = OCTAVES - 1; o >= 0; o--) {
      labels.push(`layer ${l}  ${2 ** o}`);
      cells.push(medians.data.map((frame) => {
        const inside = (Array.isArray(frame[l]) ? frame[l] : []).filter((v) => finite(v) && Math.min(Math.max(Math.round(v), 0), OCTAVES - 1) === o).length;
        most = Math.max(most, inside);
        return inside;
      }));
    }
  }
  charts.spectrum.high = most;
  charts.spectrum.set(labels, medians.step, cells, OCTAVES);
  charts.spread.high = Math.max(1.5, ...(spreads.data[spreads.data.length - 1] || []).flat().filter(finite));
  charts.spread.set(...headRows(spreads, cell), layers && spreads.data.length ? spreads.data[spreads.data.length - 1][0]?.length || 0 : 0);
  const lows = f.m_low || none, highs = f.m_high || none;
  charts.limits.set(...headRows(lows, (frame, l, h, i) => Math.max(cell(frame, l, h), cell(highs.data[i], l, h))), lows.data.length ? lows.data[lows.data.length - 1][0]?.length || 0 : 0);

  const values = (name) => f[name] ? { step: f[name].step, data: f[name].data } : state.series[name] ? { step: state.series[name].step, data: state.series[name].mean.map((v) => [v]) } : null;
  const sites = SITES.filter((n) => values("clip/" + n));
  const steps = sites.length ? values("clip/" + sites[0]).step : [];
  charts.clip.set(sites, steps, sites.map((n) => { const d = values("clip/" + n).data; return steps.map((_, i) => d[i] ? Math.max(...d[i].map((v) => v ?? NaN)) : NaN); }));

  const at = selected(), shiftLabels = [], shiftCells = [];
  for (const site of ["norm1", "norm2", "norm_f"]) {
    const part = f["norm_shift/" + site];
    if (!part) continue;
    const frame = part.data[Math.min(at, part.data.length - 1)];
    frame.forEach((row, l) => { if (Array.isArray(row)) { shiftLabels.push(site === "norm_f" ? site : `layer ${l} ${site}`); shiftCells.push(row); } });
  }
  charts.shifts.set(shiftLabels, shiftCells.length ? shiftCells[0].map((_, j) => j) : [], shiftCells);

  const box = $("clip-table");
  while (box.children.length > 1) box.lastChild.remove();
  const names = [...SITES.map((n) => "clip/" + n), ...["x", "B", "C", "gated"].map((n) => "dead/" + n), "zeros/in_proj", "zeros/out_proj"].filter(values);
  if (!names.length) return box.append(el("p", { className: "empty", textContent: "no inspection yet" }));
  const picked = names.map((n) => { const d = values(n).data; return d[Math.min(at, d.length - 1)]; });
  const wide = Math.max(...picked.map((p) => p.length));
  const words = { clip: "at limit", dead: "dead channels", zeros: "zero weights" };
  box.append(el("table", {},
    el("thead", {}, el("tr", {}, el("th"), ...Array.from({ length: wide }, (_, l) => el("th", { textContent: `layer ${l}`, scope: "col" })))),
    el("tbody", {}, ...names.map((n, i) => {
      const [kind, site] = n.split("/");
      const limit = { clip: FAILING_CLIP, dead: 0.1, zeros: 2 }[kind];
      return el("tr", {}, el("th", { textContent: `${site}: ${words[kind]}`, scope: "row" }),
        ...picked[i].map((v) => el("td", { textContent: percent(v), className: v > limit ? "high" : v > limit / 4 ? "some" : "" })));
    }))));
  drawStories();
}

function drawStories() {
  const box = $("stories"), part = state.texts.sample;
  while (box.children.length > 1) box.lastChild.remove();
  if (!part) return box.append(el("p", { className: "empty", textContent: "none yet" }));
  for (let i = part.step.length - 1; i >= Math.max(0, part.step.length - 12); i--) {
    box.append(el("small", { textContent: `step ${count(part.step[i])}` }), el("blockquote", { textContent: part.data[i] }));
  }
}

async function compare(names) {
  for (const name of names) {
    const known = state.others.get(name) || { cursor: "", series: {} };
    const data = await get(`/api/run?name=${encodeURIComponent(name)}&only=loss&cursor=${encodeURIComponent(known.cursor)}`);
    merge(known.series, data.series, ["step", "mean"], data.fresh);
    known.cursor = data.cursor;
    state.others.set(name, known);
  }
  charts.compare.set(names.map((name) => ({ name, data: state.others.get(name).series.loss })));
}

readPalette();
charts = {
  loss: new Lines("loss", "nats/token"),
  lr: new Lines("lr", "", { zero: true }),
  speed: new Lines("speed", "tokens/s", { zero: true }),
  grad: new Lines("grad", "norm", { log: true }),
  zeros: new Lines("zeros", "of weights", { zero: true, format: percent }),
  compare: new Lines("compare", "nats/token"),
  spectrum: new Heat("spectrum", "heads (rows: τ in tokens, nearest power of 2)", { low: 0, high: 1 }),
  spread: new Heat("spread", "octaves", { low: 0, high: 1.5 }),
  limits: new Heat("limits", "of tokens", { low: 0, high: 1, format: percent }),
  clip: new Heat("clip", "of values", { low: 0, high: 0.1, format: percent }),
  shifts: new Heat("shifts", "of positions", { low: 0, high: 1, format: percent, columns: "shift j", selectable: false }),
};
const redraw = () => { readPalette(); for (const chart of Object.values(charts)) chart.draw(); };
$("runs").addEventListener("change", (e) => { choose(e.target.value); drawAll(); });
$("at").addEventListener("input", drawInside);
$("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  redraw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
window.addEventListener("resize", redraw);
poll();
