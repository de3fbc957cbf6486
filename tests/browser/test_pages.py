"""Every page opened from disk, offline, at the width of a phone; its panels answer the hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from lab import NOTEBOOKS, browser, chromium
from pages.lessons import Lesson, lesson, lessons, texts
from pages.page import index
from pages.page import page as page_of
from pages.record import record
from pages.recordings import quick

from fedlearn.panels import Bars, Curve, Explorable, Plane, controls

pytestmark = [pytest.mark.browser, pytest.mark.slow]
STEMS = sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb"))
ALL = [*STEMS, "glossary", "index", "notation"]
PHONE = (390, 844)
SIDES = (("x", "width"), ("y", "height"))

# What a reader's hand does to the first control of a panel that has another value.
MOVE = """root => {
  const all = root.querySelectorAll('.fl-row :is(input, select)');
  const input = [...all].find((n) => !n.disabled);
  const last = input.tagName === 'SELECT' ? input.options.length - 1 : +input.max;
  input.value = +input.value === last ? 0 : last;
  input.dispatchEvent(new Event('input', { bubbles: true }));
}"""
DRAWN = "root => [...root.querySelectorAll('.fl-parts svg, .fl-parts canvas')].map("
DRAWN += "n => n.tagName === 'CANVAS' ? n.toDataURL() : n.outerHTML).join()"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config):
    """Stem -> its page, with two settings of each panel: test_notebooks.py records them."""
    monkeypatch.setenv("FEDLEARN_FAST", "1")
    recorded = pytestconfig.cache.mkdir("recorded")

    def make(stem: str) -> Path:
        if stem == "index":
            text = index(lessons(), texts())
        elif stem in STEMS:
            data = quick(stem, recorded)
            text = page_of(Lesson(stem, lesson(stem).cells, data), *neighbours(stem))
        else:
            text = page_of(next(x for x in texts() if x.stem == stem))
        (tmp_path / f"{stem}.html").write_text(text, encoding="utf-8")
        return tmp_path / f"{stem}.html"

    return make


def neighbours(stem: str) -> list[Lesson | None]:
    i = STEMS.index(stem)
    return [lesson(s) if s else None for s in (["", *STEMS][i], [*STEMS, ""][i + 1])]


@pytest.fixture(scope="module")
def phone(playwright):
    if not chromium():
        pytest.skip("no Chromium, Chrome or Edge found: install one, or set CHROMIUM")
    with browser(playwright, PHONE) as context:
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


def visit(page, path: Path) -> None:
    page.goto(path.as_uri())
    page.wait_for_function(
        "[...document.querySelectorAll('.fl-play')].every(n => n.dataset.ready)", timeout=10_000
    )


def tagged(stem: str) -> int:
    """How many panels move on a lesson's page, by its tags; a text has none."""
    if stem not in STEMS:
        return 0
    cells = json.loads((NOTEBOOKS / f"{stem}.ipynb").read_text(encoding="utf-8"))["cells"]
    return sum("panel" in c["metadata"].get("tags", ()) for c in cells)


@pytest.mark.parametrize("stem", ALL)
def test_a_page_needs_nothing_but_itself_and_its_panels_move(page, made, stem):
    path = made(stem)
    visit(page, path)
    files = [url for url in page.requests if not url.startswith("data:")]
    assert len(files) == 1, f"it asks for more than itself: {files[1:]}"
    assert page.locator("merror").count() == 0, "a formula that is none"
    assert page.locator("img:not([alt]), img[alt='']").count() == 0, "a picture without words"
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= PHONE[0], f"it scrolls sideways: {wide} px"
    text = path.read_text(encoding="utf-8")
    for to, at in re.findall(r'<a [^>]*?href="(?!http)([^"#]*)(?:#([^"]*))?"', text):
        assert to.removesuffix(".html") in {"", *ALL}, f"a link to no page: {to}"
        assert to or f'id="{at}"' in text, f"a link to nowhere on this page: {at}"
    panels = page.locator(".fl-play")
    assert panels.count() == tagged(stem)
    for panel in panels.all():
        before, said = panel.evaluate(DRAWN), panel.locator(".fl-recorded").inner_text()
        panel.evaluate(MOVE)
        assert panel.locator(".fl-recorded").inner_text() != said, f"{panel}: still {said}"
        page.wait_for_timeout(30)
        assert panel.evaluate(DRAWN) != before, f"moved, but the picture stayed: {said}"
    assert page.problems == []


def test_run_and_step_replay_the_rounds(page, made):
    visit(page, made(STEMS[1]))
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


def page_of_one(panel: Explorable, grids: list, folder: Path) -> Path:
    """A page with this panel, recorded, and nothing else; the panel is closed."""
    data = record(panel, grids)["data"]
    panel.close()
    text = {"cell_type": "markdown", "metadata": {}, "source": "# One"}
    cell = {"cell_type": "code", "id": "x", "metadata": {}, "source": "one", "outputs": []}
    path = folder / "one.html"
    path.write_text(page_of(Lesson("99_one", [text, cell], {"x": data})), encoding="utf-8")
    return path


def test_names_of_points_that_meet_do_not_cover_each_other(page, tmp_path):
    """Six points that come together: each name has a place of its own, and stays in the frame."""

    def points(near):
        at = [(near * x, near * y) for x, y in ((-1, 0), (1, 0), (0, 1), (0, -1), (1, 1), (-1, 1))]
        names = ("client 0", "client 1", "FedAvg ends", "optimum", "weights p", "equal weights")
        yield {"plane": {"points": [{"at": q, "name": n} for q, n in zip(at, names)]}}

    knobs = {"near": controls.choices("Near", [1, 0.1, 0], 1)}
    panel = Explorable(knobs, points, [Plane(xlim=(-2, 2), ylim=(-2, 2))])
    visit(page, page_of_one(panel, [{"near": [1, 0.1, 0]}], tmp_path))
    slider = page.get_by_label("Near", exact=True)
    for stop in ("0", "1", "2"):
        slider.fill(stop)
        frame = page.locator(".fl-parts svg").first.bounding_box()
        boxes = [n.bounding_box() for n in page.locator(".fl-name:visible").all()]
        assert len(boxes) == 6
        for i, a in enumerate(boxes):
            assert frame["x"] <= a["x"] and a["x"] + a["width"] <= frame["x"] + frame["width"]
            for b in boxes[:i]:
                apart = (abs(a[k] - b[k]) - (a if a[k] < b[k] else b)[size] for k, size in SIDES)
                assert max(apart) > -6, f"{stop}: a name covers another one: {a}, {b}"


@pytest.mark.parametrize("corner", ["top", "bottom"])
def test_a_legend_gives_way_to_a_line_that_comes_there(page, tmp_path, corner):
    """A line high up, in the middle, low down: no point of it lies behind the legend."""
    knobs = {"level": controls.choices("Level", [0.95, 0.5, 0.05], 0.5)}
    make = lambda level: ({"loss": level} for _ in range(31))
    panel = Explorable(knobs, make, [Curve("loss", ylim=(0, 1), legend=corner)], rounds=30)
    visit(page, page_of_one(panel, [{"level": [0.95, 0.5, 0.05]}], tmp_path))
    slider = page.get_by_label("Level", exact=True)
    for stop in ("0", "2", "1", "0"):
        slider.fill(stop)
        page.wait_for_timeout(60)
        legend = page.locator(".fl-legend").bounding_box()
        frame = page.locator(".fl-curve svg").first.bounding_box()
        d = page.locator(".fl-curve path.line").first.get_attribute("d")
        points = [tuple(map(float, q.split())) for q in re.split("[ML]", d) if q]
        assert len(points) == 31
        behind = [
            (x, y)
            for x, y in ((frame["x"] + x, frame["y"] + y) for x, y in points)
            if 0 <= x - legend["x"] <= legend["width"] and 0 <= y - legend["y"] <= legend["height"]
        ]
        assert not behind, f"level {stop}: the legend at {legend} lies on {behind}"


def test_the_nearest_recorded_run_is_shown_and_named(page, tmp_path):
    """Recorded are a = 0, 1, 2 at b = 0, and b = 0, 1, 2 at a = 0; asked for is a = 1 at b = 2."""
    knobs = {k: controls.slider(k.upper(), 0, 0, 2) for k in "ab"}
    panel = Explorable(knobs, lambda a, b: [{"bars": [a, b, 5]}], [Bars(title="both")])
    visit(page, page_of_one(panel, [{"a": [0, 1, 2]}, {"b": [0, 1, 2]}], tmp_path))
    said, picture = page.locator(".fl-recorded"), page.locator(".fl-bars svg")
    a, b = page.get_by_label("A", exact=True), page.get_by_label("B", exact=True)
    b.fill("2")
    assert said.inner_text() == "Recorded run: A 0, B 2."
    a.fill("1")
    assert said.inner_text() == (
        "Recorded run: A 1, B 0. B 2: not recorded together with this, so the nearest run is shown."
    )
    assert "mean 2, lowest client 1 with 0" in picture.get_attribute("aria-label")
    a.fill("0")
    assert said.inner_text() == "Recorded run: A 0, B 2.", "what the hand had set comes back"


def test_slides_give_a_panel_one_of_its_own(page, made):
    visit(page, made(STEMS[1]))
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


def test_dark_is_a_press_away_and_stays(page, made):
    path = made(STEMS[1])
    visit(page, path)
    color = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(color)
    page.get_by_role("button", name="Dark").click()
    dark = page.evaluate(color)
    assert light != dark
    visit(page, path)
    assert page.evaluate(color) == dark
    page.get_by_role("button", name="Dark").click()
