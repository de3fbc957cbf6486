"""Many clients in little memory: updates added up as they come, workers, memory in a file."""

from __future__ import annotations

import copy
import gc
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import METHODS, Problem, hidden, problem
from problems import run as run_of

from fedlearn import (
    Recipe,
    Simulated,
    aggregate,
    algorithms,
    collect,
    federate,
    fold,
    model,
    personal,
    workers,
)
from fedlearn import simulated as place
from fedlearn.attacks.byzantine import Byzantine, sign_flip
from fedlearn.compress import downlink, error_feedback, top_k
from fedlearn.fleet import fleet
from fedlearn.history import Diverged
from fedlearn.privacy import adaptive_clip, dp_federate, private_mean
from fedlearn.privacy.secure_aggregation import secure_mean
from fedlearn.rng import Use, numpy_rng
from fedlearn.transform import chain, clip, noise

close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-11)  # float64


@pytest.fixture
def folding(monkeypatch):  # type: ignore[no-untyped-def]
    """As if every round were a large one."""
    monkeypatch.setattr(place, "_KEPT", 0)


def made(p: Problem, algorithm, pipeline=None, **kw) -> Simulated:  # type: ignore[no-untyped-def]
    more = {} if pipeline is None else {"pipeline": pipeline}
    recipe = Recipe(algorithm, p.closed_form.theta0, batch=16, epochs=2, seed=3, **more)
    return Simulated(recipe, p.x, p.y, p.parts, **{"chunk": 3, **kw})


FOLDING = [m for m in METHODS if (a := METHODS[m](problem().closed_form)).folds is a.server]


def test_most_methods_fold():
    assert {*METHODS} - {*FOLDING} == {"qfedavg", "qfedavg, full step", "feddyn of lesson 8"}


@pytest.mark.parametrize("method", METHODS)
def test_a_folded_run_is_the_run(method, folding):
    p = problem()
    make = lambda **kw: list(federate(made(p, METHODS[method](p.closed_form)), **kw))
    a, b = make(rounds=4, cohort=7), make(rounds=4, cohort=7, deltas=True)
    for r, s in zip(a, b, strict=True):
        close(r.theta, s.theta)
        close(r.p, s.p)
        assert r.loss == pytest.approx(s.loss, rel=1e-12)
        assert (r.sent, r.received, r.t) == (s.sent, s.received, s.t)
        assert np.array_equal(r.answered, s.answered)
        assert (r.rows is None) == (method in FOLDING) and s.deltas.shape[0] == 7


RULES = {
    "mean": aggregate.mean(),
    "total": aggregate.total(5.0),
    "clipped": aggregate.clipped_mean(0.05),
}


@pytest.mark.parametrize("rule", RULES)
def test_rules_of_rows_that_stand_for_many(rule):
    """Any rows, in any groups: the rule of the folds is the rule of all."""
    g = np.random.default_rng(0)
    rows, n = torch.from_numpy(g.normal(size=(9, 5))), torch.from_numpy(g.integers(1, 9, 9) * 1.0)
    rows[4] = torch.inf if rule == "clipped" else rows[4]
    want = RULES[rule].apply(rows, n / n.sum())
    for cuts in ([9], [1, 8], [3, 3, 3], [1] * 9, [2, 7]):
        at = np.split(g.permutation(9), np.cumsum(cuts)[:-1])
        done = [(i, {"delta": rows[i], "n": n[i], "loss": n[i]}, ()) for i in at]
        reply, _ = fold.join(iter(done), 9, RULES[rule].fold)
        close(RULES[rule].apply(reply["delta"], torch.ones(1).double()), want)
        close(reply["each"], n)
        assert reply["n"].item() == n.sum() and reply["delta"].shape == (1, 5)
        close(reply["loss"], (n @ n / n.sum())[None])


def test_stages_in_front_and_behind_and_masks_fold(folding):
    p = problem()
    fedavg = lambda: algorithms.fedavg(p.closed_form, lr=0.3)
    for stages in (
        (clip(0.05), aggregate.mean(), noise(1e-3)),
        (error_feedback(top_k(5)), aggregate.total(8)),
        secure_mean(8.0, 240),
    ):
        a, b = (
            list(federate(made(p, fedavg(), chain(*stages)), rounds=3, deltas=d))[-1]
            for d in (False, True)
        )
        close(a.theta, b.theta)
        assert a.rows is None and b.rows is not None and a.received == b.received


def test_private_runs_fold(folding):
    p = problem()
    base = algorithms.fedavg(p.closed_form, lr=0.3)
    ends = []
    for limit in (0, 10**9):
        place._KEPT = limit  # the fixture puts it back
        method, pipeline = adaptive_clip(base, z=1.0, expected=4.0, bit_noise=1.0)
        some = [
            dp_federate(made(p, *how), rounds=5, q=0.5, delta=1e-3)
            for how in ((base, private_mean(0.1, 1.0, 4.0)), (method, pipeline))
        ]
        ends.append([list(r)[-1].theta for r in some])
    for a, b in zip(*ends, strict=True):
        close(a, b)


def test_a_compressed_broadcast_folds_where_its_method_does(folding):
    p = problem()
    down = lambda a: downlink(a, top_k(9))
    assert down(algorithms.fedavg(p.closed_form, 0.3)).folds
    assert not down(personal.qfedavg(p.closed_form, 0.3, 1.0)).folds
    make = lambda **kw: list(federate(made(p, down(algorithms.fedavg(p.closed_form, 0.3))), **kw))
    close(make(rounds=3)[-1].theta, make(rounds=3, deltas=True)[-1].theta)


def test_the_clock_is_that_of_the_slowest(folding):
    p = problem()
    c = made(p, algorithms.fedavg(p.closed_form, 0.3), fleet=fleet(8, seed=1))
    a, b = next(federate(c, rounds=1)), next(federate(c, rounds=1, deltas=True))
    assert a.seconds == b.seconds


def test_a_server_of_ones_own_gets_every_row(folding):
    p, seen = problem(), []

    def server(state, delta, reply, q):  # type: ignore[no-untyped-def]
        seen.append(reply["delta"].shape)
        return {"theta": state["theta"] + delta}

    base = algorithms.fedavg(p.closed_form, lr=0.3)
    own = base._replace(server=server)
    got = next(federate(made(p, own), rounds=1))
    assert seen == [(8, 73)] == [got.deltas.shape]


def test_an_attack_gets_every_row(folding):
    p = problem()
    c = made(p, algorithms.fedavg(p.closed_form, lr=0.3))
    a = next(federate(Byzantine(c, [1, 4], sign_flip()), rounds=1))
    place._KEPT = 10**9
    assert torch.equal(a.theta, next(federate(Byzantine(c, [1, 4], sign_flip()), rounds=1)).theta)


def test_who_left_the_numbers_is_named(folding):
    p = problem()
    p.x[p.parts[5]] *= 1e200
    c = made(p, algorithms.fedavg(p.closed_form, lr=1e200))
    with pytest.raises(Diverged) as e:
        collect_all = list(federate(c, rounds=3))
        assert not collect_all
    assert 5 in e.value.clients


def test_deltas_that_were_not_kept_say_how_to_keep_them(folding):
    p = problem()
    r = next(federate(made(p, algorithms.fedavg(p.closed_form, 0.3)), rounds=1))
    with pytest.raises(ValueError, match=r"Round\.deltas: 8 updates of 73 .*deltas=True"):
        _ = r.deltas


@pytest.mark.parametrize(
    "kw, who",
    [({"pipeline": chain(aggregate.median())}, r"median\(\)"), ({}, "deltas=True")],
)
def test_more_than_may_be_seen_at_once_is_refused_with_its_size(kw, who, folding):
    p = problem()
    c = made(p, algorithms.fedavg(p.closed_form, 0.3), most_gb=1e-6, **kw)
    said = rf"Simulated: a round's updates .*most_gb=1e-06 .*8 updates of 73 .*{who}.*cohort=4"
    with pytest.raises(ValueError, match=said):
        next(federate(c, rounds=1, deltas=True))


def test_rules_that_see_every_row_do(folding):
    p = problem()
    pipeline = chain(aggregate.median())
    c = made(p, algorithms.fedavg(p.closed_form, 0.3), pipeline)
    r = next(federate(c, rounds=1))
    close(r.theta - c.recipe.theta, r.deltas.quantile(0.5, 0))


# -- workers --------------------------------------------------------------------------------------


class Here:
    """In a team's place: what it would send is packed and unpacked, and done in this process."""

    def __init__(self, clients, count):
        self.clients, self.end, self.held = clients, self, workers._held(clients)
        self.alive, self.count, self.seen = True, count, []

    def train(self, jobs):
        packed = lambda v: pickle.loads(pickle.dumps(workers._bare(v)))
        for at, job in jobs:
            self.seen.append(len(at))
            yield at, *workers._full(packed(self.clients.some(*workers._full(packed(job)))))


@pytest.fixture
def here(monkeypatch):
    """No process is started."""
    monkeypatch.setattr(workers, "Team", Here)


@pytest.mark.parametrize("method", METHODS)
def test_workers_change_no_bit(method, here):
    p = problem()
    theta0 = p.closed_form.theta0
    one = run_of(METHODS[method](p.closed_form), theta0, p, chunk=2)
    c = made(p, METHODS[method](p.closed_form), chunk=2, workers=2)
    some = list(federate(c, rounds=4, cohort=5))
    assert all(torch.equal(a.theta, b.theta) for a, b in zip(one, some, strict=True))
    assert sum(c.team.seen) == 20


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_every_type_of_number_comes_through_a_pipe(kind):
    v = {"a": (torch.tensor([1.5, -2.0], dtype=kind), [torch.tensor(3)]), "b": "word"}
    w = workers._full(pickle.loads(pickle.dumps(workers._bare(v))))
    assert torch.equal(w["a"][0], v["a"][0]) and w["a"][0].dtype == kind
    assert w["a"][1] == [torch.tensor(3)] and w["b"] == "word"


@pytest.mark.parametrize("sizes", [[20] * 10, [10, 31, 12, 57, 10], [3, 4, 6, 9, 10, 12, 57]])
@pytest.mark.parametrize("batch", [10, None])
def test_workers_share_a_chunk_without_changing_a_bit(sizes, batch, here):
    """Wide enough for MKL to take other ways for other shapes: no client is padded otherwise."""
    task, parts = model.mlp(300, 50, 10), np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    rng = numpy_rng(0, Use.TOY)
    recipe = Recipe(algorithms.fedavg(task, 0.1), task.theta0, batch=batch)
    x, y = rng.random((sum(sizes), 300), np.float32), rng.integers(0, 10, sum(sizes))
    made = [Simulated(recipe, x, y, parts, workers=w) for w in (1, 2, 3, 8)]
    one, *others = (next(federate(c, rounds=1)).deltas for c in made)
    assert all(torch.equal(one, other) for other in others)
    assert len(sizes) < 10 or [c.team.seen for c in made[1:3]] == [[5, 5], [4, 3, 3]]


def test_a_copy_has_no_share_in_the_workers_of_its_original(here):
    p = problem()
    clients = made(p, algorithms.fedavg(p.closed_form, 0.3), workers=2)
    next(federate(clients, rounds=1))
    assert clients.team is not None
    assert copy.copy(clients).team is None and copy.deepcopy(clients).team is None


def test_workers_of_a_folded_run_change_no_bit(folding, here):
    p = problem()
    run = lambda w: list(
        federate(made(p, algorithms.scaffold(p.closed_form, 0.2, 240), workers=w), rounds=3)
    )
    assert all(torch.equal(a.theta, b.theta) for a, b in zip(run(1), run(2), strict=True))


def processes_of(name):  # type: ignore[no-untyped-def]
    """What trains here: a method whose clients say in which process they are."""
    p = problem()
    method = {
        "scaffold": lambda: algorithms.scaffold(p.closed_form, 0.2, 240),
        "a module": lambda: algorithms.fedavg(model.from_module(p.net), 0.2),
    }[name]()
    return p, method


@pytest.mark.slow
@pytest.mark.parametrize("folded", [False, True])
def test_processes_change_no_bit_and_end_with_the_clients(folded, monkeypatch):
    """Two of them, for a method that remembers and for a module, added up or not."""
    monkeypatch.setattr(place, "_KEPT", 0 if folded else place._KEPT)
    monkeypatch.setattr(place, "TOGETHER", 1)  # eight jobs, more than are under way at once
    p, method = processes_of("scaffold" if folded else "a module")
    there = lambda w: made(p, method, chunk=1, workers=w)
    one, clients = list(federate(there(1), rounds=3)), there(2)
    two = list(federate(clients, rounds=3))
    assert all(torch.equal(a.theta, b.theta) for a, b in zip(one, two, strict=True))
    pids, folder = [*clients.team.pool._processes], clients.team.folder
    assert len(pids) == 2 and os.getpid() not in pids and folder.exists()
    del clients
    gc.collect()
    assert not folder.exists() and not any(map(is_there, pids))


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2] if proc else True


proc = Path("/proc/self/stat").exists()


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_a_round_and_no_run():
    p, method = processes_of("scaffold")
    alone = list(federate(made(p, method, chunk=2), rounds=3))
    clients = made(p, method, chunk=2, workers=2)
    run = federate(clients, rounds=3)
    next(run)
    for pid in [*clients.team.pool._processes]:  # all: one that is left might do the whole round
        os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    with pytest.raises(RuntimeError, match="a worker process has been killed"):
        next(run)
    *_, last = run
    assert torch.equal(last.theta, alone[-1].theta) and len(run.history) == 3


@pytest.mark.slow
def test_an_error_in_a_worker_is_the_run_s():
    p = problem()

    def client(message, shards, memory):  # type: ignore[no-untyped-def]
        raise RuntimeError("out of paper")

    own = algorithms.fedavg(p.closed_form, lr=0.3)._replace(client=client)
    with pytest.raises(RuntimeError, match="out of paper"):
        next(federate(made(p, own, workers=2), rounds=1))


class Unreadable:
    """It can be sent, and not be received."""

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return int, ("no number",)


@pytest.mark.slow
def test_what_a_worker_can_t_receive_is_said():
    p = problem()

    def client(message, shards, memory, what=Unreadable()):  # type: ignore[no-untyped-def]  # noqa: B008
        raise AssertionError("it was received")

    own = algorithms.fedavg(p.closed_form, lr=0.3)._replace(client=client)
    with pytest.raises(ValueError, match="no number"):
        next(federate(made(p, own, workers=2), rounds=1))


@pytest.mark.slow
def test_workers_follow_a_recipe_that_is_exchanged():
    p = problem()
    ends = []
    for count in (1, 2):
        clients = made(p, algorithms.fedavg(p.closed_form, lr=0.3), chunk=1, workers=count)
        next(federate(clients, rounds=1))
        clients.recipe = Recipe(clients.recipe.algorithm, clients.recipe.theta, batch=8, seed=3)
        ends.append(next(federate(clients, rounds=1)).theta)
    assert torch.equal(*ends)


def test_a_recipe_that_no_other_process_can_have_is_refused():
    p, lock = problem(), threading.Lock()

    def client(message, shards, memory):  # type: ignore[no-untyped-def]
        with lock:
            return fedavg.client(message, shards, memory)

    fedavg = algorithms.fedavg(p.closed_form, lr=0.3)
    clients = made(p, fedavg._replace(client=client), workers=2)
    with pytest.raises(ValueError, match=r"Simulated: recipe with workers > 1 must be .*workers=1"):
        next(federate(clients, rounds=1))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills a process by its number")
def test_no_worker_outlives_a_run_that_is_killed(tmp_path):
    code = (
        "import os, sys, time, numpy as np, torch\n"
        "from fedlearn import Recipe, Simulated, algorithms, federate, model\n"
        "task = model.softmax_regression(2, 2)\n"
        "recipe = Recipe(algorithms.fedavg(task, 0.5), task.theta0)\n"
        "x, y = torch.eye(2).repeat(4, 1), torch.tensor([0, 1]).repeat(4)\n"
        "c = Simulated(recipe, x, y, np.split(np.arange(8), 4), chunk=1, workers=2)\n"
        "next(federate(c, rounds=1))\n"
        "print(*c.team.pool._processes, flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as run:
        pids = [*map(int, run.stdout.readline().split())]
        assert len(pids) == 2 and all(map(is_there, pids))
        run.kill()
    end = time.monotonic() + 20
    while any(map(is_there, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(is_there, pids))


@pytest.mark.parametrize(
    "kw", [{"workers": 0}, {"workers": 1.5}, {"most_gb": 0}, {"most_gb": math.nan}]
)
def test_bad_numbers(kw):
    p = problem()
    with pytest.raises(ValueError, match=r"Simulated: .*got .*e\.g\."):
        made(p, algorithms.fedavg(p.closed_form, 0.3), **kw)


# -- memory in a file -----------------------------------------------------------------------------


def test_memory_in_a_file_is_the_same_memory(monkeypatch, tmp_path):
    p = problem()
    make = lambda: made(p, algorithms.moon(p.closed_form, 0.3, hidden))
    want = collect(federate(make(), rounds=4, cohort=5))
    monkeypatch.setattr(fold, "_MAPPED", 0)
    made_files, memmap = [], np.memmap
    count = lambda *a, **kw: made_files.append(kw["shape"]) or memmap(*a, **kw)
    monkeypatch.setattr(np, "memmap", count)
    run = federate(make(), rounds=4, cohort=5)
    assert made_files == [(8 * 73 * 8,)]
    assert torch.equal(collect(run).theta, want.theta)
    collect(federate(make(), rounds=2, cohort=5, checkpoint=tmp_path / "run"))
    again = federate(make(), rounds=4, cohort=5, resume=tmp_path / "run")
    assert torch.equal(collect(again).theta, want.theta)


BIG = """
import resource, numpy as np, torch
from fedlearn import Recipe, Simulated, algorithms, federate, model
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
before, N = peak(), 2000
x, y = torch.rand(N, 784), torch.randint(0, 10, (N,))
task = model.mlp(784, 200, 200, 10)
recipe = Recipe(algorithms.fedavg(task, 0.05), task.theta0, batch=10)
r = next(federate(Simulated(recipe, x, y, list(np.arange(N)[:, None])), rounds=1))
assert r.theta.isfinite().all() and len(r.p) == N
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kB on Linux")
def test_two_thousand_updates_of_the_2nn_are_never_held():
    """1.6 GB of updates, in a process of its own that may not grow by half of that."""
    out = subprocess.run([sys.executable, "-c", BIG], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 700
