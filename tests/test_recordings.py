"""Pages without a browser: what is recorded is what an engine computes, and each formula is one."""

from __future__ import annotations

import base64
import doctest
import gzip
import itertools
import json
import os
import tomllib
from pathlib import Path

import nbformat
import numpy as np
import pytest
from pages import markdown, pack, record, recordings, student
from pages.lessons import Lesson, lesson, lessons
from pages.page import page

from fedlearn.panels import Curve, Explorable, Panel, Settings, controls, frames

ROOT = Path(__file__).parents[1]
GRIDS = tomllib.loads(recordings.GRIDS.read_text(encoding="utf-8"))
STEMS = [x.stem for x in lessons()]


class Read:
    """A second reader of the format, beside player.js: from the words in pack.py."""

    def __init__(self, text: str):
        data = gzip.decompress(base64.b64decode(text))
        n_text, n_words, n_bytes = np.frombuffer(data[:12], "<u4").tolist()
        self.header = json.loads(data[12 : 12 + n_text])
        rest = data[12 + n_text :]
        assert len(rest) == 3 * n_words + n_bytes
        planes = np.frombuffer(rest[: 3 * n_words], np.uint8).reshape(3, n_words).astype(np.uint32)
        words = (planes[0] << 24) | (planes[1] << 16) | (planes[2] << 8)
        self.numbers, self.bytes = words.view(np.float32), rest[3 * n_words :]

    def ints(self, ref: list[int]) -> np.ndarray:
        at, n = ref
        low = np.frombuffer(self.bytes[at : at + n], np.uint8).reshape(3, n // 3).astype(int)
        return low[0] + 256 * low[1] + 65536 * low[2]

    def settings(self) -> list[tuple[list[str], int]]:
        """(the controls as they are said, which run) of each."""
        knobs = [c for c in self.header["controls"] if "heading" not in c]
        rows = self.ints(self.header["settings"]).reshape(-1, 3 * len(knobs) + 1)
        return [([c["stops"][i] for c, i in zip(knobs, row)], int(row[-1])) for row in rows]

    def trait(self, view: int, name: str, run: int, frame: int):
        column = self.header["views"][view]["traits"][name]
        if "c" in column:
            return column["c"]
        if "r" in column:
            return column["u"][self.ints(column["r"])[run]]
        return column["u"][self.ints(column["f"])[self.ints(column["s"])[run] + frame]]

    def floats(self, value: dict) -> np.ndarray:
        return np.concatenate([self.numbers[at : at + n] for at, n in value["$f"]])


def halves(start: float, by: str, noise: float = 0.0):
    for t in range(41):
        yield {"height": start / (2.0 if by == "two" else 3.0) ** t + noise}


@pytest.fixture
def panel():
    knobs = {
        "head": controls.heading("ALL"),
        "start": controls.slider("Start", 8, 1, 9),
        "by": controls.menu("By", ["two", "three"], "two"),
        "noise": controls.float_slider("Noise", 0.0, 0.0, 1.0),
    }
    made = Explorable(knobs, halves, [Curve("height", log=True)], rounds=40)
    yield made
    made.close()


def test_what_is_recorded_is_what_the_engine_computes(panel):
    before = panel.engine.snapshot()
    made = record.record(panel, [{"start": [1, 8], "by": ["two", "three"]}])
    read = Read(made["data"])
    assert made["settings"] == 4 and made["runs"] == 4
    for (start, by, noise), run in read.settings():
        assert noise == "0"
        want = [row["height"] for row in halves(float(start), by)]
        frame = len(read.header["at"][run]) - 1
        got = read.floats(read.trait(0, "y", run, frame))
        np.testing.assert_allclose(got, want, rtol=2**-15)
    assert panel.engine.snapshot().params == before.params and panel.controls["start"].value == 8
    assert read.header["at"][0][0] == 0 and read.header["at"][0][-1] == 40
    assert len(read.header["at"][0]) == record.FRAMES


@pytest.mark.slow
def test_lesson_1_on_its_page_is_lesson_1_in_the_notebook(monkeypatch):
    """Its real grid, each setting trained again; with FEDLEARN_FAST each thirteenth."""
    few = 13 if os.environ.get("FEDLEARN_FAST") else 1
    monkeypatch.setenv("FEDLEARN_FAST", "1")
    [(name, live)] = recordings.panels(lesson(STEMS[1]))
    grids = [record.checked(grid, live.controls) for grid in GRIDS["01"][name]]
    each = [dict(zip(g, values)) for g in grids for values in itertools.product(*g.values())][::few]
    read = Read(record.record(live, [{k: [v] for k, v in one.items()} for one in each])["data"])
    start = vars(live.settings())
    live.close()
    wanted = list({str(v): v for v in (start, *({**start, **one} for one in each))}.values())
    assert len(wanted) > 60 / few
    for (said, run), settings in zip(read.settings(), wanted, strict=True):
        *_, last = fresh = list(frames(Settings(**settings)))
        got = read.floats(read.trait(0, "y", run, -1))[-len(fresh) :]
        np.testing.assert_allclose(got, [f["loss"] for f in fresh], rtol=2**-15, err_msg=str(said))
        frame = len(read.header["at"][run]) - 1
        assert read.trait(2, "items", run, frame)[0] == f"accuracy {last['accuracy']:.3f}", said


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"end": [1]}, "the panel's controls are start, by, noise"),
        ({"start": [10]}, "start can't be 10; it goes from 1 to 9"),
        ({"by": ["four"]}, "by can't be 'four'; there are two, three"),
    ],
)
def test_a_grid_that_the_panel_has_not_is_refused_in_words(panel, grid, said):
    with pytest.raises(ValueError, match=said):
        record.record(panel, [grid])


def test_without_a_grid_the_first_slider_meets_each_other_control(panel):
    [one, two] = record.default_grids(dict(list(panel.controls.items())[1:]))
    assert list(one) == ["start", "by"] and list(two) == ["start", "noise"]
    assert one["by"] == ["two", "three"] and 8 in one["start"] and {1, 9} <= {*one["start"]}


def test_what_makes_no_difference_is_run_once():
    panel = Panel(show=("partition", "alpha"), rounds=2)
    made = record.record(panel, [{"alpha": [0.1, 1.0], "partition": ["iid"]}])
    panel.close()
    assert (made["settings"], made["runs"]) == (3, 2)


def test_every_grid_belongs_to_a_panel():
    for x in lessons():
        tagged = {c["id"] for c in recordings.needed(x) if "panel" in recordings.tags(c)}
        assert set(GRIDS.get(x.stem[:2], {})) == tagged, x.stem


def test_a_float_keeps_24_bits_and_what_is_not_finite():
    values = np.array([1e-12, 1 / 3, -7e8, 0.0, np.nan, np.inf, -np.inf], np.float32)
    pool = pack.Pool()
    ref = pool.floats(values)
    assert pool.floats(values.copy()) == ref, "kept once"
    got = Read(pool.packed({})).numbers
    np.testing.assert_allclose(got, values, rtol=2**-15)


def test_a_recording_is_kept_until_the_code_changes(tmp_path):
    file = tmp_path / "a.py"
    file.write_text('"""One."""\n\n\ndef f(x):\n    "Two."\n    return x  # three\n')
    was = recordings.code_of(file)
    file.write_text('"""Eins."""\ndef f(x):\n    "Zwei."\n    return x\n')
    assert recordings.code_of(file) == was
    file.write_text('"""One."""\ndef f(x):\n    "Two."\n    return -x\n')
    assert recordings.code_of(file) != was


def test_what_was_recorded_is_not_run_again(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(recordings, "record", lambda panel, grids: ran.append(grids) or {
        "data": "AAAA", "settings": 1, "runs": 1})  # fmt: skip
    monkeypatch.setattr(recordings, "panels", lambda given: [
        (c["id"], type("P", (), {"close": lambda self: None})())
        for c in recordings.needed(given) if "panel" in recordings.tags(c)])  # fmt: skip
    first, _ = recordings.recordings(STEMS[2], tmp_path)
    again, _ = recordings.recordings(STEMS[2], tmp_path)
    assert first == again and len(ran) == len(first) == 2
    monkeypatch.setattr(recordings, "_code", lambda: ["other"])
    recordings.recordings(STEMS[2], tmp_path)
    assert len(ran) == 4


def test_a_formula_that_is_none_is_named():
    cell = {"cell_type": "markdown", "metadata": {}, "source": "# A\n\n$\\frac{1$"}
    with pytest.raises(ValueError, match=r"00_x: pages: not a formula: '\\\\frac\{1'"):
        page(Lesson("00_x", [cell]))


def test_a_text_becomes_what_it_says():
    made = markdown.Renderer()
    text = made.html(
        "## Why $p_k$?\n\n[one](07_client_drift.ipynb) [two](notation.md) [three](../x.md) "
        "`08_correcting_drift.ipynb`\n\n$$\\sum_k p_k = 1$$\n\n| a |\n|---|\n| 1 |\n"
    )
    assert '<h2 id="why-pk">' in text and made.headings[0][1] == "why-pk"
    assert 'href="07_client_drift.html"' in text and 'href="notation.html"' in text
    assert "x.md" not in text and 'href="08_correcting_drift.html"' in text
    assert text.count("<math") == 2 and 'display="block"' in text and '<div class="table">' in text


def test_a_student_gets_no_solution_and_no_answer():
    assert doctest.testmod(student).failed == 0
    for stem in STEMS:
        whole = json.loads((ROOT / "notebooks" / f"{stem}.ipynb").read_text(encoding="utf-8"))
        made = student.exported(whole)
        nbformat.validate(nbformat.from_dict(made))
        left = [c for c in whole["cells"] if c["id"] not in {x["id"] for x in made["cells"]}]
        assert all({"solution", "check"} & student.tags(c) for c in left), stem
        assert sum("solution" not in student.tags(c) for c in left) <= 1, stem
        text = json.dumps(made)
        assert "<summary>Solution" not in text and "not answered yet\\\\n" not in text
        questions = [c for c in made["cells"] if student._is_question(c)]
        assert len(questions) >= 4 or stem[:2] in ("00", "20")
        notes = [c for c in made["cells"] if "doesn't hold the answer" in "".join(c["source"])]
        names = student._names(notes, student.ast.Store)
        assert not any(c["outputs"] for c in notes)
        for c in questions:
            assert c in notes or student._asked(c) & names, f"{stem}: {c['source']}"
