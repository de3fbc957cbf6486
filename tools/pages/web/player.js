// A recorded panel: plain inputs choose a recorded run, the panel's own views draw it.
// VIEWS (name -> {render}) stands above, made of the same files that JupyterLab gets.

// What a view asks of its model. `set` tells the change handlers once, after all is set.
class Model {
  constructor() { this.traits = {}; this.told = {}; }
  get(name) { return this.traits[name]; }
  on(event, f) { (this.told[event] ??= []).push(f); }
  off() {}
  save_changes() {}
  set(traits) {
    const moved = Object.keys(traits).filter((k) => this.traits[k] !== traits[k]);
    if (!moved.length) return;
    Object.assign(this.traits, traits);
    for (const k of moved) (this.told[`change:${k}`] || []).forEach((f) => f());
    (this.told.change || []).forEach((f) => f());
  }
}

// gzip(lengths, json, three planes of floats, bytes), as pack.py makes it.
async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const all = new Uint8Array(await new Response(stream).arrayBuffer());
  const view = new DataView(all.buffer), [nj, nf, nb] = [0, 4, 8].map((at) => view.getUint32(at, true));
  const header = JSON.parse(new TextDecoder().decode(all.subarray(12, 12 + nj)));
  const plane = (i, n) => all.subarray(12 + nj + i * nf, 12 + nj + i * nf + n);
  const [a, b, c] = [0, 1, 2].map((i) => plane(i, nf)), raw = plane(3, nb), words = new Uint32Array(nf);
  for (let i = 0; i < nf; i++) words[i] = (a[i] << 24) | (b[i] << 16) | (c[i] << 8);
  const numbers = new Float32Array(words.buffer);
  return {
    header,
    floats: ([at, n]) => numbers.subarray(at, at + n),
    bytes: ([at, n]) => new DataView(raw.buffer, raw.byteOffset + at, n),
    ints: ([at, n]) => {
      const k = n / 3, byte = (i, s) => raw[at + s * k + i] << (8 * s);
      return Array.from({ length: k }, (_, i) => byte(i, 0) | byte(i, 1) | byte(i, 2));
    },
  };
}

// Pieces of floats as a view gets them: little-endian bytes.
function joined(parts) {
  const out = new Float32Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of parts) { out.set(p, at); at += p.length; }
  return new DataView(out.buffer);
}

// References into the pool become what the view was sent.
function restore(v, pool) {
  if (!v || typeof v !== "object") return v;
  if (Array.isArray(v)) return v.map((w) => restore(w, pool));
  if (v.$b) return pool.bytes(v.$b);
  if (v.$f) return joined(v.$f.map(pool.floats));
  if (v.$m) {
    const [at, n, wide] = v.$m, flat = pool.floats([at, n]);
    return Array.from({ length: n / wide }, (_, i) => Array.from(flat.subarray(i * wide, (i + 1) * wide)));
  }
  return Object.fromEntries(Object.entries(v).map(([k, w]) => [k, restore(w, pool)]));
}

// Trait -> (run, frame) => value, restored once.
function columns(traits, pool) {
  const out = {};
  for (const [name, c] of Object.entries(traits)) {
    const known = new Map(), u = "c" in c ? [c.c] : c.u;
    const at = (i) => { if (!known.has(i)) known.set(i, restore(u[i], pool)); return known.get(i); };
    if ("c" in c) out[name] = () => at(0);
    else if (c.r) { const r = pool.ints(c.r); out[name] = (run) => at(r[run]); }
    else { const f = pool.ints(c.f), s = pool.ints(c.s); out[name] = (run, frame) => at(f[s[run] + frame]); }
  }
  return out;
}

// --- curves: the rounds so far, and the line of the last run in grey -------------------------------

const pieces = (lines, view) => {
  const all = floats(view), out = [];
  let at = 0;
  for (const l of lines) { out.push(all.subarray(at, at + l.n)); at += l.n; }
  return out;
};
const whole = (l) => l.role === "reference" || l.role === "ghost";

// A curve's traits as they were in round `upto`, with the ghost's line before them.
function curveAt(t, upto, ghost) {
  let lines = t.lines, xs = pieces(lines, t.x), ys = pieces(lines, t.y), { xmax, ylim } = t;
  const n = lines.map((l) => (whole(l) ? l.n : Math.min(l.n, upto + 1)));
  lines = lines.map((l, i) => ({ ...l, n: n[i] }));
  [xs, ys] = [xs, ys].map((p) => p.map((v, i) => v.subarray(0, n[i])));
  if (ghost) {
    lines = [{ name: ghost.name, role: "ghost", n: ghost.y.length }, ...lines];
    xs = [ghost.x, ...xs];
    ys = [ghost.y, ...ys];
    xmax = Math.max(xmax, ghost.xmax);
    ylim = [Math.min(ylim[0], ghost.ylim[0]), Math.max(ylim[1], ghost.ylim[1])];
  }
  const partly = t.lines.some((l) => !whole(l) && l.n > upto + 1);
  const label = partly ? `${t.title}, the first ${upto} rounds` : t.label;
  return { ...t, label, lines, x: joined(xs), y: joined(ys), xmax, ylim };
}

function ghostOf(t, name) {
  const i = t.lines.findIndex((l) => l.role === "run");
  if (i < 0) return null;
  return { name, x: pieces(t.lines, t.x)[i], y: pieces(t.lines, t.y)[i], xmax: t.xmax, ylim: t.ylim };
}

// --- which run -------------------------------------------------------------------------------------

// Of the recorded settings in which control i stands where it was put, the one nearest to what was
// wanted. What was touched last counts most; what makes no difference in a setting hardly counts.
function nearest(h, settings, wanted, touched, i) {
  const weight = h.knobs.map((_, j) => { const age = touched.indexOf(j); return age < 0 ? 1 : 1 + 4 * 0.6 ** age; });
  let best = null, least = Infinity;
  for (const s of settings) {
    if (s.stops[i] !== wanted[i]) continue;
    let far = 0;
    h.knobs.forEach((c, j) => {
      if (s.stops[j] === wanted[j]) return;
      const apart = c.menu ? 1 : 0.5 + Math.abs(s.stops[j] - wanted[j]) / c.stops.length;
      far += apart * weight[j] * (s.off[j] ? 0.1 : 1);
    });
    if (far < least) { least = far; best = s; }
  }
  return best;
}

function settingsOf(h, pool) {
  const flat = pool.ints(h.settings), K = h.knobs.length, out = [];
  for (let i = 0; i < flat.length; i += 3 * K + 1) {
    const [stops, off, called] = [0, 1, 2].map((s) => flat.slice(i + s * K, i + (s + 1) * K));
    out.push({ stops, off, names: called.map((n, j) => h.knobs[j].names[n]), run: flat[i + 3 * K] });
  }
  return out;
}

// --- the same boxes as in JupyterLab ---------------------------------------------------------------

function press(name, tip, f, parent) {
  const b = html("button", "jupyter-button", parent, name);
  b.type = "button";
  b.title = tip;
  b.addEventListener("click", f);
  return b;
}

function knob(c, id, moved, parent) {
  const row = html("label", "fl-control fl-row", parent);
  row.title = c.tip;
  const label = html("span", "widget-label", row);
  const input = html(c.menu ? "select" : "input", "", row);
  input.addEventListener("input", () => moved(+input.value));
  if (c.menu) {
    c.stops.forEach((s, j) => { html("option", "", input, s).value = j; });
    return { c, row, label, input, said: null };
  }
  const said = html("span", "fl-said", row), list = html("datalist", "", row);
  row.classList.toggle("fl-long", c.stops.some((s) => s.length > 8));
  Object.assign(input, { type: "range", min: 0, max: Math.max(c.stops.length - 1, 1), step: 1 });
  list.id = id;
  c.stops.forEach((_, j) => { html("option", "", list).value = j; });
  input.setAttribute("list", id);
  return { c, row, label, input, said };
}

async function play(root) {
  const pool = await unpack(root.querySelector("script").textContent), h = pool.header;
  h.knobs = h.controls.filter((c) => !c.heading);
  const settings = settingsOf(h, pool), done = h.at.map((a) => a[a.length - 1]);
  const views = h.views.map((v) => v && { ...v, get: columns(v.traits, pool), model: new Model() });
  const [readout, status] = views.slice(-2);
  const alone = h.knobs.map((_, i) => new Set(settings.map((s) => s.stops[i])).size < 2);
  let now = settings[0], round = done[now.run], gen = 0, ghosts = [], timer = 0, showing = false;
  let wanted = [...now.stops], touched = [], jumped = []; // where the hand put each control, the latest first

  root.classList.add("fl-root");
  const grid = html("div", "fl-grid" + (h.knobs.length ? "" : " fl-bare"), root);
  let runButton = null;
  if (h.rounds) {
    const head = html("div", "fl-head", grid), buttons = html("div", "fl-buttons", head);
    runButton = press("Run", `Replay this run, ${h.unit} by ${h.unit}`, toggle, buttons);
    press("Step", `One ${h.unit}`, () => { stop(); show(round >= done[now.run] ? 0 : round + 1); }, buttons);
    press("Reset", `Back to ${h.unit} 0`, () => { stop(); show(0); }, buttons);
    readout.el = html("div", "", head);
  }
  const left = html("div", "fl-controls", grid), heads = [];
  const knobs = [];
  for (const c of h.controls) {
    if (c.heading) heads.push({ node: html("div", "fl-group", left, c.heading), from: knobs.length });
    else { const i = knobs.length; knobs.push(knob(c, `${root.id}-${i}`, (to) => moved(i, to), left)); }
  }
  const panes = html("div", `fl-parts fl-n${views.length - 2}`, grid);
  for (const v of views.slice(0, -2)) v.el = html("div", "", panes);
  const foot = html("div", "fl-foot", grid), ask = html("div", "fl-predict", foot);
  html("div", "", ask, h.predict);
  const which = html("div", "fl-recorded", ask);
  if (h.codes.length) press("Code", "The Python that makes this run", () => { showing = !showing; show(round); }, foot);
  status.el = html("div", "", grid);

  const said = (s, j) => `${s.names[j]} ${h.knobs[j].stops[s.stops[j]]}`; // Clients 10
  function moved(i, to) {
    wanted[i] = to;
    touched = [i, ...touched.filter((j) => j !== i)];
    const best = nearest(h, settings, wanted, touched, i);
    if (!best) return;
    const differ = h.knobs.map((_, j) => j).filter((j) => best.stops[j] !== now.stops[j]);
    const name = differ.length === 1 ? ` (${said(now, differ[0])})` : "";
    if (best.run !== now.run)
      ghosts = views.map((v) => (v && v.get.xmax ? ghostOf(traits(v, done[now.run]), `last run${name}`) : null));
    const partly = timer || round < done[now.run];
    jumped = h.knobs.map((_, j) => j).filter((j) => best.stops[j] !== wanted[j] && !best.off[j]);
    now = best;
    gen++;
    show(partly ? Math.min(round, done[now.run]) : done[now.run]);
  }

  const frameAt = (r) => { const at = h.at[now.run]; let f = 0; while (f + 1 < at.length && at[f + 1] <= r) f++; return f; };
  const traits = (v, r) => Object.fromEntries(Object.entries(v.get).map(([k, get]) => [k, get(now.run, frameAt(r))]));

  function show(r) {
    round = r;
    const end = r >= done[now.run];
    views.forEach((v, i) => {
      if (!v) return;
      let t = traits(v, r);
      if (v.get.xmax) t = curveAt(t, r, ghosts[i]);
      if (v === readout) t.round = r;
      if (v === status) Object.assign(t, { code: showing ? h.codes[now.run] : "", error: end ? t.error : "", said: end ? t.said : "" });
      v.model.set({ ...t, gen });
    });
    if (runButton) {
      runButton.textContent = timer ? "Pause" : "Run";
      runButton.setAttribute("aria-pressed", Boolean(timer));
    }
    knobs.forEach(showKnob);
    heads.forEach(({ node, from }, i) => {
      const below = knobs.slice(from, heads[i + 1]?.from).some((_, j) => now.off[from + j] < 2);
      node.classList.toggle("fl-gone", !below);
    });
    const named = h.knobs.map((_, i) => (now.off[i] ? "" : said(now, i))).filter(Boolean);
    const also = jumped.length ? ` ${jumped.map((j) => `${now.names[j]} ${h.knobs[j].stops[wanted[j]]}`).join(", ")}: not recorded together with this, so the nearest run is shown.` : "";
    const text = `Recorded run${named.length ? ": " : ""}${named.join(", ")}.${also}`;
    if (which.textContent !== text) which.textContent = text;
    Object.assign(root.dataset, { round: r, run: now.run });
  }

  function showKnob({ c, row, label, input, said }, i) {
    const text = c.stops[now.stops[i]];
    label.textContent = now.names[i];
    put(input, { "aria-label": now.names[i] });
    input.value = now.stops[i];
    input.disabled = now.off[i] > 0 || alone[i];
    row.classList.toggle("fl-gone", now.off[i] === 2);
    row.classList.toggle("fl-off", input.disabled);
    row.classList.toggle("fl-jumped", jumped.includes(i));
    if (alone[i]) row.title = "Fixed in this recording; it moves in the notebook";
    if (!said) return;
    said.textContent = text;
    put(input, { "aria-valuetext": text });
  }

  function stop() { clearTimeout(timer); timer = 0; }

  function toggle() {
    if (timer) { stop(); return show(round); }
    if (round >= done[now.run]) round = -1;
    const pace = 1000 * (h.pace || 2 / h.rounds); // a map has none: it comes as it is computed
    const next = () => {
      timer = round + 1 < done[now.run] ? setTimeout(next, pace) : 0;
      show(round + 1);
    };
    next();
  }

  show(round);
  for (const v of views) if (v && v.el) VIEWS[v.view].render({ model: v.model, el: v.el });
  root.dataset.ready = 1;
}

for (const root of document.querySelectorAll(".fl-play")) {
  play(root).catch(() => { // an old browser: the picture of the notebook
    const still = root.parentNode.querySelector("noscript");
    root.className = "";
    root.innerHTML = still.textContent;
  });
}
