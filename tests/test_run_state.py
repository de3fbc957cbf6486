"""A run owns its state: other runs don't move it, and whatever ends a round loses nothing."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from flwr.app import RecordDict
from problems import METHODS, Wire, problem
from runs import KINDS, ROUNDS, fresh, of_round, of_run, start
from test_flower import Loopback

from fedlearn import Diverged, History, Recipe, RoundFailed, Run, Simulated, collect, federate
from fedlearn import loop as loop_file
from fedlearn.aggregate import krum, mean
from fedlearn.algorithms import fedavg
from fedlearn.flower import GridClients, client_app
from fedlearn.model import softmax_regression
from fedlearn.participation import dropouts, uniform
from fedlearn.partition import files
from fedlearn.privacy.secure_aggregation import TooFew, secure_mean
from fedlearn.transform import After, chain, clip

SOME = ["scaffold", "fedadam", "scheduled", "asynchronous, fedadam", "private, adaptive clipping"]
REFERENCES: dict[str, tuple[list, object]] = {}


def reference(kind):
    """The uninterrupted run over clients of its own, trained once."""
    if kind not in REFERENCES:
        REFERENCES[kind] = fresh(kind)
    return REFERENCES[kind]


def clients_of(kind):
    return KINDS[kind][0](problem())


# -- two runs over the same clients ----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_runs_one_after_the_other_and_interleaved_equal_fresh_ones(kind):
    clients = clients_of(kind)
    rounds, end = reference(kind)
    first = start(kind, clients)
    assert [of_round(r) for r in first] == rounds
    second = start(kind, clients)
    assert [of_round(r) for r in second] == rounds
    a, b, got = start(kind, clients), start(kind, clients, every=1), []
    for turn in "abbaabaab":  # neither in step
        if turn == "a":
            got.append(of_round(next(a)))
        else:
            next(b)
    assert got == rounds
    assert of_run(a) == of_run(first) == of_run(second) == end
    assert bool(list(b)) and torch.equal(b.state["theta"], a.state["theta"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_abandoned_leaves_nothing_behind(kind):
    clients = clients_of(kind)
    before = runs.bits(vars(clients) | {"recipe": None})
    for rounds in (1, 3):
        left = start(kind, clients)
        for _ in range(rounds):
            next(left)
    del left
    gc.collect()
    broken = start(kind, clients)
    with pytest.raises(KeyboardInterrupt), stop(clients, "run", at=1):
        next(broken)
    run = start(kind, clients)
    assert [of_round(r) for r in run] == reference(kind)[0]
    assert of_run(run) == reference(kind)[1]
    assert runs.bits(vars(clients) | {"recipe": None}) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_forks_and_both_branches_go_on(kind):
    clients = clients_of(kind)
    run = start(kind, clients)
    head = [of_round(next(run)) for _ in range(2)]
    fork = start(kind, clients, resume=run)
    tail = [of_round(r) for r in fork]  # the original waits
    assert of_run(fork) == reference(kind)[1] and head + tail == reference(kind)[0]
    assert run.t == 2
    assert head + [of_round(r) for r in run] == reference(kind)[0]
    assert of_run(run) == of_run(fork)


@pytest.mark.parametrize("method", METHODS)
def test_runs_over_a_wire_are_the_runs_in_this_process(method):
    """Clients that keep nothing themselves: memory travels with the run alone."""
    p, task = problem(), problem().closed_form
    recipe = Recipe(METHODS[method](task), task.theta0, batch=16, epochs=2, seed=3)
    wire, here = Wire(recipe, p.x, p.y, p.parts), Simulated(recipe, p.x, p.y, p.parts)
    a, b = (federate(wire, rounds=4, cohort=5) for _ in range(2))
    for r in federate(here, rounds=4, cohort=5):
        for other in (next(a), next(b)):
            torch.testing.assert_close(other.theta, r.theta, atol=1e-11, rtol=1e-10)
    assert torch.equal(a.state["theta"], b.state["theta"])


def test_the_user_may_write_into_what_a_round_gave_away():
    run = start("fedavgm")
    for r in run:
        r.theta.fill_(7.0)
        r.metrics.clear()
    assert runs.bits(run.state) == reference("fedavgm")[1]["state"]


# -- the same over Flower --------------------------------------------------------------------------

OVER_FLOWER = ["fedavg", "fedadam", "scaffold", "feddyn", "feddyn of lesson 8", "scheduled"]


@pytest.fixture
def identity(monkeypatch):
    """Flower's client messages carry the ids of the task they were made in."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def grid_clients(method, pipeline=None):
    p, task = problem(), problem().closed_form
    pipeline = pipeline or chain(mean())
    recipe = Recipe(METHODS[method](task), task.theta0, pipeline, batch=16, epochs=2, seed=3)
    load = lambda context: (recipe, p.x, p.y, p.parts[context.node_config["partition-id"]])
    grid = Loopback(client_app(load), len(p.parts))
    return GridClients(recipe, grid, {k: 100 + k for k in range(len(p.parts))})


def thetas(run):
    return [runs.bits(r.theta) for r in run]


def over_flower(method, **how):
    return thetas(federate(grid_clients(method), rounds=ROUNDS, cohort=5, **how))


@pytest.mark.parametrize("method", OVER_FLOWER)
def test_over_flower_runs_do_not_know_of_each_other(method, identity):
    expected, clients = over_flower(method), grid_clients(method)
    start = lambda **how: federate(clients, rounds=ROUNDS, cohort=5, **how)
    left = start()  # abandoned
    next(left), next(left)
    assert thetas(start()) == expected
    a, b, got = start(), start(), {"a": [], "b": []}
    for turn in "abbaababab":
        got[turn].append(runs.bits(next(a if turn == "a" else b).theta))
    assert got == {"a": expected, "b": expected}
    other = thetas(federate(grid_clients(method), rounds=ROUNDS, cohort=4))
    a, b, got = start(), federate(clients, rounds=ROUNDS, cohort=4), {"a": [], "b": []}
    for turn in "abbaababab":
        got[turn].append(runs.bits(next(a if turn == "a" else b).theta))
    assert got == {"a": expected, "b": other}


@pytest.mark.parametrize("method", OVER_FLOWER)
@pytest.mark.parametrize("answers", [0, 2])
def test_over_flower_a_round_goes_on_where_ctrl_c_ended_it(method, answers, identity):
    """Some nodes have trained in the round already: what they remember must not count twice."""
    clients = grid_clients(method)
    run, send, expected = federate(clients, rounds=ROUNDS, cohort=5), None, over_flower(method)
    send = clients.grid.send_and_receive

    def ctrl_c(messages, **how):
        list(send(list(messages)[:answers], **how))
        raise KeyboardInterrupt

    got = []
    for _ in range(ROUNDS):
        clients.grid.send_and_receive = ctrl_c
        with pytest.raises(KeyboardInterrupt):
            next(run)
        clients.grid.send_and_receive = send
        got.append(runs.bits(next(run).theta))
    assert got == expected


@pytest.mark.parametrize("method", OVER_FLOWER)
def test_over_flower_a_run_goes_on_from_its_checkpoint(method, identity, tmp_path):
    expected, clients, path = over_flower(method), grid_clients(method), tmp_path / "a"
    run = federate(clients, rounds=ROUNDS, cohort=5, checkpoint=path)
    head = [runs.bits(next(run).theta) for _ in range(2)]
    copied = path.read_bytes()
    next(run)  # the server was killed before it wrote this one down; the nodes have trained
    path.write_bytes(copied)
    again = federate(clients, rounds=ROUNDS, cohort=5, checkpoint=path, resume=True)
    assert again.t == 2 and head + thetas(again) == expected


def test_over_flower_a_node_without_its_memory_says_so(identity, tmp_path):
    clients, path = grid_clients("scaffold"), tmp_path / "a"
    list(federate(clients, rounds=2, checkpoint=path))
    for context in clients.grid.contexts.values():
        context.state = RecordDict()
    run = federate(clients, rounds=4, resume=path)
    with pytest.raises(ValueError, match="must remember the run after round 1, got"):
        next(run)


def test_over_flower_lost_nodes_are_skipped_and_counted(identity):
    clients = grid_clients("scaffold")
    run = federate(clients, rounds=6, skip=2)
    next(run)
    clients.grid.lost = {103}
    lost = [next(run), next(run)]
    with pytest.raises(RoundFailed, match=r"client 3 \(node 103\) failed in round 3"):
        next(run)
    clients.grid.lost = set()
    back = next(run)
    assert [r.t for r in lost] == [1, 2] and back.t == 4
    assert [len(r.answered) for r in lost] == [0, 0] and len(back.answered) == clients.count
    assert sorted(run.history.failed) == [1, 2, 3] and len(run.history) == 5


# -- Ctrl-C, anywhere ------------------------------------------------------------------------------


class stop:
    """Raise in the call number ``at`` of ``owner.name``, before or behind what it does."""

    def __init__(self, owner, name, at=1, error=KeyboardInterrupt, behind=False):
        self.owner, self.name, self.at, self.error, self.behind = owner, name, at, error, behind

    def __enter__(self):
        self.real, self.calls = getattr(self.owner, self.name), 0

        def call(*args, **kw):
            self.calls += 1
            if self.calls != self.at:
                return self.real(*args, **kw)
            if self.behind:
                self.real(*args, **kw)
            raise self.error

        self.own = self.name in vars(self.owner)
        setattr(self.owner, self.name, call)

    def __exit__(self, *why):
        if self.own:
            setattr(self.owner, self.name, self.real)
        else:
            delattr(self.owner, self.name)


def interrupted(run):
    """collect() as a notebook calls it: it warns, and gives the curve so far."""
    with pytest.warns(RuntimeWarning):
        h = collect(run)
    assert h.stopped and h is run.history
    return h


@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_in_training_and_in_the_books_loses_nothing(kind):
    """One run, interrupted in a place, then in another: before it and behind it."""
    clients, late = clients_of(kind), "sync" in kind
    run, done = start(kind, clients), 0
    places = {
        "run": (clients, "run", 1),
        "add": (run.history, "add", 1),
        "settle": (run, "_settle", 1),  # before a round
        "kept": (run, "_settle", 2),  # behind one
        "call": (run, "call", 1),
    }
    for what, (owner, name, at) in places.items():
        if late and what == "call":  # nobody is called: they come when they are done
            continue
        for behind in (False, True):
            if late and what == "run" and behind:  # a buffer of one: not each round trains
                continue
            with stop(owner, name, at, behind=behind):
                h = interrupted(run)
            assert len(h) in (done, done + 1)
            assert [len(c) for c in h.columns.values()] == [len(h)] * len(h.columns)
            done = len(h)
    assert done < ROUNDS
    assert collect(run) is h and of_run(run) == reference(kind)[1]


@pytest.mark.parametrize("what", ["evaluate", "server", "message", "client", "combine"])
@pytest.mark.parametrize("at", range(1, 6))
def test_ctrl_c_in_the_methods_own_functions_loses_nothing(what, at):
    p, task, now = problem(), problem().closed_form, {"calls": 0, "armed": True}

    def tired(f):
        def g(*args):
            now["calls"] += 1
            if now["calls"] == at and now["armed"]:
                now["armed"] = False
                raise KeyboardInterrupt
            return f(*args)

        return g

    look, method, pipeline = runs.look, METHODS["scaffold"](task), chain(mean())
    if what == "evaluate":
        look = tired(look)
    elif what == "combine":
        pipeline = chain(mean(), After("same", tired(lambda delta, ctx: delta)))
    else:
        method = method._replace(**{what: tired(getattr(method, what))})
    recipe = Recipe(method, task.theta0, pipeline, batch=16, epochs=2, seed=3)
    run = federate(Simulated(recipe, p.x, p.y, p.parts), rounds=5, cohort=5, evaluate=look)
    h = interrupted(run)
    assert len(h) == at - 1
    collect(run)
    now["armed"] = False
    plain = Recipe(METHODS["scaffold"](task), task.theta0, batch=16, epochs=2, seed=3)
    whole = federate(Simulated(plain, p.x, p.y, p.parts), rounds=5, cohort=5, evaluate=runs.look)
    collect(whole)
    assert of_run(run) == of_run(whole)


class at_event:
    """Raise KeyboardInterrupt at the n-th line (or instruction) of some of the package's files."""

    def __init__(self, n, files, opcodes=()):
        self.n, self.files, self.opcodes, self.seen = n, files, opcodes, 0

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *why):
        sys.settrace(self.before)

    def trace(self, frame, event, arg):
        if frame.f_code.co_filename not in self.files:
            return None
        fine = frame.f_code.co_name in self.opcodes
        frame.f_trace_opcodes, frame.f_trace_lines = fine, not fine
        if event in ("line", "opcode"):
            self.seen += 1
            if self.seen == self.n:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.trace


BOOKS = tuple(str(Path(loop_file.__file__).with_name(f)) for f in ("loop.py", "history.py"))
DISK = (str(Path(loop_file.__file__).with_name("checkpoint.py")), files.__file__)
FINE = ("__next__", "_next", "_settle", "add", "loop")


def small(**how):
    """Two rounds in a millisecond: clients that remember, a server that does, an empty round."""
    task, x, y = softmax_regression(3, 3), torch.eye(3), torch.arange(3)
    method = METHODS["scaffold"](task)
    recipe = Recipe(method, task.theta0, chain(clip(0.1), mean()), batch=1, seed=1)
    clients = Simulated(recipe, x, y, [np.array([k]) for k in range(3)])
    cohort = lambda n, seed, t: dropouts(uniform(2), 1.0 if t == 1 else 0.0)(n, seed, t)
    return federate(clients, rounds=3, cohort=cohort, evaluate=runs.look, **how)


@pytest.mark.parametrize("opcodes, step", [((), 5), (FINE, 67)], ids=["lines", "some instructions"])
def test_ctrl_c_at_every_fifth_line_of_the_run_loses_nothing(opcodes, step):
    reference = small()
    rounds = [of_round(r) for r in reference]
    n, ended = 1 - step, False
    while not ended:
        n += step
        run, got = small(), []
        hit = False
        with at_event(n, BOOKS, opcodes) as event:
            try:
                got += [of_round(next(run)) for _ in range(3)]
                assert next(run, None) is None
                ended = event.seen < n
            except KeyboardInterrupt:
                hit = True
        assert hit or ended
        assert [len(c) for c in run.history.columns.values()] == [len(run.history)] * len(
            run.history.columns
        ), n
        rest = [of_round(r) for r in run]
        assert rest == rounds[3 - len(rest) :], n
        assert of_run(run) == of_run(reference), n
    assert n > 100


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a `with` cut off
def test_ctrl_c_at_every_line_that_writes_leaves_a_checkpoint_of_the_last_round(tmp_path):
    """In checkpoint.py and files.py, too: the file is whole, and of the last round written down."""
    path, reference = tmp_path / "a", small()
    list(reference)
    with at_event(-1, (*BOOKS, *DISK)) as event:
        run = small(checkpoint=path)
        begun = event.seen  # federate itself may be interrupted as it likes: nothing is done yet
        list(run)
        lines = event.seen
    for n in range(1, lines - begun, 11):
        path.unlink()
        run = small(checkpoint=path)
        with at_event(n, (*BOOKS, *DISK)):
            try:
                list(run)
            except KeyboardInterrupt as e:
                assert getattr(e, "history", run.history) is run.history
        if path.exists() or run.t:
            again = small(resume=path)
            assert again.t == run.t, n
            assert runs.bits(again.state) == runs.bits(run.state), n
            list(again)
            assert of_run(again) == of_run(reference)
        list(run)
        assert of_run(run) == of_run(reference)
        assert not list(tmp_path.glob("*.tmp"))


def test_a_second_ctrl_c_does_no_more_harm():
    """It may come while the first is dealt with."""
    reference = small()
    list(reference)
    for first in range(1, 60, 12):
        for more in range(1, 40, 6):
            run = small()
            try:
                with at_event(first, BOOKS):
                    try:
                        list(run)
                    except KeyboardInterrupt:
                        raise
            except KeyboardInterrupt:
                pass
            with at_event(more, BOOKS):
                try:
                    list(run)
                except KeyboardInterrupt:
                    pass
            list(run)
            assert of_run(run) == of_run(reference), (first, more)


def test_an_interrupt_in_a_rounds_error_is_survived():
    """Ctrl-C while a failed round is put on the books."""

    def made():
        p, task = problem(), problem().closed_form
        recipe = Recipe(METHODS["fedadam"](task), task.theta0, chain(krum(1)), seed=3)
        cohort = lambda n, seed, t: uniform(3 if t == 1 else 5)(n, seed, t)
        return federate(Simulated(recipe, p.x, p.y, p.parts), rounds=3, cohort=cohort, skip=1)

    whole = made()
    list(whole)
    assert list(whole.history.failed) == [1]
    for n in range(1, 400, 23):
        run = made()
        next(run)
        with at_event(n, BOOKS):
            try:
                next(run)
            except KeyboardInterrupt:
                pass
        list(run)
        assert of_run(run) == of_run(whole), n


SIGINTS = """
import json, os, random, signal, sys, time, warnings
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
warnings.simplefilter("ignore")
import runs
from fedlearn import collect

KINDS = json.loads(sys.argv[2])
draw, cut = random.Random(5), 0
for trial in range(int(sys.argv[3])):
    kind = KINDS[trial % len(KINDS)]
    rounds = 12
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begun = time.perf_counter()
    reference = runs.fresh(kind, rounds=rounds)[1]
    took = time.perf_counter() - begun
    run = runs.start(kind, rounds=rounds)
    parent, child = os.getpid(), os.fork()
    if not child:  # sends Ctrl-C now and then
        for _ in range(6):
            time.sleep(draw.random() * took / 3)
            os.kill(parent, signal.SIGINT)
        os._exit(0)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        while not (run.ends(run.t) and run.history.stopped == ""):
            try:
                before = len(run.history)
                h = collect(run)
                assert h is run.history and len(h) >= before
                cut += bool(h.stopped)
            except KeyboardInterrupt:  # outside of collect, in this loop
                cut += 1
    except KeyboardInterrupt:
        cut += 1
    while True:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            break
        except KeyboardInterrupt:
            pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    collect(run)
    assert runs.of_run(run) == reference, (trial, kind)
print(json.dumps({"cut": cut}))
"""


@pytest.mark.slow
def test_real_sigints_at_random_moments_change_no_bit(record_property):
    trials = 15
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SIGINTS), here, json.dumps(SOME), str(trials)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cut = json.loads(done.stdout)["cut"]
    record_property("measured", f"{trials} runs, ended {cut} times by SIGINT: the same bits")
    assert cut >= trials


# -- other ends ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOME)
def test_an_error_of_the_users_evaluate_keeps_the_rounds_before(kind, tmp_path):
    wrong = {"now": True}

    def evaluate(theta):
        if wrong["now"] and wrong.setdefault("calls", 0) == 2:
            raise ValueError("no labels")
        wrong["calls"] = wrong.get("calls", 0) + 1
        return runs.look(theta)

    run = start(kind, evaluate=evaluate, every=1, checkpoint=tmp_path / "a", save_every=4)
    with pytest.raises(ValueError, match="no labels") as e:
        collect(run)
    assert e.value.history is run.history and len(run.history) == 2
    assert "2 rounds before are kept" in e.value.__notes__[0]
    assert "ended early: no labels" in repr(run.history)
    assert start(kind, resume=tmp_path / "a").t == 2  # though it was not due
    wrong["now"] = False
    collect(run)  # the round that was interrupted is repeated, not left out
    assert of_run(run) == fresh(kind, every=1)[1]


def test_a_full_disk_keeps_the_history_and_the_run(tmp_path, monkeypatch):
    run, real, full = start("scaffold", checkpoint=tmp_path / "a"), files.os.fsync, {"now": False}

    def fsync(handle):
        if full["now"]:
            raise OSError(28, "No space left on device")
        return real(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    next(run)
    full["now"] = True
    with pytest.raises(OSError, match="No space") as e:
        collect(run)
    assert e.value.history is run.history and len(run.history) == 2
    assert start("scaffold", resume=tmp_path / "a").t == 1, "the old checkpoint is whole"
    with pytest.raises(OSError, match="No space") as e:
        next(run)
    assert e.value.history is run.history and len(run.history) == 3
    full["now"] = False
    collect(run)
    assert of_run(run) == reference("scaffold")[1]
    assert of_run(again := start("scaffold", resume=tmp_path / "a")) == of_run(run) and again.ends(
        again.t
    )


def test_ctrl_c_on_a_full_disk_is_still_ctrl_c(tmp_path, monkeypatch):
    run = start("scaffold", checkpoint=tmp_path / "a")
    next(run)

    def fsync(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fsync)
    with stop(run.clients, "run"):
        h = interrupted(run)
    assert len(h) == 1 and "could not be written" in h.stopped and "No space" in h.stopped


def test_a_diverged_run_keeps_its_curve_and_its_checkpoint(tmp_path):
    p, task = problem(), problem().closed_form
    method = fedavg(task, lr=0.1)
    blow = lambda s, d, r, p: {"theta": s["theta"] + d * (1e400 if s["theta"].norm() > 3.2 else 50)}
    recipe = Recipe(method._replace(server=blow), task.theta0, seed=3)
    run = federate(Simulated(recipe, p.x, p.y, p.parts), rounds=50, checkpoint=tmp_path / "a")
    h = interrupted(run)
    assert 0 < len(h) < 50 and h.theta.isfinite().all()
    assert start.__name__ and federate(run.clients, rounds=50, resume=tmp_path / "a").t == len(h)
    with pytest.raises(Diverged) as e:
        next(run)
    assert e.value.history is h and e.value.round == len(h)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, OSError])
def test_whatever_ends_a_round_carries_the_history(error):
    run = start("feddyn")
    next(run)
    with pytest.raises(error) as e, stop(run.clients, "run", error=error):
        next(run)
    assert e.value.history is run.history and len(run.history) == 1
    list(run)
    assert of_run(run) == reference("feddyn")[1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_collect_keeps_the_rounds_of_any_iterable(error):
    def some():
        yield from (next(run) for _ in range(2))
        raise error("why")

    run = start("fedavg")
    if error is KeyboardInterrupt:
        with pytest.warns(RuntimeWarning, match="why"):
            assert len(collect(some())) == 2
    else:
        with pytest.raises(error, match="why") as e:
            collect(some())
        assert len(e.value.history) == 2


def test_an_interrupt_behind_the_last_round_is_no_early_end(tmp_path):
    run = start("fedavg", checkpoint=tmp_path / "a")
    for _ in range(ROUNDS - 1):
        next(run)
    with stop(run, "save"):
        interrupted(run)
    h = collect(run)
    assert len(h) == ROUNDS and h.stopped == "" and "early" not in repr(h)
    assert of_run(run) == reference("fedavg")[1]


# -- rounds that fail for a reason that the next may not have --------------------------------------


def failing(stages, sizes, **how):
    """A run whose cohort in round t has sizes[t] clients."""
    p, task = problem(), problem().closed_form
    method = METHODS[how.pop("method", "fedavgm")](task)
    recipe = Recipe(method, task.theta0, chain(*stages), batch=16, epochs=1, seed=3)
    cohort = lambda n, seed, t: uniform(sizes[t])(n, seed, t)
    clients = Simulated(recipe, p.x, p.y, p.parts)
    return federate(
        clients, **{"rounds": len(sizes), "cohort": cohort, "evaluate": runs.look, **how}
    )


FAIL = {
    "krum of too few": ((krum(1),), "krum: f=1 attackers need a cohort of at least 5, got 3"),
    "secure mean of too few": ((clip(1.0), *secure_mean(1.0, 240, threshold=4)), "threshold"),
}


@pytest.mark.parametrize("why", FAIL)
def test_a_failed_round_is_raised_and_the_next_begins(why, tmp_path):
    stages, words = FAIL[why]
    run = failing(stages, [5, 3, 5, 3, 5], checkpoint=tmp_path / "a")
    first = next(run)
    with pytest.raises(RoundFailed, match=words) as e:
        next(run)
    assert e.value.history is run.history
    assert run.t == 2 and torch.equal(run.state["theta"], first.theta)
    assert failing(stages, [5] * 5).t == 0
    third = next(run)
    assert third.t == 2 and not torch.equal(third.theta, first.theta)
    with pytest.raises(RoundFailed, match=words):
        collect(run)
    collect(run)
    h = run.history
    assert list(h.failed) == [1, 3] and h["round"].tolist() == [1, 2, 3, 4, 5]
    assert np.isnan(h["train_loss"]).tolist() == [False, True, False, True, False]
    assert h["norm"][1] == h["norm"][0] and h.stopped == ""


@pytest.mark.parametrize("why", FAIL)
def test_failed_rounds_are_skipped_and_counted(why, tmp_path):
    stages, words = FAIL[why]
    sizes = [5, 3, 5, 3, 5]
    run = failing(stages, sizes, skip=2, checkpoint=tmp_path / "a")
    got = list(run)
    assert [r.t for r in got] == [0, 1, 2, 3, 4]
    assert [len(r.answered) for r in got] == [5, 0, 5, 0, 5]
    assert [len(r.called) for r in got] == [5, 3, 5, 3, 5]
    assert list(run.history.failed) == [1, 3] and "2 given up: 1, 3" in repr(run.history)
    loud = failing(stages, sizes, skip=0)  # the same run, raised: the same bits
    while not loud.ends(loud.t):
        try:
            next(loud)
        except RoundFailed:
            pass
    assert of_run(loud) == of_run(run)
    one = failing(stages, sizes, skip=1)
    with pytest.raises(RoundFailed, match=words):
        list(one)
    assert one.t == 4 and list(one.history.failed) == [1, 3]


@pytest.mark.parametrize("why", FAIL)
def test_failed_rounds_before_a_resume_count(why, tmp_path):
    stages, _ = FAIL[why]
    sizes, path = [5, 3, 5, 3, 5], tmp_path / "a"
    # one cohort for both: a function of t that the checkpoint can tell from others
    run = failing(stages, sizes, skip=1, checkpoint=path)
    for _ in range(3):
        next(run)
    again = failing(stages, sizes, skip=1, resume=path)
    assert list(again.history.failed) == [1]
    with pytest.raises(RoundFailed):
        list(again)


def test_too_few_answers_are_a_failed_round():
    p, task = problem(), problem().closed_form
    pipeline = chain(clip(1.0), *secure_mean(1.0, 240, threshold=5))
    recipe = Recipe(fedavg(task, 0.1), task.theta0, pipeline, seed=3)
    cohort = lambda n, seed, t: dropouts(uniform(6), [1.0] * 4 + [0.0] * 4 if t == 1 else 0.0)(
        n, seed, t
    )
    run = federate(Simulated(recipe, p.x, p.y, p.parts), rounds=3, cohort=cohort)
    next(run)
    with pytest.raises(TooFew) as e:
        next(run)
    assert isinstance(e.value, RoundFailed) and e.value.history is run.history
    assert next(run).t == 2 and list(run.history.failed) == [1]


def test_a_failed_try_that_was_interrupted_is_no_failed_round_if_the_next_try_is_none(monkeypatch):
    run = failing((krum(1),), [5, 5, 5])
    next(run)
    with stop(run.clients, "run", error=RoundFailed("lost")), stop(run, "keep"):
        with pytest.raises(KeyboardInterrupt):
            next(run)
    assert run.t == 1
    list(run)
    assert run.history.failed == {} and len(run.history) == 3


def test_a_run_says_what_it_may_be():
    for name in ("state", "memory", "history", "t"):
        assert name in vars(start("fedavg"))
    assert isinstance(start("fedavg"), Run) and isinstance(start("fedavg").history, History)
