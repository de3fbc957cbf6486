"""Secure aggregation over Flower's messages: the same mean, and what the server gets to see."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from problems import problem
from test_flower import grid_of, identity  # noqa: F401 (a fixture that runs by itself)
from test_replies import tapped

from fedlearn import Recipe, Simulated, algorithms, federate
from fedlearn.aggregate import mean
from fedlearn.checks import RoundFailed
from fedlearn.flower import GridClients
from fedlearn.flower.keys import make_keys
from fedlearn.flower.secure_node import SPOT
from fedlearn.flower.text import from_text, to_text
from fedlearn.participation import weighted
from fedlearn.privacy.secure_aggregation import secure_mean
from fedlearn.privacy.secure_aggregation.stages import desk_of
from fedlearn.transform import Context, chain, clip

P = problem()
TASK = P.closed_form
N, D = len(P.parts), len(TASK.theta0)
TOTAL = sum(len(rows) for rows in P.parts)


def recipe_of(**how):
    pipeline = chain(clip(0.5), *secure_mean(0.5, TOTAL, bits=20, **how))
    return Recipe(algorithms.fedavg(TASK, 0.3), TASK.theta0, pipeline, batch=16, epochs=2, seed=3)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return make_keys(tmp_path_factory.mktemp("keys") / "k", N)


@pytest.fixture
def over_flower(keys):
    def make(recipe=None, **how):
        book = str(keys / "directory.json")
        told = lambda k: {"identity": str(keys / f"identity-{k}"), "directory": book}
        return grid_of(P, recipe or recipe_of(), told=told, directory=book, **how)

    return make


def silent(clients, stage, *who):
    """From a stage on, these nodes say nothing any more."""
    push = clients.grid.push_messages

    def some(messages):
        sent = [m.content["secure"]["stage"] for m in messages if "secure" in m.content]
        clients.grid.lost |= {100 + k for k in who} if stage in sent else set()
        return push(messages)

    clients.grid.push_messages = some
    return clients


def changed(clients, stage, k, change):
    """What client k says at a stage, changed on the way."""
    send = clients.grid.send_and_receive

    def between(messages, **how):
        messages = list(messages)
        at = {m.metadata.message_id for m in messages
              if "secure" in m.content and m.content["secure"]["stage"] == stage}  # fmt: skip
        for m in send(messages, **how):
            if m.metadata.reply_to_message_id in at and m.metadata.src_node_id == 100 + k:
                change(m.content)
            yield m

    clients.grid.send_and_receive = between
    return clients


def test_over_messages_the_mean_is_that_of_one_process(over_flower):
    rounds = [*federate(over_flower(), rounds=3, cohort=5)]
    plain = [*federate(Simulated(recipe_of(), P.x, P.y, P.parts), rounds=3, cohort=5)]
    for a, b in zip(rounds, plain, strict=True):
        torch.testing.assert_close(a.theta, b.theta, atol=1e-6, rtol=0)
        assert np.array_equal(a.answered, b.answered) and a.received == b.received
        assert np.isnan(a.loss), "nobody tells its loss"


def plain_round():
    """The same round without masks: every client's update, (N, d), and n (N,)."""
    recipe = Recipe(algorithms.fedavg(TASK, 0.3), TASK.theta0, chain(clip(0.5), mean()),
                    batch=16, epochs=2, seed=3)  # fmt: skip
    r = next(federate(Simulated(recipe, P.x, P.y, P.parts), rounds=1))
    return r.deltas, torch.tensor([float(len(rows)) for rows in P.parts], dtype=r.theta.dtype)


def theta_of(some):
    """theta after a round in which these clients are in the sum."""
    deltas, n = plain_round()
    n = n[some]
    return TASK.theta0 + (n / n.sum()) @ deltas[some]


def test_the_server_never_sees_an_update(over_flower):
    """All that it receives: one masked vector of each, and messages whose length isn't d's."""
    clients, (deltas, n) = over_flower(), plain_round()
    seen = tapped(clients)
    r = next(federate(clients, rounds=1))
    vectors = [c["reply"]["y"].numpy() for c in seen["up"] if "reply" in c]
    assert len(vectors) == N and {v.shape for v in vectors} == {(D + 1,)}
    desk, who = desk_of(recipe_of().pipeline), np.arange(N)
    plain = desk.residues(deltas, n, Context(3, 0, who, who))
    for k, y in enumerate(r.deltas.numpy().view(np.uint32)):
        assert not (y == plain[k]).any(), "no number is what it was, n_k neither"
    for content in seen["up"]:
        assert set(content) <= {"secure", "reply"} and set(content.get("reply", "y")) == {"y"}
        assert set(content["secure"]) <= {"said", "refused"}
        assert len(content["secure"]["said"]) < 16_000
    torch.testing.assert_close(r.theta, theta_of([*range(N)]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("stage", ["keys", "shares", "masked"])
def test_who_falls_silent_before_its_vector_is_left_out(over_flower, stage):
    clients = silent(over_flower(), stage, 2, 5)
    with pytest.warns(RuntimeWarning, match=r"client 2 .*left out of round 0.*client 5"):
        r = next(federate(clients, rounds=1))
    rest = [k for k in range(N) if k not in (2, 5)]
    assert r.answered.tolist() == rest and sorted(clients.refused[0]) == [2, 5]
    torch.testing.assert_close(r.theta, theta_of(rest), atol=1e-6, rtol=0)


@pytest.mark.parametrize("stage", ["votes", "opened"])
def test_who_falls_silent_later_is_in_the_sum(over_flower, stage):
    clients = silent(over_flower(), stage, 2, 5)
    r = next(federate(clients, rounds=1))
    assert len(r.answered) == N
    torch.testing.assert_close(r.theta, theta_of([*range(N)]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("stage", ["keys", "shares", "masked", "votes", "opened"])
def test_below_the_threshold_nothing_is_opened_and_the_run_lives(over_flower, stage):
    clients = silent(over_flower(), stage, 0, 1, 2)
    run = federate(clients, rounds=2, skip=1)
    theta = next(run).theta
    assert torch.equal(theta, TASK.theta0) and "Nothing was opened" in run.history.failed[0]
    clients.grid.lost = set()
    clients.grid.push_messages = type(clients.grid).push_messages.__get__(clients.grid)
    assert len(next(run).answered) == N


def text(key, new):
    def change(content):
        content["secure"] = ConfigRecord({**content["secure"], key: new(content["secure"][key])})

    return change


FALSE = {
    "no JSON": (lambda said: "{", "keys"),
    "deeply nested": (lambda said: "[" * 100_000, "keys"),
    "another's keys": (lambda said: re.sub(r"^\[\[1", "[[2", said), "keys"),
    "a signature": (lambda said: said.replace('"hex": "', '"hex": "00', 1), "keys"),
    "nobody's letters": (lambda said: "[]", "shares"),
    "a number": (lambda said: "7", "masked"),
    "another round": (lambda said: said.replace("[[1, 0,", "[[1, 3,"), "masked"),
}


@pytest.mark.parametrize("name", FALSE)
def test_what_does_not_fit_is_refused_by_name(over_flower, name):
    new, stage = FALSE[name]
    clients = changed(over_flower(), stage, 1, text("said", new))
    with pytest.warns(RuntimeWarning, match=r"client 1 \(node 101\), left out of round 0"):
        r = next(federate(clients, rounds=1))
    rest = [k for k in range(N) if k != 1]
    assert r.answered.tolist() == rest
    torch.testing.assert_close(r.theta, theta_of(rest), atol=1e-6, rtol=0)


def test_a_vector_changed_on_the_way_is_refused(over_flower):
    def change(content):
        y = content["reply"]["y"].numpy().copy()
        y[3] += 1
        content["reply"] = ArrayRecord({"y": Array(y)})

    clients = changed(over_flower(), "masked", 1, change)
    with pytest.warns(RuntimeWarning, match="not signed by it"):
        assert len(next(federate(clients, rounds=1)).answered) == N - 1


def test_a_letter_that_its_receiver_refuses_is_told_in_the_end(over_flower):
    """Client 1's letters are opened by nobody; all are in the sum, until too few can open it."""

    def change(content):
        letters = from_text(content["secure"]["said"])
        bad = [(*m[:3], bytes(len(m[3])), m[4]) for m in letters]
        content["secure"] = ConfigRecord({"said": to_text(bad)})

    clients = changed(over_flower(), "shares", 1, change)
    with pytest.raises(RoundFailed, match=r"opened nothing|client 0 refused: .*letter from 1"):
        next(federate(clients, rounds=1))


def test_a_client_that_is_drawn_twice_is_refused(over_flower):
    twice = weighted(6, [1.0] * N, replace=True)
    run = federate(over_flower(), rounds=9, cohort=twice)
    with pytest.raises(ValueError, match="the cohort must be clients that are called once each"):
        for _ in run:
            pass


def test_a_node_forgets_its_secrets_and_takes_part_in_one_attempt(over_flower):
    clients = over_flower()
    seen = tapped(clients)
    run = federate(clients, rounds=2)
    next(run)
    assert not any(SPOT in c.state for c in clients.grid.contexts.values())
    attempts = {c["secure"]["attempt"] for c in seen["down"] if "secure" in c}
    next(run)
    assert len(attempts) == 1
    assert len({c["secure"]["attempt"] for c in seen["down"] if "secure" in c}) == 2


def test_a_server_that_asks_twice_gets_nothing(over_flower):
    """Of one attempt a node opens one list: a second question is out of turn."""
    clients = over_flower()
    push, again = clients.grid.push_messages, []

    def twice(messages):
        for m in messages:
            if "secure" in m.content and m.content["secure"]["stage"] == "votes":
                m.metadata._message_id = "again"
                with pytest.raises(Exception, match="each stage once") as e:
                    node = clients.grid.contexts[m.metadata.dst_node_id]
                    clients.grid.app(m, node)
                    clients.grid.app(m, node)
                again.append(e)
        return push(messages)

    clients.grid.push_messages = twice
    with pytest.raises(RoundFailed, match=r"opened nothing: client 0, .* each stage once"):
        next(federate(clients, rounds=1))
    assert len(again) == N


def test_the_recipes_threshold_is_what_a_node_insists_on(over_flower, keys):
    nodes = over_flower(recipe_of(threshold=6))
    book = str(keys / "directory.json")
    server = GridClients(recipe_of(threshold=5), nodes.grid, nodes.node_of, directory=book)
    with pytest.raises(RoundFailed, match="client_app: threshold must be the recipe's, got 5"):
        next(federate(server, rounds=1))


def test_a_node_without_its_keys_says_what_it_must_be_told(keys):
    clients = grid_of(P, recipe_of(), directory=str(keys / "directory.json"))
    with pytest.raises(RoundFailed, match="client_app: identity and directory must be files"):
        next(federate(clients, rounds=1))


@pytest.mark.parametrize("value", [[], [1, "a", None], {3: (1, b"x")}, [(1, b""), {"k": [b"y"]}]])
def test_text_comes_back(value):
    as_tuples = lambda v: (
        tuple(map(as_tuples, v)) if isinstance(v, (list, tuple))
        else {k: as_tuples(x) for k, x in v.items()} if isinstance(v, dict) else v
    )  # fmt: skip
    assert from_text(to_text(value)) == as_tuples(value)
