"""Every lesson has the course's shape and can be cut by its tags; a rule that is broken is said."""

from __future__ import annotations

import copy
import doctest
import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pytest
import skeleton
from needed import needed, shows_a_panel

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
spec = importlib.util.spec_from_file_location("cut", ROOT / "tools" / "cut.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

LESSONS = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
text, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell


@LESSONS
def test_a_lesson_has_the_course_s_shape(path):
    assert skeleton.all_of(nbformat.read(path, as_version=4), path.stem[:2]) == []


def test_the_handout_has_short_cells_and_pictures_with_a_sentence():
    nb = nbformat.read(ROOT / "teaching" / "your_own.ipynb", as_version=4)
    assert [*skeleton.cells(nb), *skeleton.figures(nb)] == []


OBJECTIVES = (
    "| After this lesson you can | about 45 minutes |\n|---|---|\n| see | 20 |\n| say | 25 |\n"
)


def whole() -> nbformat.NotebookNode:
    """A lesson with nothing in it that breaks no rule."""
    alt = {"image/png": {"alt": "Loss falls, then it rises."}}
    picture = nbformat.v4.new_output("display_data", {"image/png": "AA"}, metadata=alt)
    exercise = "**Exercise 1.** Why? <details><summary>Hint</summary>Look.</details>"
    cells = [
        text("# Why?\n\n" + OBJECTIVES), text("[the course's](notation.md)"),
        code("1", metadata={"tags": ["figure"]}, outputs=[picture]), text("Predict, then move."),
        text("## Exercises"), text(exercise, metadata={"tags": ["exercise"]}),
        text("## What to remember"), text("## Sources"), text("## Further experiments"),
    ]  # fmt: skip
    return nbformat.v4.new_notebook(cells=cells)


def change(at, **how):
    def broken(nb):
        for key, value in how.items():
            setattr(nb.cells[at], key, value)

    return broken


BROKEN = {
    "begins with its title": change(0, source=OBJECTIVES),
    "the title is a question": change(0, source="# Because\n\n" + OBJECTIVES),
    "says what it takes": change(0, source="# Why?\n\nIt takes a while."),
    "45 minutes together, got [20]": change(0, source="# Why?\n\n" + OBJECTIVES[:-13]),
    "45 minutes together, got [20, 26]": change(
        0, source="# Why?\n\n" + OBJECTIVES.replace("| 25", "| 26")
    ),
    "links to notation.md": change(1, source=""),
    "in this order": change(6, source="## Other"),
    "nothing but": lambda nb: nb.cells.append(text("## One more")),
    "sections are counted": change(3, source="## 1. Predict\n## 3. Move"),
    "experiments are counted": change(8, source="## Further experiments\n### B. Move"),
    "asks for a prediction": change(3, source="Move."),
    "16 visible lines": change(2, source="\n".join(["1"] * 16)),
    "37 code cells in the main line": lambda nb: nb.cells.extend([code("1")] * 36),
    "a picture without a sentence": lambda nb: nb.cells[2].outputs[0].metadata.clear(),
    "without a hint": change(5, source="**Exercise 1.** Why?"),
    "outputs_hidden": lambda nb: nb.cells.insert(
        6, code("1", metadata={"tags": ["solution"]}, outputs=[nbformat.v4.new_output("stream")])
    ),
    "asks why": change(5, source="**Exercise 1.** How? <details><summary>Hint</summary></details>"),
}


@pytest.mark.parametrize(
    ("source", "lines"),
    [("", 0), ("a = 1\n\n# why\nb = 2", 3), ("import os\nfrom re import (\n    sub,\n)\na = 1", 1),
     ('plots.show(\n    fig,\n    "a "\n    "b.",\n)\nf(1)', 1), ("fig.show(\n    1,\n)", 3)],
)  # fmt: skip
def test_lines_that_are_read(source, lines):
    assert skeleton.to_read(source) == lines


def test_nothing_is_said_of_a_lesson_that_has_it():
    assert skeleton.all_of(whole(), "07") == []


@pytest.mark.parametrize("rule", BROKEN)
def test_a_rule_that_is_broken_is_said(rule):
    nb = copy.deepcopy(whole())
    BROKEN[rule](nb)
    (said,) = skeleton.all_of(nb, "07")
    assert rule in said


def test_the_map_in_the_readme_has_every_lesson_with_its_minutes():
    rows = re.findall(r"^\| (\d\d) \| .*\| (\d+) \|$", (ROOT / "README.md").read_text(), re.M)
    said = {}
    for path in NOTEBOOKS:
        first = nbformat.read(path, as_version=4).cells[0].source
        said[path.stem[:2]] = re.search(r"about (\d+) minutes", first)[1]
    assert dict(rows) == said


# -- tools/cut.py ---------------------------------------------------------------------------------


def test_cuts_examples_run():
    assert doctest.testmod(tool).failed == 0


@LESSONS
def test_a_lesson_can_be_cut_to_its_panels(path, tmp_path):
    """No cell that a panel needs is left out; nothing but panels and what they need is left."""
    short = tmp_path / "short.ipynb"
    assert tool.main([str(path), str(short), "--keep", "setup", "panel"]) == 0
    whole, nb = (nbformat.read(p, as_version=4) for p in (path, short))
    nbformat.validate(nb)
    panels = {i for i, c in enumerate(nb.cells) if shows_a_panel(c)}
    assert len(panels) == sum(map(shows_a_panel, whole.cells))
    assert {*needed(nb.cells, panels)} | panels == {
        i for i, c in enumerate(nb.cells) if c.cell_type == "code"
    }


@LESSONS
def test_a_lesson_can_be_cut_to_a_sheet_without_solutions(path, tmp_path):
    short = tmp_path / "sheet.ipynb"
    tool.main([str(path), str(short), "--drop", "solution", "further"])
    whole, nb = (nbformat.read(p, as_version=4) for p in (path, short))
    assert [c.id for c in nb.cells] == [
        c.id for c in whole.cells if not {*c.metadata.get("tags", ())} & {"solution", "further"}
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no.ipynb", "new.ipynb", "--keep", "setup"], "no notebook that can be read"),
        (["bad.ipynb", "new.ipynb", "--keep", "setup"], "no notebook that can be read"),
        (["good.ipynb", "good.ipynb", "--keep", "setup"], "is there already"),
        (["good.ipynb", "new.ipynb", "--keep", "cheese"], "invalid choice"),
    ],
)
def test_what_can_t_be_cut_is_said_and_nothing_is_written(
    words, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("bad.ipynb").write_text("[]")
    good = json.dumps(nbformat.v4.new_notebook())
    Path("good.ipynb").write_text(good)
    with pytest.raises(SystemExit):
        tool.main(words)
    assert said in capsys.readouterr().err
    assert sorted(f.name for f in tmp_path.iterdir()) == ["bad.ipynb", "good.ipynb"]
    assert Path("good.ipynb").read_text() == good
