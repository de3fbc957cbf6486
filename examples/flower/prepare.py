"""Split the digits: a file for each client, and the server's test set, into a folder.

python prepare.py FOLDER [CLIENTS]
"""

import sys
from pathlib import Path

import numpy as np

from fedlearn import data, partition
from fedlearn.rng import Use, numpy_rng


def main(folder: str = "data", clients: str = "3") -> None:
    """Write client-0.npz, client-1.npz, ... and test.npz."""
    to, digits = Path(folder), data.load("digits")
    to.mkdir(parents=True, exist_ok=True)
    rng = numpy_rng(0, Use.PARTITION)
    parts = partition.dirichlet_label(digits.y, int(clients), rng, alpha=0.5)
    for k, rows in enumerate(parts):
        np.savez(to / f"client-{k}.npz", x=digits.x[rows], y=digits.y[rows], rows=rows)
    np.savez(to / "test.npz", x=digits.x_test, y=digits.y_test)


if __name__ == "__main__":
    main(*sys.argv[1:])
