"""Notebooks for students, made by the cells' tags: ``python run.py export student``.

    python -m pages.student --out build/student

Cells tagged ``solution`` are left out, with the few that can't run without them; hints stay. A
check of an exercise holds its answer, so each function that an ``exercise`` cell calls, and that a
cell of the notebook defines, becomes one that only takes note. What such cells had printed is
dropped. All else stays as it is stored.
"""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path
from typing import Any

from fedlearn.partition.files import write_whole

from .lessons import NOTEBOOKS, ROOT, tags

NOTE = """def {name}(*answer):
    print("noted; this copy of the notebook doesn't hold the answer")"""
Cell = dict[str, Any]


def exported(notebook: dict[str, Any]) -> dict[str, Any]:
    """A notebook without its solutions and its answers.

    Example:
        >>> cell = lambda source, *t: {"cell_type": "code", "source": source, "outputs": [],
        ...                            "metadata": {"tags": [*t]}}
        >>> cells = [cell("def check(x):\\n    print(x == 7)", "check"),
        ...          cell("answer = None\\ncheck(answer)", "check", "exercise"),
        ...          cell("check(7)", "solution")]
        >>> print("\\n".join(c["source"] for c in exported({"cells": cells})["cells"]))
        def check(*answer):
            print("noted; this copy of the notebook doesn't hold the answer")
        answer = None
        check(answer)
    """
    kept = [c for c in notebook["cells"] if "solution" not in tags(c)]
    solved = [c for c in notebook["cells"] if "solution" in tags(c)]
    lost = _names(solved, ast.Store) - _names(kept, ast.Store)
    kept = [c for c in kept if not _names([c], ast.Load) & lost]
    asked = {name for c in kept if _is_question(c) for name in _asked(c)}
    return {**notebook, "cells": [_without_answers(c, asked) for c in kept]}


def _names(cells: list[Cell], kind: type[ast.expr_context]) -> set[str]:
    """Names that code cells make (Store), or read (Load)."""
    found = set()
    for c in cells:
        for node in ast.walk(ast.parse("".join(c["source"]))) if c["cell_type"] == "code" else ():
            if isinstance(node, ast.Name) and isinstance(node.ctx, kind):
                found.add(node.id)
            elif isinstance(node, ast.FunctionDef) and kind is ast.Store:
                found.add(node.name)
            elif isinstance(node, ast.arg) and kind is ast.Store:
                found.add(node.arg)
    return found


def _is_question(c: Cell) -> bool:
    """A cell in which the student writes, and which hands the answer to its check."""
    hidden = c["metadata"].get("jupyter", {}).get("source_hidden")
    return c["cell_type"] == "code" and "exercise" in tags(c) and not hidden


def _asked(c: Cell) -> set[str]:
    """Functions that a cell calls, and doesn't define."""
    tree = ast.parse("".join(c["source"]))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {f.id for f in calls if isinstance(f, ast.Name)} - _names([c], ast.Store)


def _without_answers(c: Cell, asked: set[str]) -> Cell:
    """The cell with functions that only take note in place of those asked."""
    if c["cell_type"] != "code":
        return c
    source = "".join(c["source"])
    lines, changed = source.split("\n"), False
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.FunctionDef) and node.name in asked:
            lines[node.lineno - 1 : node.end_lineno] = NOTE.format(name=node.name).split("\n")
            changed = True
    if not changed and not _is_question(c):
        return c
    return {**c, "source": "\n".join(lines), "outputs": [], "execution_count": None}


def main(words: list[str] | None = None) -> int:
    """Write every lesson's copy for students."""
    parser = argparse.ArgumentParser(
        prog="python run.py export student", description="Notebooks without solutions."
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "student", help="the folder")
    out = parser.parse_args(words).out
    out.mkdir(parents=True, exist_ok=True)
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    for path in paths:
        made = exported(json.loads(path.read_text(encoding="utf-8")))
        text = json.dumps(made, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        write_whole(out / path.name, text.encode())
    for path in sorted(NOTEBOOKS.glob("*.md")):
        write_whole(out / path.name, path.read_bytes())
    print(f"{len(paths)} notebooks in {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
