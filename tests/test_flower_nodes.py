"""Over Flower: nodes that are found, rounds that are tried again, memory on the disk, keys."""

from __future__ import annotations

import datetime
import os
import stat
import time

import numpy as np
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from flwr.app import ConfigRecord, Error, Message, RecordDict
from problems import METHODS, problem
from runs import bits
from test_flower import grid_of, identity  # noqa: F401 (a fixture that runs by itself)

from fedlearn import Recipe, Simulated, algorithms, federate
from fedlearn.aggregate import mean
from fedlearn.checks import RoundFailed
from fedlearn.flower import GridClients, lookup, wire
from fedlearn.flower.__main__ import main
from fedlearn.flower.keys import make_keys
from fedlearn.flower.local import Local, free_ports
from fedlearn.privacy import local_noise
from fedlearn.transform import chain

P = problem()
TASK = P.closed_form
N = len(P.parts)


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    for module in (wire, lookup):
        monkeypatch.setattr(module, "PAUSE", 0.001)


def recipe_of(method="fedavg", pipeline=None):
    return Recipe(METHODS[method](TASK), TASK.theta0, pipeline or chain(mean()), batch=16, epochs=2,
                  seed=3)  # fmt: skip


def late(grid, delays):
    """Answers of these nodes come after so many looks for them; None: never."""
    push, pull, waiting = grid.push_messages, grid.pull_messages, []

    def pushed(messages):
        ids = push(messages)
        looks = [delays.get(m.metadata.dst_node_id, 0) for m in messages]
        by = dict(zip(ids, looks))
        waiting.extend([by[m.metadata.reply_to_message_id], m] for m in pull(ids))
        return ids

    def pulled(ids):
        for entry in waiting:
            entry[0] = entry[0] if entry[0] is None else entry[0] - 1
        out = [m for left, m in waiting if left is not None and left < 0]
        waiting[:] = [[left, m] for left, m in waiting if left is None or left >= 0]
        return out

    grid.push_messages, grid.pull_messages = pushed, pulled
    return grid


# -- who holds which client -----------------------------------------------------------------------


def test_the_nodes_are_found_by_a_query():
    grid = grid_of(P, recipe_of()).grid
    order = np.random.default_rng(0).permutation(N)
    for k, context in zip(order.tolist(), grid.contexts.values(), strict=True):
        context.node_config["partition-id"] = k
    clients = GridClients(recipe_of(), grid, N)
    assert clients.node_of == {k: 100 + i for i, k in enumerate(order.tolist())}
    here = Simulated(recipe_of(), P.x, P.y, P.parts)
    there = grid_of(P, recipe_of())
    found = GridClients(recipe_of(), there.grid, N)
    a, b, c = (next(federate(each, rounds=1)) for each in (here, there, found))
    torch.testing.assert_close(a.theta, c.theta, atol=1e-12, rtol=0)
    assert bits(b.theta) == bits(c.theta)


def test_it_waits_for_nodes_that_come_later():
    grid = grid_of(P, recipe_of()).grid
    contexts, looks = dict(grid.contexts), iter(range(1, 100))
    grid.get_node_ids = lambda: [*contexts][: next(looks)]
    assert lookup.find_nodes(grid, N) == {k: 100 + k for k in range(N)}


def test_a_node_that_was_gone_is_asked_again():
    grid = grid_of(P, recipe_of()).grid
    grid.lost, looks = {102}, iter(range(1, 100))

    def ids():
        grid.lost = {102} if next(looks) < 5 else set()
        return [*grid.contexts]

    grid.get_node_ids = ids
    assert lookup.find_nodes(grid, N)[2] == 102


def test_who_is_missing_in_the_end_is_said():
    grid = late(grid_of(P, recipe_of()).grid, {101: None, 104: None})
    with pytest.raises(TimeoutError, match=r"got no answer of \[1, 4\]; 8 nodes were asked"):
        lookup.find_nodes(grid, N, timeout=0.05)
    with pytest.raises(TimeoutError, match=r"within 0.1 s"):
        GridClients(recipe_of(), grid, N, timeout=0.05, tries=2)


def test_more_nodes_than_clients_are_no_harm_and_a_client_of_two_nodes_is():
    grid = grid_of(P, recipe_of()).grid
    assert lookup.find_nodes(grid, 3) == {0: 100, 1: 101, 2: 102}
    grid.contexts[105].node_config["partition-id"] = 1
    with pytest.raises(ValueError, match=r"got client 1 with nodes 10[15] and 10[15], e.g."):
        lookup.find_nodes(grid, N)


ANSWERS = {
    "an error": (lambda m: Message(Error(2, "no partition-id"), reply_to=m), "no partition-id"),
    "another record": (lambda m: Message(RecordDict(), reply_to=m), "partition-id None"),
    "a word": (lambda m: Message(RecordDict({"client": ConfigRecord({"partition-id": "one"})}),
                                 reply_to=m), "'one'"),
    "negative": (lambda m: Message(RecordDict({"client": ConfigRecord({"partition-id": -1})}),
                                   reply_to=m), "-1"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_a_node_that_does_not_know_its_client_is_named(name):
    answer, why = ANSWERS[name]
    grid = grid_of(P, recipe_of()).grid
    app = grid.app

    def odd(m, context):
        if context.node_id != 103:
            return app(m, context)
        out = answer(m)
        out.metadata._src_node_id = 103
        return out

    grid.app = odd
    with pytest.raises(ValueError, match=f"find_nodes: a node must say .*{why} of node 103, e.g."):
        lookup.find_nodes(grid, N)


def test_a_number_of_no_clients_is_refused():
    with pytest.raises(ValueError, match=r"node_of must be a node for each client 0\.\.N-1, or N"):
        GridClients(recipe_of(), None, 0)


# -- tried again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_a_round_is_tried_again_with_those_who_were_silent(method):
    """Two answers get lost: their clients are asked again, the others are not."""
    plain = grid_of(P, recipe_of(method))
    want = [bits(r.theta) for r in federate(plain, rounds=3)]
    clients = grid_of(P, recipe_of(method), timeout=0.05)
    asked, send = [], clients.grid.send_and_receive

    def lossy(messages, **how):
        asked.append([m.metadata.dst_node_id for m in messages])
        lose = {101, 105} if len(asked) == 3 else set()
        return [m for m in send(messages, **how) if m.metadata.src_node_id not in lose]

    clients.grid.send_and_receive = lossy
    assert [bits(r.theta) for r in federate(clients, rounds=3)] == want
    assert asked[:2] == [asked[0]] * 2 and len(asked) == 4 and asked[3] == [101, 105]


def test_an_answer_to_the_first_try_counts_in_the_second():
    clients = grid_of(P, recipe_of(), timeout=0.05, tries=5)
    late(clients.grid, {103: 80})  # looks: more than a try has
    assert len(next(federate(clients, rounds=1)).answered) == N


def test_after_its_tries_the_run_stops_and_its_checkpoint_stays(tmp_path):
    clients, path = grid_of(P, recipe_of(), tries=3), tmp_path / "run.ckpt"
    run = federate(clients, rounds=3, checkpoint=path)
    first = next(run)
    asked, send = [], clients.grid.send_and_receive
    clients.grid.send_and_receive = lambda ms, **how: asked.append(len(ms)) or send(ms, **how)
    clients.grid.lost = {103}
    with pytest.raises(RoundFailed, match=r"client 3 \(node 103\) failed in round 1"):
        next(run)
    assert asked == [N, 1, 1]
    again = federate(grid_of(P, recipe_of()), rounds=3, resume=path)
    assert bits(again.state["theta"]) == bits(first.theta) and again.t == 2


def test_a_node_that_is_gone_has_until_the_next_try_to_come_back():
    """The SuperLink says at once that it is gone; to ask again at once would be to no avail."""
    clients = grid_of(P, recipe_of(), timeout=0.2, tries=3)
    asked, send = [], clients.grid.send_and_receive

    def noted(messages, **how):
        asked.append(time.monotonic())
        clients.grid.lost = {103} if len(asked) < 3 else set()
        return send(messages, **how)

    clients.grid.send_and_receive = noted
    assert len(next(federate(clients, rounds=1)).answered) == N
    assert len(asked) == 3 and min(np.diff(asked)) >= 0.2


def test_behind_a_stage_that_hides_a_round_is_tried_once():
    """Two noisy replies of one round tell more than one."""
    recipe = Recipe(algorithms.fedavg(TASK, 0.3), TASK.theta0,
                    chain(local_noise(0.5, 0.5), mean()), equal=True)  # fmt: skip
    clients = grid_of(P, recipe, tries=3)
    asked, send = [], clients.grid.send_and_receive
    clients.grid.send_and_receive = lambda ms, **how: asked.append(len(ms)) or send(ms, **how)
    clients.grid.lost = {103}
    with pytest.raises(RoundFailed):
        next(federate(clients, rounds=1))
    assert asked == [N]


def test_an_answer_in_anothers_name_is_not_taken():
    clients = grid_of(P, recipe_of(), minimum=1)
    send = clients.grid.send_and_receive

    def liar(messages, **how):
        for m in send(messages, **how):
            if m.metadata.src_node_id == 102:
                m.metadata._src_node_id = 104
            yield m

    clients.grid.send_and_receive = liar
    with pytest.warns(RuntimeWarning, match="client 2 .*another's answer"):
        assert len(next(federate(clients, rounds=1)).answered) == N - 1


# -- memory on the disk ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["scaffold", "feddyn"])
def test_a_node_that_was_started_anew_reads_what_its_client_remembers(method, tmp_path):
    told = lambda k: {"keep": str(tmp_path)}
    make = lambda: grid_of(P, recipe_of(method), told=told)
    want = [bits(r.theta) for r in federate(make(), rounds=4)]
    for file in tmp_path.glob("client-*.memory"):
        file.unlink()
    path = tmp_path / "run.ckpt"
    head = [bits(r.theta) for r in federate(make(), rounds=2, checkpoint=path)]
    tail = [bits(r.theta) for r in federate(make(), rounds=4, resume=path)]
    assert head + tail == want
    assert sorted(f.name for f in tmp_path.glob("*.memory")) == [
        f"client-{k}.memory" for k in range(N)
    ]


def test_a_damaged_memory_is_refused(tmp_path):
    clients = grid_of(P, recipe_of("scaffold"), told=lambda k: {"keep": str(tmp_path)})
    run = federate(clients, rounds=2)
    next(run)
    file = tmp_path / "client-0.memory"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    for context in clients.grid.contexts.values():
        context.state.clear()
    with pytest.raises(ValueError, match="its checksum differs"):
        next(run)


# -- keys -----------------------------------------------------------------------------------------


def test_the_servers_certificate_is_signed_by_the_authority_for_its_hosts(tmp_path):
    keys = make_keys(tmp_path / "keys", 2, hosts=("server.example.org", "10.0.0.5", "::1"), days=3)
    ca, server = (
        x509.load_pem_x509_certificate((keys / f).read_bytes()) for f in ("ca.crt", "server.pem")
    )
    server.verify_directly_issued_by(ca)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["server.example.org"]
    assert [*map(str, names.get_values_for_type(x509.IPAddress))] == ["10.0.0.5", "::1"]
    left = server.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=2) < left < datetime.timedelta(days=4)
    key = serialization.load_pem_private_key((keys / "server.key").read_bytes(), None)
    assert key.public_key() == server.public_key()
    assert not [*keys.glob("ca*.key")], "nobody signs more"


@pytest.mark.skipif(os.name == "nt", reason="no such modes there")
def test_keys_are_their_owners_alone(tmp_path):
    keys = make_keys(tmp_path / "keys", 2)
    modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in keys.iterdir()}
    assert set(modes.values()) == {0o600} and stat.S_IMODE(keys.stat().st_mode) == 0o700


def test_keys_overwrite_nothing(tmp_path):
    (tmp_path / "node-0").write_text("mine")
    with pytest.raises(FileExistsError):
        make_keys(tmp_path, 1)
    assert (tmp_path / "node-0").read_text() == "mine"


def test_ports_are_free_and_different():
    assert len({*free_ports(20)}) == 20


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    main(["keys", str(tmp_path / "k"), "--clients", "2", "--host", "a.example.org"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "k")
    with pytest.raises(SystemExit, match=r"python -m fedlearn.flower: .*exists"):
        main(["keys", str(tmp_path / "k")])
    with pytest.raises(SystemExit, match="demo: app must be the folder of the example app"):
        main(["demo", "--app", str(tmp_path)])


def test_a_deployment_has_no_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_SUPERGRID_ADDRESS", "elsewhere.example.org")
    local = Local([{}])
    local.folder = tmp_path
    env = local.environment()
    assert env["FLWR_TELEMETRY_ENABLED"] == "0" and env["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert env["FLWR_HOME"] == str(tmp_path / "home") and "127.0.0.1" in env["NO_PROXY"]
    assert "FLWR_SUPERGRID_ADDRESS" not in env
