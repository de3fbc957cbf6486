"""Make a shorter notebook of a lesson, by its tags: for a session that has no time for all of it.

    python tools/cut.py notebooks/07_client_drift.ipynb short.ipynb --keep setup panel
    python tools/cut.py notebooks/07_client_drift.ipynb sheet.ipynb --drop solution further

``--keep`` leaves the code cells that have one of these tags, and the text of the sections that
still have one. ``--drop`` leaves out every cell that has one of these tags, and keeps the rest.
Panels need ``setup`` cells and nothing else (a test holds every lesson to it), so a lesson that is
cut to ``setup panel`` runs. Outputs go along; the lesson itself isn't touched.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from fedlearn.partition.files import write_whole

TAGS = ("setup", "panel", "check", "exercise", "solution", "figure", "further")
Cell = dict[str, Any]


def tags(cell: Cell) -> set[str]:
    """What a cell is for."""
    return set(cell["metadata"].get("tags", ()))


def sections(cells: list[Cell]) -> list[list[Cell]]:
    """The cells by heading; a lesson's first cell, its question, begins the first."""
    out: list[list[Cell]] = []
    for cell in cells:
        text = "".join(cell["source"])
        heads = cell["cell_type"] == "markdown" and re.search(r"^#{1,3} ", text, re.MULTILINE)
        if heads or not out:
            out.append([])
        out[-1].append(cell)
    return out


def cut(cells: list[Cell], keep: set[str], drop: set[str]) -> list[Cell]:
    """What is left of a lesson's cells.

    Example:
        >>> text = lambda s: {"cell_type": "markdown", "source": s, "metadata": {}}
        >>> code = lambda *t: {"cell_type": "code", "source": "1", "metadata": {"tags": [*t]}}
        >>> lesson = [text("# Why?"), code("setup"), text("## By hand"), code(), text("## Sources")]
        >>> [c["source"] for c in cut(lesson, keep={"setup"}, drop=set())]
        ['# Why?', '1']
    """
    left: list[Cell] = []
    for i, section in enumerate(sections(cells)):
        some = [c for c in section if not tags(c) & drop]
        if keep:
            some = [c for c in some if c["cell_type"] == "markdown" or tags(c) & keep]
            if i and not any(c["cell_type"] == "code" for c in some):
                continue
        left += some
    return left


def main(words: list[str] | None = None) -> int:
    """Read the command line, write the shorter notebook, say how long it is."""
    parser = argparse.ArgumentParser(description="A shorter notebook of a lesson, by its tags.")
    parser.add_argument("lesson", type=Path)
    parser.add_argument("short", type=Path, help="the new notebook; none may be there")
    parser.add_argument("--keep", nargs="+", choices=TAGS, default=[])
    parser.add_argument("--drop", nargs="+", choices=TAGS, default=[])
    asked = parser.parse_args(words)
    if asked.short.exists():
        parser.error(f"{asked.short} is there already: name another file")
    try:
        notebook = json.loads(asked.lesson.read_text(encoding="utf-8"))
        before = notebook["cells"]
    except (OSError, ValueError, TypeError, KeyError) as e:
        parser.error(f"{asked.lesson} is no notebook that can be read ({e})")
    notebook |= {"cells": cut(before, {*asked.keep}, {*asked.drop})}
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    write_whole(asked.short, text.encode())
    code = [sum(c["cell_type"] == "code" for c in some) for some in (before, notebook["cells"])]
    print(f"{asked.short}: {code[1]} of {code[0]} code cells")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
