// Several lines over rounds or megabytes. Model: lines (what each is), y and x (float32, in order).
function render({ model, el }) {
  const p = pane(model, el, "fl-curve");
  const axes = new Axes(p.drawing);
  const id = "fl" + Math.random().toString(36).slice(2);
  const clip = svg("rect", {}, svg("clipPath", { id }, svg("defs", {}, p.drawing)));
  const group = svg("g", { "clip-path": `url(#${id})` }, p.drawing);
  // fixed order: the present run is drawn last, over the others
  const pool = new Pool(group, "path");
  const line = svg("path", { class: "line", d: "" }, group);
  const tip = svg("circle", { class: "fl-tip", r: 3.5 }, group);
  const legend = html("div", "fl-legend", p.body);
  let legendKey = "", corner = "";

  function drawLegend(lines) {
    const key = JSON.stringify([model.get("legend"), lines.map((l) => [l.name, l.role])]);
    if (key === legendKey) return;
    legendKey = key;
    legend.replaceChildren();
    stand(model.get("legend") || "none");
    const rank = { run: 0, ghost: 1, reference: 2 };
    for (const l of [...lines].sort((a, b) => (rank[a.role] ?? 0) - (rank[b.role] ?? 0))) {
      if (!l.name) continue;
      const row = html("div", "", legend);
      const s = svg("svg", { width: 30, height: 10, "aria-hidden": "true" }, row);
      svg("path", { class: style(l.role, true), d: "M1 5H29" }, s);
      html("span", "", row, l.name);
    }
  }
  function stand(where) {
    corner = where;
    legend.className = `fl-legend fl-legend-${where}`;
  }
  // it goes where fewer points lie behind it, the present run's first of all, and stays there
  function giveWay(points, box) {
    const h = legend.offsetHeight + 4, left = box.r - legend.offsetWidth - 8;
    const behind = { top: 0, bottom: 0 };
    for (const [x, y, weight] of points) {
      if (x < left || y < box.t || y > box.b) continue;
      if (y < box.t + h) behind.top += weight;
      if (y > box.b - h) behind.bottom += weight;
    }
    const other = corner === "top" ? "bottom" : "top";
    if (behind[corner] > behind[other]) stand(other);
  }
  const style = (role, sample) => (role === "run" ? (sample ? "fl-run" : "line") : role);

  function draw() {
    if (!p.size.w) return;
    const log = model.get("log");
    const { X, Y, box } = axes.draw(p.size, {
      xlim: [0, model.get("xmax")], ylim: model.get("ylim"), log,
      xlabel: model.get("xlabel"), ylabel: model.get("ylabel"),
    });
    put(clip, { x: box.l - 1, y: box.t - 2, width: box.r - box.l + 5, height: box.b - box.t + 4 });
    const lines = model.get("lines"), y = floats(model.get("y")), x = floats(model.get("x"));
    const points = [];
    let at = 0, last = null, present = "";
    for (const l of lines) {
      let d = "", pen = "M";
      for (let i = at; i < at + l.n; i++) {
        if (!Number.isFinite(y[i]) || !Number.isFinite(x[i])) { pen = "M"; continue; }
        last = [X(x[i]), Y(y[i])];
        points.push([...last, l.role === "run" ? 9 : 1]);
        d += `${pen}${last[0].toFixed(1)} ${last[1].toFixed(1)}`;
        pen = "L";
      }
      if (l.role === "run") {
        present = d;
        p.drawing.dataset.n = l.n;
        put(tip, last && d ? { cx: last[0], cy: last[1], visibility: "visible" } : { visibility: "hidden" });
      } else pool.next({ class: l.role, d });
      at += l.n;
    }
    if (!lines.some((l) => l.role === "run")) put(tip, { visibility: "hidden" });
    pool.done();
    put(line, { d: present });
    p.drawing.dataset.gen = model.get("gen");
    drawLegend(lines);
    giveWay(points, box);
  }
  const ask = painter(draw), stop = sized(p, draw);
  model.on("change", ask); // once a message, when all of it is set
  return () => { ask.stop(); stop(); };
}
export default { render };
