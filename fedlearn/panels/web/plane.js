// A plane of two parameters: contours of quadratics, points with names, paths with arrow heads.
function render({ model, el }) {
  const p = pane(model, el, "fl-plane");
  const axes = new Axes(p.drawing);
  const id = "fl" + Math.random().toString(36).slice(2), defs = svg("defs", {}, p.drawing);
  const clip = svg("rect", {}, svg("clipPath", { id }, defs));
  const inside = svg("g", { "clip-path": `url(#${id})` }, p.drawing);
  const rings = new Pool(inside, "path"), paths = new Pool(inside, "path"), heads = new Pool(inside, "path");
  const marks = new Pool(inside, "path"), texts = new Pool(p.drawing, "text");

  // {theta : (theta - c)^T A (theta - c) / 2 = level} as an ellipse: semi-axes sqrt(2 level / eigenvalue)
  function ellipse(e, level, X, Y) {
    const [[a, b], [, d]] = e.matrix, half = (a - d) / 2, root = Math.hypot(half, b), mid = (a + d) / 2;
    const big = mid + root, small = mid - root;
    if (small <= 0 || level <= 0) return "";
    const turn = Math.atan2(2 * b, a - d) / 2, r1 = Math.sqrt((2 * level) / big), r2 = Math.sqrt((2 * level) / small);
    let out = "";
    for (let i = 0; i <= 90; i++) {
      const s = (i * Math.PI) / 45, u = r1 * Math.cos(s), v = r2 * Math.sin(s);
      const x = e.center[0] + u * Math.cos(turn) - v * Math.sin(turn), y = e.center[1] + u * Math.sin(turn) + v * Math.cos(turn);
      out += `${i ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`;
    }
    return out + "Z";
  }
  const MARKS = {
    dot: (x, y) => `M${x - 5} ${y}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0`,
    cross: (x, y) => `M${x - 6} ${y - 6}L${x + 6} ${y + 6}M${x - 6} ${y + 6}L${x + 6} ${y - 6}`,
    star: (x, y) => { let d = ""; for (let i = 0; i < 10; i++) { const r = i % 2 ? 3.6 : 9, a = (i * Math.PI) / 5; d += `${i ? "L" : "M"}${(x + r * Math.sin(a)).toFixed(1)} ${(y - r * Math.cos(a)).toFixed(1)}`; } return d + "Z"; },
    square: (x, y) => `M${x - 5} ${y - 5}h10v10h-10Z`,
    diamond: (x, y) => `M${x} ${y - 7}L${x + 7} ${y}L${x} ${y + 7}L${x - 7} ${y}Z`,
  };

  function draw() {
    const { w, h } = p.size, s = model.get("scene");
    if (!w) return;
    // equal aspect: one unit is as long on both axes, the shorter side of the picture gets more range
    let [x0, x1] = model.get("xlim"), [y0, y1] = model.get("ylim");
    const bw = w - 66, bh = h - 48, unit = Math.min(bw / (x1 - x0), bh / (y1 - y0));
    const gx = (bw / unit - (x1 - x0)) / 2, gy = (bh / unit - (y1 - y0)) / 2;
    const { X, Y, box } = axes.draw(p.size, { xlim: [x0 - gx, x1 + gx], ylim: [y0 - gy, y1 + gy],
      xlabel: model.get("xlabel"), ylabel: model.get("ylabel") });
    put(clip, { x: box.l, y: box.t, width: box.r - box.l, height: box.b - box.t });
    for (const e of s.contours || []) for (const level of e.levels)
      rings.next({ d: ellipse(e, level, X, Y), class: `fl-contour fl-c${e.color ?? 0}` + (e.dashed ? " fl-dashed" : "") });
    for (const q of s.paths || []) {
      const xy = q.points.map(([a, b]) => [X(a), Y(b)]);
      paths.next({ d: xy.map((v, i) => `${i ? "L" : "M"}${v[0].toFixed(1)} ${v[1].toFixed(1)}`).join(""),
        class: `fl-path fl-c${q.color ?? 0}` + (q.dashed ? " fl-dashed" : "") });
      // the head points along the last stretch that is long enough to have a direction
      const end = xy[xy.length - 1];
      const from = xy.slice().reverse().find((v) => end && Math.hypot(v[0] - end[0], v[1] - end[1]) > 6);
      if (from) {
        const a = Math.atan2(end[1] - from[1], end[0] - from[0]), at = (t, r) => `${(end[0] - r * Math.cos(a + t)).toFixed(1)} ${(end[1] - r * Math.sin(a + t)).toFixed(1)}`;
        heads.next({ d: `M${end[0].toFixed(1)} ${end[1].toFixed(1)}L${at(0.4, 11)}L${at(-0.4, 11)}Z`, class: `fl-head fl-c${q.color ?? 0}` });
      }
    }
    const taken = [];
    for (const q of s.points || []) {
      const x = X(q.at[0]), y = Y(q.at[1]);
      marks.next({ d: (MARKS[q.mark] || MARKS.dot)(x, y), class: `fl-mark fl-c${q.color ?? 0} fl-${q.mark || "dot"}` });
      taken.push([x - 8, y - 8, x + 8, y + 8]);
    }
    for (const q of s.points || []) if (q.name) place(q, X, Y, box, taken);
    for (const pool of [rings, paths, heads, marks, texts]) pool.done();
    Object.assign(p.drawing.dataset, { gen: model.get("gen"), n: (s.points || []).length });
  }
  // a name goes to the first of 16 places round its point, near ones first, that is free and inside
  function place(q, X, Y, box, taken) {
    const x = X(q.at[0]), y = Y(q.at[1]), wide = length(q.name) * 7.4 + 4;
    const spots = [[12, 4, "start"], [-12, 4, "end"], [0, -13, "middle"], [0, 22, "middle"],
      [10, -12, "start"], [10, 20, "start"], [-10, -12, "end"], [-10, 20, "end"],
      ...[-29, 37, -46, 54].flatMap((dy) => [[10, dy, "start"], [-10, dy, "end"]])];
    const rect = ([dx, dy, a]) => { const l = x + dx - (a === "end" ? wide : a === "middle" ? wide / 2 : 0); return [l, y + dy - 13, l + wide, y + dy + 4]; };
    const free = (b) => b[0] > box.l && b[2] < box.r && b[1] > box.t && b[3] < box.b && !taken.some((o) => b[0] < o[2] && b[2] > o[0] && b[1] < o[3] && b[3] > o[1]);
    const spot = spots.find((o) => free(rect(o))) || spots[0];
    taken.push(rect(spot));
    texts.next({ x: x + spot[0], y: y + spot[1], "text-anchor": spot[2], class: "fl-name" }, q.name);
  }
  const ask = painter(draw), stop = sized(p, draw);
  model.on("change", ask); // once a message, when all of it is set
  return () => { ask.stop(); stop(); };
}
export default { render };
