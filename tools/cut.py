r"""Make a shorter notebook of a lesson, by its tags: for a session that has no time for all of it.

    .venv/bin/python tools/cut.py notebooks/04_federated_averaging.ipynb notebooks/short.ipynb \
        --keep setup panel
    .venv/bin/python tools/cut.py notebooks/04_federated_averaging.ipynb notebooks/long.ipynb \
        --drop further

``--keep`` leaves the code cells that have one of these tags, the heads of the sections that still
have one, and the text beside what is kept: a text between two cells that are gone speaks of them.
``--drop`` leaves out every cell that has one of these tags, and keeps the rest. Panels need
``setup`` cells and nothing else (a test holds every lesson to it), so a lesson that is cut to
``setup panel`` runs. Outputs go along; the lesson itself isn't touched. Write the new notebook
beside the lessons, where its links lead somewhere and JupyterLab shows it. (A sheet without
solutions is made by ``python run.py export student``, which empties the checks, too.)
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


def beside(section: list[Cell], keep: set[str]) -> list[Cell]:
    """What is left of a section: its head, code to keep, and texts whose next or last code is kept.

    Example:
        >>> text = lambda s: {"cell_type": "markdown", "source": s, "metadata": {}}
        >>> code = lambda *t: {"cell_type": "code", "source": "1", "metadata": {"tags": [*t]}}
        >>> some = [text("## 1"), code(), text("its table"), code(), text("drag"), code("panel")]
        >>> [c["source"] for c in beside([*some, text("seen")], {"panel"})]
        ['## 1', 'drag', '1', 'seen']
    """
    left: list[Cell] = []
    texts: list[Cell] = []  # since the last code
    stayed = True  # the last code; at first the section's head
    for cell in section:
        if cell["cell_type"] == "code":
            stays = bool(tags(cell) & keep)
            left += texts if stayed or stays else []
            left += [cell] if stays else []
            texts, stayed = [], stays
        else:
            texts.append(cell)
    return left + (texts if stayed else [])


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
            some = beside(some, keep)
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
    if asked.keep:
        print("Read it once before you teach: a text may name a table or a section that is gone.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
