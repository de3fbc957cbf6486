"""The recipe of a run: method, start, pipeline, batch, epochs, seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .aggregate import mean
from .algorithms import Algorithm
from .transform import Pipeline, chain


@dataclass(frozen=True)
class Recipe:
    """Everything a run needs but the data and the place where it runs.

    Attributes:
        algorithm: What clients and server do.
        theta: (d,) initial parameters.
        pipeline: Stages between a client's update and the server's step.
        batch: B, examples of a local step; None for all of a client's (B = inf).
        epochs: E, local passes a round over a client's data.
        seed: Of the cohorts, the shuffles and the noise.
        equal: Every client counts 1 and not n_k: p_k = 1/K. For cohorts drawn in proportion to n_k,
            and where no client may count more than another.

    Raises:
        ValueError: If ``batch``, ``epochs`` or ``seed`` is out of range, or ``theta`` not a vector.

    Example:
        >>> from fedlearn import algorithms, model
        >>> task = model.softmax_regression(64, 10)
        >>> Recipe(algorithms.fedavg(task, lr=0.5), task.theta0, batch=32, epochs=5).epochs
        5
    """

    algorithm: Algorithm
    theta: Tensor
    pipeline: Pipeline = chain(mean())  # noqa: RUF009 (a tuple of functions: nothing to share)
    batch: int | None = 32
    epochs: int = 1
    seed: int = 0
    equal: bool = False

    def __post_init__(self) -> None:
        if self.theta.dim() != 1 or not self.theta.isfinite().all():
            raise ValueError(
                f"Recipe: theta must be a finite vector (d,), got shape {tuple(self.theta.shape)}, "
                f"e.g. task.theta0"
            )
        if self.batch is not None and not _at_least(self.batch, 1):
            raise ValueError(
                f"Recipe: batch must be an integer >= 1, or None for all of a client's examples, "
                f"got {self.batch!r}, e.g. batch=32"
            )
        if not _at_least(self.epochs, 1):
            raise ValueError(f"Recipe: epochs must be an integer >= 1, got {self.epochs!r}, e.g. 5")
        if not (_at_least(self.seed, 0) and self.seed < 2**63):
            raise ValueError(
                f"Recipe: seed must be an integer >= 0 and < 2**63, got {self.seed!r}, e.g. seed=0"
            )

    def memory(self) -> dict[str, Tensor]:
        """What a client keeps before its first round: the method's part and the pipeline's.

        Example:
            >>> from fedlearn import algorithms, model
            >>> task = model.softmax_regression(2, 2)
            >>> Recipe(algorithms.fedavg(task, lr=0.5), task.theta0).memory()
            {}
        """
        return {**self.algorithm.memory(self.theta), **self.pipeline.memory(self.theta)}


def _at_least(value: object, low: int) -> bool:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and value >= low  # type: ignore[operator]


def _same_recipe(recipe: Recipe, theirs: Recipe) -> None:
    """Clients train by the recipe they were made with: they would ignore another one."""
    for name in ("batch", "epochs", "seed", "algorithm", "pipeline"):
        a, b = getattr(recipe, name), getattr(theirs, name)
        number = name in ("batch", "epochs", "seed")
        if (a != b) if number else (a is not b):
            got = f"got {a!r}, theirs is {b!r}" if number else "got another"
            raise ValueError(
                f"federate: the clients were made with another recipe, whose {name} must be the "
                f"same: {got}; make them anew, e.g. Simulated(recipe, ...)"
            )
