"""Which cells of a lesson its panels need: names read and names made, followed backwards.

A statement needs what it reads at once. A function that it calls needs what the function's body
reads, at that moment. So names are followed statement by statement, from a panel to the imports.
A change in place makes a name as well: ``table[k] = v``, ``curve.ylim = w``, ``rows.append(r)``.
"""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Iterator
from typing import NamedTuple

import nbformat

PANELS = {"Compare", "Explorable", "Panel", "Sweep"}
GIVEN = {*dir(builtins), "__name__", "display", "get_ipython"}
CHANGES = {"add", "append", "clear", "extend", "insert", "pop", "remove", "setdefault", "update"}
COMPREHENSIONS = {"listcomp", "setcomp", "dictcomp", "genexpr"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
MAYBE = (ast.If, ast.For, ast.While, ast.Try)  # what they assign may have stayed as it was


class Statement(NamedTuple):
    """What a cell's statement does with the names of the notebook."""

    cell: int
    reads: set[str]  # at once
    later: set[str]  # when a function that it defines is called
    makes: set[str]
    changes: set[str]


def statements(cells: list[nbformat.NotebookNode]) -> list[Statement]:
    """All statements of the code cells, in order; ``cell`` counts all cells."""
    nodes = [
        (i, node)
        for i, cell in enumerate(cells)
        if cell.cell_type == "code"
        for node in ast.parse(cell.source).body
    ]
    imports = [node for _, node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {a.asname or a.name.split(".")[0] for node in imports for a in node.names}
    found = [analysed(i, node) for i, node in nodes]
    return [s._replace(changes=s.changes - modules) for s in found]  # np.append changes no np


def analysed(cell: int, node: ast.stmt) -> Statement:
    top = symtable.symtable(ast.unparse(node), "cell", "exec")
    here = top.get_symbols()
    makes = {s.get_name() for s in here if s.is_assigned() or s.is_imported() or s.is_namespace()}
    reads = {s.get_name() for s in here if s.is_referenced()}
    now, later = in_scopes(top)
    changes = changed(node)
    reads |= now | changes
    if isinstance(node, MAYBE):
        first: dict[str, bool] = {}
        for name in in_order(node):
            first.setdefault(name.id, isinstance(name.ctx, ast.Store))
        reads -= {name for name, set_first in first.items() if set_first}
        changes |= makes
        makes = set()
    return Statement(cell, reads, later, makes - changes, changes)


def in_order(node: ast.AST) -> Iterator[ast.Name]:
    """Its names as Python comes by them: a value before what it is given to."""
    if isinstance(node, FUNCTIONS):
        return
    if isinstance(node, ast.Name):
        yield node
    below = [*ast.iter_child_nodes(node)]
    source = getattr(node, "iter", None) or getattr(node, "generators", None)
    if isinstance(node, ast.Assign):
        source = node.value
    ahead = source if isinstance(source, list) else [source]
    for child in sorted(below, key=lambda c: c not in ahead):
        yield from in_order(child)


def in_scopes(table: symtable.SymbolTable, inside: bool = False) -> tuple[set[str], set[str]]:
    """Global names in the scopes below: read at once (comprehensions, classes), or later."""
    now, later = set(), set()
    for child in table.get_children():
        waits = inside or (
            child.get_type() == "function" and child.get_name() not in COMPREHENSIONS
        )
        names = {s.get_name() for s in child.get_symbols() if s.is_global()}
        (later if waits else now).update(names)
        below = in_scopes(child, waits)
        now |= below[0]
        later |= below[1]
    return now, later


def changed(node: ast.AST) -> set[str]:
    """Names whose value is changed in place, outside functions."""
    found: set[str] = set()
    if isinstance(node, FUNCTIONS):
        return found
    target = node.target if isinstance(node, ast.AugAssign) else None
    if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
        target = node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        target = node.func.value if node.func.attr in CHANGES else None
    while isinstance(target, ast.Attribute | ast.Subscript):
        target = target.value
    if isinstance(target, ast.Name):
        found.add(target.id)
    return found.union(*map(changed, ast.iter_child_nodes(node)))


def shows_a_panel(cell: nbformat.NotebookNode) -> bool:
    """Whether the cell itself calls Panel, Explorable or another of them."""
    if cell.cell_type != "code":
        return False
    todo: list[ast.AST] = [*ast.parse(cell.source).body]
    while todo:
        node = todo.pop()
        if isinstance(node, FUNCTIONS):
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in PANELS:
                return True
        todo += ast.iter_child_nodes(node)
    return False


def setters(everything: list[Statement], name: str, end: int) -> Iterator[int]:
    """The statements before ``end`` that set a name, backwards to the last that makes it anew."""
    for at in range(end - 1, -1, -1):
        if name in everything[at].makes | everything[at].changes:
            yield at
            if name in everything[at].makes:
                return


def needed(cells: list[nbformat.NotebookNode], wanted: set[int]) -> dict[int, str]:
    """The cells that the wanted ones need, each with a reason; they themselves are left out."""
    everything = statements(cells)
    why: dict[int, str] = {}
    missing: list[str] = []
    seen: set[tuple[str, int]] = set()
    todo: list[tuple[str, int, int]] = []  # name, read at this statement, for that cell

    def run(cell: int) -> None:
        for at, s in enumerate(everything):
            if s.cell == cell:
                todo.extend((name, at, cell) for name in s.reads)

    for cell in wanted:
        run(cell)
        for at, s in enumerate(everything):
            if s.cell == cell:  # a panel calls what it was given
                todo.extend((name, at, cell) for name in s.later)
    while todo:
        name, at, reader = todo.pop()
        if (name, at) in seen:
            continue
        seen.add((name, at))
        own = everything[at]
        found = name in GIVEN or name in own.makes | own.changes
        for before in setters(everything, name, at + (name in own.later)):
            s, found = everything[before], True
            if s.cell not in why and s.cell not in wanted:
                why[s.cell] = f"{name!r}, read in cell {reader}"
                run(s.cell)
            todo.extend((used, at, s.cell) for used in s.later)
        if not found:
            missing.append(f"{name!r}, read in cell {reader}")
    assert not missing, f"nothing before makes {missing}"
    return dict(sorted(why.items()))


def taken(cells: list[nbformat.NotebookNode], panel: int) -> dict[str, int]:
    """Names that a panel's functions read when a slider moves, and the cells below that take them.

    What a panel is given may hold functions; what one of them reads is looked up when it is called,
    so it is the last cell that has set it which counts.
    """
    everything = statements(cells)
    end = max(at for at, s in enumerate(everything) if s.cell == panel)
    todo: list[tuple[str, int, bool]] = []  # name, looked for above this statement, read at a move
    for at, s in enumerate(everything):
        if s.cell == panel:
            todo += [(name, at, True) for name in s.later] + [(name, at, False) for name in s.reads]
    seen: set[tuple[str, int, bool]] = set()
    while todo:
        if (now := todo.pop()) in seen:
            continue
        seen.add(now)
        name, at, _ = now
        for before in setters(everything, name, at):
            todo += [(used, end, True) for used in everything[before].later]
            todo += [(used, before, False) for used in everything[before].reads]
    moved = {name for name, _, at_a_move in seen if at_a_move}
    below = [s for s in everything if s.cell > panel]
    return {name: s.cell for s in below for name in moved & (s.makes | s.changes)}
