"""From a slider's move to the first new frame, in a real JupyterLab: every lesson's panels.

    python benchmarks/panels.py          all lessons, about ten minutes
    python benchmarks/panels.py 07 15    only these

Forty presses of an arrow key on a panel's first slider; the run before is still going on when the
next press comes. The clock is the page's: it starts with the key and stops when the first picture
has changed (``first``), and when all of them have (``whole``). Nothing else should run.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))

from conftest import panels_only, write_notebook
from exercise import PROBE, in_words, key_latency, sliders
from lab import (
    NOTEBOOKS,
    browser,
    close_all,
    lab_server,
    open_lab,
    open_notebook,
    page_in,
    run_all,
    settled,
    stop_kernels,
)

MOVES = int(os.environ.get("MOVES", "40"))


def measured(page, name):
    """A line of the table for each panel of a lesson."""
    open_notebook(page, name)
    run_all(page)
    for i, panel in enumerate(page.locator(".fl-root").all()):
        panel.scroll_into_view_if_needed()
        settled(panel)
        if not panel.locator(".fl-part svg path").count() or panel.locator(".fl-heat").count():
            continue  # a map of a sweep fills by and by
        panel.evaluate(PROBE)
        label = sliders(panel)[0].get_attribute("aria-label") or "?"
        first, whole = (in_words(ms) for ms in key_latency(page, panel, MOVES).values())
        yield f"| {name[:2]} | {i + 1} | {label} | {first} | {whole} |"


def main(wanted):
    from playwright.sync_api import sync_playwright

    notes = [p for p in sorted(NOTEBOOKS.glob("*.ipynb")) if not wanted or p.name[:2] in wanted]
    print("| lesson | panel | slider | first new frame | whole picture |\n|---|---|---|---|---|")
    os.environ.setdefault("FEDLEARN_FAST", "1")
    os.environ.pop("FEDLEARN_DATA", None)  # lesson 3: as most readers have it, on the digits
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for note in notes:
            write_notebook(folder / note.name, *panels_only(note))
        site = stack.enter_context(lab_server(folder))
        chrome = stack.enter_context(browser(stack.enter_context(sync_playwright())))
        page = stack.enter_context(page_in(chrome))
        open_lab(page, *site)
        for note in notes:
            for line in measured(page, note.name):
                print(line, flush=True)
            close_all(page)
            stop_kernels(*site)


if __name__ == "__main__":
    main(sys.argv[1:])
