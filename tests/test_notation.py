"""One notation for the course: ``notebooks/notation.md``, and the lessons' own tables against it.

A lesson that has a table of symbols uses the letters of the course, with their names in code and
with the words that stand in bold in the course's table. All link to it, and none falls back to a
letter that was given up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
LESSONS = sorted(FOLDER.glob("*.ipynb"))
SYMBOL = re.compile(r"\$([^$]+)\$")
CODE = re.compile(r"`([^`]+)`")
BOLD = re.compile(r"\*\*([^*]+)\*\*")
GIVEN_UP = {  # what a lesson may not write in a formula any more, and what stands for it
    r"(?<!mathbb )(?<![A-Za-z\\{])E\[": r"\mathbb E: E counts epochs",
    r"(?<![A-Za-z\\])S_t": r"\mathcal C_t: S is the clip",
    r"\\epsilon": r"\kappa for an attack's strength, \varepsilon for privacy",
    r"(?<![A-Za-z\\])q_\{?[kc]": "P_k(c): q is the chance to be in a cohort",
}


class Entry(NamedTuple):
    code: frozenset[str]  # names
    keys: tuple[str, ...]  # the words, one of which a lesson uses
    lesson: int


def tables(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Header and rows of each table of a Markdown text."""
    lines = [*text.splitlines(), ""]
    for i, line in enumerate(lines):
        if re.fullmatch(r"\s*\|(\s*:?-+:?\s*\|)+\s*", line):
            rows = []
            for row in lines[i + 1 :]:
                if not row.strip().startswith("|"):
                    break
                rows.append(row)
            yield cells(lines[i - 1]), [cells(row) for row in rows]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]


def symbols(cell: str) -> list[str]:
    """Its formulas, without spaces and braces around a single letter."""
    return [re.sub(r"\{(\w)\}", r"\1", re.sub(r"\s+", "", s)) for s in SYMBOL.findall(cell)]


def names(span: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_]\w*", span))


def course(text: str) -> dict[str, Entry]:
    """The course's table: each symbol once."""
    found: dict[str, Entry] = {}
    for header, rows in tables(text):
        if header[0] == "symbol":
            for symbol, code, meaning, _, lesson in rows:
                (letter,) = symbols(symbol)
                assert letter not in found, f"{letter} stands twice in notation.md"
                code_names = frozenset(n for span in CODE.findall(code) for n in names(span))
                keys = tuple(BOLD.findall(meaning))
                assert keys, f"{letter}: no word in bold in notation.md"
                found[letter] = Entry(code_names, keys, int(lesson))
    return found


def disagreements(text: str, known: dict[str, Entry]) -> list[str]:
    """What in a lesson's tables of symbols isn't as in the course's."""
    wrong = []
    for header, rows in tables(text):
        if header[0].lower() != "symbol":
            continue
        at = {i for i, name in enumerate(header) if "code" in name.lower()}
        for row in rows:
            letters = symbols(row[0])
            new = [s for s in letters if s not in known]
            wrong += [f"{s} isn't in notation.md" for s in new]
            entries = [known[s] for s in letters if s in known]
            words = " ".join(cell for i, cell in enumerate(row[1:], 1) if i not in at).lower()
            for letter, entry in zip((s for s in letters if s in known), entries):
                if not any(key.lower() in words for key in entry.keys):
                    wrong.append(f"{letter} is {' or '.join(entry.keys)!r}, not {words!r}")
            allowed = {name for entry in entries for name in entry.code}
            spans = [span for i in at for span in CODE.findall(row[i])]
            if not new:
                wrong += [f"{row[0]}: `{s}` in code" for s in spans if not names(s) & allowed]
    return wrong


def words_of(path: Path) -> str:
    nb = nbformat.read(path, as_version=4)
    return "\n\n".join(c.source for c in nb.cells if c.cell_type == "markdown")


KNOWN = course((FOLDER / "notation.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_lessons_symbols_are_those_of_the_course(path):
    assert disagreements(words_of(path), KNOWN) == []


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_lesson_links_to_the_notation(path):
    assert "](notation.md)" in words_of(path)


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_lesson_writes_no_letter_that_was_given_up(path):
    math = " ".join(re.findall(r"\$\$.+?\$\$|\$[^$]+\$", words_of(path), re.DOTALL))
    found = [
        f"{m[0]}: write {now}" for old, now in GIVEN_UP.items() for m in re.finditer(old, math)
    ]
    assert found == []


def test_the_table_of_the_course_has_the_letters_that_had_several_meanings():
    letters = r"K N C E \mathbbE \alpha a_k \nu \tau_k \tau_s h \psi_k \varepsilon \kappa q P_k(c)"
    letters += r" S \mathcalC_t z s \delta \Delta_k v v_k R^2 T"
    assert set(letters.split()) <= set(KNOWN)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (r"| $K$ | number of clients in a cohort | `K` |", None),
        (r"| $k$, $t$ | one client; one round | `k`, `t` |", None),
        (r"| $\mathcal{C}_t$ | the cohort of a round | `r.cohort` |", None),
        (r"| $K$ | number of clients in a cohort | `fraction` |", "`fraction` in code"),
        (r"| $q$ | the label mix | `q` |", "q is 'chance'"),
        (r"| $S$ | the cohort | `S` |", "S is 'clip'"),
        (r"| $\epsilon$ | the strength of an attack | `scale` |", "isn't in notation.md"),
        (r"| $k$, $K$ | one client; all of them | `k`, `K` |", "K is"),
    ],
)
def test_a_table_that_disagrees_is_noticed(row, complaint):
    wrong = disagreements(
        f"words\n\n| symbol | in words | in code |\n|---|---|---|\n{row}\n", KNOWN
    )
    assert wrong == [] if complaint is None else complaint in "; ".join(wrong)


def test_a_letter_that_stands_twice_is_noticed():
    row = "| $K$ | `K` | the **cohort** | count | 1 |\n"
    with pytest.raises(AssertionError, match="K stands twice"):
        course("| symbol | in code | meaning | unit | lesson |\n|---|---|---|---|---|\n" + 2 * row)
