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


NOT_READ = {"19": 5, "20": 30}  # minutes: the deployment plays; the examination


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")), ids=lambda p: p.stem[:2]
)
def test_a_lesson_says_how_long_it_is(path):
    counted, said = minutes.measured(path), int(minutes.stated(path))
    alone = counted.minutes(minutes.READING) + NOT_READ.get(path.stem[:2], 0)
    assert abs(said - alone) <= 5
    first = nbformat.read(path, as_version=4).cells[0].source
    rows = [int(n) for n in re.findall(r"^\|.*\| (\d+) \|$", first, re.M)]
    assert not rows or sum(rows) == said
    exercises = re.search(r"exercises take (\d+) minutes more", first)
    assert not exercises or abs(int(exercises[1]) - counted.exercises * minutes.EXERCISE) <= 4


PAGES = sorted([*TEACHING.rglob("*.md"), *TEACHING.glob("*.ipynb")])


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_links_of_the_kit_lead_somewhere(path):
    text = words_of(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    for to in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (path.parent / to).exists(), to


def test_sections_that_the_guide_names_are_there():
    """`04, section 4` and `05, sections 1 and 3`, and what the plans name (`05 (1-3, panel 1)`)."""
    named = [pair for rows in PLANS.values() for row in rows for pair in minutes.planned(row[-1])]
    named += [pair for rows in PLANS.values() for row in rows for pair in minutes.planned(row[-2])]
    guide = (TEACHING / "guide.md").read_text(encoding="utf-8")
    for lesson, numbers in re.findall(r"\b(\d\d), sections? ([\d, and]+)", guide):
        named += [(lesson, n) for n in re.findall(r"\d+", numbers)]
    assert len(named) > 100
    for lesson, part in named:
        assert part in minutes.parts(minutes.lesson_named(lesson)), (lesson, part)


def plans() -> dict[str, list[list[str]]]:
    """The guide's plans: by heading, the rows of its table, a list of cells each."""
    guide = (TEACHING / "guide.md").read_text(encoding="utf-8")
    out = {}
    for text in re.split(r"(?m)^(?=##)", guide):
        for rows in map(minutes.rows, minutes.TABLE.findall(text)):
            if "where" in rows[0]:
                out[text.splitlines()[0].strip("# ")] = rows
    return out


PLANS = plans()


def test_there_are_courses_of_four_lengths_and_each_fits_its_time():
    """Their minutes are counted (test_the_guides_minutes_are_the_counted_ones)."""
    most = {"90 minutes": 90, "Half a day": 225, "Three sessions": 90, "A semester": 90}
    assert len(PLANS) == len(most)
    for name, rows in PLANS.items():
        (limit,) = (most[length] for length in most if name.startswith(length))
        taken = [int(row[rows[0].index("min")]) for row in rows[2:]]
        assert (sum(taken) if "from" in rows[0] else max(taken)) <= limit, name
        assert sum(bool(minutes.planned(row[rows[0].index("where")])) for row in rows[2:]) >= 3


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_teaches_what_a_panel_needs_before_the_panel(name):
    """`*Before*: sections 1 to 3` in panels.md: these sections stand in the plan, and earlier."""
    head, _, *rows = PLANS[name]
    taught: set[tuple[str, str]] = set()
    missing = []
    for row in rows:
        for lesson, part in minutes.planned(row[head.index("where")]):
            taught.add((lesson, part))
            missing += [f"{lesson}, {part} needs {n}" for n in {*needs(lesson, part)} - taught]
    assert missing == []


def needs(lesson: str, part: str) -> list[tuple[str, str]]:
    """What panels.md says must have been taught before a panel."""
    before = re.search(
        r"\*Before\*: sections? ([\d, toand]+)", sections().get(f"{lesson}, {part}", "")
    )
    numbers = re.findall(r"\d+(?: to \d+)?", before[1]) if before else []
    return [
        pair for n in numbers for pair in minutes.planned(f"{lesson} ({n.replace(' to ', '-')})")
    ]


def test_the_students_sheet_has_the_courses_letters():
    assert disagreements((TEACHING / "student_sheet.md").read_text(encoding="utf-8"), KNOWN) == []
