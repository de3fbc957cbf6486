// A bar a client, up or down from zero; the mean dashed, the lowest named if they differ.
function render({ model, el }) {
  const p = pane(model, el, "fl-bars"), say = speech(model);
  const remark = html("div", "fl-drift");
  beside(p.head, remark);
  const axes = new Axes(p.drawing);
  const bars = new Pool(svg("g", {}, p.drawing), "rect"), ticks = new Pool(svg("g", {}, p.drawing), "text");
  const zero = svg("path", { class: "fl-frame" }, p.drawing), mean = svg("path", { class: "fl-mean" }, p.drawing);

  function draw() {
    const v = floats(model.get("values")), N = v.length;
    if (!p.size.w) return;
    const { X, Y, box } = axes.draw(p.size, { xlim: [-0.5, Math.max(N, 1) - 0.5], ylim: model.get("ylim"),
      xlabel: model.get("xlabel"), ylabel: model.get("ylabel") });
    axes.ticks.nodes.filter((n) => n.getAttribute("text-anchor") === "middle").forEach((n) => { n.style.display = "none"; });
    const known = [...v.keys()].filter((k) => Number.isFinite(v[k]));
    const least = known.reduce((a, k) => (v[k] < v[a] ? k : a), known[0]);
    const low = known.some((k) => v[k] > v[least]) ? least : undefined; // none if all are alike
    const [y0, y1] = model.get("ylim"), cut = (y) => Math.min(Math.max(y, y0), y1);
    const wide = (box.r - box.l) / Math.max(N, 1), every = [1, 2, 5, 10, 20, 50].find((m) => m * wide >= 24) || 100;
    for (const k of known) {
      const a = Y(cut(v[k])), b = Y(cut(0));
      bars.next({ x: X(k) - wide * 0.4, y: Math.min(a, b), width: Math.max(wide * 0.8, 1), height: Math.max(Math.abs(a - b), 1),
        class: k === low ? "fl-one fl-low" : "fl-one" });
    }
    for (let k = 0; k < N; k += every) ticks.next({ x: X(k), y: box.b + 17, "text-anchor": "middle" }, String(k));
    bars.done(); ticks.done();
    put(axes.grid, { d: "" });
    put(zero, { d: `M${box.l} ${Y(cut(0))}H${box.r}` });
    const m = known.reduce((s, k) => s + v[k], 0) / Math.max(known.length, 1);
    put(mean, { d: `M${box.l} ${Y(cut(m))}H${box.r}`, visibility: known.length ? "visible" : "hidden" });
    const lowest = low === undefined ? "" : say(", lowest {low}", { low: round3(v[low]) });
    remark.textContent = known.length ? say("mean {mean}", { mean: round3(m) }) + lowest : "";
    Object.assign(p.drawing.dataset, { gen: model.get("gen"), n: N });
  }
  const ask = painter(draw), stop = sized(p, draw);
  model.on("change", ask); // once a message, when all of it is set
  return () => { ask.stop(); stop(); };
}
export default { render };
