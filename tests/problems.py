"""Small problems with a known answer, and the plain loops that the package is compared with.

Everything is float64, so that a formula that is off by one weight can't hide in rounding.
"""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import nbformat
import numpy as np
import torch
from torch import Tensor, nn

from fedlearn import (
    Recipe,
    Round,
    Simulated,
    algorithms,
    batches,
    data,
    federate,
    partition,
    personal,
)
from fedlearn.algorithms import Algorithm
from fedlearn.batches import schedule
from fedlearn.descend import descend
from fedlearn.model import Task, from_module, mlp, views
from fedlearn.participation import sample
from fedlearn.recipe import client_step, no_reply, shards_of
from fedlearn.rng import Use, numpy_rng

# -- the methods: a new one is a new line, and every test of the battery runs over it -------------


def of_lesson_8() -> Callable[..., Algorithm]:
    """FedDyn as lesson 8 writes it in its cells, from the formula: a student's own method."""
    path = Path(__file__).parents[1] / "notebooks" / "08_correcting_drift.ipynb"
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    names = {"algorithms": algorithms, "data": data, "descend": descend, "torch": torch}
    names |= {"batches": batches, "np": np}
    for source in cells:
        if any(f"def {made}(" in source for made in ("dyn_client", "feddyn_lines", "my_feddyn")):
            exec(source, names)
    made: Callable[..., Algorithm] = names["my_feddyn"]  # type: ignore[assignment]
    return made


_MY_FEDDYN = of_lesson_8()


def hidden(theta: Tensor, x: Tensor) -> Tensor:
    """What the net of :func:`problem` computes before its last layer, (B, 7)."""
    W, b = views(theta[:49], [(7, 6), (7,)])
    return torch.relu(x @ W.T + b)


METHODS: dict[str, Callable[[Task], Algorithm]] = {
    "fedavg": lambda task: algorithms.fedavg(task, lr=0.3),
    "fedavg, server_lr": lambda task: algorithms.fedavg(task, lr=0.3, server_lr=0.7),
    "fedavg, momentum and decay": lambda task: algorithms.fedavg(
        task, lr=0.1, beta=0.8, weight_decay=0.01
    ),
    "fedsgd": lambda task: algorithms.fedsgd(task, lr=0.5),
    "fedsgd, momentum": lambda task: algorithms.fedsgd(task, lr=0.3, beta=0.5),
    "fedprox": lambda task: algorithms.fedprox(task, lr=0.3, mu=0.1),
    "fedprox, strong": lambda task: algorithms.fedprox(task, lr=0.5, mu=2.0),  # lr mu = 1
    "scaffold": lambda task: algorithms.scaffold(task, lr=0.2, n_total=240),
    "scaffold, option 1": lambda task: algorithms.scaffold(task, lr=0.2, n_total=240, option=1),
    "fednova": lambda task: algorithms.fednova(task, lr=0.3),
    "fednova, momentum and pull": lambda task: algorithms.fednova(task, lr=0.1, beta=0.7, mu=0.5),
    "feddyn": lambda task: algorithms.feddyn(task, lr=0.2, alpha=0.5, n_total=240),
    "fedsam": lambda task: algorithms.fedsam(task, lr=0.3, rho=0.1),
    "moon": lambda task: algorithms.moon(task, 0.3, hidden, mu=1.0, temperature=0.5),
    "feddyn of lesson 8": lambda task: _MY_FEDDYN(task, 0.2, mu=0.5, n_total=240),
    "fedavgm": lambda task: algorithms.fedavgm(task, lr=0.2, beta=0.6),
    "fedadagrad": lambda task: algorithms.fedadagrad(task, lr=0.3, server_lr=0.1),
    "fedadam": lambda task: algorithms.fedadam(task, lr=0.3, server_lr=0.05),
    "fedyogi": lambda task: algorithms.fedyogi(task, lr=0.3, server_lr=0.05),
    "scheduled": lambda task: algorithms.scheduled(
        lambda lr: algorithms.fedavg(task, lr), lambda t: 0.4 * 0.95**t
    ),
    "ditto": lambda task: personal.ditto(task, lr=0.3, lam=0.5, own_lr=0.2),
    "fedper": lambda task: personal.fedper(task, lr=0.3, head=24),
    "fedrep": lambda task: personal.fedrep(task, lr=0.2, head=24),
    "qfedavg": lambda task: personal.qfedavg(task, lr=0.3, q=0.5),
    "qfedavg, full step": lambda task: personal.qfedavg(task, lr=0.3, q=2.0, full_step=True),
}


# -- a classification problem with clients of very different sizes and labels ---------------------


class Problem(NamedTuple):
    x: Tensor
    y: Tensor
    parts: partition.Parts
    net: nn.Module  # 6 -> 7 -> 3, ReLU: the same model as closed_form

    @property
    def closed_form(self) -> Task:
        return mlp(6, 7, 3)._replace(theta0=vector(self.net))


def problem(n: int = 240, n_clients: int = 8, alpha: float = 0.4, seed: int = 0) -> Problem:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=g, dtype=torch.float64)
    y = (x @ torch.randn(6, 3, generator=g, dtype=torch.float64)).argmax(1)
    rng = numpy_rng(seed, Use.PARTITION)
    parts = partition.dirichlet_label(y.numpy(), n_clients, rng, alpha)
    return Problem(x, y, parts, relu_net(6, 7, 3, seed=seed))


def relu_net(*dims: int, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for i, o in itertools.pairwise(dims):
            layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *layers[:-1]).double()


def vector(net: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def run(algorithm: Algorithm, theta: Tensor, p: Problem, **kw: object) -> list[Round]:
    """Four rounds with five of eight clients, unless told otherwise."""
    more = {k: kw.pop(k) for k in ("rounds", "cohort", "evaluate", "every") if k in kw}
    place = {k: kw.pop(k) for k in ("chunk", "device") if k in kw}
    recipe = Recipe(algorithm, theta, **{"batch": 16, "epochs": 2, "seed": 3, **kw})
    clients = Simulated(recipe, p.x, p.y, p.parts, **place)
    return list(federate(clients, **{"rounds": 4, "cohort": 5, **more}))


# -- quadratics: f_i = a_i/2 (theta - b_i)^2, whose local steps have a closed form ----------------


def quadratics(
    a: Sequence[float], b: Sequence[float], sizes: Sequence[int]
) -> tuple[Task, Tensor, Tensor, list[np.ndarray]]:
    """Client i holds sizes[i] copies of the example (a_i, b_i). -> task, x, y, parts"""
    rows = [(ai, bi) for ai, bi, n in zip(a, b, sizes, strict=True) for _ in range(n)]
    x = torch.tensor(rows, dtype=torch.float64)
    cuts = np.cumsum([0, *sizes])
    parts = [np.arange(i, j) for i, j in itertools.pairwise(cuts)]

    def grad(theta: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        w = mask / mask.sum(-1, keepdim=True).clamp(min=1)
        off = theta - x[..., 1]
        slope = (w * x[..., 0] * off).sum(-1, keepdim=True)
        return slope, (w * x[..., 0] / 2 * off**2).sum(-1)

    task = Task(torch.zeros(1, dtype=torch.float64), None, None, grad)  # type: ignore[arg-type]
    return task, x, torch.zeros(len(x), dtype=torch.int64), parts


# -- plain loops ----------------------------------------------------------------------------------


def plain_fedavg(
    net: nn.Module,
    p: Problem,
    *,
    lr: float,
    server_lr: float = 1.0,
    rounds: int,
    cohort: int,
    batch: int | None,
    epochs: int,
    seed: int,
) -> Tensor:
    """FedAvg as a tutorial writes it: deepcopy, torch.optim.SGD, a mean of state dicts.

    Of the package it uses only the cohorts and the batches, so that both see the same data.
    """
    server = copy.deepcopy(net)
    for t in range(rounds):
        S = sample(len(p.parts), cohort, seed, t)
        index, mask, _ = schedule(p.parts, S, batch=batch, epochs=epochs, seed=seed, round=t)
        states, sizes = [], []
        for i, k in enumerate(S):
            local = copy.deepcopy(server)
            opt = torch.optim.SGD(local.parameters(), lr=lr)
            for rows, real in zip(index[i], mask[i], strict=True):
                rows = rows[real > 0]
                if len(rows):
                    opt.zero_grad()
                    nn.functional.cross_entropy(local(p.x[rows]), p.y[rows]).backward()
                    opt.step()
            states.append(local.state_dict())
            sizes.append(len(p.parts[k]))
        old = server.state_dict()
        new = {
            name: sum(n * s[name] for n, s in zip(sizes, states, strict=True)) / sum(sizes)
            for name in old
        }
        server.load_state_dict({k: old[k] + server_lr * (new[k] - old[k]) for k in old})
    return vector(server)


def gradient_descent(net: nn.Module, x: Tensor, y: Tensor, *, lr: float, steps: int) -> Tensor:
    """Full-batch gradient descent on all data in one place."""
    net = copy.deepcopy(net)
    opt = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(steps):
        opt.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        opt.step()
    return vector(net)


# -- clients that are alone with their data and hear only bytes -----------------------------------


class Wire:
    """Every client on its own: a message arrives as bytes, only its own rows are readable.

    The drop-in for ``Simulated`` that a network would be. The rows of others are NaN, so a client
    that touched them would be found out. Replies leave in another order than they were asked for.
    """

    device = torch.device("cpu")

    def __init__(self, recipe: Recipe, x: Tensor, y: Tensor, parts: list[np.ndarray]):
        self.recipe, self.parts, self.count = recipe, parts, len(parts)
        self.x, self.y = [], y
        for rows in parts:
            own = torch.full_like(x, torch.nan)
            own[rows] = x[rows]
            self.x.append(own)

    def memory(self):  # type: ignore[no-untyped-def]
        return tuple(
            {k: v.expand(self.count, *v.shape).clone() for k, v in kept.items()}
            for kept in self.recipe.memory()
        )

    def run(self, message, ctx, memory):  # type: ignore[no-untyped-def]
        if not len(ctx.answered):
            return no_reply(self.recipe, message, ctx)
        post, back = to_bytes(message), {}
        for k in ctx.answered[::-1]:
            own = [{m: v[[k]] for m, v in kept.items()} for kept in memory]
            back[k] = self.client(post, ctx._replace(answered=np.array([k])), own)
        answers = [back[k] for k in ctx.answered]
        replies = [from_bytes(post) for post, _ in answers]
        join = lambda some: {name: torch.cat([r[name] for r in some]) for name in some[0]}
        return join(replies), tuple(join(own) for own in zip(*(kept for _, kept in answers)))

    def client(self, post, ctx, memory):  # type: ignore[no-untyped-def]
        k = int(ctx.answered[0])
        shards = shards_of(self.recipe, self.x[k], self.y, {k: self.parts[k]}, ctx)
        reply, kept = client_step(self.recipe, from_bytes(post), shards, memory, ctx)
        return to_bytes(reply), kept


def to_bytes(tensors: dict[str, Tensor]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{k: v.numpy() for k, v in tensors.items()})
    return file.getvalue()


def from_bytes(post: bytes) -> dict[str, Tensor]:
    with np.load(io.BytesIO(post)) as file:
        return {k: torch.from_numpy(file[k]) for k in file.files}


def autograd(net: nn.Module, *, stacked: bool) -> Task:
    return from_module(net, stacked=stacked)
