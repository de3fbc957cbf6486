// Slides of the same page: P presents, arrows turn, Esc ends. A panel has a slide of its own.
(() => {
  const main = document.querySelector("main"), root = document.documentElement;
  const count = document.querySelector(".count"), button = document.querySelector("#slides");
  const on = () => root.classList.contains("present");
  const isHead = (n) => /^H[123]$/.test(n.tagName), isPanel = (n) => n.classList.contains("panel");
  let slides = [], at = 0;

  // A new slide at a heading, for a panel, and where the screen is full. Code stays on the page.
  function cut() {
    const room = innerHeight * 0.86;
    let high = 0, title = null;
    slides = [[]];
    for (const node of main.children) {
      if (node.matches("nav, noscript, .code, .out, .live, details")) continue;
      const tall = node.offsetHeight + 16, last = slides.at(-1);
      if (isHead(node)) title = node;
      const begun = !last.length || !last.every(isHead); // more than headings stands on it
      if (begun && (isHead(node) || isPanel(node) || high + tall > room || last.some(isPanel))) {
        const again = isHead(node) || isPanel(node) || !title ? [] : [title]; // its title once more
        slides.push(again);
        high = again.length ? title.offsetHeight + 16 : 0;
      }
      slides.at(-1).push(node);
      high += tall;
    }
    slides = slides.filter((s) => s.some((n) => !isHead(n)));
  }

  function show(i) {
    at = Math.max(0, Math.min(slides.length - 1, i));
    const now = new Set(slides[at]);
    for (const node of main.children) node.classList.toggle("shown", now.has(node));
    count.textContent = `${at + 1} / ${slides.length}`;
    scrollTo(0, 0);
  }

  function present(start) {
    button.setAttribute("aria-pressed", start);
    if (!start) {
      root.classList.remove("present");
      slides[at]?.at(-1).scrollIntoView();
      return;
    }
    const here = [...main.children].find((n) => n.getBoundingClientRect().bottom > 80);
    root.classList.add("present", "measure");
    cut();
    root.classList.remove("measure");
    const follows = (n) => here && (n === here || here.compareDocumentPosition(n) & Node.DOCUMENT_POSITION_FOLLOWING);
    show(Math.max(slides.findIndex((s) => s.some(follows)), 0));
  }

  // All slides one below the other, each on a sheet of its own: what `run.py pdf --slides` prints.
  function sheets() {
    const style = document.createElement("style");
    style.textContent = `@page { size: ${innerWidth}px ${innerHeight}px; margin: 30px; }`;
    document.head.append(style);
    root.classList.add("present", "measure");
    cut();
    const seen = new Set(); // a title that a slide repeats stays where it was
    for (const slide of slides) {
      const first = slide.find((n) => !seen.has(n));
      first.classList.toggle("opens", seen.size > 0);
      slide.forEach((n) => seen.add(n));
    }
    for (const node of main.children) node.classList.toggle("unshown", !seen.has(node));
  }
  if (location.hash === "#slides") addEventListener("load", sheets);

  button.addEventListener("click", () => present(!on()));
  addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const inside = (names) => e.target.closest?.(names);
    if (e.key.toLowerCase() === "p" && !inside("textarea, select")) present(!on());
    if (!on()) return;
    if (e.key === "Escape") present(false);
    if (inside("input, select, textarea, button, pre")) return;
    const step = { ArrowRight: 1, PageDown: 1, " ": 1, ArrowLeft: -1, PageUp: -1 }[e.key];
    if (step) { show(at + step); e.preventDefault(); }
  });
})();
