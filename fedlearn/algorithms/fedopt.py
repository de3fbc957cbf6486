"""FedOpt and its family: Reddi et al., 2021, Algorithm 2. https://arxiv.org/abs/2003.00295"""

from ..optim import Optimizer, adagrad, adam, momentum, yogi
from .base import Algorithm, Reply, State, Task, Tensor, theta_alone
from .fedavg import fedavg


def fedopt(task: Task, lr: float, server: Optimizer) -> Algorithm:
    r"""FedAvg with -Σ_k p_k delta_k handed to any optimiser as if it were a gradient.

    Clients train as in FedAvg, and what travels is FedAvg's. The server takes
    theta <- step(g = -Σ_k p_k delta_k, theta).

    Args:
        task, lr: As in :func:`~fedlearn.algorithms.fedavg`.
        server: E.g. ``optim.adam(0.03)``.

    Example:
        >>> import torch
        >>> from fedlearn.model import softmax_regression
        >>> from fedlearn.optim import sgd
        >>> method = fedopt(softmax_regression(2, 2), 0.1, sgd(1.0))  # this one is FedAvg
        >>> method.server(method.init(torch.ones(2)), torch.tensor([3.0, -1.0]), {}, torch.ones(1))
        {'theta': tensor([4., 0.]), 'server': ()}

    Reference: Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan, 2021, "Adaptive
    federated optimization", Algorithm 1 (FedOpt). Derived in lesson 9.
    """
    init = lambda theta: {"theta": theta, "server": server.init(theta)}

    def update(state: State, delta: Tensor, reply: Reply, p: Tensor) -> State:
        theta, kept = server.step(-delta, state["server"], state["theta"])
        return {"theta": theta, "server": kept}

    return fedavg(task, lr)._replace(init=init, message=theta_alone, server=update, folds=update)


def fedavgm(task: Task, lr: float, server_lr: float = 1.0, beta: float = 0.9) -> Algorithm:
    """FedAvg with momentum on the server: v <- beta v + Σ p_k delta_k; theta <- theta + eta_s v.

    Args:
        task, lr, server_lr: As in :func:`~fedlearn.algorithms.fedavg`.
        beta: 0 <= beta < 1; with 0 it is FedAvg. ValueError for a number out of range.

    Example:
        >>> import torch
        >>> from fedlearn.model import softmax_regression
        >>> method = fedavgm(softmax_regression(2, 2), 0.1, beta=0.5)
        >>> state = method.init(torch.zeros(1))
        >>> for _ in range(2):  # the same update twice: 1, then 1.5
        ...     state = method.server(state, torch.ones(1), {}, torch.ones(1))
        >>> state["theta"].item()
        2.5

    Reference: Hsu, Qi, Brown, 2019, "Measuring the effects of non-identical data distribution for
    federated visual classification" (FedAvgM). https://arxiv.org/abs/1909.06335
    """
    return fedopt(task, lr, momentum(server_lr, beta))


def fedadagrad(
    task: Task, lr: float, server_lr: float = 0.1, beta1: float = 0.0, tau: float = 1e-3
) -> Algorithm:
    """FedOpt with :func:`~fedlearn.optim.adagrad` on the server.

    v <- v + delta²;  theta <- theta + eta_s delta / (sqrt(v) + tau), number by number.

    Args:
        task, lr: As in :func:`~fedlearn.algorithms.fedavg`.
        server_lr, beta1, tau: eta_s, memory of the first moment, adaptivity.

    Example:
        >>> import torch
        >>> from fedlearn.model import softmax_regression
        >>> method = fedadagrad(softmax_regression(2, 2), 0.1)
        >>> state, delta = method.init(torch.zeros(2)), torch.tensor([1.0, 100.0])
        >>> method.server(state, delta, {}, torch.ones(1))["theta"]  # equal steps
        tensor([0.0999, 0.1000])

    Reference: Reddi et al., 2021, Algorithm 2 (FedAdagrad).
    """
    return fedopt(task, lr, adagrad(server_lr, beta1, tau))


def fedadam(
    task: Task,
    lr: float,
    server_lr: float = 0.03,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
) -> Algorithm:
    """FedOpt with :func:`~fedlearn.optim.adam` on the server: no bias correction, as in the paper.

    m <- beta1 m + (1 - beta1) delta;  v <- beta2 v + (1 - beta2) delta²;
    theta <- theta + eta_s m / (sqrt(v) + tau), number by number.

    Args:
        task, lr: As in :func:`~fedlearn.algorithms.fedavg`.
        server_lr, beta1, beta2, tau: eta_s, memory of the first and second moment, adaptivity.

    Example:
        >>> import torch
        >>> from fedlearn.model import softmax_regression
        >>> method = fedadam(softmax_regression(2, 2), 0.1, beta1=0.0, beta2=0.0)
        >>> state, delta = method.init(torch.zeros(2)), torch.tensor([1.0, -100.0])
        >>> method.server(state, delta, {}, torch.ones(1))["theta"]  # without memory: delta's sign
        tensor([ 0.0300, -0.0300])

    Reference: Reddi et al., 2021, Algorithm 2 (FedAdam).
    """
    return fedopt(task, lr, adam(server_lr, beta1, beta2, tau))


def fedyogi(
    task: Task,
    lr: float,
    server_lr: float = 0.03,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
) -> Algorithm:
    """FedOpt with :func:`~fedlearn.optim.yogi` on the server.

    As :func:`fedadam` but v <- v - (1 - beta2) delta² sign(v - delta²): v follows at the pace of
    delta² itself, so small updates never lengthen the steps quickly.

    Example:
        >>> import torch
        >>> from fedlearn.model import softmax_regression
        >>> for method in (fedadam, fedyogi):  # one large update, then one of 0
        ...     method = method(softmax_regression(2, 2), 0.1, beta2=0.5)
        ...     state = method.server(method.init(torch.zeros(1)), torch.ones(1), {}, torch.ones(1))
        ...     m, v = method.server(state, torch.zeros(1), {}, torch.ones(1))["server"]
        ...     print(v)
        tensor([0.2500])
        tensor([0.5000])

    Reference: Reddi et al., 2021, Algorithm 2 (FedYogi).
    """
    return fedopt(task, lr, yogi(server_lr, beta1, beta2, tau))
