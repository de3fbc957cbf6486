"""How long is each lesson? Counted, not guessed: words, lines of code, figures, panels, exercises.

    python tools/minutes.py                 # the table, as in teaching/guide.md
    python tools/minutes.py --write         # writes it there, and the minutes of the plans below it
    python tools/minutes.py --plan "01 (opening, 1-3, 6); 00 (panel 1)"   # in a room

Reading alone: 200 words and ten visible lines of code a minute, one minute a figure, five a panel
(predict, move, say what happened). In a room: 130 words a minute aloud, ten lines, two minutes a
figure, eight a panel. A displayed formula takes half a minute, an exercise eight. *Further
experiments* are not counted.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nbformat

from fedlearn.partition.files import write_whole

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "teaching" / "guide.md"
BEGIN, END = "<!-- minutes -->", "<!-- /minutes -->"


class Pace(NamedTuple):
    """Words and visible lines of code a minute; minutes a figure, and a panel."""

    words: float
    lines: float
    figure: float
    panel: float


LAST = re.compile("## (Exercises|What to remember|Sources|Where next)")
TABLE = re.compile(r"(?m)(?:^\|.*\n)+")
READING, ALOUD, FORMULA, EXERCISE = Pace(200, 10, 1, 5), Pace(130, 10, 2, 8), 0.5, 8


class Lesson(NamedTuple):
    """What a lesson's main line, or a part of it, consists of."""

    words: int = 0
    formulas: int = 0
    lines: int = 0
    figures: int = 0
    panels: int = 0
    exercises: int = 0

    def minutes(self, pace: Pace) -> float:
        """Without the exercises."""
        return (
            self.words / pace.words
            + self.formulas * FORMULA
            + self.lines / pace.lines
            + self.figures * pace.figure
            + self.panels * pace.panel
        )


def prose(source: str) -> str:
    """A text without its tables, pictures and formulas on lines of their own."""
    for gone in (r"```.*?```", r"\$\$.*?\$\$", r"^\|.*$", r"<[^>]+>", r"!\[[^\]]*\]\([^)]*\)"):
        source = re.sub(gone, " ", source, flags=re.DOTALL | re.MULTILINE)
    return source


@cache
def parts(path: Path) -> dict[str, Lesson]:
    """Count a notebook's main line: "opening", "1" to its last section, "panel 1" ..., "end"."""
    out: dict[str, Counter[str]] = defaultdict(Counter)
    here, panels = "opening", 0
    for c in nbformat.read(path, as_version=4).cells:
        tags = {*c.metadata.get("tags", ())}
        if tags & {"further", "solution"}:
            continue
        if "exercise" in tags:
            out[here]["exercises"] += c.cell_type == "markdown"
        elif c.cell_type == "markdown":
            for text in re.split(r"(?m)^(?=## )", c.source):
                numbered = re.match(r"## (\d+)\. ", text)
                here = numbered[1] if numbered else "end" if LAST.match(text) else here
                out[here]["words"] += len(re.findall(r"\w[\w'’-]*", prose(text)))
                out[here]["formulas"] += text.count("$$") // 2
        elif not c.metadata.get("jupyter", {}).get("source_hidden"):
            out[here]["lines"] += sum(bool(line.strip()) for line in c.source.splitlines())
        out[here]["figures"] += "figure" in tags
        if "panel" in tags:
            panels += 1
            out[f"panel {panels}"]["panels"] = 1
    return {name: Lesson(**found) for name, found in out.items()}


def measured(path: Path) -> Lesson:
    """A lesson's main line in all."""
    return Lesson(*map(sum, zip(*parts(path).values(), strict=True)))


def lesson_named(number: str) -> Path:
    """The notebook of a lesson: "07"."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    return path


def planned(where: str) -> list[tuple[str, str]]:
    """What a plan's row names, part by part.

    Example:
        >>> planned("00 (panel 1); 01 (opening, 2-3)")
        [('00', 'panel 1'), ('01', 'opening'), ('01', '2'), ('01', '3')]
    """
    out = []
    for number, named in re.findall(r"\b(\d\d) \(([^)]*)\)", where):
        for part in named.replace("–", "-").split(", "):
            first, _, last = part.partition("-")
            if last:
                out += [(number, str(n)) for n in range(int(first), int(last) + 1)]
            else:
                out.append((number, part))
    return out


def in_a_room(where: str) -> float:
    """The minutes of a plan's row, read aloud."""
    return sum(parts(lesson_named(n))[part].minutes(ALOUD) for n, part in planned(where))


def stated(path: Path) -> str:
    """What the lesson itself says."""
    first = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells[:2])
    found = re.search(r"(\d+(?:\s*\+\s*\d+)?) minutes", first)
    return found[1] if found else ""


def table() -> str:
    """A row a lesson."""
    rows = [
        "| lesson | figures | panels | read alone, min | in a room, min | exercises, min "
        "| the lesson says |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        it = measured(path)
        alone, room = (5 * round(it.minutes(p) / 5) for p in (READING, ALOUD))
        numbers = f"{it.figures} | {it.panels} | {alone} | {room}"
        rows.append(f"| {path.stem[:2]} | {numbers} | {it.exercises * EXERCISE} | {stated(path)} |")
    return "\n".join(rows)


def rows(table: str) -> list[list[str]]:
    """The cells of a table in Markdown, line by line; the second line is its rule."""
    return [[word.strip() for word in line.strip("|").split("|")] for line in table.splitlines()]


def timed(table: str) -> str:
    """A plan with its minutes counted (to five), and its rows one after the other.

    A plan is a table with the columns "min" and "where"; others come back as they are. A row that
    names no part of a lesson, such as a break, keeps its minutes. "from" is where a row begins.
    """
    head, _, *plan = rows(table)
    if not {"min", "where"} <= {*head}:
        return table
    begin = 0
    for row in plan:
        where, at = row[head.index("where")], head.index("min")
        if planned(where):
            row[at] = str(max(5, 5 * round(in_a_room(where) / 5)))
        if "from" in head:
            row[head.index("from")] = str(begin)
        begin += int(row[at])
    lines = ["| " + " | ".join(row) + " |\n" for row in plan]
    return "".join([*table.splitlines(keepends=True)[:2], *lines])


def filled(guide: str) -> str:
    """The guide with today's minutes: the table between its marks, and the plans'."""
    before, _, rest = guide.partition(BEGIN)
    _, _, after = rest.partition(END)
    plans = TABLE.sub(lambda found: timed(found[0]), after)
    return f"{before}{BEGIN}\n{table()}\n{END}{plans}"


def main(words: list[str] | None = None) -> int:
    """Print the table, or write it into the guide."""
    parser = argparse.ArgumentParser(description="How long each lesson is, counted.")
    parser.add_argument("--write", action="store_true", help="into teaching/guide.md")
    parser.add_argument("--plan", metavar="ROW", help="minutes in a room of lessons' parts")
    given = parser.parse_args(words)
    if given.plan:
        print(f"{in_a_room(given.plan):.0f} minutes")
    elif given.write:
        write_whole(GUIDE, filled(GUIDE.read_text(encoding="utf-8")).encode())
    else:
        print(table())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
