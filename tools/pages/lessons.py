"""Which notebooks and texts become pages."""

from __future__ import annotations

import json
from pathlib import Path

from .page import Lesson

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"


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
