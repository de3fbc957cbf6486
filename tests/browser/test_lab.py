"""Every notebook in a real JupyterLab, its first panel under a real mouse and keyboard.

``FEDLEARN_TEST_FREEZE=1`` freezes the drawn lines in the page: every test here must then fail.
``SHOTS=folder`` keeps screenshots of every panel, light and dark.
"""

from __future__ import annotations

import re

import pytest
from exercise import exercise, screenshots, sliders
from lab import NOTEBOOKS, in_kernel, open_notebook, run_all

pytestmark = [pytest.mark.browser, pytest.mark.slow]
NAMES = [
    "scratch.ipynb",
    "toy.ipynb",
    "compare.ipynb",
    *sorted(p.name for p in NOTEBOOKS.glob("*.ipynb")),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook(site, page, measured, name):
    much = name == "scratch.ipynb"  # the full panel is measured well, the lessons in passing
    presses, reruns = (40, 10) if much else (10, 2)
    measured.append(exercise(page, site, name, presses, reruns))
    print(measured[-1])
    screenshots(page, name)


def full_panel(page, site):
    """The scratch notebook's panel, drawn, its handles named."""
    open_notebook(page, *site, "scratch.ipynb")
    run_all(page)
    panel = page.locator(".fl-root").first
    panel.wait_for()
    page.wait_for_timeout(800)
    return panel


def test_a_panel_reads_well_without_eyes_and_mouse(site, page):
    panel = full_panel(page, site)
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
    in_kernel(page, "panel.status.error = 'too many clients'")
    assert panel.get_by_role("alert").inner_text().endswith("too many clients")


def test_nothing_is_cut_off_at_any_width(site, page):
    panel = full_panel(page, site)
    for width in (1500, 960, 700, 420):
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


def test_a_move_in_the_browser_is_the_value_in_the_kernel(site, page):
    panel = full_panel(page, site)
    handle = sliders(panel)[1]
    handle.focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(700)
    shown = panel.locator('[aria-label="Skew α value"]').inner_text()
    got = in_kernel(
        page, "print(panel.engine.wait().params['alpha'], panel.controls['alpha'].value)"
    )
    run, slider = map(float, re.findall(r"[\d.e-]+", got))
    assert run == pytest.approx(slider, rel=0.01) == pytest.approx(float(shown), rel=0.1)
    assert run < 0.05
