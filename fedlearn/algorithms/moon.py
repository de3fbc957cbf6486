"""MOON: Li, He, Song, 2021, Algorithm 1. https://arxiv.org/abs/2103.16257"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..checks import check, not_negative, positive
from ..task import wide
from .base import Algorithm, Kept, Message, Reply, Shards, Task, Tensor, descend
from .fedavg import fedavg

Features = Callable[[Tensor, Tensor], Tensor]  # theta (d,), x (B, ...) -> representations (B, m)


def moon(
    task: Task,
    lr: float,
    features: Features,
    mu: float = 1.0,
    temperature: float = 0.5,
    server_lr: float = 1.0,
) -> Algorithm:
    r"""FedAvg with a contrastive term: represent x as the global model does, not as you did before.

    Client k minimises L_k(w) + mu · mean over its examples of
    -log( e^{s/T} / (e^{s/T} + e^{s'/T}) ), with s = cos(z, z_glob), s' = cos(z, z_prev) and
    z, z_glob, z_prev the features of x at w, at the broadcast theta and at theta_k, the client's
    last local model. Server: theta <- theta + server_lr Σ_k p_k delta_k. With mu = 0 this is
    FedAvg; so it is in a client's first round while theta is where the run began.

    Args:
        task, lr, server_lr: As in :func:`~fedlearn.algorithms.fedavg`.
        features: theta (d,), x (B, ...) -> representations (B, m), differentiable: what the model
            computes before its last layer, say. ValueError from the run for another shape.
        mu: Weight of the contrastive term, >= 0 and finite; 0.1 to 10 in the paper.
        temperature: T > 0 and finite; 0.5 in the paper. ValueError for a number out of range.

    Example:
        >>> from torch import nn
        >>> from fedlearn.model import from_module
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> body, task = from_module(net[:-1]), from_module(net)
        >>> features = lambda theta, x: body.predict(theta[: len(body.theta0)], x)
        >>> list(moon(task, 0.1, features).memory(task.theta0))
        ['theta_k']

    Reference: Li, He, Song, 2021, "Model-contrastive federated learning", Algorithm 1.

    Differs from the paper: a client that is called for the first time has no last model; it takes
    the run's initial one. The loss reported is L_k alone, as FedAvg's. The paper puts a projection
    head before the features: here they are whatever ``features`` returns.
    """
    not_negative("moon", "mu", mu)
    positive("moon", "temperature", temperature, 0.5)
    check("moon", "features", features, callable(features), "a function of theta and x", "body")

    def pull(w: Tensor, theta: Tensor, last: Tensor, x: Tensor) -> Tensor:
        """Gradient of one client's contrastive term, on its examples x (n, ...). (d,)"""
        away = [wide(features(v, x)) for v in (theta, last)]
        rule, so = "one row of features an example, (B, m)", "hidden[:, :8]"
        fits = all(z.dim() == 2 and len(z) == len(x) for z in away)
        check("moon", "features", tuple(away[0].shape), fits, f"{rule}, B = {len(x)}", so)
        with torch.enable_grad():  # clients run under no_grad
            at = w.detach().requires_grad_()
            z = wide(features(at, x))
            s = torch.stack([F.cosine_similarity(z, other) for other in away], 1)
            term = -(s / temperature).log_softmax(1)[:, 0].mean()
            return torch.autograd.grad(term, at)[0]

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        theta, last = message["theta"], memory["theta_k"]

        def contrast(w: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            g, loss = task.grad(w, x, y, mask)
            for k, real in enumerate(mask > 0):
                if mu and real.any():
                    g[k] += mu * pull(w[k], theta, last[k], x[k][real])
            return g, loss

        theta_k, _, loss = descend(task, theta, shards, lr, grad=contrast)
        return {"delta": theta_k - theta, "loss": loss}, {"theta_k": theta_k}

    memory = lambda theta0: {"theta_k": theta0.clone()}
    return fedavg(task, lr, server_lr)._replace(client=client, memory=memory)
