"""Every page opened from disk, offline, at the width of a phone; its panels answer the hand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lab import NOTEBOOKS, browser, chromium

ROOT = NOTEBOOKS.parent
STEMS = sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb"))
PHONE = (390, 844)

# What a reader's hand does to the first control of a panel that has another value.
MOVE = """root => {
  const input = [...root.querySelectorAll('.fl-row input, .fl-row select')].find((n) => !n.disabled);
  const last = input.tagName === 'SELECT' ? input.options.length - 1 : +input.max;
  input.value = +input.value === last ? 0 : last;
  input.dispatchEvent(new Event('input', { bubbles: true }));
}"""
DRAWN = "root => [...root.querySelectorAll('.fl-parts svg, .fl-parts canvas')].map("
DRAWN += "n => n.tagName === 'CANVAS' ? n.toDataURL() : n.outerHTML).join()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages, with two settings of each panel recorded."""
    if not chromium():
        pytest.skip("no Chromium, Chrome or Edge found: install one, or set CHROMIUM")
    out = tmp_path_factory.mktemp("pages")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
    command = [sys.executable, "-m", "pages", "--quick", "--out", str(out)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path}, cwd=out)
    return out


@pytest.fixture(scope="module")
def phone(folder: Path):
    with browser(PHONE) as context:
        context.set_offline(True)
        yield context


@pytest.fixture
def page(phone):
    page = phone.new_page()
    page.problems, page.requests = [], []
    page.on("pageerror", lambda e: page.problems.append(str(e)))
    page.on("console", lambda m: page.problems.append(m.text))
    page.on("request", lambda r: page.requests.append(r.url))
    yield page
    page.close()


def visit(page, folder: Path, stem: str) -> None:
    page.goto((folder / f"{stem}.html").as_uri())
    page.wait_for_function(
        "[...document.querySelectorAll('.fl-play')].every(n => n.dataset.ready)", timeout=10_000
    )


@pytest.mark.parametrize("stem", [*STEMS, "glossary", "index", "notation"])
def test_a_page_needs_nothing_but_itself_and_its_panels_move(page, folder, stem):
    visit(page, folder, stem)
    files = [url for url in page.requests if not url.startswith("data:")]
    assert len(files) == 1, f"it asks for more than itself: {files[1:]}"
    assert page.locator("merror").count() == 0, "a formula that is none"
    assert page.locator("img:not([alt]), img[alt='']").count() == 0, "a picture without words"
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= PHONE[0], f"it scrolls sideways: {wide} px"
    text = (folder / f"{stem}.html").read_text(encoding="utf-8")
    for to, at in re.findall(r'<a [^>]*?href="([\w]+\.html)?(?:#([^"]*))?"', text):
        there = text if not to else (folder / to).read_text(encoding="utf-8")
        assert not at or f'id="{at}"' in there, f"a link to nowhere: {to}#{at}"
    panels = page.locator(".fl-play")
    assert panels.count() == text.count('class="fl-play"')
    for panel in panels.all():
        before, said = panel.evaluate(DRAWN), panel.locator(".fl-recorded").inner_text()
        panel.evaluate(MOVE)
        assert panel.locator(".fl-recorded").inner_text() != said, f"{panel}: still {said}"
        page.wait_for_timeout(30)
        assert panel.evaluate(DRAWN) != before, f"moved, but the picture stayed: {said}"
    assert page.problems == []


def test_there_is_a_panel_in_every_lesson(folder):
    for stem in STEMS:
        assert 'class="fl-play"' in (folder / f"{stem}.html").read_text(encoding="utf-8"), stem


def test_run_and_step_replay_the_rounds(page, folder):
    visit(page, folder, STEMS[1])
    panel = page.locator(".fl-play").first
    line = panel.locator(".fl-curve path.line").first
    end, count = line.get_attribute("d"), panel.locator(".fl-count")
    rounds = int(count.inner_text().split("/")[1])
    panel.get_by_role("button", name="Reset").click()
    assert count.inner_text() == f"round 0/{rounds}"
    panel.get_by_role("button", name="Step").click()
    panel.get_by_role("button", name="Step").click()
    assert count.inner_text() == f"round 2/{rounds}"
    page.wait_for_timeout(30)
    assert line.get_attribute("d").count("L") == 2, "three points: rounds 0, 1 and 2"
    panel.get_by_role("button", name="Run").click()
    page.wait_for_function(
        "end => document.querySelector('.fl-curve path.line').getAttribute('d') === end", arg=end
    )
    assert count.inner_text() == f"round {rounds}/{rounds}"


def test_slides_give_a_panel_one_of_its_own(page, folder):
    visit(page, folder, STEMS[1])
    page.keyboard.press("p")
    shown = page.locator("main > .shown")
    assert shown.first.evaluate("n => n.tagName") == "H1"
    numbers = page.locator(".count").inner_text()
    slides = int(numbers.split("/")[1])
    seen = []
    for _ in range(slides):
        seen.append(shown.evaluate_all("all => all.map(n => n.className.includes('panel'))"))
        page.keyboard.press("ArrowRight")
    alone = [any(slide) for slide in seen]
    assert sum(alone) == 1 and sum(map(sum, seen)) == 1
    assert len(seen[alone.index(True)]) <= 2, "a title at most stands beside it"
    page.keyboard.press("Escape")
    assert page.locator("header").is_visible()


def test_dark_is_a_press_away_and_stays(page, folder):
    visit(page, folder, STEMS[0])
    color = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(color)
    page.get_by_role("button", name="Dark").click()
    dark = page.evaluate(color)
    assert light != dark
    visit(page, folder, STEMS[0])
    assert page.evaluate(color) == dark
    page.get_by_role("button", name="Dark").click()
