"""The same run over Flower's messages, without a server."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
import torch
from flwr.app import Context, Error, Message, RecordDict
from problems import METHODS, problem, run

from fedlearn import Recipe, Simulated, federate
from fedlearn.aggregate import mean
from fedlearn.algorithms import fedavg
from fedlearn.flower import GridClients, client_app
from fedlearn.participation import poisson
from fedlearn.privacy import adaptive_clip, private_mean
from fedlearn.transform import chain, clip, noise


class Loopback:
    """A Grid that hands every message to the app in this process, and replies in another order."""

    def __init__(self, app, n_clients):
        self.app = app
        self.contexts = {
            100 + k: Context(
                run_id=1, node_id=100 + k, node_config={"partition-id": k}, state=RecordDict(),
                run_config={},
            )
            for k in range(n_clients)
        }  # fmt: skip
        self.lost: set[int] = set()
        self.numbers = count()

        self.ready: list[Message] = []

    def get_node_ids(self):
        return [*self.contexts]

    def send_and_receive(self, messages, *, timeout=None):
        """What the nodes answer; the SuperLink does in the place of those that are gone."""
        out = []
        for m in messages:
            node = m.metadata.dst_node_id
            if node in self.lost:
                out.append(Message(Error(5, "no answer in time"), reply_to=m))
                out[-1].metadata._src_node_id = 1
            else:
                out.append(self.app(m, self.contexts[node]))
        return reversed(out)

    def push_messages(self, messages):
        for m in messages:
            m.metadata._message_id = f"letter {next(self.numbers)}"
        self.ready += self.send_and_receive(messages)
        return [m.metadata.message_id for m in messages]

    def pull_messages(self, message_ids):
        ready, self.ready = self.ready, []
        return ready


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    """Flower's client messages carry the ids of the task they were made in."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def grid_of(p, recipe, seeded=False, told=None, **how):
    def load(context):
        k = context.node_config["partition-id"]
        x = torch.full_like(p.x, torch.nan)  # a node has its own rows and no other
        x[p.parts[k]] = p.x[p.parts[k]]
        return recipe, x, p.y, p.parts[k]

    grid = Loopback(client_app(load, seeded=seeded), len(p.parts))
    for context in grid.contexts.values():
        k = context.node_config["partition-id"]
        context.node_config.update({} if told is None else told(k))
    nodes = {k: 100 + k for k in range(len(p.parts))}
    return GridClients(recipe, grid, nodes, seeded=seeded, **how)


def over_flower(p, algorithm, theta, pipeline, cohort=5, **how):
    recipe = Recipe(algorithm, theta, pipeline, batch=16, epochs=2, seed=3)
    clients = grid_of(p, recipe, **how)
    return clients.grid, federate(clients, rounds=4, cohort=cohort)


@pytest.mark.filterwarnings("ignore:GridClients. seeded=True is for teaching")
@pytest.mark.parametrize("method", METHODS)
def test_flower_gives_the_same_run(method):
    p = problem()
    algorithm, theta = METHODS[method](p.closed_form), p.closed_form.theta0
    stages = [chain(mean()), chain(clip(0.05), mean(), noise(1e-3))]
    for pipeline in stages[: 1 if method == "feddyn" else 2]:  # which wants a plain mean
        here = run(algorithm, theta, p, pipeline=pipeline)
        _, there = over_flower(p, algorithm, theta, pipeline, seeded=bool(pipeline.on_server))
        for a, b in zip(here, there, strict=True):
            torch.testing.assert_close(a.theta, b.theta, atol=1e-11, rtol=1e-10)
            assert np.array_equal(a.answered, b.answered)
            assert (a.sent, a.received) == (b.sent, b.received)


def test_a_node_that_is_gone_is_named():
    p = problem()
    algorithm = METHODS["fedavg"](p.closed_form)
    grid, rounds = over_flower(p, algorithm, p.closed_form.theta0, chain(mean()))
    first = next(rounds)
    grid.lost = set(grid.contexts)
    with pytest.raises(ValueError, match=r"GridClients: client \d \(node 10\d\) failed in round 1"):
        next(rounds)
    assert first.t == 0


@pytest.mark.filterwarnings("ignore:GridClients. seeded=True is for teaching")
@pytest.mark.parametrize("adaptive", [False, True])
def test_private_rounds_over_flower_the_empty_ones_too(adaptive):
    p = problem()
    method, private = fedavg(p.closed_form, lr=0.1), private_mean(0.5, 1.0, 0.8)
    if adaptive:
        method, private = adaptive_clip(method, 1.0, 0.8, bit_noise=1.0)
    recipe = Recipe(method, p.closed_form.theta0, private, batch=16, epochs=2, seed=3)
    here = Simulated(recipe, p.x, p.y, p.parts)
    plain = [r.theta for r in federate(here, rounds=4, cohort=poisson(0.1))]
    how = {"cohort": poisson(0.1), "seeded": True}
    _, rounds = over_flower(p, method, p.closed_form.theta0, private, **how)
    sizes = []
    for r, theta in zip(rounds, plain, strict=True):
        sizes.append(len(r.answered))
        torch.testing.assert_close(r.theta, theta, atol=1e-12, rtol=0)
    assert min(sizes) == 0 < max(sizes), "choose q so that some rounds are empty"
