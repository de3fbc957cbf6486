"""FedOpt (FedAvgM, FedAdagrad, FedAdam, FedYogi): Reddi et al., 2021, Algorithm 2.

https://arxiv.org/abs/2003.00295
"""

from torch import Tensor

from ..optim import Optimizer, adagrad, adam, momentum, yogi
from ..task import Task
from .base import Algorithm, Message, Reply, State
from .fedavg import fedavg


def fedopt(task: Task, lr: float, server: Optimizer) -> Algorithm:
    r"""FedAvg with -Σ_k p_k delta_k handed to any optimiser as if it were a gradient.

    Clients train as in FedAvg. The server takes theta <- step(g = -Σ_k p_k delta_k, theta): with
    ``sgd(1.0)`` it is FedAvg.

    Args:
        task: What the clients minimise.
        lr: Learning rate eta of the clients.
        server: E.g. ``optim.adam(0.03)``.

    Returns:
        An :class:`~fedlearn.algorithms.Algorithm`. What travels is FedAvg's.

    Raises:
        ValueError: If ``lr`` is not > 0 and finite.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> from fedlearn.optim import sgd
        >>> task = softmax_regression(64, 10)
        >>> sorted(fedopt(task, 0.1, sgd(1.0)).init(task.theta0))
        ['server', 'theta']

    Reference:
        Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan, 2021, "Adaptive federated
        optimization", Algorithm 1 (FedOpt). Derived in lesson 9.
    """

    def init(theta: Tensor) -> State:
        return {"theta": theta, "server": server.init(theta)}

    def message(state: State) -> Message:
        return {"theta": state["theta"]}

    def update(state: State, delta: Tensor, reply: Reply, p: Tensor) -> State:
        theta, kept = server.step(-delta, state["server"], state["theta"])
        return {"theta": theta, "server": kept}

    return fedavg(task, lr)._replace(init=init, message=message, server=update)


def fedavgm(task: Task, lr: float, server_lr: float = 1.0, beta: float = 0.9) -> Algorithm:
    """FedAvg with momentum on the server: v <- beta v + Σ p_k delta_k; theta <- theta + eta_s v.

    Args:
        task: What the clients minimise.
        lr: Learning rate eta of the clients.
        server_lr: eta_s.
        beta: 0 <= beta < 1; with 0 it is FedAvg.

    Returns:
        An :class:`~fedlearn.algorithms.Algorithm`.

    Raises:
        ValueError: If a number is out of range.

    Reference:
        Hsu, Qi, Brown, 2019, "Measuring the effects of non-identical data distribution for
        federated visual classification" (FedAvgM). https://arxiv.org/abs/1909.06335
    """
    return fedopt(task, lr, momentum(server_lr, beta))


def fedadagrad(
    task: Task, lr: float, server_lr: float = 0.1, beta1: float = 0.0, tau: float = 1e-3
) -> Algorithm:
    """FedOpt with :func:`~fedlearn.optim.adagrad` on the server.

    v <- v + delta²;  theta <- theta + eta_s delta / (sqrt(v) + tau), number by number.

    Args:
        task: What the clients minimise.
        lr: Learning rate eta of the clients.
        server_lr: eta_s.
        beta1: Memory of the first moment.
        tau: Adaptivity.

    Returns:
        An :class:`~fedlearn.algorithms.Algorithm`.

    Raises:
        ValueError: If a number is out of range.

    Reference:
        Reddi et al., 2021, Algorithm 2 (FedAdagrad).
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
        task: What the clients minimise.
        lr: Learning rate eta of the clients.
        server_lr: eta_s.
        beta1: Memory of the first moment.
        beta2: Memory of the second.
        tau: Adaptivity.

    Returns:
        An :class:`~fedlearn.algorithms.Algorithm`.

    Raises:
        ValueError: If a number is out of range.

    Reference:
        Reddi et al., 2021, Algorithm 2 (FedAdam).
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

    As FedAdam but v <- v - (1 - beta2) delta² sign(v - delta²): v follows at the pace of delta²
    itself, so small updates never lengthen the steps quickly.

    Args:
        task: What the clients minimise.
        lr: Learning rate eta of the clients.
        server_lr: eta_s.
        beta1: Memory of the first moment.
        beta2: Pace of the second.
        tau: Adaptivity.

    Returns:
        An :class:`~fedlearn.algorithms.Algorithm`.

    Raises:
        ValueError: If a number is out of range.

    Reference:
        Reddi et al., 2021, Algorithm 2 (FedYogi).
    """
    return fedopt(task, lr, yogi(server_lr, beta1, beta2, tau))
