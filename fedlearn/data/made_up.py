"""Data that are made up together with their clients."""

import numpy as np
import torch

from ..checks import not_negative, whole
from ..rng import Use, numpy_rng
from .sets import Dataset


def synthetic(
    alpha: float, beta: float, n_clients: int = 30, seed: int = 0
) -> tuple[Dataset, list[np.ndarray]]:
    """FedProx's synthetic(alpha, beta): every client has a model and a cloud of its own.

    Client k holds floor(lognormal(4, 2)) + 50 examples, nine in ten of them for training, with
    60 features and 10 classes:

    - y = argmax(W_k x + b_k), every entry of W_k and b_k ~ N(u_k, 1), u_k ~ N(0, alpha);
    - x ~ N(v_k, Sigma), Sigma = diag(j^-1.2), every entry of v_k ~ N(B_k, 1), B_k ~ N(0, beta).

    ``beta`` is how much the clients' examples differ. ``alpha`` was meant for their models, but u_k
    moves all ten scores of an example alike, so that no label follows it: what makes the models
    differ, at (0, 0) too, is that every client draws W_k and b_k for itself.

    Args:
        alpha: Variance of u_k, >= 0, else ValueError.
        beta: Variance of B_k, >= 0, else ValueError.
        n_clients: N >= 1, else ValueError; 30 in the paper.
        seed: Of all draws. Client k's depend on (seed, k) alone, its sizes not on alpha and beta.

    Returns:
        The :class:`Dataset`, all clients' test examples in one test set, and N index arrays.

    Example:
        >>> made_up, parts = synthetic(1, 1)
        >>> made_up.x.shape[1], made_up.classes, len(parts)
        (60, 10, 30)

    Reference:
        Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, 2020, "Federated optimization in heterogeneous
        networks", §5.1.

    Differs from the paper's code: N(0, beta) has the variance beta, as the paper writes it; its
    code takes beta for the standard deviation, which is another number unless it is 0 or 1. (Nine
    in ten for training is the code's; the paper says eight.)
    """
    not_negative("synthetic", "alpha", alpha, 0.5)
    not_negative("synthetic", "beta", beta, 0.5)
    whole("synthetic", "n_clients", n_clients, example=30)
    clients = [_synthetic_client(alpha, beta, seed, k) for k in range(n_clients)]
    cuts = [len(y) - len(y) // 10 for _, y in clients]  # the rest is for testing
    x, x_test, y, y_test = (
        torch.cat([torch.from_numpy(client[i][part]) for client, part in zip(clients, parts)])
        for i in (0, 1)
        for parts in ([slice(c) for c in cuts], [slice(c, None) for c in cuts])
    )
    name, about = f"synthetic({alpha}, {beta})", "made up as in FedProx (Li et al., 2020)"
    held = np.split(np.arange(len(y)), np.cumsum(cuts)[:-1])
    return Dataset(x, y, x_test, y_test, 10, name, (), about), held


def _synthetic_client(
    alpha: float, beta: float, seed: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    rng = numpy_rng(seed, Use.TOY, k)
    n = int(rng.lognormal(4, 2)) + 50
    u, B = np.sqrt([alpha, beta]) * rng.normal(size=2)
    W, b, v = rng.normal(u, 1, (10, 60)), rng.normal(u, 1, 10), rng.normal(B, 1, 60)
    x = v + np.arange(1, 61) ** -0.6 * rng.normal(size=(n, 60))  # j^-0.6 squared is j^-1.2
    return x.astype(np.float32), (x @ W.T + b).argmax(1)
