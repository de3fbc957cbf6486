// Small multiples of grey pictures, a rect a pixel: white is 0 and black 1, ink on paper, in both themes.
function render({ model, el }) {
  const p = pane(model, el, "fl-pictures");
  const pixels = svg("g", {}, p.drawing), words = new Pool(svg("g", {}, p.drawing), "text");
  const frames = svg("path", { class: "fl-frame" }, p.drawing);
  const LINE = 17;
  let nodes = [], used = 0;

  // Thousands of rects: what a node shows is kept beside it, so that only what changed is written.
  function pixel(x, y, size, grey) {
    const node = nodes[used] || (nodes[used] = { rect: svg("rect", {}, pixels) });
    used++;
    const place = `${x},${y},${size}`;
    if (node.place !== place) put(node.rect, { x, y, width: size, height: size });
    if (node.grey !== grey) put(node.rect, { fill: grey < 0 ? "none" : `rgb(${grey},${grey},${grey})` });
    if (node.hidden) node.rect.style.display = "";
    Object.assign(node, { place, grey, hidden: false });
  }

  // As many columns as make the pictures largest.
  function grid(n, w, h, tall, wide, text) {
    const fixed = model.get("columns");
    let best = { size: -1 };
    for (let c = fixed || 1; c <= (fixed || n); c++) {
      const cw = w / c, ch = h / Math.ceil(n / c);
      const size = Math.min((cw - 12) / wide, (ch - text - 8) / tall);
      if (size > best.size) best = { size, c, cw, ch };
    }
    return { ...best, size: best.size > 2 ? Math.floor(best.size) : Math.max(best.size, 0.5) };
  }

  const short = (s, room) => (length(s) * 7.2 <= room ? s : s.slice(0, Math.max(1, Math.floor(((room / 7.2) * s.length) / length(s)) - 1)) + "…");

  function draw() {
    const { w, h } = p.size, names = model.get("names"), remarks = model.get("remarks"), shapes = model.get("shapes");
    if (!w) return;
    const v = floats(model.get("values")), n = names.length;
    const lines = 1 + remarks.some((r) => r), text = lines * LINE;
    const tall = Math.max(1, ...shapes.map((s) => s[0])), wide = Math.max(1, ...shapes.map((s) => s[1]));
    const g = n ? grid(n, w, h, tall, wide, text) : { c: 1 };
    let at = 0, d = "";
    used = 0;
    for (let k = 0; k < n; k++) {
      const [rows, columns] = shapes[k], i = Math.floor(k / g.c), j = k % g.c;
      const x0 = Math.round((j + 0.5) * g.cw - (columns * g.size) / 2);
      const y0 = Math.round((i + 0.5) * g.ch - (tall * g.size + text) / 2 + text);
      let some = false;
      for (let y = 0; y < rows; y++) for (let x = 0; x < columns; x++, at++) {
        const a = v[at], ink = Math.min(Math.max(a, 0), 1), grey = Number.isFinite(a) ? Math.round(255 * (1 - ink)) : -1;
        some ||= grey >= 0;
        pixel(x0 + x * g.size, y0 + y * g.size, g.size, grey);
      }
      d += `M${x0 - 1} ${y0 - 1}h${columns * g.size + 2}v${rows * g.size + 2}h${-columns * g.size - 2}z`;
      if (!some) d += `M${x0} ${y0}l${columns * g.size} ${rows * g.size}m0 ${-rows * g.size}l${-columns * g.size} ${rows * g.size}`;
      [names[k], remarks[k]].slice(0, lines).forEach((said, m) => words.next({ x: ((j + 0.5) * g.cw).toFixed(1),
        y: y0 - 6 - (lines - 1 - m) * LINE, "text-anchor": "middle", class: m ? "fl-axis" : "fl-name" }, short(said, g.cw - 4)));
    }
    for (let k = used; k < nodes.length; k++) if (!nodes[k].hidden) { nodes[k].rect.style.display = "none"; nodes[k].hidden = true; }
    words.done();
    put(frames, { d });
    Object.assign(p.drawing.dataset, { gen: model.get("gen"), n });
  }
  const ask = painter(draw), stop = sized(p, draw);
  model.on("change", ask); // once a message, when all of it is set
  return () => { ask.stop(); stop(); };
}
export default { render };
