"""How long is each lesson? Counted, not guessed: words, lines of code, figures, panels, exercises.

    python tools/minutes.py                 # the table, as in teaching/guide.md
    python tools/minutes.py --write         # puts it between the guide's marks

Reading alone: 200 words and ten visible lines of code a minute, one minute a figure, five a panel
(predict, move, say what happened). In a room: 130 words a minute aloud, ten lines, two minutes a
figure, eight a panel. An exercise takes eight minutes. *Further experiments* are not counted.
"""

from __future__ import annotations

import argparse
import re
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


READING, ALOUD, EXERCISE = Pace(200, 10, 1, 5), Pace(130, 10, 2, 8), 8


class Lesson(NamedTuple):
    """What a lesson's main line consists of."""

    words: int
    lines: int
    figures: int
    panels: int
    exercises: int

    def minutes(self, pace: Pace) -> float:
        """Without the exercises."""
        return (
            self.words / pace.words
            + self.lines / pace.lines
            + self.figures * pace.figure
            + self.panels * pace.panel
        )


def prose(source: str) -> str:
    """A text without its tables, pictures and formulas on lines of their own."""
    for gone in (r"```.*?```", r"\$\$.*?\$\$", r"^\|.*$", r"<[^>]+>", r"!\[[^\]]*\]\([^)]*\)"):
        source = re.sub(gone, " ", source, flags=re.DOTALL | re.MULTILINE)
    return source


def measured(path: Path) -> Lesson:
    """Count a notebook's main line."""
    words = lines = figures = panels = exercises = 0
    for c in nbformat.read(path, as_version=4).cells:
        tags = {*c.metadata.get("tags", ())}
        if tags & {"further", "solution"}:
            continue
        if c.cell_type == "markdown":
            exercises += "exercise" in tags
            words += 0 if "exercise" in tags else len(re.findall(r"\w[\w'’-]*", prose(c.source)))
            continue
        figures += "figure" in tags
        panels += "panel" in tags
        if not c.metadata.get("jupyter", {}).get("source_hidden") and "exercise" not in tags:
            lines += sum(bool(line.strip()) for line in c.source.splitlines())
    return Lesson(words, lines, figures, panels, exercises)


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


def filled(guide: str) -> str:
    """The guide with today's table between its marks."""
    before, _, rest = guide.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main(words: list[str] | None = None) -> int:
    """Print the table, or write it into the guide."""
    parser = argparse.ArgumentParser(description="How long each lesson is, counted.")
    parser.add_argument("--write", action="store_true", help="into teaching/guide.md")
    if parser.parse_args(words).write:
        write_whole(GUIDE, filled(GUIDE.read_text(encoding="utf-8")).encode())
    else:
        print(table())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
