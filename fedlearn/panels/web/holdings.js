// Who holds what: a row per client, a column per label, sizes as bars at the right.
function render({ model, el }) {
  const p = pane(model, el, "fl-holdings"), say = speech(model);
  const cells = svg("g", {}, p.drawing);
  const pools = { cell: new Pool(cells, "rect"), bar: new Pool(cells, "rect"), num: new Pool(cells, "text"),
    tick: new Pool(svg("g", {}, p.drawing), "text") };
  const frame = svg("path", { class: "fl-frame" }, p.drawing);
  const names = ["rows", "cols", "sizes"].map(() => svg("text", { class: "fl-axis", "text-anchor": "middle" }, p.drawing));
  const scale = html("div", "fl-scale");
  const low = html("span", "", scale, "0"), ramp = html("span", "fl-ramp", scale), high = html("span", "", scale);
  const note = html("div", "fl-note", el);
  beside(p.head, scale);
  ramp.setAttribute("aria-hidden", "true");

  function draw() {
    const { w, h } = p.size, N = model.get("clients"), C = model.get("names").length;
    note.textContent = model.get("note");
    if (!w) return;
    p.drawing.style.visibility = scale.style.visibility = N && C ? "" : "hidden";
    if (!N || !C) return Object.assign(p.drawing.dataset, { gen: model.get("gen"), n: 0 });
    const counts = floats(model.get("counts"));
    const sizes = Array.from({ length: N }, (_, k) => { let s = 0; for (let c = 0; c < C; c++) s += counts[k * C + c]; return s; });
    const most = Math.max(1, ...counts), largest = Math.max(1, ...sizes);
    const l = 46, r = 78, t = 7, b = 40, gap = 8;
    const cw = (w - l - r - gap) / C, rh = (h - t - b) / N, thin = rh < 5 ? 0 : 1;
    high.textContent = say("{n} examples", { n: most });
    const Y = (k) => t + k * rh;
    for (let k = 0; k < N; k++) {
      for (let c = 0; c < C; c++) {
        const v = counts[k * C + c], share = v / most;
        pools.cell.next({ x: l + c * cw, y: Y(k), width: Math.max(cw - 1, 1), height: Math.max(rh - thin, 0.6),
          class: v ? "fl-cell" : "fl-cell fl-none", "fill-opacity": v ? (0.12 + 0.88 * share).toFixed(3) : 1 });
        if (rh >= 16 && cw >= 26 && v)
          pools.num.next({ x: l + c * cw + (cw - 1) / 2, y: Y(k) + rh / 2 + 4.5, "text-anchor": "middle",
            class: inkOn(share) }, String(v));
      }
      pools.bar.next({ x: w - r, y: Y(k), width: Math.max(1, (r - 40) * (sizes[k] / largest)), height: Math.max(rh - thin, 0.6), class: "fl-bar" });
      if (rh >= 15) pools.tick.next({ x: w - r + Math.max(1, (r - 40) * (sizes[k] / largest)) + 4, y: Y(k) + rh / 2 + 4.5, "text-anchor": "start" }, String(sizes[k]));
    }
    // every label if there is room, else every second, fifth, tenth …
    const every = (room, need) => [1, 2, 5, 10, 20, 50].find((m) => m * room >= need) || 100;
    for (let k = 0, m = every(rh, 15); k < N; k += m)
      pools.tick.next({ x: l - 6, y: Y(k) + rh / 2 + 4.5, "text-anchor": "end" }, String(k));
    const labels = model.get("names"), wide = Math.max(...labels.map(length)) * 8 + 6;
    for (let c = 0, m = every(cw, wide); c < C; c += m)
      pools.tick.next({ x: l + (c + 0.5) * cw, y: h - b + 16, "text-anchor": "middle" }, labels[c]);
    if (rh < 15) {
      pools.tick.next({ x: w - r, y: h - b + 16, "text-anchor": "middle" }, "0");
      pools.tick.next({ x: w - 40, y: h - b + 16, "text-anchor": "middle" }, String(largest));
    }
    Object.values(pools).forEach((q) => q.done());
    put(frame, { d: `M${w - r - 0.5} ${t}V${h - b}` });
    const my = (t + h - b) / 2;
    put(names[0], { x: 13, y: my, transform: `rotate(-90 13 ${my})` }).textContent = model.get("rowname");
    put(names[1], { x: l + (C * cw) / 2, y: h - 6 }).textContent = model.get("colname");
    put(names[2], { x: w - r, y: h - 6, "text-anchor": "start" }).textContent = say("examples");
    Object.assign(p.drawing.dataset, { gen: model.get("gen"), n: N });
  }
  const ask = painter(draw), stop = sized(p, draw);
  model.on("change", ask); // once a message, when all of it is set
  return () => { ask.stop(); stop(); };
}
export default { render };
