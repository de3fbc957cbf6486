"""The teaching kit says what the lessons are: every panel, every minute, every letter."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
from needed import shows_a_panel
from test_notation import KNOWN, disagreements, words_of

ROOT = Path(__file__).parents[1]
TEACHING = ROOT / "teaching"
spec = importlib.util.spec_from_file_location("minutes", ROOT / "tools" / "minutes.py")
minutes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(minutes)


def panels() -> list[str]:
    """Every panel of every lesson, as `07, panel 2`."""
    found = []
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        count = sum(map(shows_a_panel, cells))
        found += [f"{path.stem[:2]}, panel {i}" for i in range(1, count + 1)]
    return found


def sections() -> dict[str, str]:
    text = (TEACHING / "panels.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^### (\d\d, panel \d)[^\n]*\n(.*?)(?=^##|\Z)", text, re.M | re.S))


def test_the_guide_has_every_panel_and_no_other():
    assert list(sections()) == panels()


@pytest.mark.parametrize("word", ["Ask", "You will hear", "Misconception", "Then the picture"])
def test_every_panel_has_a_question_an_answer_and_what_is_then_seen(word):
    missing = [name for name, text in sections().items() if f"- **{word}**" not in text]
    assert missing == []


def test_the_guides_minutes_are_the_counted_ones():
    guide = (TEACHING / "guide.md").read_text(encoding="utf-8")
    assert minutes.filled(guide) == guide, "run python tools/minutes.py --write"


PAGES = sorted([*TEACHING.rglob("*.md"), *TEACHING.glob("*.ipynb")])


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_links_of_the_kit_lead_somewhere(path):
    text = words_of(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    for to in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (path.parent / to).exists(), to


def test_sections_that_the_guide_names_are_there():
    """`04, sections 1–4` and `05 (1–3, 7, panel)`: no number beyond the lesson's own."""
    last = {}
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        texts = [c.source for c in nbformat.read(path, as_version=4).cells]
        numbers = [int(n) for t in texts for n in re.findall(r"^## (\d+)\. ", t, re.M)]
        last[path.stem[:2]] = max(numbers, default=0)
    guide = (TEACHING / "guide.md").read_text(encoding="utf-8")
    named = re.findall(r"\b(\d\d)(?:, sections| \(sections| \() ?([\d–, and]+)", guide)
    assert len(named) > 10
    for lesson, numbers in named:
        assert all(int(n) <= last[lesson] for n in re.findall(r"\d+", numbers)), (lesson, numbers)


def test_the_students_sheet_has_the_courses_letters():
    assert disagreements((TEACHING / "student_sheet.md").read_text(encoding="utf-8"), KNOWN) == []
