"""IFCA: Ghosh, Chung, Yin, Ramchandran, 2020, Algorithm 1. https://arxiv.org/abs/2006.04088"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algorithms.base import Algorithm, Kept, Message, Reply, State, descend, theta_alone
from ..batches import Shards
from ..checks import positive, whole
from ..task import Task
from .base import objective


def ifca(task: Task, lr: float, C: int) -> Algorithm:
    r"""C models, and each client trains the one that fits it best: clusters found as one goes.

    theta is the C models side by side, (C d,), and all of it is broadcast. Client k evaluates each,
    takes c = argmin_c L_k(theta_c), local steps from theta_c, and sends delta_k in the place of c,
    zeros elsewhere, with a one-hot ``which``. The server moves theta_c by the weighted mean of
    those that chose it; a model that nobody chose stays. C = 1 is FedAvg.

    The C starts must differ, or everybody chooses the first for ever: give the ``Recipe`` e.g.
    ``theta=torch.cat([model.mlp(64, 32, 10, seed=c).theta0 for c in range(C)])``.

    Args:
        task, lr: As in :func:`~fedlearn.algorithms.fedavg`; ``task`` is of ONE model.
        C: Number of models, >= 1; more than there are groups costs broadcast and helps the search.
            ValueError for a number out of range; from the run, if theta is not C models long.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> method = ifca(softmax_regression(2, 2), lr=0.1, C=3)
        >>> reply = {"which": torch.tensor([[0.0, 1.0, 0.0]])}  # the one client chose the second
        >>> state = {"theta": torch.zeros(3)}
        >>> method.server(state, torch.tensor([0.0, 5.0, 0.0]), reply, torch.ones(1))["theta"]
        tensor([0., 5., 0.])

    Reference: Ghosh, Chung, Yin, Ramchandran, 2020, "An efficient framework for clustered federated
    learning", Algorithm 1, option II (model averaging).
    """
    positive("ifca", "lr", lr)
    whole("ifca", "C", C, example=4)
    d = task.theta0.numel()
    memory = lambda theta0: {"which": torch.zeros((), dtype=torch.int64, device=theta0.device)}

    def init(theta: Tensor) -> State:
        if theta.shape != (C * d,):
            raise ValueError(
                f"ifca: theta must be {C} models of {d} numbers side by side, got "
                f"{tuple(theta.shape)}, e.g. torch.cat([theta_1, theta_2])"
            )
        return {"theta": theta}

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        every = message["theta"].view(C, d)
        which = torch.stack([objective(task, theta, shards) for theta in every], 1).argmin(1)
        start = every[which]
        theta_k, _, loss = descend(task, start, shards, lr)
        one = F.one_hot(which, C).to(start)
        delta = (one[..., None] * (theta_k - start)[:, None]).flatten(1)
        return {"delta": delta, "which": one, "loss": loss}, {"which": which}

    def server(state: State, delta: Tensor, reply: Reply, p: Tensor) -> State:
        share = p.to(delta) @ reply["which"]  # (C,) of the cohort's weight
        each = delta.view(C, -1) / torch.where(share > 0, share, 1)[:, None]
        return {"theta": state["theta"] + each.flatten()}

    def models(state: State, kept: Kept) -> Tensor:
        return state["theta"].view(C, d)[kept["which"]]

    first = task._replace(predict=lambda theta, x: task.predict(theta[:d], x))  # to check the data
    return Algorithm(init, client, server, theta_alone, memory, first, models=models)
