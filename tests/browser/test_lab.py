"""Every lesson's panels in a real JupyterLab, the first one under a real mouse and keyboard.

Of a lesson only the cells tagged ``setup`` and ``panel`` are run here, except of lesson 1, which is
run as its reader runs it. All cells of all lessons are run by test_notebooks.py.

``FEDLEARN_TEST_FREEZE=1`` freezes what is drawn in the page: the tests must then fail.
``SHOTS=folder`` keeps screenshots of every panel, light and dark.
Those marked ``alone`` measure, so ``run.py`` gives them the machine; the others share it.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from exercise import OVERLAPS, drawn, exercise, nudge, screenshots, sliders
from lab import NOTEBOOKS, in_kernel, settled

pytestmark = [pytest.mark.browser, pytest.mark.slow]
LESSONS = sorted(p.name for p in NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.alone
@pytest.mark.parametrize(("name", "presses"), [("scratch", 20), ("toy", 10)])
def test_a_panel_is_measured(page, record_property, name, presses):
    reruns = 6 if name == "scratch" else 1
    record_property("measured", exercise(page, f"{name}.ipynb", presses, reruns))
    screenshots(page, name)


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson(page, record_property, name):
    record_property("measured", exercise(page, name, presses=4, reruns=1))
    screenshots(page, name)


def test_a_panel_of_one_s_own_and_panels_in_chinese(page):
    panel = drawn(page, "own.ipynb")  # one kernel for both: to start it takes longest
    takes_anybody_s_world(page, panel)
    speaks_chinese(page, page.locator(".fl-root").all()[1:])
    assert page.problems == []


def takes_anybody_s_world(page: Any, panel: Any) -> None:
    """Her CSV, her module: it moves, its menus have their names, and Code is run in a cell."""
    for name, own in (("Dataset", "patients"), ("Model", "Sequential")):
        menu = panel.get_by_label(name, exact=True)
        assert menu.evaluate("e => e.selectedOptions[0].textContent") == own
    lines = panel.locator("path.line")
    assert lines.count() == 3
    before = [line.get_attribute("d") for line in lines.all()]
    assert all(len(d) > 20 for d in before), "a picture is blank"
    run = panel.locator(".fl-part svg[data-gen]").first.get_attribute("data-gen")
    nudge(page, sliders(panel)[0])
    panel.locator(f".fl-part svg[data-gen='{int(run) + 1}']").first.wait_for(timeout=10_000)
    in_kernel(page, "panel.engine.wait()")
    settled(panel)
    after = [line.get_attribute("d") for line in lines.all()]
    assert all(a != b for a, b in zip(before, after, strict=True))
    panel.get_by_role("button", name="Code").click()
    shown = panel.locator("pre", has_text="d = patients  # your own")
    shown.wait_for()
    settled(panel)
    code = shown.inner_text()
    assert "model.from_module(net)" in code
    ends = "print(*(panel.engine.snapshot().columns[k][-1] for k in ('loss', 'accuracy')))"
    assert in_kernel(page, code) == in_kernel(page, ends)
    run = panel.locator(".fl-part svg[data-gen]").first.get_attribute("data-gen")
    panel.get_by_label("Model", exact=True).select_option("network")
    panel.locator(f".fl-part svg[data-gen='{int(run) + 1}']").first.wait_for(timeout=10_000)
    assert in_kernel(page, "print([panel.status.error])") == "['']\n"
    screenshots(page, "own")


# Every text for eye and ear but the code.
SAID = """root => [...root.querySelectorAll('*')].filter(e => !e.closest('pre')).flatMap(e => [
  ...[...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data),
  ...['aria-label', 'aria-valuetext', 'title'].map(k => e.getAttribute(k) || '')])
  .filter(t => t.trim() && t !== 'null')"""  # ipywidgets' title where there is none


def speaks_chinese(page: Any, panels: list[Any]) -> None:
    """A panel of each kind says all in Chinese but names and symbols; nothing is cut or covered."""
    names = {*"FedAvg FedSGD FedProx SCAFFOLD FedNova FedDyn FedAvgM FedAdagrad FedAdam".split()}
    names |= {*"FedYogi DP softmax CSV PNG Python MB kB inf".split()}
    assert len(panels) == 3
    for i, panel in enumerate(panels):
        panel.scroll_into_view_if_needed()
        texts = panel.evaluate(SAID)
        words = {w for t in texts for w in re.findall("[A-Za-z]{2,}", t)}
        assert words <= names and sum(bool(re.search("[一-龥]", t)) for t in texts) > 20
        for width in (1366, 390):
            is_not_cut_off_at_any_width(page, panel, width)
            assert panel.evaluate(OVERLAPS) == [], f"at {width} px"
            if folder := os.environ.get("SHOTS"):
                page.set_viewport_size({"width": 1800, "height": 1800})
                panel.screenshot(path=Path(folder) / f"chinese-{i}-{width}.png")
    panels[0].get_by_role("button", name="代码").click()
    panels[0].locator("pre", has_text="collect(federate(").wait_for()
    assert panels[0].get_by_role("slider", name="偏斜 α", exact=True).count() == 1
    assert panels[0].locator('[aria-label="偏斜 α的值"]').inner_text() == "0.010"
    in_kernel(page, "chinese.status.error = 'too many clients'")
    assert panels[0].get_by_role("alert").inner_text().endswith("出错了，原文：too many clients")


def test_compare(page, record_property):
    record_property("measured", exercise(page, "compare.ipynb", presses=6, reruns=1))
    panel = page.locator(".fl-root").first
    a, b = lines(page, panel)
    panel.get_by_label("B: Split", exact=True).select_option("even")
    page.wait_for_timeout(1000)
    same, other = lines(page, panel)
    assert same == a, "B's setting moved A's line"
    assert other != b, "B's setting did not move B's line"
    assert page.problems == []
    screenshots(page, "compare")


def lines(page: Any, panel: Any) -> list[str]:
    """The drawn lines of A and of B (their accuracy, on fixed axes) when the run is over."""
    in_kernel(page, "panel.engine.wait()")
    page.wait_for_timeout(500)
    found = panel.locator(".fl-part svg[data-gen]").nth(1).locator("path.s0, path.s1").all()
    assert len(found) == 2
    return [str(line.get_attribute("d")) for line in found]


def test_a_sweep_fills_stops_and_remembers(page, record_property):
    panel = drawn(page, "sweep.ipynb")
    panel.evaluate(
        """root => {
          const shown = () => root.querySelectorAll('.fl-heat rect.fl-cell:not(.fl-none)').length;
          const opacities = () => new Set([...root.querySelectorAll('.fl-heat rect')]
            .map(r => r.getAttribute('fill-opacity'))).size;
          window.heat = { counts: [shown()], shades: 0 };
          new MutationObserver(() => {
            heat.shades = Math.max(heat.shades, opacities());
            if (shown() !== heat.counts.at(-1)) heat.counts.push(shown());
          }).observe(root.querySelector('.fl-heat svg'), { attributes: true, subtree: true });
        }"""
    )
    bar, run = panel.get_by_role("progressbar"), panel.locator(".fl-buttons button").first

    def known(n: int, seconds: float) -> float:
        """Wait until the map shows n cells or more; how long that took."""
        start = time.monotonic()
        page.wait_for_function("n => heat.counts.at(-1) >= n", arg=n, timeout=1000 * seconds)
        return time.monotonic() - start

    assert page.evaluate("() => heat.counts") == [0], "something is there before Run"
    run.click()
    known(2, 60)
    assert run.inner_text().strip() == "Pause"
    assert 0 < int(bar.get_attribute("aria-valuenow")) < 9
    panel.get_by_role("button", name="Reset").click()
    panel.get_by_role("button", name="Run").wait_for()
    page.wait_for_timeout(300)
    kept = page.evaluate("() => heat.counts.at(-1)")
    page.wait_for_timeout(1500)
    assert 2 <= page.evaluate("() => heat.counts.at(-1)") == kept < 9, "Reset did not stop it"
    assert bar.get_attribute("aria-valuenow") == "0"

    run.click()  # goes on from what is known
    rest = known(9, 90)
    panel.get_by_role("button", name="Run").wait_for()
    assert bar.get_attribute("aria-valuenow") == bar.get_attribute("aria-valuemax") == "9"
    counts, shades = page.evaluate("() => [heat.counts, heat.shades]")
    assert len(counts) >= 5 and counts == sorted(counts), f"not cell by cell: {counts}"
    assert shades >= 4, "the cells are not shaded"
    assert in_kernel(page, "import numpy; print(numpy.isfinite(panel.table()).sum())") == "9\n"

    start = time.monotonic()
    run.click()  # all known
    page.wait_for_function("() => heat.counts.at(-1) === 9")
    panel.locator("[aria-live=polite]", has_text="done. ").wait_for()
    again = time.monotonic() - start

    page.evaluate("() => { heat.counts = [9]; }")
    handle = sliders(panel)[0]
    nudge(page, handle)  # other settings: an empty map that fills
    page.wait_for_function("() => heat.counts.includes(0)", timeout=10_000)
    known(1, 60)
    page.keyboard.press("ArrowLeft")  # back: all there
    back = known(9, 10)
    assert page.problems == []
    record_property(
        "measured",
        f"sweep.ipynb: filled in {len(counts)} steps; the last {9 - kept} cells in {rest:.1f} s, "
        f"nine known ones in {again:.1f} s, after moving there and back in {back:.1f} s",
    )
    screenshots(page, "sweep")


def test_the_full_panel(page):
    panel = drawn(page, "scratch.ipynb")
    reads_well_without_eyes_and_mouse(page, panel)
    is_not_cut_off_at_any_width(page, panel)
    panel.evaluate("e => { e.style.maxWidth = e.style.width = ''; }")
    has_the_browsers_value_in_the_kernel(page, panel)


def reads_well_without_eyes_and_mouse(page: Any, panel: Any) -> None:
    names = ("Clients", "Skew α", "Local epochs", "Batch", "Learning rate", "Cohort")
    for name in names:
        handle = panel.get_by_role("slider", name=name, exact=True)
        said = handle.get_attribute("aria-valuetext")
        assert said == panel.locator(f'[aria-label="{name} value"]').inner_text().strip(), name
    for name in ("Dataset", "Split", "Method", "Model"):
        assert panel.get_by_label(name, exact=True).count() == 1
    bar = panel.get_by_role("progressbar")
    assert bar.get_attribute("aria-valuenow") == bar.get_attribute("aria-valuemax") == "60"
    pictures = panel.get_by_role("img").all()
    assert len(pictures) == 4 and all(p.get_attribute("aria-label") for p in pictures)
    assert "done. FedAvg on digits" in panel.locator("[aria-live=polite]").inner_text()

    panel.get_by_role("button", name="Code").focus()
    page.keyboard.press("Enter")
    panel.locator("pre", has_text="collect(federate(").wait_for()
    page.keyboard.press("Enter")
    panel.locator("pre").wait_for(state="hidden")
    in_kernel(page, "panel.status.error = 'too many clients'")
    assert panel.get_by_role("alert").inner_text().endswith("too many clients")
    in_kernel(page, "panel.status.error = ''")


def is_not_cut_off_at_any_width(page: Any, panel: Any, *widths: int) -> None:
    for width in widths or (1500, 960, 700, 420):
        panel.evaluate("(e, w) => { e.style.maxWidth = e.style.width = w + 'px'; }", width)
        page.wait_for_timeout(400)
        cut = panel.evaluate(
            """root => [...root.querySelectorAll('*')].filter(e => e.scrollWidth > e.clientWidth + 1
                 && getComputedStyle(e).overflowX !== 'visible' && e.clientWidth > 1
                 && !e.matches('select, .fl-sr, .fl-title, .fl-controls'))
               .map(e => e.className + ': ' + e.scrollWidth + ' > ' + e.clientWidth)"""
        )
        cut += panel.evaluate(
            """root => [...root.querySelectorAll('text, button, span, .widget-label, select')]
                 .filter(e => {
                   const box = (e.closest('.fl-part') || root).getBoundingClientRect();
                   const r = e.getBoundingClientRect();
                   return r.width && (r.left < box.left - 1 || r.right > box.right + 1); })
                 .map(e => e.textContent)"""
        )
        assert cut == [], f"at {width} px"
        sizes = panel.evaluate(
            """root => [...root.querySelectorAll('svg text')]
                 .map(e => parseFloat(getComputedStyle(e).fontSize))"""
        )
        assert min(sizes) >= 13


def has_the_browsers_value_in_the_kernel(page: Any, panel: Any) -> None:
    sliders(panel)[1].focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(700)
    shown = panel.locator('[aria-label="Skew α value"]').inner_text()
    got = in_kernel(
        page, "print(panel.engine.wait().params['settings'].alpha, panel.controls['alpha'].value)"
    )
    run, slider = map(float, re.findall(r"[\d.e-]+", got))
    assert run == pytest.approx(slider, rel=0.01) == pytest.approx(float(shown), rel=0.1)
    assert run < 0.05
