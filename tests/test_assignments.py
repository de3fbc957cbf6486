"""The graded assignments: Otter builds them, and gives right, half right, wrong and empty answers
what they deserve.

Everything is Otter's own: ``otter assign``, its zip, its test files, its checker. One notebook is
graded in a kernel, as ``otter run`` does it; that takes five seconds, so for the others the cells
are run in this process.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import importlib.util
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from test_notation import GIVEN_UP, KNOWN, disagreements, words_of

ROOT = Path(__file__).parents[1]
MASTERS = sorted((ROOT / "teaching" / "assignments").glob("*.ipynb"))
POINTS = {
    "session1": {"q1": 3, "q2": 5, "q3": 4, "q4": 4, "q5": 4},
    "session2": {"q1": 3, "q2": 4, "q3": 4, "q4": 4, "q5": 5},
    "session3": {"q1": 3, "q2": 5, "q3": 5, "q4": 4, "q5": 3},
}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Otter's dependencies
spec = importlib.util.spec_from_file_location("grade", ROOT / "tools" / "grade.py")
grade = importlib.util.module_from_spec(spec)
spec.loader.exec_module(grade)

# Of each question the answer of a common misconception, as a change of the right one, and what it
# still gets.
Wrong = dict[str, tuple[str, str, int]]
WRONG: dict[str, Wrong] = {
    "session1": {
        "q1": ("n / n.sum()", "n / np.sum(sizes)", 1),  # shares of all, not of the cohort
        "q2": ("n / total * np", "1 / len(good) * np", 2),  # unweighted: nobody, in place
        "q3": ("len(y) / n * client", "1 / len(clients) * client", 3),  # unweighted
        "q4": ("gradient(w, X, y)", "gradient(path[-1], X, y)", 2),  # E times the first gradient
        "q5": ("* E * len(tumours.y)", "* len(tumours.y)", 3),  # rounds counted as gradients
    },
    "session2": {
        "q1": ("others / others", "(others + counts) / (others + counts)", 0),  # from the whole
        "q2": ("np.argsort(labels[rest]", "np.argsort(rest", 2),  # sorted by row, not by label
        "q3": ("** tau", "** tau.mean()", 1),  # a mean number of steps for all
        "q4": ("(1 - (1 - lr * a) ** (1 / E)) / a", "lr / a + 0 * E", 0),  # less for the steep
        "q5": ("(n / n.sum()) @ c_k", "c_k.mean()", 1),  # the variates averaged uniformly
    },
    "session3": {
        "q1": ("np.exp(b) / np.exp(b).sum()", "np.full(10, 0.1)", 1),  # the biases forgotten
        "q2": ("n_k * np.asarray(delta)", "np.asarray(delta)", 1),  # unweighted
        "q3": ("np.sqrt(threshold), len", "threshold, len", 3),  # standard deviations don't add
        "q4": ("n[g] @ deltas[g] / n[g].sum()", "deltas[g].mean(0)", 1),  # unweighted
        "q5": ("(groups - 1) // 2", "groups // 2 + 1", 2),  # one too many
    },
}
ALSO: dict[str, list[Wrong]] = {  # a question's second misconception
    "session1": [{"q5": ("r.t + 1", "r.t", 2)}],  # rounds counted from 0
}
HALF = ("q1", "q3", "q5")  # answered rightly; the others are left as they were handed out


def run_here(self: object, nb: nbformat.NotebookNode) -> tuple[nbformat.NotebookNode, dict]:
    """In the place of a kernel: run the cells one after the other, whatever they raise."""
    space = {"__name__": "__main__"}
    for cell in nb.cells:
        if cell.cell_type == "code":
            with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                exec(compile(cell.source, "<cell>", "exec"), space)
    return nb, {}


def otter(name: str) -> Any:
    """A module of Otter, imported when it is needed: that takes two seconds."""
    return pytest.importorskip(name, reason="needs otter-grader: pip install -e .[teach]")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path], dict[str, float]]:
    """Otter's grading without a kernel: (notebook, folder of otter assign) -> points."""
    checker = otter("otter.execute").Checker
    monkeypatch.setattr("nbconvert.preprocessors.ExecutePreprocessor.preprocess", run_here)
    monkeypatch.setattr("otter.execute.start_server", lambda: (("", 0), lambda: None))
    monkeypatch.setattr("otter.logging.send_logs", lambda *where: None)  # a kernel's, to the server
    monkeypatch.setattr("otter.logging.set_level", lambda level: None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PATH", os.environ["PATH"])
    notebook = otter("otter.check.notebook").Notebook
    for owner in (notebook, checker):  # what the cells switch on is switched off after the test
        for name, value in vars(owner).items():
            if name.startswith("_") and isinstance(value, bool | list | None):
                monkeypatch.setattr(owner, name, value)

    def points(notebook: Path, built: Path) -> dict[str, float]:
        checker.clear_results()
        with contextlib.redirect_stdout(io.StringIO()):
            results = otter("otter.api").grade_submission(
                str(notebook), str(grade.autograder(built))
            )
        return {name: file.score for name, file in results.results.items()}

    return points


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What ``otter assign`` makes of an assignment."""
    done: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp(name) / "built"
            master = ROOT / "teaching" / "assignments" / f"{name}.ipynb"
            otter("otter.assign").main(str(master), str(done[name]), no_run_tests=True)
        return done[name]

    return folder


def versions(built: Path) -> tuple[nbformat.NotebookNode, nbformat.NotebookNode]:
    """The autograder's notebook, which holds the answers, and the students'."""
    paths = [next(built.glob(f"{who}/*.ipynb")) for who in ("autograder", "student")]
    solved, blank = (nbformat.read(path, as_version=4) for path in paths)
    return solved, blank


def answers(nb: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells that students fill in, one a question; tagged in their version."""
    return [c for c in nb.cells if "otter_answer_cell" in c.metadata.get("tags", ())]


def handed_in(built: Path, to: Path, right: tuple[str, ...], wrong: Wrong | None = None) -> Path:
    """A student's notebook with these questions answered, some of them wrongly."""
    solved, blank = versions(built)
    marked = copy.deepcopy(blank)
    places = [i for i, c in enumerate(blank.cells) if c in answers(blank)]
    assert len(places) == 5
    for number, i in enumerate(places, 1):
        source, name = solved.cells[i].source, f"q{number}"
        if wrong and name in wrong:
            old, new, _ = wrong[name]
            assert source.count(old) >= 1, f"{name}: {old!r} isn't in the answer any more"
            source = source.replace(old, new)
        if name in right:
            marked.cells[i].source = source
    nbformat.write(marked, to)
    return to


def test_there_are_three_sessions():
    assert [path.stem for path in MASTERS] == list(POINTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", POINTS)
def test_right_half_wrong_and_empty_answers_get_what_they_deserve(
    name, built, here, tmp_path, closed_network
):
    folder, full, wrong = built(name), POINTS[name], WRONG[name]
    everything = tuple(full)
    points = lambda *what: here(handed_in(folder, tmp_path / f"{name}.ipynb", *what), folder)
    assert points(everything) == full
    assert points(HALF) == {q: most * (q in HALF) for q, most in full.items()}
    for some in (wrong, *ALSO.get(name, [])):
        assert points(everything, some) == full | {q: left for q, (_, _, left) in some.items()}
    assert points(()) == dict.fromkeys(full, 0)
    assert closed_network == []  # neither building nor grading asked for anything


@pytest.mark.slow
@pytest.mark.parametrize("path", MASTERS, ids=lambda p: p.stem)
def test_students_get_no_answer_and_no_hidden_test(path, built):
    folder = built(path.stem)
    (given,) = (p for p in folder.glob("student/**/*") if p.is_file())
    text = "\n".join(c.source for c in nbformat.read(given, as_version=4).cells)
    stored = given.read_text(encoding="utf-8")
    secret = secrets(nbformat.read(path, as_version=4))
    assert len(secret) > 60
    assert [line for line in secret if line in text or json.dumps(line)[1:-1] in stored] == []
    assert not any(c.get("outputs") for c in nbformat.read(given, as_version=4).cells)
    with zipfile.ZipFile(grade.autograder(folder)) as zipped:  # they are where they belong
        tests = "".join(zipped.read(f"tests/{q}.py").decode() for q in POINTS[path.stem])
    assert tests.count("'hidden': True") == sum("# HIDDEN" in c.source for c in code(path))


def code(path: Path) -> list[nbformat.NotebookNode]:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def secrets(master: nbformat.NotebookNode) -> list[str]:
    """Lines that stand in a solution or a hidden test, and nowhere else in the notebook."""
    hidden, shown = set(), set()
    for cell in master.cells:
        inside = cell.source.startswith("# HIDDEN")
        for line in cell.source.splitlines():
            inside = inside or "# BEGIN SOLUTION" in line
            here = hidden if inside or line.endswith("# SOLUTION") else shown
            here.add(line.removesuffix("# SOLUTION").strip())
            inside = inside and "# END SOLUTION" not in line
    return sorted(line for line in hidden - shown if len(line) > 5)


@pytest.mark.parametrize("path", MASTERS, ids=lambda p: p.stem)
def test_an_assignment_writes_as_the_lessons_do(path):
    words = words_of(path)
    assert disagreements(words, KNOWN) == []
    math = " ".join(re.findall(r"\$\$.+?\$\$|\$[^$]+\$", words, re.DOTALL))
    assert [old for old in GIVEN_UP if re.search(old, math)] == []
    minutes = [int(m) for m in re.findall(r"^\| \d\. .*\| (\d+) \|$", words, re.MULTILINE)]
    stated = [
        int(m) for m in re.findall(r"^## Question \d\..*\((\d) points\)", words, re.MULTILINE)
    ]
    assert stated == [*POINTS[path.stem].values()] and sum(stated) == 20
    assert 50 <= sum(minutes) <= 75  # a student's hour


@pytest.mark.parametrize("path", MASTERS, ids=lambda p: p.stem)
def test_an_assignment_is_stored_as_it_runs_and_every_example_is_right(path):
    cells = code(path)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1)), "not run in order"
    assert all(o.output_type == "stream" and o.name == "stdout" for c in cells for o in c.outputs)
    said = "".join(o.text for c in cells for o in c.outputs)
    assert all(f"Question {n}: the example is right" in said for n in range(1, 6))


@pytest.mark.slow
@pytest.mark.parametrize("path", MASTERS, ids=lambda p: p.stem)
def test_an_unanswered_question_stops_nothing(path, built):
    space: dict[str, object] = {}
    for cell in versions(built(path.stem))[1].cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, "<cell>", "exec"), space)


def test_the_instructor_reads_what_mistakes_cost():
    text = (MASTERS[0].parent / "README.md").read_text(encoding="utf-8")
    said = re.findall(r"^\| (\d)\.(\d) \|.*\| (\d) of (\d) \|$", text, re.MULTILINE)
    cost = [
        (name[-1], q[-1], str(left), str(POINTS[name][q]))
        for name in WRONG
        for wrong in (WRONG[name], *ALSO.get(name, []))
        for q, (_, _, left) in wrong.items()
    ]
    assert said == sorted(cost, key=lambda row: row[:2])


@pytest.mark.slow
def test_another_sessions_notebook_is_refused(built, here, tmp_path):
    other = handed_in(built("session2"), tmp_path / "by mistake.ipynb", ("q1",))
    with pytest.raises(RuntimeError, match="for assignment 'session2'"):
        here(other, built("session1"))


def table(path: Path) -> list[dict[str, str]]:
    return [*csv.DictReader(path.read_text(encoding="utf-8").splitlines())]


@pytest.mark.slow
def test_a_notebook_is_graded_in_a_kernel_and_put_into_a_table(
    built, tmp_path, capsys, monkeypatch
):
    folder, handed = built("session1"), tmp_path / "handed in"
    handed.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    handed_in(folder, handed / "ada.ipynb", tuple(POINTS["session1"]))
    assert grade.main([str(folder), str(handed), str(tmp_path / "grades.csv")]) == 0
    (ada,) = table(tmp_path / "grades.csv")
    assert {q: float(ada[q]) for q in POINTS["session1"]} == POINTS["session1"]
    assert float(ada["score"]) == float(ada["of"]) == 20 and ada["trouble"] == ""
    assert "20 of 20" in capsys.readouterr().out


OTTER_THAT_FAILS = """
import sys, time
if "hangs" in sys.argv[2]:
    time.sleep(60)
sys.exit("a traceback\\nOtterRuntimeError: this isn't the assignment")
"""


@pytest.mark.slow
def test_what_cannot_be_graded_is_a_row_and_stops_nobody(tmp_path, monkeypatch):
    for name in ("built/autograder/x-autograder_1.zip", "in/b/refused.ipynb",
                 "in/hangs.ipynb", "otter/__init__.py"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "otter" / "__main__.py").write_text(OTTER_THAT_FAILS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    where = [str(tmp_path / name) for name in ("built", "in", "grades.csv")]
    assert grade.main([*where, "--minutes", "0.05"]) == 0
    refused, hung = table(tmp_path / "grades.csv")
    assert refused["trouble"] == "OtterRuntimeError: this isn't the assignment"
    assert hung["trouble"] == "not done after 0.05 minutes" and hung["score"] == ""


@pytest.mark.parametrize(
    ("made", "handed", "said"),
    [("nothing", "handed", "otter assign"), ("built", "nothing", "holds no notebook")],
)
def test_what_is_missing_is_named(made, handed, said, tmp_path, capsys):
    (tmp_path / "built" / "autograder").mkdir(parents=True)
    (tmp_path / "built" / "autograder" / "x-autograder_1.zip").touch()
    with pytest.raises(SystemExit):
        grade.main([str(tmp_path / made), str(tmp_path / handed), str(tmp_path / "grades.csv")])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "grades.csv").exists()
