// Round 37/100, a progress bar, and a few numbers.
function render({ model, el }) {
  el.classList.add("fl-readout");
  const count = html("span", "fl-count", el), bar = html("div", "fl-progress", el), fill = html("div", "", bar);
  const numbers = html("span", "fl-numbers", el);
  put(bar, { role: "progressbar", "aria-label": `${model.get("unit")}s done`, "aria-valuemin": 0 });
  function draw() {
    const n = model.get("round"), of = model.get("rounds");
    const unit = model.get("unit");
    count.textContent = `${unit} ${n}/${of}`;
    put(bar, { "aria-valuenow": n, "aria-valuemax": of, "aria-valuetext": `${unit} ${n} of ${of}` });
    fill.style.width = `${(100 * n) / Math.max(of, 1)}%`;
    const items = model.get("items");
    while (numbers.children.length > items.length) numbers.lastChild.remove();
    items.forEach((t, i) => { (numbers.children[i] || html("span", "", numbers)).textContent = t; });
  }
  const ask = painter(draw);
  model.on("change", ask); // once a message, when all of it is set
  draw();
  return () => ask.stop();
}
export default { render };
