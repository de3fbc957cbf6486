"""Which notebooks and texts become pages."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
Cell = Mapping[str, Any]


@dataclass
class Lesson:
    """A notebook, or a text beside the lessons, and what was recorded of its panels."""

    stem: str
    cells: Sequence[Cell]
    recordings: Mapping[str, str] = field(default_factory=dict)  # cell id: what player.js reads

    @property
    def heading(self) -> str:
        """Its first line, as it is written."""
        return "".join(self.cells[0]["source"]).split("\n", 1)[0].lstrip("# ")

    @property
    def subtitle(self) -> str:
        """What it calls itself: ``Lesson 7: client drift``; "" where it doesn't."""
        found = re.search(r"^\*(Lesson \d+:.*?)\*$", "".join(self.cells[0]["source"]), re.MULTILINE)
        return found[1] if found else ""

    @property
    def minutes(self) -> str:
        """What it says it takes."""
        first = "\n".join("".join(c["source"]) for c in self.cells[:2])
        found = re.search(r"(\d+) minutes", first)
        return found[1] if found else ""


def tags(c: Cell) -> set[str]:
    """What a cell is for."""
    return set(c["metadata"].get("tags", ()))


def lesson(stem: str) -> Lesson:
    """A lesson as it is stored."""
    text = (NOTEBOOKS / f"{stem}.ipynb").read_text(encoding="utf-8")
    return Lesson(stem, json.loads(text)["cells"])


def lessons() -> list[Lesson]:
    """All lessons, in order."""
    return [lesson(path.stem) for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))]


def texts() -> list[Lesson]:
    """What the lessons link to beside each other: notation and glossary."""
    found = []
    for path in sorted(NOTEBOOKS.glob("*.md")):
        source = path.read_text(encoding="utf-8")
        found.append(
            Lesson(path.stem, [{"cell_type": "markdown", "metadata": {}, "source": [source]}])
        )
    return found
