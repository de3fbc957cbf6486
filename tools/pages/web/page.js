// Light or dark, the contents, and what scrolls sideways can be reached by keyboard.
(() => {
  const root = document.documentElement, button = document.querySelector("#theme");
  const set = (theme) => {
    root.dataset.theme = theme;
    document.body.dataset.jpThemeLight = String(theme !== "dark");
    button.setAttribute("aria-pressed", theme === "dark");
  };
  set(root.dataset.theme);
  button.addEventListener("click", () => {
    const theme = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.theme = theme; } catch { /* then it is forgotten */ }
    set(theme);
  });
  let kept = "light"; // paper is
  addEventListener("beforeprint", () => { kept = root.dataset.theme; set("light"); });
  addEventListener("afterprint", () => set(kept));

  const contents = document.querySelector(".toc details");
  if (!contents.querySelector("li")) contents.hidden = document.querySelector("#slides").hidden = true;
  if (innerWidth < 1150) contents.open = false;

  const wide = document.querySelectorAll("pre, .table, .formula, .wide");
  const reach = () => wide.forEach((n) => {
    if (n.scrollWidth > n.clientWidth + 1) n.tabIndex = 0; else n.removeAttribute("tabindex");
  });
  reach();
  addEventListener("resize", reach);
  document.addEventListener("toggle", reach, true);
})();
