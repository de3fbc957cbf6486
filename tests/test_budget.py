"""The package stays small enough to read, its core in an afternoon, and no line is packed."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fedlearn"
FILES = sorted(PACKAGE.rglob("*.py"))

# The core is what trains; these are the rooms beside it.
ROOMS = (
    *("data", "module", "skew", "partition", "federated_optimizer", "diagnostics", "plots"),
    *("compress", "fleet", "fold", "workers", "asynchronous", "flower", "attacks", "privacy"),
    *("personal", "vertical", "panels"),
)
LIMITS = {"core": (3_570, 1_655), "all": (19_300, None)}  # lines, lines of code
QUIET = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
QUIET |= {tokenize.ENDMARKER}
PRAGMA = re.compile(r"\s*# (type: ignore|noqa).*")  # ruff does not count it either
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def room(path: Path) -> str:
    top = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return top if top in ROOMS else "core"


def tokens(source: str) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(source).readline))


def lines_of_code(source: str) -> int:
    """Lines with a token that is no comment and no docstring."""
    lines = {
        line
        for t in tokens(source)
        if t.type not in QUIET
        for line in range(t.start[0], t.end[0] + 1)
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            lines -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def table() -> tuple[Counter[str], Counter[str]]:
    """Lines and lines of code, by room and in all."""
    lines, code = Counter[str](), Counter[str]()
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        for name in (room(path), "all"):
            lines[name] += source.count("\n")
            code[name] += lines_of_code(source)
    return lines, code


def test_the_package_keeps_within_its_budget():
    lines, code = table()
    rows = [f"{'room':20} {'lines':>6} {'code':>6}   at most"]
    over = []
    for name in sorted(lines, key=lambda n: (n != "core", n == "all", -lines[n])):
        most = LIMITS.get(name, (None, None))
        told = [str(limit) for limit in most if limit]
        rows.append(f"{name:20} {lines[name]:6} {code[name]:6}   {', '.join(told)}".rstrip())
        over += [
            f"{name} has {have} {what}, {have - limit} too many"
            for have, limit, what in zip(
                (lines[name], code[name]), most, ("lines", "lines of code")
            )
            if limit and have > limit
        ]
    assert not over, "\n".join([*over, *rows])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_line_is_packed(path):
    source = path.read_text(encoding="utf-8")
    lines = [PRAGMA.sub("", line) for line in source.splitlines()]
    long = [n for n, line in enumerate(lines, 1) if len(line) > 100]
    assert not long, f"over 100 columns: lines {long}"
    joined = [t.start[0] for t in tokens(source) if t.type == tokenize.OP and t.string == ";"]
    assert not joined, f"statements joined by a semicolon: lines {joined}"


def test_the_counting_counts():
    source = '"""A module.\n\nOf two words.\n"""\n# why\nx = (\n    1,\n)\n\n\ndef f():\n    "A."\n'
    assert lines_of_code(source) == 4
    assert lines_of_code(source.replace("def f", "class f").replace("f()", "f")) == 4
    assert lines_of_code('f"""a\nb"""\n') == 2, "a text that documents nothing is code"
    assert {room(PACKAGE / p) for p in ("loop.py", "algorithms/fedavg.py", "__init__.py")} == {
        "core"
    }
    assert room(PACKAGE / "panels/engine.py") == room(PACKAGE / "panels/parts/a.py") == "panels"
    assert room(PACKAGE / "data.py") == room(PACKAGE / "data/small.py") == "data"
