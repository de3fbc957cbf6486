// Shared by every part: SVG nodes that are reused, axes, drawing at most once a frame.
const NS = "http://www.w3.org/2000/svg";

function put(node, attrs) {
  for (const k in attrs) {
    const v = String(attrs[k]);
    if (node.getAttribute(k) !== v) node.setAttribute(k, v);
  }
  return node;
}

function svg(name, attrs, parent) {
  const node = put(document.createElementNS(NS, name), attrs || {});
  if (parent) parent.append(node);
  return node;
}

function html(name, cls, parent, text) {
  const node = document.createElement(name);
  if (cls) node.className = cls;
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

// Nodes of one kind, kept between drawings: building them anew would cost the frame rate.
class Pool {
  constructor(parent, name) { this.parent = parent; this.name = name; this.nodes = []; this.used = 0; }
  next(attrs, text) {
    let node = this.nodes[this.used];
    if (!node) { node = svg(this.name, {}, this.parent); this.nodes.push(node); }
    this.used++;
    if (node.style.display) node.style.display = "";
    put(node, attrs);
    if (text !== undefined && node.textContent !== text) node.textContent = text;
    return node;
  }
  done() {
    for (let i = this.used; i < this.nodes.length; i++) this.nodes[i].style.display = "none";
    this.used = 0;
  }
}

// Which ink a number wants on a cell of this share of blue: black reads best on the middle ones.
const inkOn = (share) => (share > 0.85 ? "fl-on" : share > 0.6 ? "fl-mid" : "");

// What a view says: English, or what the panel's language has for it; fields are filled in.
const speech = (model) => (text, fields = {}) =>
  (model.get("words")?.[text] ?? text).replace(/\{(\w+)\}/g, (_, name) => fields[name]);

// How wide a text is, in Latin letters: a Chinese one is as wide as two.
const length = (s) => s.length + (s.match(/[\u2e80-\uffef]/g) || []).length;

const round3 = (v) => String(+v.toPrecision(3));

// At a tick: 0.00001 would be cut off.
const tickText = (v) => (v && Math.abs(v) < 1e-3 ? (+v.toPrecision(3)).toExponential() : round3(v));

function linearTicks(lo, hi, wanted) {
  const raw = (hi - lo) / Math.max(wanted, 1), ten = 10 ** Math.floor(Math.log10(raw));
  const step = ten * [1, 2, 5, 10].find((m) => m * ten >= raw * 0.999);
  const out = [];
  for (let i = Math.ceil(lo / step - 1e-9); i * step <= hi + step * 1e-6; i++) out.push(i * step);
  return out;
}

function logTicks(lo, hi) {
  const out = [], mult = hi / lo > 300 ? [1] : [1, 2, 5];
  for (let e = Math.floor(Math.log10(lo)); e <= Math.ceil(Math.log10(hi)); e++)
    for (const m of mult) { const v = m * 10 ** e; if (v >= lo * 0.999 && v <= hi * 1.001) out.push(v); }
  return out;
}

// A part is a title and a drawing that fills what is left; text stays 13 px at any width.
function pane(model, root, cls) {
  root.classList.add("fl-part", cls);
  const head = html("div", "fl-title", root), body = html("div", "fl-body", root);
  const drawing = svg("svg", { role: "img" }, body);
  const size = { w: 0, h: 0 };
  const titled = () => { head.textContent = model.get("title"); };
  const named = () => put(drawing, { "aria-label": model.get("label") || model.get("title") });
  model.on("change:title", titled);
  model.on("change:label", named);
  titled(); named();
  return { head, body, drawing, size };
}

// Put a remark right of the title; below it, where there is no room.
function beside(head, remark) {
  const row = html("div", "fl-headrow");
  head.replaceWith(row);
  row.append(head, remark);
}

// Draw at once when the last drawing is old (it saves a frame of latency), else on the next frame.
function painter(draw) {
  let due = 0, at = 0;
  const now = () => { due = 0; at = performance.now(); draw(); };
  const ask = () => {
    if (due) return;
    if (performance.now() - at > 14) now();
    else due = requestAnimationFrame(now);
  };
  ask.stop = () => cancelAnimationFrame(due);
  return ask;
}

// Calls draw when the part gets its place or another one.
function sized(p, draw) {
  const watch = new ResizeObserver(() => {
    const w = Math.floor(p.body.clientWidth), h = Math.floor(p.body.clientHeight);
    if (!w || !h || (w === p.size.w && h === p.size.h)) return;
    p.size.w = w; p.size.h = h;
    put(p.drawing, { width: w, height: h, viewBox: `0 0 ${w} ${h}` });
    draw();
  });
  watch.observe(p.body);
  return () => watch.disconnect();
}

function floats(view) {
  const n = view ? view.byteLength >> 2 : 0, out = new Float32Array(n);
  for (let i = 0; i < n; i++) out[i] = view.getFloat32(4 * i, true);
  return out;
}

// Frame, grid, ticks and axis names of a chart; returns the two scales.
class Axes {
  constructor(drawing) {
    const g = svg("g", { class: "fl-axes", "aria-hidden": "true" }, drawing);
    this.grid = svg("path", { class: "fl-grid-line" }, g);
    this.frame = svg("path", { class: "fl-frame" }, g);
    this.ticks = new Pool(g, "text");
    this.xname = svg("text", { class: "fl-axis", "text-anchor": "middle" }, g);
    this.yname = svg("text", { class: "fl-axis", "text-anchor": "middle" }, g);
  }
  draw({ w, h }, o) {
    const box = { l: o.left ?? 52, r: w - (o.right ?? 14), t: o.top ?? 8, b: h - 40 };
    this.box = box;
    const [x0, x1] = o.xlim, [y0, y1] = o.ylim, ly0 = Math.log(y0), ly1 = Math.log(y1);
    const X = (v) => box.l + ((box.r - box.l) * (v - x0)) / (x1 - x0);
    const Y = o.log
      ? (v) => box.b - ((box.b - box.t) * (Math.log(Math.max(v, 1e-12)) - ly0)) / (ly1 - ly0)
      : (v) => box.b - ((box.b - box.t) * (v - y0)) / (y1 - y0);
    const xs = linearTicks(x0, x1, Math.min(6, (box.r - box.l) / 60));
    let ys = o.log ? logTicks(y0, y1) : linearTicks(y0, y1, Math.min(5, (box.b - box.t) / 32));
    const room = Math.floor((box.b - box.t) / 18);
    if (ys.length > room) ys = ys.filter((v) => Math.abs(Math.log10(v) % 1) < 1e-6);
    if (o.log && y1 / y0 > 1e7) { // many decades: every second, third …
      const every = Math.ceil(ys.length / 6);
      ys = ys.filter((v) => Math.abs(Math.round(Math.log10(v))) % every === 0);
    }
    let d = "";
    for (const v of xs) {
      d += `M${X(v).toFixed(1)} ${box.t}V${box.b}`;
      this.ticks.next({ x: X(v), y: box.b + 17, "text-anchor": "middle" }, round3(v));
    }
    for (const v of ys) {
      d += `M${box.l} ${Y(v).toFixed(1)}H${box.r}`;
      this.ticks.next({ x: box.l - 6, y: Y(v) + 4.5, "text-anchor": "end" }, tickText(v));
    }
    this.ticks.done();
    put(this.grid, { d });
    put(this.frame, { d: `M${box.l} ${box.t}V${box.b}H${box.r}` });
    put(this.xname, { x: (box.l + box.r) / 2, y: h - 6 });
    this.xname.textContent = o.xlabel || "";
    const my = (box.t + box.b) / 2;
    put(this.yname, { x: 13, y: my, transform: `rotate(-90 13 ${my})` });
    this.yname.textContent = o.ylabel || "";
    return { X, Y, box };
  }
}
