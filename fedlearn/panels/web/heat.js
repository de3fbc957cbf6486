// A cell for each pair of two settings; the shade of a known one is its place between all known.
function render({ model, el }) {
  const p = pane(model, el, "fl-heat"), say = speech(model);
  const group = svg("g", {}, p.drawing);
  const cells = new Pool(group, "rect"), numbers = new Pool(svg("g", {}, p.drawing), "text"), ticks = new Pool(p.drawing, "text");
  const frame = svg("path", { class: "fl-frame" }, p.drawing);
  const names = [0, 1].map(() => svg("text", { class: "fl-axis", "text-anchor": "middle" }, p.drawing));

  function draw() {
    const { w, h } = p.size, rows = model.get("rows"), columns = model.get("columns"), v = floats(model.get("values")), s = floats(model.get("spreads"));
    if (!w) return;
    const R = rows.length, C = columns.length, l = 38 + 7.5 * Math.max(1, ...rows.map(length)), r = 12, t = 8, b = 42;
    const cw = (w - l - r) / C, rh = (h - t - b) / R;
    const known = [...v].filter(Number.isFinite), low = Math.min(...known), high = Math.max(...known);
    const digits = high >= 10 ? 1 : cw < 46 ? 2 : 3;
    for (let i = 0; i < R; i++) for (let j = 0; j < C; j++) {
      const a = v[i * C + j], share = Number.isFinite(a) ? (high > low ? (a - low) / (high - low) : 1) : 0;
      const failed = a === -Infinity, some = Number.isFinite(a);
      cells.next({ x: l + j * cw, y: t + i * rh, width: Math.max(cw - 2, 1), height: Math.max(rh - 2, 1),
        class: some ? "fl-cell" : "fl-cell fl-none", "fill-opacity": some ? (0.15 + 0.85 * share).toFixed(3) : 1 });
      const about = s[i * C + j], two = Number.isFinite(about) && rh >= 34; // a line for the spread
      const at = { x: l + (j + 0.5) * cw - 1, "text-anchor": "middle", class: some ? inkOn(share) : "fl-axis" };
      const y = t + (i + 0.5) * rh + (two ? -4 : 4);
      numbers.next({ ...at, y }, some ? a.toFixed(digits) : failed ? say("failed") : "·");
      if (two) numbers.next({ ...at, y: y + 15 }, `±${about.toFixed(digits)}`);
    }
    for (let i = 0; i < R; i++) ticks.next({ x: l - 6, y: t + (i + 0.5) * rh + 4, "text-anchor": "end" }, rows[i]);
    for (let j = 0; j < C; j++) ticks.next({ x: l + (j + 0.5) * cw - 1, y: h - b + 16, "text-anchor": "middle" }, columns[j]);
    for (const pool of [cells, numbers, ticks]) pool.done();
    put(frame, { d: `M${l - 2} ${t}V${h - b}H${w - r}` });
    const my = (t + h - b) / 2;
    put(names[0], { x: 13, y: my, transform: `rotate(-90 13 ${my})` }).textContent = model.get("ylabel");
    put(names[1], { x: (l + w - r) / 2, y: h - 6 }).textContent = model.get("xlabel");
    Object.assign(p.drawing.dataset, { gen: model.get("gen"), n: known.length });
  }
  const ask = painter(draw), stop = sized(p, draw);
  model.on("change", ask); // once a message, when all of it is set
  return () => { ask.stop(); stop(); };
}
export default { render };
