"""The lessons as HTML: ``python run.py pages``, or by hand ``PYTHONPATH=tools python -m pages``.

    python -m pages                     # every lesson and an index, into build/pages
    python -m pages 07 12 --out site    # these two
    python -m pages --still             # no recordings: panels as pictures, in seconds
    python -m pages --quick             # two settings a panel, as a test of all of it
    python -m pages --pdf chromium      # and printed by this browser; --slides: a slide a page

A page is made of the outputs that its notebook has stored. For its panels the cells tagged
``setup`` and ``panel`` are run once, and what the panels show at the settings of ``grids.toml`` is
recorded; recordings are kept beside the pages until something that they were made of changes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from joblib import cpu_count

from fedlearn.partition.files import write_whole

from .lessons import ROOT, Lesson, lessons, texts
from .page import index, page
from .pdf import printed
from .recordings import kept, quick, recordings


def make(out: Path, names: Sequence[str] = (), *, how: str = "", jobs: int = 1) -> list[Path]:
    """Write the pages of the lessons named (all by default), the texts beside them, the index."""
    all_ = lessons()
    if unknown := sorted({*names} - {x.stem[:2] for x in all_}):
        raise ValueError(f"pages: there is no lesson {unknown[0]}, e.g. python run.py pages 07")
    chosen = [x for x in all_ if not names or x.stem[:2] in names]
    out.mkdir(parents=True, exist_ok=True)
    made = []
    if how == "quick":
        os.environ.setdefault("FEDLEARN_FAST", "1")
        for x in chosen:
            x.recordings = quick(x.stem, out / "quick")
    elif how != "still":
        record(chosen, out / "recorded", jobs)
    for x in chosen:
        i = all_.index(x)
        before, after = all_[i - 1] if i else None, all_[i + 1] if i + 1 < len(all_) else None
        made.append(_write(out / f"{x.stem}.html", page(x, before, after)))
    for x in texts():
        made.append(_write(out / f"{x.stem}.html", page(x)))
    made.append(_write(out / "index.html", index(all_, texts())))
    return made


def record(chosen: Sequence[Lesson], folder: Path, jobs: int) -> None:
    """Give each lesson its recordings: those kept, and the others made, ``jobs`` at a time.

    Each lesson is run in a process of its own, as a notebook has a kernel of its own.
    """
    os.environ.pop("FEDLEARN_FAST", None)  # it makes other, shorter panels
    waits = [x for x in chosen if None in kept(x.stem, folder).values()]
    for x in chosen:
        if x not in waits:
            x.recordings, _ = recordings(x.stem, folder)
    if waits:
        print(f"Recording the panels of {len(waits)} lessons: some minutes.", flush=True)
    with ProcessPoolExecutor(jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        waiting = {pool.submit(recordings, x.stem, folder): x for x in waits}
        try:
            for future in as_completed(waiting):
                x = waiting[future]
                x.recordings, said = future.result()
                print(f"{x.stem}: {said}", flush=True)
        except BaseException:  # the others need not begin
            pool.shutdown(cancel_futures=True)
            raise


def _write(path: Path, text: str) -> Path:
    write_whole(path, text.encode())
    return path


def main(words: list[str] | None = None) -> int:
    """Read the command line, write the pages, say where they are."""
    parser = argparse.ArgumentParser(prog="python run.py pages", description="Lessons as HTML.")
    parser.add_argument("names", nargs="*", metavar="NN", help="only these lessons, e.g. 07")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "pages", help="the folder")
    for how, text in (("still", "panels as pictures"), ("quick", "two settings a panel")):
        parser.add_argument(f"--{how}", action="store_const", dest="how", const=how, help=text)
    cores = min(int(cpu_count()), 4)
    parser.add_argument("--jobs", type=int, default=cores, help="lessons recorded at a time")
    parser.add_argument("--pdf", metavar="BROWSER", help="print them, too, with this program")
    parser.add_argument("--slides", action="store_true", help="printed as slides")
    given = parser.parse_args(words)
    began = time.monotonic()
    try:
        made = make(given.out, given.names, how=given.how or "", jobs=given.jobs)
        for path in made if given.pdf else ():
            print(printed(given.pdf, path, given.slides), flush=True)
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    size = sum(p.stat().st_size for p in made) / 1e6
    took = time.monotonic() - began
    print(f"{len(made)} pages, {size:.1f} MB, {took:.0f} s: open {given.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
