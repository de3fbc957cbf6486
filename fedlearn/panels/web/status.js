// Errors (read out at once), news (read out when there is a pause), and the code of this run.
function render({ model, el }) {
  el.classList.add("fl-status");
  const say = speech(model);
  const alert = html("div", "fl-alert", el), news = html("div", "fl-news", el), said = html("div", "fl-sr", el);
  const code = html("div", "fl-code", el), copy = html("button", "jupyter-button fl-copy", code, say("Copy"));
  const text = html("pre", "", code);
  put(alert, { role: "alert" });
  put(said, { "aria-live": "polite" });
  put(text, { tabindex: 0, "aria-label": say("Python that makes this run") });
  copy.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(model.get("code")); copy.textContent = say("Copied"); }
    catch { getSelection().selectAllChildren(text); copy.textContent = say("Selected"); }
    setTimeout(() => { copy.textContent = say("Copy"); }, 1500);
  });
  const show = (node, s) => { if (node.textContent !== s) node.textContent = s; node.hidden = !s; };
  function draw() {
    show(alert, model.get("error") && say("{error}", { error: model.get("error") }));
    show(news, model.get("news"));
    if (said.textContent !== model.get("said")) said.textContent = model.get("said");
    code.hidden = !model.get("code");
    if (text.textContent !== model.get("code")) text.textContent = model.get("code");
  }
  model.on("change", draw);
  draw();

  // ipywidgets' slider handles have a role and values but no name, and say a log slider's exponent
  const name = () => el.closest(".fl-root")?.querySelectorAll(".widget-slider").forEach((s) => {
    const h = s.querySelector(".noUi-handle"), t = s.querySelector(".widget-label")?.textContent;
    const r = s.querySelector(".widget-readout");
    if (!h || !t) return;
    put(h, { "aria-label": t });
    if (!r || r.dataset.named) return;
    r.dataset.named = "1";
    put(r, { "aria-label": say("{name} value", { name: t }) });
    if (r.isContentEditable) put(r, { role: "textbox" });
    const spell = () => put(h, { "aria-valuetext": r.textContent });
    new MutationObserver(spell).observe(r, { childList: true, characterData: true, subtree: true });
    new MutationObserver(spell).observe(h, { attributes: true, attributeFilter: ["aria-valuetext"] });
    spell();
  });
  let tries = 0;
  const timer = setInterval(() => { name(); if (++tries > 40) clearInterval(timer); }, 150);
  return () => clearInterval(timer);
}
export default { render };
