"""What every lesson's first panel must do in a real JupyterLab, and a probe that measures it."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from lab import in_kernel, open_notebook, run_all, settled

# A cell that holds the kernel until the test writes a file, a minute at most.
BUSY = """
import os, time
end = time.monotonic() + 60
while time.monotonic() < end and not os.path.exists({0!r}): time.sleep(0.02)
os.path.exists({0!r}) and os.remove({0!r})
"""

# The probe lives in the page: it watches the pictures and the clock, whatever the kernel does. A
# move is answered when the first picture has a frame of the new run, and whole when all have.
PROBE = """root => {
  const line = [...root.querySelectorAll('path.line')].find(l => l.getAttribute('d'));
  const picture = (line || root.querySelector('.fl-part svg path')).closest('svg');
  const data = () => line ? line.getAttribute('d')
    : [...picture.querySelectorAll('path, rect, circle')].map(e => e.outerHTML).join('');
  const all = [...root.querySelectorAll('.fl-part svg')].filter(s => s.dataset.gen);
  const p = window.probe = { root, picture, data, frames: [], inputs: [], first: [], whole: [],
                             busy: false, gen: picture.dataset.gen, shown: data(), changed: 0 };
  const moved = () => { p.inputs.push(performance.now()); p.from = p.inputs.at(-1); };
  new MutationObserver(() => {
    if (p.from && all.every(s => s.dataset.gen !== p.old)) {
      p.whole.push(performance.now() - p.from); p.from = 0;
    }
  }).observe(root, { attributes: true, subtree: true, attributeFilter: ['data-gen'] });
  new MutationObserver(() => {
    const now = performance.now(), shown = data();
    if (shown !== p.shown || picture.dataset.gen !== p.gen) p.frames.push(now);
    if (shown !== p.shown) p.changed++;
    p.shown = shown;
    if (picture.dataset.gen !== p.gen) {
      p.gen = picture.dataset.gen;
      if (p.inputs.length) { p.first.push(now - p.inputs.at(-1)); p.inputs = []; }
    }
  }).observe(picture, { attributes: true, subtree: true });
  root.addEventListener('keydown', moved, true);
}"""

WORK = """code => {
  const k = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const f = k.requestExecute({ code, store_history: false });
  probe.busy = null;
  f.onIOPub = m => { if (m.header.msg_type === 'status' && m.content.execution_state === 'busy'
                         && probe.busy === null) probe.busy = true; };
  f.done.finally(() => { probe.busy = false; });
}"""

# Everything that the reader would see as going wrong, whether it is on the screen or not.
TROUBLE = """() => jupyterapp.shell.currentWidget.content.widgets.flatMap(c =>
  c.model.type !== 'code' ? [] : Array.from({ length: c.model.outputs.length }, (_, i) =>
    c.model.outputs.get(i).toJSON())
  .filter(o => o.output_type === 'error' || (o.output_type === 'stream' && o.name === 'stderr'))
  .map(o => (o.evalue || [].concat(o.text).join('')).slice(0, 300)))"""

COUNT = (
    "import threading, ipywidgets\n"
    "print(len(ipywidgets.widgets.widget._instances),"
    " sum(t.name == 'fedlearn-panel' for t in threading.enumerate()))"
)

RERUN = """async index => {
  const nb = jupyterapp.shell.currentWidget;
  nb.content.activeCellIndex = index;
  await jupyterapp.commands.execute('notebook:run-cell');
}"""

# Two texts of a picture that lie on each other.
OVERLAPS = """root => [...root.querySelectorAll('.fl-part')].flatMap(part => {
  const texts = [...part.querySelectorAll('text, .fl-drift, .fl-scale, .fl-title')]
    .filter(e => e.textContent && e.checkVisibility({ visibilityProperty: true }));
  const boxes = texts.map(e => { const r = document.createRange(); r.selectNodeContents(e);
    return e.matches('text') ? e.getBoundingClientRect() : r.getBoundingClientRect(); });
  const meet = (a, b, room) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > room
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 5;
  const above = e => !e.matches('text');  // a title and the remark beside it keep a distance
  return texts.flatMap((e, i) => texts.slice(0, i)
    .filter((f, j) => meet(boxes[i], boxes[j], above(e) && above(f) ? -8 : 1))
    .map(f => `${f.textContent} | ${e.textContent}`)); })"""

PAUSE = """p => {
  for (const b of p.querySelectorAll('button')) if (/Pause/.test(b.textContent)) b.click();
}"""


def exercise(page: Any, name: str, presses: int, reruns: int) -> str:
    """Open, run, drag, type, run again. Returns one line of measurements."""
    panel = drawn(page, name, ".fl-root:not(:has(.fl-heat))")  # a sweep has its own test
    for part in page.locator(".fl-root").all():
        assert part.evaluate(OVERLAPS) == []
    panel.evaluate(PROBE)
    assert page.evaluate("() => probe.data().length") > 20, "the picture is blank"
    while_another_cell_runs(page, panel)
    latency = key_latency(page, panel, presses)
    fps = frames_per_second(page, panel)
    models, threads = run_again(page, panel, reruns)
    assert page.problems == []
    return (
        f"{name}: slider to first new frame {in_words(latency['first'])}, to a whole new picture "
        f"{in_words(latency['whole'])}, {presses} moves; {fps}; "
        f"after {reruns} re-runs {models} models, {threads} threads, no growth"
    )


def drawn(page: Any, name: str, kind: str = ".fl-root") -> Any:
    """Open a notebook and run it; its first panel of a kind, drawn."""
    open_notebook(page, name)
    run_all(page)
    trouble = page.evaluate(TROUBLE)
    assert not trouble, f"a cell shows an error or writes to stderr: {trouble}"
    panel = page.locator(kind).first
    panel.wait_for(timeout=60_000)
    panel.scroll_into_view_if_needed()
    settled(panel)  # the first drawing, and the names of the handles
    return panel


def in_words(ms: list[float]) -> str:
    p95 = sorted(ms)[round(0.95 * (len(ms) - 1))]
    return f"{statistics.median(ms):.0f} ms (p95 {p95:.0f})"


def sliders(panel: Any) -> list[Any]:
    """Handles of the sliders that can be moved, in order."""
    found = panel.locator(".widget-slider:not(.fl-gone):not(.fl-off) .noUi-handle").all()
    assert found, "the panel has no slider"
    return [h for h in found if h.is_visible()]


def while_another_cell_runs(page: Any, panel: Any) -> None:
    """A drag by mouse and an arrow key change data and pixels although the kernel is busy."""
    handles = sliders(panel)
    enough = Path(tempfile.mkdtemp(prefix="busy-")) / "enough"
    page.evaluate(WORK, BUSY.format(str(enough)))
    page.wait_for_function("() => probe.busy === true")
    changes(page, panel, lambda: drag(page, handles[0]), "the mouse")
    changes(page, panel, lambda: nudge(page, handles[min(1, len(handles) - 1)]), "the keyboard")
    enough.touch()
    page.wait_for_function("() => probe.busy === false", timeout=30_000)
    enough.parent.rmdir()


def changes(page: Any, panel: Any, move: Any, who: str) -> None:
    picture = panel.locator("svg:has(path.line)").first
    if not picture.count():
        picture = panel.locator(".fl-part svg").first
    pixels = picture.screenshot()
    page.evaluate("() => { probe.changed = 0; }")
    move()
    try:  # counted, as a run may end where the last one did: one full-batch step, any skew
        page.wait_for_function("() => probe.changed", timeout=4000)
    except Exception as e:
        raise AssertionError(f"{who}: the picture's data did not change in 4 s") from e
    assert page.evaluate("() => probe.busy") is True, f"{who}: the frame came after the other cell"
    end = time.monotonic() + 4
    while (same := picture.screenshot() == pixels) and time.monotonic() < end:
        page.wait_for_timeout(50)
    assert not same, f"{who}: the data changed, the pixels did not"
    assert page.evaluate("() => probe.busy") is True


def drag(page: Any, handle: Any, steps: int = 8) -> None:
    """By mouse, to the side where there is more room."""
    box = handle.bounding_box()
    track = handle.locator("xpath=ancestor::*[contains(@class,'noUi-base')]").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    goal = track["x"] + track["width"] * (0.1 if x > track["x"] + track["width"] / 2 else 0.9)
    page.mouse.move(x, y)
    page.mouse.down()
    for i in range(1, steps + 1):
        page.mouse.move(x + (goal - x) * i / steps, y)
        page.wait_for_timeout(30)
    page.mouse.up()


def nudge(page: Any, handle: Any) -> None:
    """By keyboard, away from the end of the track."""
    handle.focus()
    now, top = (float(handle.get_attribute(f"aria-value{k}")) for k in ("now", "max"))
    page.keyboard.press("ArrowLeft" if now >= top else "ArrowRight")


def key_latency(page: Any, panel: Any, n: int) -> dict[str, list[float]]:
    """Milliseconds from a key press to a new frame in the first picture, and in all of them."""
    handle = sliders(panel)[0]
    handle.focus()
    now, top = (float(handle.get_attribute(f"aria-value{k}")) for k in ("now", "max"))
    keys = ("ArrowLeft", "ArrowRight") if now >= top else ("ArrowRight", "ArrowLeft")
    page.evaluate("() => { probe.first = []; probe.whole = []; probe.inputs = []; }")
    for i in range(n):
        page.evaluate("() => { probe.old = probe.gen; }")
        page.keyboard.press(keys[i % 2])
        page.wait_for_function(
            "n => Math.min(probe.first.length, probe.whole.length) >= n", arg=i + 1, timeout=10_000
        )
        page.wait_for_timeout(150)
    return dict(page.evaluate("() => ({ first: probe.first, whole: probe.whole })"))


def frames_per_second(page: Any, panel: Any) -> str:
    """During a run by the Run button, if there is one."""
    if not panel.locator(".fl-buttons").count():
        return "no rounds"
    run = panel.get_by_role("button", name="Run")
    run.wait_for(timeout=60_000)  # it says Pause as long as the last run goes on
    page.evaluate("() => { probe.frames = []; }")
    run.click()
    page.wait_for_function("() => probe.frames.length > 3", timeout=30_000)
    page.wait_for_timeout(1500)  # enough to count; then Pause, if it still runs
    panel.evaluate(PAUSE)
    run.wait_for(timeout=60_000)
    times = page.evaluate("() => probe.frames")
    return f"{(len(times) - 1) / (times[-1] - times[0]) * 1000:.1f} frames a second"


def run_again(page: Any, panel: Any, times: int) -> tuple[int, int]:
    """The panel's cell several times more: one output, no more models or threads than before."""
    index = panel.evaluate(
        """root => {
             root.closest('.jp-Cell').classList.add('probed');  // not all are in the page
             return jupyterapp.shell.currentWidget.content.widgets
               .findIndex(c => c.node.contains(root)); }"""
    )
    cell = page.locator(".jp-Cell.probed")
    roots, outputs = cell.locator(".fl-root").count(), cell.locator(".jp-OutputArea-child").count()
    models, threads = map(int, in_kernel(page, COUNT).split())
    for _ in range(times):
        page.evaluate(RERUN, index)
    cell.locator(".fl-root").first.wait_for(timeout=60_000)
    settled(cell)
    now_models, now_threads = map(int, in_kernel(page, COUNT).split())
    assert now_models == models, (
        f"{models} widget models before {times} re-runs, {now_models} after"
    )
    assert now_threads <= threads, f"{threads} threads before {times} re-runs, {now_threads} after"
    assert cell.locator(".fl-root").count() == roots
    assert cell.locator(".jp-OutputArea-child").count() == outputs
    assert page.evaluate(TROUBLE) == []
    return now_models, now_threads


def screenshots(page: Any, name: str) -> None:
    """Light and dark, of every panel, into the folder that SHOTS names."""
    if not os.environ.get("SHOTS"):
        return
    folder = Path(os.environ["SHOTS"])
    folder.mkdir(parents=True, exist_ok=True)
    for theme in ("Light", "Dark"):
        page.evaluate(
            "t => jupyterapp.commands.execute('apputils:change-theme', { theme: t })",
            f"JupyterLab {theme}",
        )
        page.wait_for_timeout(800)
        for i, panel in enumerate(page.locator(".fl-root").all()):
            panel.scroll_into_view_if_needed()
            page.wait_for_timeout(300)
            panel.screenshot(path=folder / f"{Path(name).stem}-{i}-{theme.lower()}.png")
