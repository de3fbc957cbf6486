// A curve a client: up to `panes` small panes on one scale, more clients in one pane of thin lines.
function render({ model, el }) {
  const p = pane(model, el, "fl-clientcurves");
  const remark = html("div", "fl-drift");
  p.head.after(remark);
  const axes = new Axes(p.drawing);
  const frames = new Pool(svg("g", {}, p.drawing), "path"), means = new Pool(svg("g", {}, p.drawing), "path");
  const lines = new Pool(svg("g", {}, p.drawing), "path"), texts = new Pool(p.drawing, "text");

  function draw() {
    const { w, h } = p.size, N = model.get("clients"), v = floats(model.get("values"));
    if (!w) return;
    const T = N ? v.length / N : 0, rounds = model.get("rounds"), worst = model.get("worst");
    const [y0, y1] = model.get("ylim"), one = N > model.get("panes") || !N;
    axes.grid.parentNode.style.display = one ? "" : "none";
    const mean = Array.from({ length: T }, (_, t) => {
      let s = 0, n = 0;
      for (let k = 0; k < N; k++) if (Number.isFinite(v[k * T + t])) { s += v[k * T + t]; n++; }
      return n ? s / n : NaN;
    });
    const path = (get, X, Y) => {
      let d = "", pen = "M";
      for (let t = 0; t < T; t++) {
        const y = get(t);
        if (!Number.isFinite(y)) { pen = "M"; continue; }
        d += `${pen}${X(t).toFixed(1)} ${Y(y).toFixed(1)}`;
        pen = "L";
      }
      return d;
    };
    const last = N && T ? v[worst * T + T - 1] : NaN;
    remark.textContent = worst >= 0 ? `dotted: mean ${round3(mean[T - 1])}, worst ${round3(last)}` : "";
    if (one) {
      const { X, Y } = axes.draw(p.size, { xlim: [0, rounds], ylim: [y0, y1], xlabel: "round" });
      for (let k = 0; k < N; k++) if (k !== worst) lines.next({ d: path((t) => v[k * T + t], X, Y), class: "fl-thin" });
      if (worst >= 0) lines.next({ d: path((t) => v[worst * T + t], X, Y), class: "fl-worst" });
      if (N) means.next({ d: path((t) => mean[t], X, Y), class: "fl-dotted" });
    } else {
      // as many columns as make the panes about 3 : 2
      const l = 34, b = 22, bw = w - l - 8, bh = h - b - 4;
      let C = 1, best = 0;
      for (let c = 1; c <= N; c++) {
        const R = Math.ceil(N / c), fit = Math.min(bw / c / 1.5, bh / R);
        if (fit > best) { best = fit; C = c; }
      }
      const R = Math.ceil(N / C), cw = bw / C, rh = bh / R;
      for (let k = 0; k < N; k++) {
        const i = Math.floor(k / C), j = k % C, x0 = l + j * cw, x1 = x0 + cw - 6, top = 4 + i * rh, low = top + rh - 6;
        const X = (t) => x0 + ((x1 - x0) * t) / rounds;
        const Y = (y) => low - ((low - top) * (Math.min(Math.max(y, y0), y1) - y0)) / (y1 - y0);
        frames.next({ d: `M${x0} ${top}V${low}H${x1}`, class: "fl-frame" });
        means.next({ d: path((t) => mean[t], X, Y), class: "fl-dotted" });
        lines.next({ d: path((t) => v[k * T + t], X, Y), class: k === worst ? "fl-worst" : "fl-each" });
        texts.next({ x: x1 - 2, y: low - 4, "text-anchor": "end", class: k === worst ? "fl-name fl-low" : "fl-name" }, String(k));
        if (!j) {
          texts.next({ x: x0 - 4, y: top + 10, "text-anchor": "end", class: "fl-axis" }, round3(y1));
          if (rh > 34) texts.next({ x: x0 - 4, y: low + 2, "text-anchor": "end", class: "fl-axis" }, round3(y0));
        }
        if (k === (R - 1) * C) {
          texts.next({ x: x0, y: h - 6, "text-anchor": "start", class: "fl-axis" }, cw > 110 ? "round 0" : "0");
          texts.next({ x: x1, y: h - 6, "text-anchor": "end", class: "fl-axis" }, String(rounds));
        }
      }
    }
    for (const pool of [frames, means, lines, texts]) pool.done();
    Object.assign(p.drawing.dataset, { gen: model.get("gen"), n: N });
  }
  const ask = painter(draw), stop = sized(p, draw);
  model.on("change", ask); // once a message, when all of it is set
  return () => { ask.stop(); stop(); };
}
export default { render };
