"""Grade what a class has handed in, one notebook after the other, without Docker and offline.

    otter assign teaching/assignments/session1.ipynb build/session1
    python tools/grade.py build/session1 handed_in grades.csv

The first folder is what ``otter assign`` has made, the second holds the students' notebooks, in
folders or not. The table has a row for each notebook: the file, the sum, what there was to get, the
points of each question, and a sentence where a notebook can't be graded. It is Otter's own grading,
``otter run``, in a process of its own for each notebook, which is ended after ``--minutes``.

A student's code runs with your rights. Where you wouldn't run it by hand, don't run it by machine.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from fedlearn.partition.files import write_whole


def autograder(built: Path) -> Path:
    """The newest zip that ``otter assign`` made in this folder; ValueError if there is none."""
    found = sorted(built.glob("autograder/*-autograder_*.zip"))
    if not found:
        raise ValueError(f"{built} has no autograder: otter assign NOTEBOOK {built} makes it")
    return found[-1].resolve()


def grade(notebook: Path, zipped: Path, seconds: float) -> dict[str, object]:
    """The row of one notebook, by ``otter run`` in a process of its own."""
    row: dict[str, object] = {"file": str(notebook)}
    with TemporaryDirectory() as out:
        command = [sys.executable, "-m", "otter", "run", str(notebook), "-a", str(zipped)]
        try:
            done = subprocess.run(
                [*command, "-o", out, "--no-logo"], capture_output=True, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return row | {"trouble": f"not done after {seconds / 60:g} minutes"}
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["otter run ended without a word"]
            return row | {"trouble": said[-1]}
        tests = json.loads(Path(out, "results.json").read_text(encoding="utf-8"))["tests"]
    points = {t["name"]: t["score"] for t in tests if "score" in t}
    most = sum(t["max_score"] for t in tests if "score" in t)
    return row | {"score": sum(points.values()), "of": most, **points, "trouble": ""}


def table(rows: list[dict[str, object]]) -> str:
    """CSV: the questions' columns in order, between the sums and the trouble."""
    first, last = ["file", "score", "of"], ["trouble"]
    asked = sorted({name for row in rows for name in row} - {*first, *last})
    text = io.StringIO()
    writer = csv.DictWriter(text, [*first, *asked, *last], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main(words: list[str] | None = None) -> int:
    """Read the command line, grade, write the table."""
    parser = argparse.ArgumentParser(description="Grade a folder of notebooks with Otter, offline.")
    parser.add_argument("built", type=Path, help="the folder that otter assign made")
    parser.add_argument("handed_in", type=Path, help="a folder of notebooks")
    parser.add_argument("grades", type=Path, help="the CSV; one that is there is replaced")
    parser.add_argument("--minutes", type=float, default=5.0, help="for one notebook at most")
    asked = parser.parse_args(words)
    notebooks = sorted(asked.handed_in.rglob("*.ipynb"))
    notebooks = [p for p in notebooks if ".ipynb_checkpoints" not in p.parts]
    try:
        zipped = autograder(asked.built)
    except ValueError as e:
        parser.error(str(e))
    if not notebooks:
        parser.error(f"{asked.handed_in} holds no notebook (*.ipynb)")
    rows = []
    for path in notebooks:
        rows.append(grade(path, zipped, 60 * asked.minutes))
        got = rows[-1]["trouble"] or f"{rows[-1]['score']:g} of {rows[-1]['of']:g}"
        print(f"{path}: {got}", flush=True)
        write_whole(asked.grades, table(rows).encode())  # what is done stays, whatever comes
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
