"""The recordings of a lesson's panels: its cells are run, and what was recorded before is kept."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import os
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import fedlearn
from fedlearn.panels.engine import Engine
from fedlearn.panels.explorable import Explorable
from fedlearn.partition.files import write_whole

from . import record as recorder
from .lessons import Cell, Lesson, lesson, tags
from .record import Grid, checked, quick_grid, record

GRIDS = Path(__file__).with_name("grids.toml")
Grids = Mapping[str, Mapping[str, Sequence[Grid]]]  # lesson: cell id: products of values


def recordings(stem: str, folder: Path) -> tuple[dict[str, str], str]:
    """What is recorded of a lesson's panels, by cell id, and in words how much it is.

    Kept in ``folder``, a file a panel; each is made anew when the cells that the panels need, the
    panel's grid, the recorder or the package have changed.
    """
    given, grids, found = lesson(stem), declared(stem), kept(stem, folder)
    began = time.process_time()
    if None in found.values():
        folder.mkdir(parents=True, exist_ok=True)
        for name, panel in panels(given):
            if found[name] is None:
                key = _key(given, name, grids)
                found[name] = made = {"key": key, **record(panel, grids.get(name))}
                write_whole(_file(folder, stem, name), json.dumps(made).encode())
            panel.close()
    whole = {name: v for name, v in found.items() if v}
    said = [f"{v['settings']} settings, {len(v['data']) / 1e3:.0f} kB" for v in whole.values()]
    data = {name: v["data"] for name, v in whole.items()}
    return data, f"{'; '.join(said)} ({time.process_time() - began:.0f} s)"


def kept(stem: str, folder: Path) -> dict[str, dict[str, Any] | None]:
    """The recordings of a lesson that are still what they would be; None in place of the others."""
    given, grids = lesson(stem), declared(stem)
    names = [c["id"] for c in needed(given) if "panel" in tags(c)]
    if unknown := sorted(set(grids) - set(names)):
        raise ValueError(f"grids.toml: lesson {stem[:2]} has no panel {unknown[0]}")
    found: dict[str, dict[str, Any] | None] = dict.fromkeys(names)
    for name in names:
        with contextlib.suppress(OSError, ValueError, KeyError):  # none, or half of one
            old = json.loads(_file(folder, stem, name).read_text(encoding="utf-8"))
            if old["key"] == _key(given, name, grids):
                found[name] = old
    return found


def _file(folder: Path, stem: str, name: str) -> Path:
    return folder / f"{stem[:2]}-{name}.json"


def declared(stem: str) -> Mapping[str, Sequence[Grid]]:
    """The grids of a lesson's panels, by cell id."""
    grids: Grids = tomllib.loads(GRIDS.read_text(encoding="utf-8"))
    return grids.get(stem[:2], {})


class Short(Engine):
    """An engine of runs that are soon over."""

    def __init__(self, *args: Any, rounds: int, **others: Any):
        super().__init__(*args, rounds=min(rounds, 3), **others)


def quick(stem: str, folder: Path) -> dict[str, str]:
    """Of each panel two settings and three rounds: enough to see that all of it works.

    What :func:`keep` wrote into ``folder`` is taken, if it still is what it would be.
    """
    found = kept(stem, folder)
    if None in found.values():
        for name, panel in panels(lesson(stem)):
            keep(panel, stem, name, folder)
            panel.close()
        found = kept(stem, folder)
    return {name: v["data"] for name, v in found.items() if v}


def keep(panel: Explorable, stem: str, name: str, folder: Path) -> None:
    """Record a panel quickly, wherever it lives: the test of the notebooks does it in each kernel.

    Of its declared grids the names are looked at; lessons have fewer values with FEDLEARN_FAST.
    """
    given, grids = lesson(stem), declared(stem)
    for grid in grids.get(name, ()):
        checked(dict.fromkeys(grid, ()), panel.controls)
    with mock.patch.object(recorder, "Engine", Short):
        made = record(panel, quick_grid(panel.controls))
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"key": _key(given, name, grids), **made}
    write_whole(_file(folder, stem, name), json.dumps(whole).encode())


def panels(given: Lesson) -> Iterator[tuple[str, Explorable]]:
    """Run a lesson's ``setup`` and ``panel`` cells; (cell id, panel) of each panel."""
    names: dict[str, Any] = {"__name__": "__main__", "display": lambda *a, **k: None}
    os.environ.setdefault("MPLBACKEND", "Agg")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for c in needed(given):
            tree = ast.parse("".join(c["source"]))
            last = tree.body.pop() if "panel" in tags(c) else None
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(tree, c["id"], "exec"), names)
                if last is None:
                    continue
                assert isinstance(last, ast.Expr)
                found = eval(compile(ast.Expression(last.value), c["id"], "eval"), names)
            yield c["id"], found


def needed(given: Lesson) -> list[Cell]:
    """The cells that a lesson's panels need, and the panels: a test holds the lessons to it."""
    return [c for c in given.cells if c["cell_type"] == "code" and {"setup", "panel"} & tags(c)]


def _key(given: Lesson, name: str, grids: Mapping[str, Any]) -> str:
    """Changes with all that a recording is made of."""
    made_of = [
        ["".join(c["source"]) for c in needed(given)],
        name,
        grids.get(name),
        _code(),
    ]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


@cache
def _code() -> list[str]:
    """The package, and what records."""
    own = [Path(__file__).with_name(f"{name}.py") for name in ("pack", "record")]
    return [code_of(p) for p in (*sorted(Path(fedlearn.__file__).parent.rglob("*.py")), *own)]


def code_of(path: Path) -> str:
    """What a file does: its syntax tree without docstrings, so that a word changes nothing."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _says(body[0]):
            body[0] = ast.Pass()
    return ast.dump(tree)


def _says(node: Any) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
