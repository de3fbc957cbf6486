"""Fine-tuning: everybody goes on alone from the model of all."""

from dataclasses import replace

import numpy as np
from torch import Tensor

from ..aggregate import mean
from ..algorithms.fedavg import fedavg
from ..checks import check
from ..simulated import Simulated
from ..transform import Context, chain

_AFTER = 2**32  # the round of its shuffles: one that no run reaches


def fine_tune(clients: Simulated, theta: Tensor, lr: float, epochs: int = 1) -> Tensor:
    """Each client's model after so many epochs of local SGD on its own data, (N, d).

    w_k <- w_k - lr ∇L_k(w_k; batch) from w_k = theta, with the batch size of the clients' recipe.
    The plainest personal model, and the one that others have to beat.

    Args:
        clients: All of them are tuned; nothing of a run changes.
        theta: (d,) to start from, or (N, d), each client's own.
        lr, epochs: Learning rate, and passes over a client's data. ValueError for a number out of
            range, or theta of another shape.

    Example:
        >>> import torch
        >>> from fedlearn import Recipe, algorithms, model
        >>> task = model.softmax_regression(2, 2)
        >>> recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0)
        >>> parts = [np.array([0]), np.array([1])]
        >>> two = Simulated(recipe, torch.eye(2), torch.tensor([0, 1]), parts)
        >>> fine_tune(two, task.theta0, lr=1.0)[:, :2]
        tensor([[ 0.5000,  0.0000],
                [ 0.0000, -0.5000]])

    Reference: Wang, Mathews, Kiddon, Eichner, Beaufays, Ramage, 2019, "Federated evaluation of
    on-device personalization".
    """
    N, d = clients.count, clients.recipe.theta.numel()
    good = theta.shape in ((d,), (N, d))
    check("fine_tune", "theta", tuple(theta.shape), good, f"({d},) or ({N}, {d})", "last.theta")
    task = clients.recipe.algorithm.task
    check("fine_tune", "the method", task, task is not None, "one that knows its task", "fedavg")
    assert task is not None
    plain = replace(
        clients.recipe, algorithm=fedavg(task, lr), pipeline=chain(mean()), epochs=epochs
    )
    there = Simulated(plain, clients.x, clients.y, clients.parts, device=clients.device)
    everyone = np.arange(N)
    rows = theta.expand(N, -1).to(clients.device)
    out = rows.clone()
    for some in (everyone[i : i + there.chunk] for i in range(0, N, there.chunk)):
        ctx = Context(plain.seed, _AFTER, some, some, rows=True)
        out[some] += there.run({"theta": rows[some]}, ctx, there.memory())[0]["delta"]
    return out
