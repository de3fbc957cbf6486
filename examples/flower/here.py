"""The same run in this process: its digest is what the deployed run must give.

python here.py FOLDER [METHOD] [ROUNDS]
"""

import sys
from pathlib import Path

import torch
from digits.recipe import digest, examples, recipe_of

from fedlearn import Simulated, federate


def run_here(folder: str | Path, method: str = "fedavg", rounds: int = 3) -> str:
    """The digest of theta after so many rounds with the clients of a folder."""
    files = sorted(Path(folder).glob("client-*.npz"), key=lambda f: int(f.stem[7:]))
    loaded = [examples(file) for file in files]
    x = torch.zeros(max(len(x) for x, _, _ in loaded), 64)
    y = torch.zeros(len(x), dtype=torch.int64)
    for own_x, own_y, rows in loaded:
        x[rows], y[rows] = own_x[rows], own_y[rows]
    parts = [rows for _, _, rows in loaded]
    clients = Simulated(recipe_of(method), x, y, parts, chunk=1)  # one by one, as nodes train
    *_, last = federate(clients, rounds=rounds)
    return digest(last.theta)


if __name__ == "__main__":
    folder, method, rounds = [*sys.argv[1:], *["data", "fedavg", "3"][len(sys.argv) - 1 :]]
    print("digest", run_here(folder, method, int(rounds)))
