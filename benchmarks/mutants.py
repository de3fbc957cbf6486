"""Do the tests notice when the code is wrong? One small mistake at a time, and who sees it.

    python benchmarks/mutants.py                        # every mutant; writes mutants.md
    python benchmarks/mutants.py --module aggregate.py  # of one file (may be given again)
    python benchmarks/mutants.py --sample 20 --seed 1   # twenty of every file
    python benchmarks/mutants.py --list --module loop.py  # what there is, nothing is run
    python benchmarks/mutants.py --show 1f3a90c2          # one of them as a diff

By hand or at night: an hour or two on two cores (``--jobs 2``). A mutant is one change of the kind
that a slip of the hand makes: ``<`` for ``<=``, ``+`` for ``-``, n + 1 for n, ``min`` for ``max``,
a call, an argument, a bound of a slice or a ``raise`` left out. Texts, annotations and what only
error messages show are left alone. It is *killed* if a test fails, *timeout* if one takes ten times
as long as it should (that is killed, too), else it has *survived*.

First the suite runs once and notes which test calls which function (ten minutes; kept in the
temporary folder until a file changes). Then each mutant has a forked child that imports the changed
file and runs the tests that reach it, the doctests among them, until one fails. Nothing is written
into the package. (mutmut starts an interpreter a mutant: importing torch alone would take hours.)

``mutants_reasons.json`` says, by hand, why a survivor makes no difference that a test could see.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import gc
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import pickle
import random
import selectors
import signal
import sys
import tempfile
import time
import types
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEPT = Path(tempfile.gettempdir()) / "fedlearn-mutants"
REPORT, REASONS = (ROOT / "benchmarks" / name for name in ("mutants.md", "mutants_reasons.json"))
TARGETS = [
    *("aggregate.py", "algorithms/*.py", "partition/*.py", "privacy/dp.py", "privacy/adaptive.py"),
    *("privacy/accounting.py", "privacy/secure_aggregation/*.py", "loop.py", "checkpoint.py"),
    *("recipe.py", "transform.py", "descend.py", "batches.py", "history.py"),
]
OTHERS = {  # test files that read sources or notebooks, or are about something else
    *("budget", "docstrings", "freeze", "layers", "notebooks", "panels", "panels_compare_sweep"),
    *("pictures", "plots", "backdoor", "inversion", "leakage", "data", "device"),
    *("flower", "flower_deployed", "flower_nodes", "flower_secure"),
}
HEAVY = (
    *("numpy", "torch", "torch.func", "torchvision", "pytest", "hypothesis", "scipy.stats"),
    *("scipy.optimize", "sklearn.datasets", "opacus", "dp_accounting", "dp_accounting.pld"),
    *("cryptography.hazmat.primitives.asymmetric.x25519", "Crypto.Protocol.SecretSharing"),
    *("nbformat", "joblib", "tqdm.auto", "matplotlib.pyplot", "pandas"),
)

# -- what is changed ------------------------------------------------------------------------------

SWAP = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Mult,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitOr, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
PAIRS = (
    "min max", "amin amax", "minimum maximum", "any all", "floor ceil", "zeros ones",
    "zeros_like ones_like", "new_zeros new_ones", "sum prod", "argmin argmax", "cumsum cumprod",
)  # fmt: skip
OTHER = {a: b for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}
# of these calls everything but the place of what is checked is for the message
CHECKS = {"check": {3}, "whole": {2, 3, 4}, "positive": {2}, "not_negative": {2}, "one_of": {2, 3}}
CHECKS |= {"probability": {2}, "below_one": {2}, "RoundFailed": set(), "ValueError": set()}
QUIET = {"example", "device", "strict", "stacklevel", "maxsize"}  # keywords that change no number

Path_ = tuple[tuple[str, int | None], ...]  # from the module down to a node


@dataclass(frozen=True)
class Mutant:
    """One change: ``path`` leads to the node, ``new`` stands there instead."""

    file: str  # of the package, "algorithms/fedavg.py"
    function: str  # "krum", "clip.<locals>.apply"; "" for what runs at import
    line: str  # the statement's first line, as Python writes it
    change: str  # "a < b -> a <= b"
    path: Path_
    new: ast.AST

    @property
    def key(self) -> str:
        return f"{self.file} | {self.function} | {self.line} | {self.change}"

    @property
    def id(self) -> str:
        return hashlib.sha256(self.key.encode()).hexdigest()[:8]

    def tree(self, source: str) -> ast.Module:
        tree = ast.parse(source)
        *above, (name, i) = self.path
        node: Any = tree
        for field, at in above:
            node = getattr(node, field) if at is None else getattr(node, field)[at]
        if i is None:
            setattr(node, name, self.new)
        else:
            getattr(node, name)[i] = self.new
        return ast.fix_missing_locations(tree)


def text(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())


def first_line(statement: ast.stmt) -> str:
    bare = copy.copy(statement)
    for name in ("body", "orelse", "finalbody", "handlers", "decorator_list"):
        if hasattr(bare, name):
            setattr(bare, name, [ast.Pass()] if name == "body" else [])
    return text(bare).removesuffix(" pass")


def mutants(file: str, source: str) -> list[Mutant]:
    """Every mutant of one file; equal ones of one line are numbered."""
    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    for function, statement, path, old, new in _walk(ast.parse(source), (), "", "", None):
        line = first_line(statement)
        tests = isinstance(old, (ast.If, ast.While)) and isinstance(new, (ast.If, ast.While))
        change = " -> ".join(text(n.test if tests else n) for n in (old, new))
        if isinstance(new, ast.Pass):
            change = "left out"
        m = Mutant(file, function, line, change, path, new)
        seen[m.key] += 1
        if seen[m.key] > 1:
            m = Mutant(file, function, line, f"{change} ({seen[m.key]})", path, new)
        found.append(m)
    return found


Found = tuple[str, ast.stmt, Path_, ast.AST, ast.AST]


def _walk(
    node: ast.AST, path: Path_, function: str, prefix: str, statement: ast.stmt | None
) -> Iterator[Found]:
    """Every change below a node. ``function`` runs it, ``prefix`` stands before the names in it."""
    if _silent(node):
        return
    if isinstance(node, ast.stmt):
        statement = node
    if isinstance(node, (ast.FunctionDef, ast.Lambda)):
        function = prefix + (node.name if isinstance(node, ast.FunctionDef) else "<lambda>")
        prefix = f"{function}.<locals>."
    elif isinstance(node, ast.ClassDef):
        function, prefix = "", f"{prefix}{node.name}."
    if statement is not None:
        for new in _changes(node):
            yield function, statement, path, node, new
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases", "exc"):  # types and words
            continue
        for i, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST) and not _words(node, field, i, child):
                at = i if isinstance(value, list) else None
                yield from _walk(child, (*path, (field, at)), function, prefix, statement)


def _silent(node: ast.AST) -> bool:
    """What only words or types are made of."""
    if isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom)):
        return True
    if isinstance(node, ast.Assign):
        if isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return True
        return _type(node.value) or _said(node.value)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    return isinstance(node, ast.BinOp) and (_said(node.left) or _said(node.right))


def _said(node: ast.AST) -> bool:
    if isinstance(node, ast.IfExp):
        return _said(node.body) and _said(node.orelse)
    if isinstance(node, ast.BinOp):
        return _said(node.left) or _said(node.right)
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _type(node: ast.AST) -> bool:
    """Path | None, Callable[[int], float], ...: an alias. (A call or a number is none.)"""
    kinds = (ast.Name, ast.Attribute, ast.Subscript, ast.BinOp, ast.List, ast.Tuple, ast.Constant)
    if not isinstance(node, (ast.BinOp, ast.Subscript)):
        return False
    names = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
    builtin = {"str", "int", "float", "dict", "list", "tuple", "bool", "np"}
    known = all(n.id in builtin or n.id[:1].isupper() for n in names)
    inside = (*kinds, ast.expr_context, ast.BitOr)
    return known and bool(names) and all(isinstance(n, inside) for n in ast.walk(node))


def _words(node: ast.AST, field: str, i: int, child: ast.AST) -> bool:
    """Whether an argument is for an error's message, or a keyword changes no number."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if field == "args" and name in CHECKS:
        return i not in CHECKS[name]
    return isinstance(child, ast.keyword) and (child.arg in QUIET or name in CHECKS)


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """What stands there instead, one after the other."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            yield _with(node, ops=[*node.ops[:i], SWAP[type(op)](), *node.ops[i + 1 :]])
    elif isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
        yield _with(node, op=SWAP[type(node.op)]())
    elif isinstance(node, ast.UnaryOp):
        if not isinstance(node.operand, ast.Constant):
            yield node.operand
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, (int, float)):
            yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Name) and node.id in OTHER:
        yield _with(node, id=OTHER[node.id])
    elif isinstance(node, ast.Attribute) and node.attr in OTHER and isinstance(node.ctx, ast.Load):
        yield _with(node, attr=OTHER[node.attr])
    elif isinstance(node, ast.Slice):
        for name in ("lower", "upper"):
            bound = getattr(node, name)
            if bound is not None:
                yield _with(node, **{name: None})
                if not isinstance(bound, (ast.Constant, ast.UnaryOp)):
                    yield _with(node, **{name: ast.BinOp(bound, ast.Add(), ast.Constant(1))})
    elif isinstance(node, ast.Call):
        for i, k in enumerate(node.keywords):
            if k.arg and k.arg not in QUIET and not _said(k.value):
                if not (isinstance(node.func, ast.Name) and node.func.id in CHECKS):
                    yield _with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        if not isinstance(node.test, (ast.Compare, ast.UnaryOp)):
            yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, (ast.Return, ast.Lambda)):
        value = node.value if isinstance(node, ast.Return) else node.body
        if value is not None and not (isinstance(value, ast.Constant) and value.value is None):
            name = "value" if isinstance(node, ast.Return) else "body"
            yield _with(node, **{name: ast.Constant(None)})
    elif isinstance(node, ast.Raise) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield ast.Pass()
    elif isinstance(node, (ast.Break, ast.Continue)):
        yield ast.Continue() if isinstance(node, ast.Break) else ast.Break()


def _with(node: ast.AST, **new: Any) -> ast.AST:
    other = copy.copy(node)
    for name, value in new.items():
        setattr(other, name, value)
    return other


# -- in the child ---------------------------------------------------------------------------------


class Changed(importlib.abc.MetaPathFinder):
    """Imports one file of the package as a mutant has it."""

    def __init__(self, mutant: Mutant):
        self.name, self.path = module_name(mutant.file), ROOT / "fedlearn" / mutant.file
        self.code = compile(mutant.tree(self.path.read_text("utf-8")), str(self.path), "exec")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.name:
            return None
        loader = importlib.machinery.SourceFileLoader(name, str(self.path))
        loader.get_code = lambda fullname: self.code  # type: ignore[method-assign]
        return importlib.util.spec_from_file_location(name, self.path, loader=loader)


def module_name(file: str) -> str:
    return "fedlearn." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


class Plugin:
    """The few hypotheses, the tests that were chosen, a limit for each; and what they call."""

    def __init__(self, chosen: dict[str, float] | None = None, spy: Spy | None = None):
        self.chosen, self.spy = chosen, spy

    def pytest_sessionstart(self) -> None:
        from hypothesis import settings

        few: dict[str, Any] = {"derandomize": True, "deadline": None, "database": None}
        settings.register_profile("mutants", max_examples=25, **few)
        settings.load_profile("mutants")

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self.chosen is not None:
            items[:] = [i for i in items if i.nodeid in self.chosen]
            items.sort(key=lambda i: self.chosen[i.nodeid])
        else:
            items[:] = [i for i in items if i.get_closest_marker("alone") is None]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self.spy:
            self.spy.now = nodeid
        if self.chosen is not None:
            signal.setitimer(signal.ITIMER_REAL, 10 * self.chosen[nodeid] + 10)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self.spy:
            self.spy.now = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if self.spy:
            self.spy.seconds[report.nodeid] += report.duration
            if report.failed:
                self.spy.failed.add(report.nodeid)


class Spy:
    """Which test calls which function of the targets; "" is what a file does when imported."""

    def __init__(self) -> None:
        self.now = ""
        self.calls: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.seconds: Counter[str] = Counter()
        self.failed: set[str] = set()
        base = str(ROOT / "fedlearn") + os.sep
        self.files = {base + f: f for f in target_files()}

    def __call__(self, frame: types.FrameType, event: str, arg: Any) -> None:
        file = self.files.get(frame.f_code.co_filename)
        if file is not None:
            self.calls[file, frame.f_code.co_qualname].add(self.now)


def pytest_on(test_file: str, plugin: Plugin, *more: str) -> int:
    import pytest

    doctest = [] if test_file.startswith("tests/") else ["--doctest-modules"]
    quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
    quiet += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis is imported already
    return int(pytest.main([test_file, *doctest, *quiet, *more], plugins=[plugin]))


def spied(test_file: str) -> Any:
    import threading

    spy = Spy()
    sys.settrace(spy)
    threading.settrace(spy)
    code = pytest_on(test_file, Plugin(spy=spy))
    sys.settrace(None)
    return dict(spy.calls), dict(spy.seconds), spy.failed, code


def tried(mutant: Mutant, tests: list[tuple[str, dict[str, float]]]) -> Any:
    """("killed", file) or ("survived", ""): file by file, until a test fails."""
    try:
        sys.meta_path.insert(0, Changed(mutant))
        importlib.import_module(module_name(mutant.file))  # now: pytest's own finder comes first
    except Exception as e:  # neither compiles nor imports
        return "killed", type(e).__name__
    for file, chosen in tests:
        code = pytest_on(file, Plugin(chosen), "-x")
        if code in (1, 2):
            return "killed", file
        assert code in (0, 5), (code, file)
    return "survived", ""


# -- children -------------------------------------------------------------------------------------


def children(jobs: list[tuple[Any, ...]], at_once: int, limit: float) -> Iterator[tuple[int, Any]]:
    """Run every (function, *arguments) in a fork of its own. -> (which, what it returned)

    None comes back from one that took longer than its limit, or died.
    """
    watch, waiting = selectors.DefaultSelector(), list(enumerate(jobs))[::-1]
    running: dict[int, tuple[int, int, float]] = {}  # pipe -> which, process, since when
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                i, (function, *arguments) = waiting.pop()
                read, write = os.pipe()
                pid = os.fork()
                if not pid:
                    _child(function, arguments, write)
                os.close(write)
                running[read] = i, pid, time.monotonic()
                watch.register(read, selectors.EVENT_READ)
            ready = [key.fd for key, _ in watch.select(timeout=1)]
            late = [fd for fd, (_, _, t) in running.items() if time.monotonic() - t > limit]
            for fd in {*ready, *late}:
                i, pid, _ = running.pop(fd)
                watch.unregister(fd)
                if fd not in ready:
                    with suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)
                with os.fdopen(fd, "rb") as pipe:
                    said = pipe.read()
                with suppress(ProcessLookupError):  # whatever it has started
                    os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                yield i, pickle.loads(said) if said else None
    finally:
        for _, pid, _ in running.values():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def _child(function: Any, arguments: list[Any], write: int) -> None:
    os.setsid()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, in C code too
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2):
        os.dup2(nowhere, fd)
    code = 0
    try:
        said = pickle.dumps(function(*arguments))
        with os.fdopen(write, "wb") as pipe:
            pipe.write(said)
    except BaseException:
        import traceback

        with (KEPT / "errors.log").open("a") as log:
            traceback.print_exc(file=log)
        code = 1
    finally:
        os._exit(code)


# -- the tests of a function ----------------------------------------------------------------------


def target_files() -> list[str]:
    base = ROOT / "fedlearn"
    found = [p for t in TARGETS for p in sorted(base.glob(t)) if p.name != "__init__.py"]
    return [str(p.relative_to(base)) for p in found]


def test_files() -> list[str]:
    names = (p.name for p in sorted((ROOT / "tests").glob("test_*.py")))
    tests = [n for n in names if n.removeprefix("test_").removesuffix(".py") not in OTHERS]
    return [*(f"fedlearn/{f}" for f in target_files()), *(f"tests/{n}" for n in tests)]


class Reach:
    """Which tests reach a function, and how long each takes."""

    def __init__(self, at_once: int):
        self.calls: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
        self.seconds: dict[str, float] = {}
        self.kills: dict[str, Counter[str]] = defaultdict(Counter)
        kept = {t: KEPT / f"{self._mark(t)}.pickle" for t in test_files()}
        KEPT.mkdir(exist_ok=True)
        new = [t for t, path in kept.items() if not path.exists()]
        for i, found in children([(spied, t) for t in new], at_once, 3600):
            if found is None:
                sys.exit(f"mutants: {new[i]} did not end")
            temporary = kept[new[i]].with_suffix(f".{os.getpid()}")
            with temporary.open("wb") as file:  # a cache of its own, in the system's folder
                pickle.dump(found, file)
            temporary.replace(kept[new[i]])
            print(f"  {new[i]}: {sum(found[1].values()):.0f} s", flush=True)
        for test_file, path in kept.items():
            own, took, failed, code = pickle.loads(path.read_bytes())
            if failed or code not in (0, 5):
                print(f"  {test_file}: {sorted(failed) or code}; left out", flush=True)
            good = {t: s for t, s in took.items() if t not in failed}
            self.seconds |= good
            for function, by in own.items():
                tests = good if "" in by else by & set(good)  # "": as the file was collected
                self.calls[function] |= {(test_file, t) for t in tests}

    @staticmethod
    def _mark(test_file: str) -> str:
        """Of the package, what tests share, and the file: what decides who calls what."""
        text = (ROOT / test_file).read_text("utf-8")
        helpers = [p for p in (ROOT / "tests").glob("*.py") if not p.name.startswith("test_")]
        shared = [p for p in helpers if p.stem in text or p.stem in ("conftest", "problems")]
        files = sorted([*shared, *(ROOT / "fedlearn").rglob("*.py"), ROOT / test_file])
        content = b"".join(p.read_bytes() for p in files)
        return hashlib.sha256(content + test_file.encode()).hexdigest()[:16]

    def of(self, m: Mutant, most: float) -> list[tuple[str, dict[str, float]]]:
        """File by file the tests that reach a mutant: first where its neighbours were killed."""
        found = self.calls.get((m.file, m.function), set())
        if not m.function:  # at import: whoever calls anything there
            found = set().union(*(v for (file, _), v in self.calls.items() if file == m.file))
        by_file: dict[str, dict[str, float]] = defaultdict(dict)
        spent = 0.0
        for file, test in sorted(found, key=lambda ft: (self.seconds[ft[1]], ft)):
            if spent < most:
                by_file[file][test] = self.seconds[test]
                spent += self.seconds[test]
        rank = self.kills[m.file]
        return sorted(by_file.items(), key=lambda f: (-rank[f[0]], sum(f[1].values())))


# -- all of it ------------------------------------------------------------------------------------


def chosen(args: argparse.Namespace) -> list[Mutant]:
    files = [f for f in target_files() if not args.module or any(m in f for m in args.module)]
    some: list[Mutant] = []
    for file in files:
        all_of_it = mutants(file, (ROOT / "fedlearn" / file).read_text("utf-8"))
        if args.function:
            all_of_it = [m for m in all_of_it if args.function in m.function]
        n = min(args.sample or len(all_of_it), len(all_of_it))
        at = sorted(random.Random(f"{args.seed} {file}").sample(range(len(all_of_it)), n))
        some += [all_of_it[i] for i in at]
    return some


def show(m: Mutant) -> str:
    source = (ROOT / "fedlearn" / m.file).read_text("utf-8")
    before, after = (ast.unparse(t).splitlines() for t in (ast.parse(source), m.tree(source)))
    return "\n".join(difflib.unified_diff(before, after, m.file, m.id, lineterm="", n=2))


def report(some: list[Mutant], ends: dict[str, str], reasons: dict[str, str], how: str) -> str:
    kinds = ("killed", "timeout", "survived")
    table = [
        "| file | mutants | killed | by timeout | survived | no difference | killed of others |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    files = [*dict.fromkeys(m.file for m in some), "all"]
    for file in files:
        own = [m for m in some if file in (m.file, "all")]
        n = Counter(ends[m.key] for m in own)
        same = sum(ends[m.key] == "survived" and m.key in reasons for m in own)
        dead, alive = n["killed"] + n["timeout"], max(len(own) - same, 1)
        cells = [len(own), *(n[k] for k in kinds), same, f"{dead / alive:.1%}".replace("%", " %")]
        table.append(f"| {file} | {' | '.join(map(str, cells))} |")
    lines = ["# Mutants", "", f"Made by `python benchmarks/mutants.py{how}`.", "", *table]
    left = [m for m in some if ends[m.key] == "survived"]
    for title, which in (
        ("Survivors that no test has killed", [m for m in left if m.key not in reasons]),
        ("Survivors that make no difference", [m for m in left if m.key in reasons]),
    ):
        lines += ["", f"## {title}: {len(which)}"]
        for m in which:
            lines += ["", f"`{m.file}` {m.function or 'at import'} ({m.id})", "", "```diff"]
            lines += [f"  {m.line}", *(f"{c}" for c in _two(m)), "```"]
            lines += ["", reasons[m.key]] if m.key in reasons else []
    return "\n".join(lines) + "\n"


def _two(m: Mutant) -> list[str]:
    if m.change.startswith("left out"):
        return [f"- {m.line}"]
    old, _, new = m.change.partition(" -> ")
    return [f"- {old}", f"+ {new}"]


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--module", action="append", help="part of a file's name, e.g. loop.py")
    words.add_argument("--function", help="part of a function's name")
    words.add_argument("--sample", type=int, help="so many mutants of each file")
    words.add_argument("--seed", type=int, default=0, help="of the sample")
    words.add_argument("--jobs", type=int, default=1, help="children at once")
    words.add_argument("--most", type=float, default=300.0, help="seconds of tests a mutant")
    words.add_argument("--list", action="store_true", help="print them, run nothing")
    words.add_argument("--show", help="the diff of one, by its id")
    words.add_argument("--to", type=Path, help="the report; by default mutants.md if all are run")
    args = words.parse_args()
    os.chdir(ROOT)
    some = chosen(args)
    if args.show:
        print(*(show(m) for m in some if m.id == args.show), sep="\n")
        return
    if args.list:
        print(*(f"{m.id}  {m.key}" for m in some), f"{len(some)} mutants", sep="\n")
        return
    ready()
    reach = Reach(args.jobs)
    ends = run(some, reach, args)
    reasons = json.loads(REASONS.read_text("utf-8")) if REASONS.exists() else {}
    options = [f" --module {m}" for m in args.module or []]
    options += [f" --sample {args.sample} --seed {args.seed}"] if args.sample else []
    written = report(some, ends, reasons, "".join(options))
    whole = not (args.module or args.function or args.sample)
    to = args.to or (REPORT if whole else None)
    if to:
        from fedlearn.partition.files import write_whole  # not before: children import mutants

        write_whole(to, written.encode())
    print("\n" + written)


def ready() -> None:
    """Everything heavy is imported once, and nothing of the package."""
    sys.path[:0] = [str(ROOT)]
    sys.path = [p for p in sys.path if p != str(ROOT / "benchmarks")]
    os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FEDLEARN_FAST": "1"}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # a second each time
    for name in HEAVY:
        with suppress(ImportError):
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    assert "fedlearn" not in sys.modules
    gc.collect()
    gc.freeze()  # what the children share is never looked through again


def run(some: list[Mutant], reach: Reach, args: argparse.Namespace) -> dict[str, str]:
    ends: dict[str, str] = {}
    begun = time.monotonic()
    order = random.Random(0).sample(some, len(some)) if args.jobs > 1 else some

    jobs = [(Try(m, reach, args.most),) for m in order]
    for i, found in children(jobs, args.jobs, 3600):
        m = order[i]
        end, file = found or ("timeout", "")
        ends[m.key] = end
        if end == "killed":
            reach.kills[m.file][file] += 1
        spent = time.monotonic() - begun
        print(f"{len(ends):5}/{len(some)} {spent:6.0f} s  {end:8} {m.id} {m.key}", flush=True)
    return ends


@dataclass
class Try:
    """Called in the child: which tests are asked first follows the kills before it."""

    mutant: Mutant
    reach: Reach
    most: float

    def __call__(self) -> Any:
        return tried(self.mutant, self.reach.of(self.mutant, self.most))


if __name__ == "__main__":
    main()
