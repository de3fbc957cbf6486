// A dot a client on an axis from 0 to 1, stacked where they meet; the worst one is named.
function render({ model, el }) {
  const p = pane(model, el, "fl-dots"), say = speech(model);
  const axes = new Axes(p.drawing);
  const mean = svg("path", { class: "fl-mean" }, p.drawing), meanText = svg("text", { "text-anchor": "middle" }, p.drawing);
  const dots = new Pool(svg("g", {}, p.drawing), "circle");
  const ring = svg("circle", { class: "fl-ring", r: 8 }, p.drawing);
  const worst = svg("text", { class: "fl-worst" }, p.drawing);
  const drift = html("div", "fl-drift");
  beside(p.head, drift);

  function draw() {
    const v = floats(model.get("values"));
    drift.textContent = model.get("drift");
    if (!p.size.w) return;
    const { X, box } = axes.draw(p.size, { xlim: [0, 1], ylim: [0, 1], xlabel: model.get("xlabel"), left: 16, right: 18, top: 44, bare: true });
    axes.ticks.nodes.filter((n) => n.getAttribute("text-anchor") === "end").forEach((n) => { n.style.display = "none"; });
    put(axes.grid, { d: "" });
    put(axes.frame, { d: `M${X(0)} ${box.b}H${X(1)}` + [0, 0.2, 0.4, 0.6, 0.8, 1].map((t) => `M${X(t)} ${box.b}v5`).join("") });
    const order = [...v.keys()].filter((k) => Number.isFinite(v[k])).sort((a, b) => v[a] - v[b]);
    // dots of one column stand on each other; a full column is squeezed, never cut off
    const wide = 11, columns = new Map();
    for (const k of order) {
      const c = Math.round(X(v[k]) / wide);
      columns.set(c, (columns.get(c) || []).concat(k));
    }
    const tallest = Math.max(1, ...[...columns.values()].map((c) => c.length));
    const rise = Math.min(11, (box.b - box.t - 14) / tallest);
    let first = null;
    for (const [, ks] of columns)
      ks.forEach((k, i) => {
        const at = [X(v[k]), box.b - 8 - i * rise];
        if (k === order[0]) first = at;
        dots.next({ cx: at[0].toFixed(1), cy: at[1].toFixed(1), r: 4.5, class: k === order[0] ? "fl-dot fl-low" : "fl-dot" });
      });
    dots.done();
    const some = order.length > 0;
    for (const n of [mean, meanText, ring, worst]) put(n, { visibility: some ? "visible" : "hidden" });
    if (some) {
      const m = order.reduce((s, k) => s + v[k], 0) / order.length, k = order[0];
      put(mean, { d: `M${X(m)} ${box.t - 6}V${box.b}` });
      put(meanText, { x: Math.min(Math.max(X(m), 40), p.size.w - 40), y: box.t - 12 }).textContent = say("mean {mean}", { mean: m.toFixed(2) });
      put(ring, { cx: first[0], cy: first[1] });
      const left = first[0] > p.size.w * 0.55;
      // the worst is named on a line of its own, above the stacks
      put(worst, { x: left ? Math.min(first[0] + 8, p.size.w - 4) : Math.max(first[0] - 8, 2), y: box.t - 30, "text-anchor": left ? "end" : "start" })
        .textContent = say("worst: client {k}, {low}", { k, low: v[k].toFixed(2) });
    }
    Object.assign(p.drawing.dataset, { gen: model.get("gen"), n: order.length });
  }
  const ask = painter(draw), stop = sized(p, draw);
  model.on("change", ask); // once a message, when all of it is set
  return () => { ask.stop(); stop(); };
}
export default { render };
