"""What every lesson looks like, as rules over a notebook: each gives its complaints, in words.

Tags, order of execution, errors and links have rules of their own in ``test_notebooks.py``,
``test_notation.py`` and ``test_glossary.py``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from string import ascii_uppercase

import nbformat

LAST = ["Exercises", "What to remember", "Sources", "Further experiments"]  # in this order
HINT, MAIN, LINES = "<details><summary>Hint", 36, 15
PLAYGROUND = "00"  # no lesson: three challenges, and no more
NO_QUESTION = "20"  # asks to be asked


def tags(cell: nbformat.NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", ()))


def hidden(cell: nbformat.NotebookNode) -> bool:
    return bool(cell.metadata.get("jupyter", {}).get("source_hidden"))


def headings(nb: nbformat.NotebookNode) -> list[str]:
    texts = [c.source for c in nb.cells if c.cell_type == "markdown"]
    return [h.strip() for text in texts for h in re.findall(r"^#{1,2} (.*)$", text, re.MULTILINE)]


def order(nb: nbformat.NotebookNode, number: str) -> Iterator[str]:
    """A question, minutes and objectives, a notation, and how a lesson ends."""
    first, titles = nb.cells[0].source, headings(nb)
    if not first.startswith("# "):
        yield "cell 0: a lesson begins with its title, e.g. '# Where does drift go?'"
    elif not titles[0].endswith("?") and number != NO_QUESTION:
        yield f"cell 0: the title is a question, got {titles[0]!r}"
    opening = "\n".join(c.source for c in nb.cells[:2] if c.cell_type == "markdown")
    if number == PLAYGROUND:
        return
    says = r"^\| After this lesson you can \| about (\d+) minutes \|"
    if not (minutes := re.search(says, opening, re.M)):
        yield "cell 0: says what it takes: '| After this lesson you can | about 45 minutes |'"
    else:
        each = [int(m) for m in re.findall(r"^\| [^|]+ \| (\d+) \|$", opening, re.M)]
        if len(each) < 2 or sum(each) != int(minutes[1]):
            yield f"cell 0: two objectives or more, {minutes[1]} minutes together, got {each}"
    if "(notation.md" not in "".join(c.source for c in nb.cells):
        yield "links to notation.md beside its table of symbols"
    ends = [t for t in titles if t in LAST]
    if ends != LAST:
        yield f"ends with {LAST}, in this order, got {ends}"
    elif titles[-4:] != LAST:
        yield f"nothing but {LAST} stands at the end, got {titles[-5:]}"
    if not any("predict" in c.source.lower() for c in nb.cells if c.cell_type == "markdown"):
        yield "asks for a prediction before a slider moves"


def counted(nb: nbformat.NotebookNode) -> Iterator[str]:
    """Sections have numbers and further experiments letters, without a gap."""
    text = "\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
    numbers = re.findall(r"^## (\w+)\. ", text, re.M)
    letters = re.findall(r"^### ([A-Z])\. ", text, re.M)
    if numbers != [str(i) for i in range(1, len(numbers) + 1)]:
        yield f"sections are counted without a gap, got {numbers}"
    if letters != [*ascii_uppercase[: len(letters)]]:
        yield f"experiments are counted without a gap, got {letters}"


def to_read(source: str) -> int:
    """Lines of code, without imports and the sentences of ``plots.show``."""
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        shows = isinstance(node, ast.Expr) and ast.unparse(node).startswith("plots.show(")
        if shows or isinstance(node, ast.Import | ast.ImportFrom):
            skipped |= {*range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return sum(bool(s.strip()) and i not in skipped for i, s in enumerate(source.splitlines(), 1))


def cells(nb: nbformat.NotebookNode) -> Iterator[str]:
    """How long cells are, and how many are in the main line; collapsed ones are not read."""
    main = 0
    for i, c in enumerate(nb.cells):
        if c.cell_type != "code" or hidden(c):
            continue
        main += not tags(c) & {"exercise", "solution", "further"}
        if (lines := to_read(c.source)) > LINES:
            yield f"cell {i}: {lines} visible lines, at most {LINES}: {c.source[:50]!r}"
    if main > MAIN:
        yield f"{main} code cells in the main line, at most {MAIN}: move some further down"


def figures(nb: nbformat.NotebookNode) -> Iterator[str]:
    """Each picture has its text alternative, a sentence."""
    for i, c in enumerate(nb.cells):
        for o in c.outputs if c.cell_type == "code" and "panel" not in tags(c) else ():
            if "image/png" in o.get("data", {}):
                alt = o.metadata.get("image/png", {}).get("alt", "")
                if len(alt.split()) < 5 or not alt.endswith("."):
                    yield f"cell {i}: a picture without a sentence: plots.show(fig, '...'), {alt!r}"


def exercises(nb: nbformat.NotebookNode, number: str) -> Iterator[str]:
    """Each has a hint, and one asks why."""
    texts = [(i, c.source) for i, c in enumerate(nb.cells)
             if c.cell_type == "markdown" and "exercise" in tags(c)]  # fmt: skip
    yield from (f"cell {i}: an exercise without a hint" for i, s in texts if HINT not in s)
    for i, c in enumerate(nb.cells):
        if c.cell_type == "code" and "solution" in tags(c):
            if c.outputs and not c.metadata.get("jupyter", {}).get("outputs_hidden"):
                yield f"cell {i}: what a solution prints is collapsed, too: outputs_hidden"
    if number != PLAYGROUND and not any(re.search(r"\bwhy\b", s, re.IGNORECASE) for _, s in texts):
        yield "no exercise asks why"


def all_of(nb: nbformat.NotebookNode, number: str) -> list[str]:
    """Every complaint about a lesson, which is called NN_name."""
    return [*order(nb, number), *counted(nb), *cells(nb), *figures(nb), *exercises(nb, number)]
