// Round 37/100, a progress bar, and a few numbers.
function render({ model, el }) {
  el.classList.add("fl-readout");
  const say = speech(model), unit = model.get("unit");
  const count = html("span", "fl-count", el), bar = html("div", "fl-progress", el), fill = html("div", "", bar);
  const numbers = html("span", "fl-numbers", el);
  put(bar, { role: "progressbar", "aria-label": say("{unit}s done", { unit }), "aria-valuemin": 0 });
  function draw() {
    const n = model.get("round"), of = model.get("rounds");
    count.textContent = say("{unit} {n}/{of}", { unit, n, of });
    put(bar, { "aria-valuenow": n, "aria-valuemax": of, "aria-valuetext": say("{unit} {n} of {of}", { unit, n, of }) });
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
