"""Random recipes: each equals a plain loop in float64, or is refused in words.

    python benchmarks/fuzz.py                    # a thousand, some minutes
    python benchmarks/fuzz.py --n 200 --seed 1   # others
    python benchmarks/fuzz.py --only 137         # one of them: its program, and what comes of it

The cases and the plain loop are in ``tests/fuzz.py``; ``tests/test_fuzz.py`` runs a few of them.
Ends with an error if any failed; failures are grouped, each with its program.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
sys.path = [p for p in sys.path if p != str(ROOT / "benchmarks")]  # this file isn't the cases
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from fuzz import case, verdict  # noqa: E402


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--n", type=int, default=1000)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--first", type=int, default=0, help="begin with this one")
    words.add_argument("--only", type=int, help="this one alone")
    words.add_argument("--refused", action="store_true", help="list what was refused, and how")
    args = words.parse_args()
    torch.set_num_threads(1)
    numbers = range(args.first, args.n) if args.only is None else [args.only]
    ends, groups, said = Counter[str](), defaultdict(list), Counter[str]()
    begun = time.monotonic()
    for i in numbers:
        c = case(args.seed, i)
        end, what = verdict(c)
        ends[end] += 1
        if end == "failure":
            groups[re.sub(r"[\d.]+(e-?\d+)?|'.*?'", "#", what)[:90]].append((i, what))
        if end == "refused":
            said[re.sub(r"[\d.]+", "#", what)[:110]] += 1
        if args.only is not None:
            print(c.program, c.spec, f"{end}: {what}", sep="\n")
            return
    if args.refused:
        for what, count in said.most_common():
            print(f"{count:5}  {what}")
    for group, some in sorted(groups.items(), key=lambda g: -len(g[1])):
        print(f"\n{len(some)} x {group}\n   cases {[i for i, _ in some][:20]}: {some[0][1]}\n")
        print("    " + case(args.seed, some[0][0]).program.replace("\n", "\n    ").rstrip())
    print(f"\n{dict(ends)} in {time.monotonic() - begun:.0f} s; seed {args.seed}")
    sys.exit(bool(groups))


if __name__ == "__main__":
    main()
