"""A learning rate that depends on the round, for any method."""

from collections.abc import Callable

from ..task import wide
from .base import Algorithm, Kept, Message, Reply, Shards, State, Tensor


def scheduled(make: Callable[[float], Algorithm], lr: Callable[[int], float]) -> Algorithm:
    """A method whose learning rate is eta_t = lr(t) in round t.

    The server knows t and broadcasts eta_t beside theta: one number more on the way out.

    Args:
        make: eta -> the method, e.g. ``lambda lr: fedavg(task, lr)``. What it raises for lr(0)
            comes at once; for a later eta_t from the run.
        lr: Round t = 0, 1, ... -> eta_t, e.g. ``lambda t: 0.1 * 0.99**t``.

    Example:
        >>> from fedlearn.algorithms import fedavg
        >>> from fedlearn.model import softmax_regression
        >>> task = softmax_regression(64, 10)
        >>> method = scheduled(lambda lr: fedavg(task, lr), lambda t: 0.5 / (1 + t))
        >>> method.message(method.init(task.theta0))["lr"]
        tensor(0.5000)

    Reference: McMahan et al., 2017, §3 (CIFAR-10, decayed every round). Li, Huang, Yang, Wang,
    Zhang, 2020, "On the convergence of FedAvg on non-IID data": without a decay FedAvg's fixed
    point stays away from the optimum.
    """
    first = make(lr(0))
    init = lambda theta: {**first.init(theta), "t": 0}
    idle = lambda state, *nothing: {**state, "t": state["t"] + 1}

    def message(state: State) -> Message:
        inner = first.message({k: v for k, v in state.items() if k != "t"})
        return {**inner, "lr": wide(state["theta"]).new_tensor(lr(state["t"]))}

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        inner = {k: v for k, v in message.items() if k != "lr"}
        return make(float(message["lr"])).client(inner, shards, memory)

    def server(state: State, delta: Tensor, reply: Reply, p: Tensor) -> State:
        inner = {k: v for k, v in state.items() if k != "t"}
        return {**make(lr(state["t"])).server(inner, delta, reply, p), "t": state["t"] + 1}

    folds = server if first.folding else None
    return first._replace(
        init=init, client=client, server=server, message=message, idle=idle, folds=folds
    )
