// The plane: grey regions and points on a canvas, boundaries and names as SVG above it.
const MARKS = {
  dot: (c, x, y) => c.arc(x, y, 3.2, 0, 7),
  square: (c, x, y) => c.rect(x - 2.9, y - 2.9, 5.8, 5.8),
  up: (c, x, y) => poly(c, x, y, 3, -90, 4.2),
  diamond: (c, x, y) => poly(c, x, y, 4, 0, 4.2),
  down: (c, x, y) => poly(c, x, y, 3, 90, 4.2),
  star: (c, x, y) => poly(c, x, y, 10, -90, 5, 2.2),
};
const KINDS = Object.values(MARKS);
function poly(c, x, y, n, turn, r, other) {
  for (let i = 0; i < n; i++) {
    const a = (turn * Math.PI) / 180 + (2 * Math.PI * i) / n, s = other && i % 2 ? other : r;
    c[i ? "lineTo" : "moveTo"](x + s * Math.cos(a), y + s * Math.sin(a));
  }
  c.closePath();
}
const bytes = (v) => (v ? new Uint8Array(v.buffer, v.byteOffset, v.byteLength) : new Uint8Array(0));

function render({ model, el }) {
  const p = pane(model, el, "fl-boundary"), say = speech(model);
  const key = html("div", "fl-key", undefined);
  p.head.after(key);
  const canvas = html("canvas", "");
  p.body.prepend(canvas);
  put(canvas, { "aria-hidden": "true" });
  const axes = new Axes(p.drawing);
  const locals = new Pool(svg("g", {}, p.drawing), "path");
  const halo = svg("path", { class: "fl-halo" }, p.drawing), shared = svg("path", { class: "fl-shared" }, p.drawing);
  const names = new Pool(p.drawing, "text");
  const small = document.createElement("canvas");
  let keyed = "";

  function drawKey(colors, clients) {
    const id = colors.join() + clients;
    if (id === keyed) return;
    keyed = id;
    key.replaceChildren();
    for (let k = 0; k < clients; k++) {
      const item = html("span", "", key), c = html("canvas", "", item), r = devicePixelRatio || 1;
      Object.assign(c, { width: 14 * r, height: 14 * r });
      const g = c.getContext("2d");
      g.scale(r, r);
      g.fillStyle = colors[k % 8];
      g.beginPath(); KINDS[k % 6](g, 7, 7); g.fill();
      const s = svg("svg", { width: 22, height: 10, "aria-hidden": "true" }, item);
      svg("path", { d: "M1 5H21", class: `fl-local fl-k${k % 8}` }, s);
      html("span", "", item, say("client {k}", { k }));
    }
    const item = html("span", "", key), s = svg("svg", { width: 22, height: 10, "aria-hidden": "true" }, item);
    svg("path", { d: "M1 5H21", class: "fl-shared" }, s);
    html("span", "", item, say("shared"));
    html("span", "fl-hint", key, say("hollow: shared is wrong"));
  }

  function draw() {
    const { w, h } = p.size, K = model.get("clients"), lim = model.get("lim");
    if (!w) return;
    const look = getComputedStyle(el), color = (n) => look.getPropertyValue(n).trim();
    const colors = Array.from({ length: 8 }, (_, k) => color(`--fl-c${k}`)), back = color("--fl-back");
    drawKey(colors, K);
    const side = Math.max(60, Math.min(w - 66, h - 48)), left = 52 + (w - 66 - side) / 2;
    const { X, Y, box } = axes.draw(p.size, { xlim: [-lim, lim], ylim: [-lim, lim], left,
      right: w - left - side, top: h - 40 - side, xlabel: "x₁", ylabel: "x₂" });
    const r = devicePixelRatio || 1;
    if (canvas.width !== w * r || canvas.height !== h * r) Object.assign(canvas, { width: w * r, height: h * r });
    canvas.style.width = `${w}px`; canvas.style.height = `${h}px`;
    const c = canvas.getContext("2d");
    c.setTransform(r, 0, 0, r, 0, 0);
    c.clearRect(0, 0, w, h);

    const G = model.get("grid"), cls = bytes(model.get("regions"));
    if (cls.length === G * G) {
      const ink = document.body.dataset.jpThemeLight === "false" ? 255 : 0, tint = [8, 34, 62, 84];
      small.width = small.height = G;
      const s = small.getContext("2d"), image = s.createImageData(G, G);
      for (let i = 0; i < G; i++) for (let j = 0; j < G; j++) {
        const at = 4 * ((G - 1 - i) * G + j); // the picture's first row is its top
        image.data[at] = image.data[at + 1] = image.data[at + 2] = ink;
        image.data[at + 3] = tint[cls[i * G + j] % 4];
      }
      s.putImageData(image, 0, 0);
      c.save();
      c.beginPath(); c.rect(box.l, box.t, side, side); c.clip();
      const cell = side / (G - 1); // nodes lie on the frame: half a cell hangs over on each side
      c.drawImage(small, box.l - cell / 2, box.t - cell / 2, side + cell, side + cell);
      c.restore();
    }
    const xy = floats(model.get("points")), owner = bytes(model.get("owner")), right = bytes(model.get("right"));
    c.lineWidth = 1.3;
    for (let i = 0; i < owner.length; i++) {
      c.beginPath();
      KINDS[owner[i] % 6](c, X(xy[2 * i]), Y(xy[2 * i + 1]));
      c.strokeStyle = colors[owner[i] % 8];
      c.fillStyle = right[i] ? colors[owner[i] % 8] : back;
      c.globalAlpha = right[i] ? 0.75 : 1;
      c.fill(); c.stroke();
    }
    c.globalAlpha = 1;

    const line = floats(model.get("lines"));
    let at = 0;
    model.get("lengths").forEach((n, m) => {
      let d = "", pen = "M";
      for (let i = at; i < at + n; i++) {
        const x = line[2 * i];
        if (!Number.isFinite(x)) { pen = "M"; continue; }
        d += `${pen}${X(x).toFixed(1)} ${Y(line[2 * i + 1]).toFixed(1)}`;
        pen = "L";
      }
      at += n;
      if (m) locals.next({ d, class: `fl-local fl-k${(m - 1) % 8}` });
      else { put(halo, { d }); put(shared, { d }); }
    });
    locals.done();
    for (const n of model.get("names")) {
      const name = names.next({ y: Y(n.at[1]) + 4.5, "text-anchor": "middle", class: "fl-name" }, say("class {name}", { name: n.text }));
      const half = name.getComputedTextLength() / 2 + 4; // inside the frame: beyond it are the ticks
      put(name, { x: Math.max(box.l + half, Math.min(box.l + side - half, X(n.at[0]))) });
    }
    names.done();
    Object.assign(p.drawing.dataset, { gen: model.get("gen"), n: owner.length });
  }
  const ask = painter(draw), stop = sized(p, draw);
  const theme = new MutationObserver(ask); // the canvas doesn't follow the style sheet by itself
  theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name"] });
  model.on("change", ask); // once a message, when all of it is set
  return () => { ask.stop(); stop(); theme.disconnect(); };
}
export default { render };
