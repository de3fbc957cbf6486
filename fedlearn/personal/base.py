"""What personal methods share: each client's own model, and a loss without a gradient."""

import torch
from torch import Tensor

from ..batches import Shards
from ..loop import Run
from ..task import Task, wide


def models(run: Run) -> Tensor:
    """The model that each client would use now, (N, d): its own where the method makes one.

    For ``diagnostics.client_metrics``, which takes (N, d). Under a method that makes none, FedAvg
    say, every row is theta. A client that never took part has what it began with.

    Args:
        run: What ``federate`` returned, at any round.

    Example:
        >>> import numpy as np
        >>> from fedlearn import Recipe, Simulated, federate, model
        >>> from fedlearn.personal import alone
        >>> task = model.softmax_regression(2, 2)
        >>> recipe = Recipe(alone(task, lr=1.0), task.theta0)
        >>> parts = [np.array([0]), np.array([1])]
        >>> run = federate(Simulated(recipe, torch.eye(2), torch.tensor([0, 1]), parts), rounds=1)
        >>> _ = next(run)
        >>> models(run)[:, :2]  # each has seen one example, of another class
        tensor([[ 0.5000,  0.0000],
                [ 0.0000, -0.5000]])
    """
    read = run.recipe.algorithm.models
    if read is None:
        theta: Tensor = run.state["theta"]
        return theta.expand(run.clients.count, -1).clone()
    return read(run.state, run.memory[0]).clone()


def objective(task: Task, theta: Tensor, shards: Shards) -> Tensor:
    """L_k(theta), (K,), over the round's examples: theta (d,) for all, no gradient is taken.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> task = softmax_regression(2, 2)
        >>> x, y = torch.eye(2), torch.tensor([0, 1])
        >>> one = Shards(x, y, torch.tensor([[[0, 1]]]), torch.ones(1, 1, 2), torch.tensor([2.0]))
        >>> objective(task, task.theta0, one)
        tensor([0.6931])
    """
    seen = shards.mask.sum((1, 2)).clamp(min=1)  # examples of all batches: n_k, E times
    total = torch.zeros_like(seen)
    for x, y, mask in shards.batches():
        losses = task.loss(wide(task.predict(theta, x.flatten(0, 1))), wide(y.flatten(0, 1)))
        total += (losses.view_as(mask) * mask).sum(1)
    return total / seen
