"""The words of the course, each in the lesson that the glossary names; and links that lead on."""

from __future__ import annotations

import re
from functools import cache

import nbformat
import pytest
from test_notation import BOLD, FOLDER, LESSONS, tables, words_of

LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGES = [*LESSONS, *sorted(FOLDER.glob("*.md"))]
TEACHING = sorted((FOLDER.parent / "teaching").glob("*.md"))
THERE = {path.name[:2] for path in LESSONS}  # numbers of the lessons that are written


def rows(text: str) -> list[tuple[str, str, str, str]]:
    """Of a glossary: the term, the word by which its lesson is searched, a sentence, the lesson."""
    found = []
    for header, table in tables(text):
        if header[0] == "term":
            for shown, sentence, lesson in table:
                (term,) = BOLD.findall(shown)
                form = re.search(r"\*\* \((.+)\)$", shown)
                (file,) = LINK.findall(lesson)
                found.append((term, form[1] if form else term, sentence, file))
    return found


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("*", "")).lower()


@cache
def text_of(file: str) -> str:
    nb = nbformat.read(FOLDER / file, as_version=4)
    return plain(" ".join(c.source for c in nb.cells))


def lost(glossary: list[tuple[str, str, str, str]]) -> list[str]:
    """Terms that don't occur in their lesson, as far as it is written."""
    return [
        f"{term} ({word!r}) isn't in {file}"
        for term, word, _, file in glossary
        if file[:2] in THERE and word.lower() not in text_of(file)
    ]


GLOSSARY = rows((FOLDER / "glossary.md").read_text(encoding="utf-8"))


def test_a_term_occurs_in_the_lesson_that_defines_it():
    assert lost(GLOSSARY) == []


def test_a_term_that_is_elsewhere_is_noticed():
    row = "| **secret handshake** | words | [1](01_what_is_federated_learning.ipynb) |"
    table = f"| term | in a sentence | lesson |\n|---|---|---|\n{row}\n"
    assert "secret handshake" in lost(rows(table))[0]


def test_the_glossary_is_sorted_and_has_each_term_once_in_one_sentence():
    terms = [term.casefold() for term, *_ in GLOSSARY]
    assert terms == sorted(set(terms)) and len(terms) > 100
    for term, _, sentence, _ in GLOSSARY:
        assert sentence.endswith(".") and sentence.count(". ") == 0, f"{term}: {sentence}"


def test_every_lesson_that_defines_words_is_in_the_glossary():
    named = {file[:2] for *_, file in GLOSSARY}
    assert {f"{n:02d}" for n in range(1, 15)} | {"17", "20"} <= named


def dead(page: str, text: str) -> list[str]:
    """Relative links to nowhere, but for lessons that aren't written yet."""
    wrong = []
    for link in LINK.findall(text):
        target = link.split("#")[0]
        if not target or re.match(r"[a-z]+:", target):
            continue
        number = re.match(r"(\d\d)_\w+\.ipynb$", target)
        planned = number is not None and number[1] not in THERE
        if not planned and not (FOLDER / target).exists():
            wrong.append(f"{page}: {link}")
    return wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_relative_links_lead_somewhere(path):
    text = words_of(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    assert dead(path.name, text) == []


def test_a_link_to_nowhere_is_noticed():
    assert dead("x", "[a](no_such_file.md)") == ["x: no_such_file.md"]
    assert dead("x", "[a](01_another_name.ipynb)") == ["x: 01_another_name.ipynb"]


PLACES = {  # what a text can point to in a lesson, and how the lesson heads it
    "section": r"^## (\d+)\. ",
    "experiment": r"^### ([A-Z])\. ",
    "claim": r"\*\*(?:Claim|Question) (\d)",
    "exercise": r"\*\*Exercise (\d)",
}
POINTS_TO = re.compile(  # lesson 4, claim 2; [lesson 4](…)'s section 8; further experiments C
    r"(?:\b[Ll]esson (\d+)(?:\]\([^)]*\))?(?:'s|,)? )?\(?(?:[Ff]urther )?\*?"
    r"\b([Ss]ection|[Ee]xperiment|[Cc]laim|[Ee]xercise)s?\*? (\d+|[A-Z])\b"
)


@cache
def places(number: int) -> dict[str, set[str]]:
    text = next(words_of(p) for p in LESSONS if p.name.startswith(f"{number:02d}"))
    return {kind: {*re.findall(head, text, re.M)} for kind, head in PLACES.items()}


def astray(text: str, own: int | None) -> list[str]:
    """Sections, claims, experiments and exercises that a text names and no lesson has."""
    found = []
    for m in POINTS_TO.finditer(text):
        number = int(m[1]) if m[1] else own
        if number is not None and m[3] not in places(number)[m[2].lower()]:
            found.append(f"{m[0]} (lesson {number})")
    return found


@pytest.mark.parametrize("path", [*PAGES, *TEACHING], ids=lambda p: p.stem)
def test_a_section_a_claim_or_an_experiment_that_is_named_is_there(path):
    if path.suffix == ".ipynb":
        assert astray(words_of(path), int(path.name[:2])) == []
    else:
        assert astray(path.read_text(encoding="utf-8"), None) == []


def test_a_claim_that_is_gone_is_noticed():
    assert astray("see lesson 4, claim 9, and [lesson 2](x.ipynb), section 1", None) == [
        "lesson 4, claim 9 (lesson 4)"
    ]
    assert astray("(*further experiments* Z) and claim 1", 4) == [
        "further experiments* Z (lesson 4)"
    ]


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_lesson_that_follows_is_linked_or_called_planned(path):
    """Whoever points to lessons 15 to 20 says where, or that there is nothing yet."""
    for line in words_of(path).splitlines():
        for found in re.finditer(r"[Ll]esson (15|16|18|19|20)\b", line):
            itself = path.stem[:2] == found[1] or f"*Lesson {found[1]}:" in line
            linked = re.search(rf"\]\({found[1]}_\w+\.ipynb\)", line)
            told = found[1] in ("15", "19") and "plan" in line
            assert itself or linked or told, f"{path.name}: {line[:120]}"
