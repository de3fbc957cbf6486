"""What server and nodes have in common: the recipe, and how a file of examples is read."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedlearn import Recipe, algorithms, model
from fedlearn.transform import chain, clip

TOTAL = 1437  # training examples of all clients together
TASK = model.softmax_regression(64, 10)
METHODS = {
    "fedavg": lambda: algorithms.fedavg(TASK, lr=0.5),
    "scaffold": lambda: algorithms.scaffold(TASK, lr=0.2, n_total=TOTAL),
    "fedadam": lambda: algorithms.fedadam(TASK, lr=0.2),
    "secure": lambda: algorithms.fedavg(TASK, lr=0.5),
}

torch.set_num_threads(1)  # sums in the same order on every machine


def recipe_of(method: str) -> Recipe:
    """The run's recipe, by the name of its method."""
    recipe = Recipe(METHODS[method](), TASK.theta0, batch=32, epochs=2)
    if method != "secure":
        return recipe
    from fedlearn.privacy.secure_aggregation import secure_mean

    masked = chain(clip(5.0), *secure_mean(bound=5.0, total=TOTAL))
    return Recipe(METHODS[method](), TASK.theta0, masked, batch=32, epochs=2)


def examples(file: str | Path) -> tuple[Tensor, Tensor, np.ndarray]:
    """x, y of a client's file, and its examples' numbers: each lies in the row of its number."""
    own = np.load(file)
    rows = own["rows"]
    x = np.zeros((rows.max() + 1, 64), np.float32)
    y = np.zeros(rows.max() + 1, np.int64)
    x[rows], y[rows] = own["x"], own["y"]
    return torch.from_numpy(x), torch.from_numpy(y), rows


def digest(theta: Tensor) -> str:
    """A short name of the bits of theta: two runs agree in it if they agree in every bit."""
    return hashlib.sha256(theta.numpy().tobytes()).hexdigest()[:16]
