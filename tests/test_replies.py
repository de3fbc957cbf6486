"""Over Flower: what a node learns, what it tells, and replies from outside that are not fit."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, RecordDict
from problems import METHODS, Wire, problem
from runs import bits
from test_flower import grid_of, identity  # noqa: F401 (a fixture that runs by itself)

from fedlearn import Recipe, Simulated, algorithms, federate
from fedlearn.aggregate import mean, median, total
from fedlearn.asynchronous import asynchronous
from fedlearn.attacks.byzantine import Byzantine, sign_flip
from fedlearn.checks import RoundFailed
from fedlearn.flower import GridClients, client_app
from fedlearn.participation import uniform, weighted
from fedlearn.privacy import dp_federate, local_noise, private_mean
from fedlearn.privacy.secure_aggregation import secure_mean
from fedlearn.rng import Use, numpy_rng
from fedlearn.transform import chain, clip, noise

P = problem()
TASK = P.closed_form
N, D = len(P.parts), len(TASK.theta0)
SIZES = {k: len(rows) for k, rows in enumerate(P.parts)}
BIG = max(SIZES, key=SIZES.get)


def recipe_of(pipeline=None, method=None, **how):
    how = {"batch": 16, "epochs": 2, "seed": 3, **how}
    method = method or algorithms.fedavg(TASK, 0.3)
    return Recipe(method, TASK.theta0, pipeline or chain(mean()), **how)


def over_flower(recipe=None, **how):
    return grid_of(P, recipe or recipe_of(), **how)


def here(recipe, **how):
    return Simulated(recipe, P.x, P.y, P.parts, **how)


def tapped(clients):
    """Everything that the nodes are sent and that they send, in plain values."""
    seen, send = {"down": [], "up": []}, clients.grid.send_and_receive

    def listen(messages, **how):
        messages = list(messages)
        seen["down"] += [m.content for m in messages]
        answers = list(send(messages, **how))
        seen["up"] += [m.content for m in answers]
        return answers

    clients.grid.send_and_receive = listen
    return seen


def tampered(clients, node, change, rounds=None):
    """The grid with one node whose answers are changed on the way, in some rounds."""
    send, asked = clients.grid.send_and_receive, []

    def between(messages, **how):
        messages, out = list(messages), []
        asked.append(len(messages))
        for m in send(messages, **how):
            mine = m.metadata.src_node_id == 100 + node
            out.append(change(m) if mine and (not rounds or len(asked) - 1 in rounds) else m)
        return out

    clients.grid.send_and_receive = between
    return clients


# -- what a node learns ---------------------------------------------------------------------------


@pytest.mark.parametrize("work", [False, True])
def test_a_message_holds_the_broadcast_the_round_and_the_node_s_own(work):
    clients = over_flower(recipe_of(private_mean(0.5, 1.0, 4.0)))
    seen = tapped(clients)
    call = uniform(5)

    def slow(n, seed, t):
        ctx = call(n, seed, t)
        return ctx._replace(work=np.linspace(0.2, 0.9, 5)) if work else ctx

    list(federate(clients, rounds=2, cohort=slow))
    assert len(seen["down"]) == 10
    for content in seen["down"]:
        assert set(content) == {"message", "config"} and set(content["message"]) == {"theta"}
        assert set(content["config"]) == {"round", "run", "since"} | ({"work"} if work else set())
        assert all(isinstance(v, (int, float)) for v in content["config"].values())  # no list
    if work:
        assert [c["config"]["work"] for c in seen["down"][:5]] == np.linspace(0.2, 0.9, 5).tolist()


def sums(pipeline):
    """Of three rounds: exactly what the server had before it added its noise."""
    bare = pipeline._replace(on_server=())
    return [r.theta for r in federate(here(recipe_of(bare)), rounds=1)]


@pytest.mark.filterwarnings("ignore:GridClients. seeded=True is for teaching")
@pytest.mark.parametrize("seeded", [True, False])
def test_two_broadcasts_and_the_seed_give_the_sum_in_teaching_mode_alone(seeded):
    """A client's attack: theta_1 - theta_0, less the noise that it makes again."""
    pipeline = private_mean(0.5, 1.0, 8.0)
    clients = over_flower(recipe_of(pipeline), seeded=seeded)
    seen = tapped(clients)
    list(federate(clients, rounds=2))
    first, second = (seen["down"][i]["message"]["theta"].numpy() for i in (0, N))
    std = pipeline.on_server[0].std
    path = (Use.NOISE, 0, 0, int(np.float64(std).view(np.uint64)))
    guess = std * numpy_rng(recipe_of().seed, *path).standard_normal(D)  # a client's own recipe
    exact = (sums(pipeline)[0] - TASK.theta0).numpy()
    off = np.sqrt(np.square(second - first - guess - exact).mean())
    assert off < 1e-15 if seeded else 1.0 * std < off < 1.9 * std  # of two draws: 1.41


@pytest.mark.filterwarnings("ignore:.*seeded=True is for teaching")
@pytest.mark.parametrize("seeded", [True, False])
def test_the_server_can_t_strip_local_noise_but_in_teaching_mode(seeded):
    pipeline = chain(local_noise(0.5, 0.5), total(8.0))
    clients = over_flower(recipe_of(pipeline, equal=True), seeded=seeded)
    r = next(federate(clients, rounds=1))
    plain = chain(clip(0.5), total(8.0))
    exact = next(federate(here(recipe_of(plain, equal=True)), rounds=1)).deltas
    path, std = (Use.LOCAL_NOISE, 0, 0, int(np.float64(0.5).view(np.uint64))), 0.5
    draws = [numpy_rng(3, *path, k, 0).standard_normal(D) for k in r.answered]
    off = (r.deltas - exact - std * torch.from_numpy(np.array(draws))).square().mean().sqrt()
    assert off < 1e-15 if seeded else off.item() == pytest.approx(0.5 * 2**0.5, rel=0.15)
    own = (r.deltas - exact).std().item()
    assert own == pytest.approx(0.5, rel=0.1)  # it is there in both


@pytest.mark.filterwarnings("ignore:.*seeded=True is for teaching")
def test_a_client_drawn_twice_answers_twice_with_noise_of_its_own():
    call = weighted(12, [1] * N, replace=True)
    recipe = recipe_of(chain(local_noise(0.5, 0.5), total(8.0)), equal=True)
    assert len(set(call(N, 3, 0).called.tolist())) < 12
    for seeded in (True, False):
        rows = next(federate(over_flower(recipe, seeded=seeded), rounds=1, cohort=call)).deltas
        assert len({bits(row)[2] for row in rows}) == 12
        if seeded:
            want = next(federate(here(recipe), rounds=1, cohort=call)).deltas
            order = lambda some: some[some[:, 0].argsort()]
            torch.testing.assert_close(order(rows), order(want))


def test_a_client_drawn_twice_that_remembers_is_refused():
    clients = over_flower(recipe_of(method=METHODS["scaffold"](TASK)))
    with pytest.raises(ValueError, match="GridClients: the cohort must be without a client twice"):
        next(federate(clients, rounds=1, cohort=weighted(12, [1] * N, replace=True)))


@pytest.mark.parametrize("pipeline", [
    private_mean(0.5, 1.0, 8.0), chain(local_noise(0.5, 0.5), total(8.0)),
    chain(local_noise(0.5, 0.5), mean()),
])  # fmt: skip
def test_behind_a_stage_that_hides_the_update_a_node_sends_that_alone(pipeline):
    clients = over_flower(recipe_of(pipeline, equal=True))
    seen = tapped(clients)
    for r in federate(clients, rounds=2):
        assert np.isnan(r.loss) and r.p.tolist() == [1 / N] * N and r.received == 8 * D
    assert [set(c["reply"]) for c in seen["up"]] == [{"delta"}] * 2 * N


def test_sizes_known_beforehand_weigh_what_is_hidden():
    recipe = recipe_of(chain(local_noise(0.0, 0.5), mean()))
    got = list(federate(over_flower(recipe, sizes=SIZES), rounds=3, cohort=5))
    want = list(federate(here(recipe), rounds=3, cohort=5))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.theta, b.theta, atol=1e-13, rtol=0)
        torch.testing.assert_close(a.p, b.p)


def test_the_operating_system_draws_the_cohorts_of_dp_federate_over_flower():
    pytest.importorskip("dp_accounting")
    how = {"rounds": 8, "q": 0.5, "delta": 1e-2}
    asked = lambda clients: [r.called.tolist() for r in dp_federate(clients, **how)]
    recipe = recipe_of(private_mean(0.5, 1.0, 4.0))
    assert asked(over_flower(recipe)) != asked(here(recipe))


def test_a_node_may_load_another_seed_which_hides_the_cohorts():
    """Full batches: there is nothing to shuffle, and the round has the simulation's bits."""
    recipe = recipe_of(batch=None)
    clients, nodes = over_flower(recipe), over_flower(recipe_of(batch=None, seed=77))
    clients.grid = nodes.grid
    for a, b in zip(
        *(federate(c, rounds=3, cohort=5) for c in (clients, here(recipe))), strict=True
    ):
        assert np.array_equal(a.answered, b.answered)
        torch.testing.assert_close(a.theta, b.theta, atol=1e-12, rtol=0)


# -- teaching mode says so ------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", [chain(mean(), noise(0.1)), private_mean(0.5, 1.0, 8.0),
                                      chain(local_noise(0.5, 0.5), total(8.0))])  # fmt: skip
def test_teaching_mode_is_said_where_there_is_noise(pipeline):
    recipe = recipe_of(pipeline, equal=True)
    with pytest.warns(RuntimeWarning, match=r"GridClients: seeded=True.*can subtract it"):
        clients = over_flower(recipe, seeded=True)
    assert not clients.recipe.secret
    own = bool(sum(s.std for s in pipeline.on_client))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        next(federate(clients, rounds=1))
    assert {str(w.message)[:10] for w in said} == ({"client_app"} if own else set())


def test_nothing_is_said_without_noise_or_without_seeds():
    assert not over_flower(recipe_of(), seeded=True).recipe.secret
    for recipe in (recipe_of(), recipe_of(chain(mean(), noise(0.1)))):
        next(federate(over_flower(recipe), rounds=1))
    kept = recipe_of(chain(mean(), noise(0.1)), secret=True)
    assert over_flower(kept, seeded=True).recipe.secret  # the recipe's own word goes first


# -- replies that are not fit ---------------------------------------------------------------------


def raw(data, dtype="float64", shape=(D,)):
    return Array(dtype=dtype, shape=shape, stype="numpy.ndarray", data=data)


def saved(value, **how):
    file = io.BytesIO()
    np.save(file, value, **how)
    return file.getvalue()


def claiming(shape):
    """A header that promises so many numbers, and none behind it."""
    file = io.BytesIO()
    said = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, said)
    return file.getvalue()


def zipped():
    file = io.BytesIO()
    np.savez(file, delta=np.zeros(D))
    return file.getvalue()


def with_(**arrays):
    """The reply, with some of its arrays changed: name -> its numbers -> what is sent instead."""

    def change(m):
        record = m.content["reply"]
        for name, f in arrays.items():
            sent = f(np.array(record[name].numpy()) if name in record else None)
            record[name] = sent if isinstance(sent, Array) else Array(np.asarray(sent))
        return m

    return change


class Answer:
    """An answer as the grid hands it over, for what Flower's own constructors would not make."""

    def __init__(self, m, content=None, error=None):
        self.metadata, self.content, self.error = m.metadata, content, error

    def has_error(self):
        return self.error is not None


def without(name):
    def change(m):
        del m.content["reply"][name]
        return m

    return change


UNFIT = {
    "n = 1e12": (with_(n=lambda n: 0 * n + 1e12), "n must be a whole number from 1"),
    "n is NaN": (with_(n=lambda n: n * np.nan), "n must be finite"),
    "n is infinite": (with_(n=lambda n: n * np.inf), "n must be finite"),
    "n < 0": (with_(n=lambda n: -n), "n must be a whole number"),
    "n = 0": (with_(n=lambda n: 0 * n), "n must be a whole number"),
    "n is half an example": (with_(n=lambda n: 0 * n + 0.5), "n must be a whole number"),
    "n is an integer": (with_(n=lambda n: n.astype(np.int64)), "n must be float64"),
    "n is a vector": (with_(n=lambda n: n[None]), "n must be float64"),
    "n is true": (with_(n=lambda n: np.array(True)), "n must be float64"),
    "the loss is NaN": (with_(loss=lambda v: v * np.nan), "loss must be finite"),
    "the loss is a vector": (with_(loss=lambda v: np.array([v, v])), "loss must be float64"),
    "delta has an inf": (with_(delta=lambda v: np.where(v == v[3], np.inf, v)), "1 of 73 inf"),
    "delta is NaN": (with_(delta=lambda v: v * np.nan), "73 of 73 inf or NaN"),
    "delta is a row": (with_(delta=lambda v: v[None]), r"delta must be float64 \(73,\)"),
    "delta is a column": (with_(delta=lambda v: v[:, None]), r"delta must be float64 \(73,\)"),
    "delta is too long": (with_(delta=lambda v: np.append(v, 0)), r"got 'float64 \(74,\)'"),
    "delta is one number": (with_(delta=lambda v: v[0]), r"got 'float64 \(\)'"),
    "delta is empty": (with_(delta=lambda v: v[:0]), r"got 'float64 \(0,\)'"),
    "delta is float32": (with_(delta=lambda v: v.astype(np.float32)), "got 'float32"),
    "delta is complex": (with_(delta=lambda v: v + 1j), "got 'complex128"),
    "delta is whole": (with_(delta=lambda v: v.astype(np.int64)), "got 'int64"),
    "delta is big-endian": (with_(delta=lambda v: v.astype(">f8")), "got '>f8"),
    "delta is text": (with_(delta=lambda v: raw(saved(v.astype("U9")))), "got '<U9"),
    "delta is a pickle": (
        with_(delta=lambda v: raw(saved(np.array([{}] * D, object), allow_pickle=True))),
        "got 'object",
    ),
    "delta is a structure": (
        with_(delta=lambda v: raw(saved(np.zeros(D, [("a", "f8")])))),
        r"delta must be float64 \(73,\)",
    ),
    "delta promises the world": (with_(delta=lambda v: raw(claiming((10**15,)))), "10000000000000"),
    "delta is cut short": (with_(delta=lambda v: raw(saved(v)[:-8])), "left out"),
    "delta has a header alone": (with_(delta=lambda v: raw(claiming((D,)))), "left out"),
    "delta is zipped": (with_(delta=lambda v: raw(zipped())), "left out"),
    "delta is no array": (with_(delta=lambda v: raw(b"nothing of the kind")), "left out"),
    "delta is no bytes at all": (with_(delta=lambda v: raw(b"")), "left out"),
    "delta is of another library": (
        with_(delta=lambda v: Array("float64", (D,), "cloudpickle", saved(v))),
        "cloudpickle",
    ),
    "something beside": (with_(extra=lambda v: np.zeros(3)), "its names must be exactly"),
    "theta itself": (with_(theta=lambda v: np.zeros(D)), "its names must be exactly"),
    "places that came": (with_(came=lambda v: np.array([0])), "its names must be exactly"),
    "delta is missing": (without("delta"), "its names must be exactly"),
    "n is missing": (without("n"), "its names must be exactly"),
    "the loss is missing": (without("loss"), "its names must be exactly"),
    "another record": (
        lambda m: Answer(m, RecordDict({"answer": m.content["reply"]})), "its records must be",
    ),
    "a record too many": (
        lambda m: Answer(m, RecordDict({"reply": m.content["reply"], "config": ConfigRecord({})})),
        "its records must be",
    ),
    "a record of numbers": (
        lambda m: Answer(m, RecordDict({"reply": ConfigRecord({"n": 3})})), "an ArrayRecord",
    ),
    "no record": (lambda m: Answer(m, RecordDict({})), "its records must be"),
    "an empty record": (lambda m: Answer(m, RecordDict({"reply": ArrayRecord()})), "its names"),
    "no content": (lambda m: Answer(m, None), "left out"),
    "an error": (lambda m: Answer(m, error=Error(2, "no memory left")), "no memory left"),
    "an error without a reason": (lambda m: Answer(m, error=Error(2)), "left out"),
    "an error that says it forgot": (
        lambda m: Answer(m, error=Error(2, "client_app: this node must remember")), "must remember",
    ),
}  # fmt: skip


def rest(node, k, recipe=None):
    """The same run in this process, in which that client never answers."""
    recipe = recipe or recipe_of()

    def call(n, seed, t):
        ctx = uniform(k)(n, seed, t)
        return ctx.keep(ctx.answered != node)

    return list(federate(here(recipe), rounds=2, cohort=call))


@pytest.mark.parametrize("name", UNFIT)
def test_an_unfit_reply_is_named_and_left_out_and_the_round_lives_on(name):
    change, why = UNFIT[name]
    clients = tampered(over_flower(), BIG, change)
    with pytest.warns(
        RuntimeWarning, match=rf"client {BIG} \(node 10{BIG}\), left out of round"
    ) as said:
        got = list(federate(clients, rounds=2, cohort=N))
    for t, r in enumerate(got):
        assert BIG not in r.answered and BIG in r.called and len(r.answered) == N - 1
        assert set(clients.refused[t]) == {BIG}
    for a, b in zip(got, rest(BIG, N), strict=True):
        torch.testing.assert_close(a.theta, b.theta, atol=1e-13, rtol=0)
        torch.testing.assert_close(a.deltas, b.deltas, atol=1e-13, rtol=0)
    assert len(said) == 2 and all(len(str(w.message)) < 700 for w in said)
    text = str(said[0].message)
    assert re.search(why, text), text


def test_an_unfit_reply_behind_a_hiding_stage_is_left_out_too():
    recipe = recipe_of(chain(local_noise(0.0, 0.5), mean()), equal=True)
    for change in (
        with_(delta=lambda v: v * np.nan),
        with_(n=lambda v: np.array(1e12)),
        with_(loss=lambda v: np.array(0.3)),
    ):
        clients = tampered(over_flower(recipe), 2, change)
        with pytest.warns(RuntimeWarning, match=r"client 2 \(node 102\), left out of round"):
            got = list(federate(clients, rounds=2))
        for a, b in zip(got, rest(2, N, recipe), strict=True):
            torch.testing.assert_close(a.theta, b.theta, atol=1e-13, rtol=0)


@pytest.mark.parametrize("pipeline", [private_mean(0.02, 0.0, 8.0), chain(clip(0.02), mean())])
def test_who_does_not_clip_is_left_out(pipeline):
    """The clip runs beside the data: a bound that nobody checks binds the obedient alone."""
    recipe = recipe_of(pipeline, equal=True)
    clients = tampered(over_flower(recipe), 2, with_(delta=lambda v: 1.01 * v))
    with pytest.warns(RuntimeWarning, match=r"client 2 .*of a norm up to 0.02, as clip\(0.02\)"):
        got = list(federate(clients, rounds=2))
    for a, b in zip(got, rest(2, N, recipe), strict=True):
        torch.testing.assert_close(a.theta, b.theta, atol=1e-13, rtol=0)


def test_no_client_may_claim_more_than_it_was_said_to_hold():
    claim = lambda n: tampered(over_flower(sizes=SIZES), BIG, with_(n=lambda v: 0 * v + n))
    with pytest.warns(RuntimeWarning, match=f"from 1 to {SIZES[BIG]}, .*got {SIZES[BIG] + 1}"):
        r = next(federate(claim(SIZES[BIG] + 1), rounds=1))
    assert len(r.answered) == N - 1
    for n in (SIZES[BIG], SIZES[BIG] - 1, 1):
        assert len(next(federate(claim(n), rounds=1)).answered) == N


def test_without_sizes_the_first_claim_is_its_word():
    clients = tampered(over_flower(), 1, with_(n=lambda v: 2 * v), rounds={1, 2})
    with pytest.warns(RuntimeWarning, match=f"from 1 to {SIZES[1]}, .*got {2 * SIZES[1]}"):
        got = list(federate(clients, rounds=4))
    assert [1 in r.answered for r in got] == [True, False, False, True]


def test_where_clients_count_the_same_none_may_claim_two():
    recipe = recipe_of(equal=True)
    clients = tampered(over_flower(recipe), 1, with_(n=lambda v: v + 1))
    with pytest.warns(RuntimeWarning, match=r"from 1 to 1, .*got 2\.0"):
        r = next(federate(clients, rounds=1))
    assert len(r.answered) == N - 1 and r.p.tolist() == pytest.approx([1 / (N - 1)] * (N - 1))


@pytest.mark.parametrize("method", ["scaffold", "feddyn"])
def test_who_was_left_out_has_learnt_nothing_and_comes_back(method):
    """Its memory is that of the last round in which it was heard, as if it had dropped out."""
    recipe = recipe_of(method=METHODS[method](TASK))
    clients = tampered(over_flower(recipe), 2, with_(delta=lambda v: v * np.nan), rounds={1, 2})
    with pytest.warns(RuntimeWarning, match="client 2"):
        run = federate(clients, rounds=5)
        got = [next(run) for _ in range(3)]
    assert run.memory[0]["since"].tolist() == [2, 2, 0, *[2] * (N - 3)]
    got += list(run)

    def call(n, seed, t):
        ctx = uniform()(n, seed, t)
        return ctx.keep(ctx.answered != 2) if t in (1, 2) else ctx

    for a, b in zip(got, federate(here(recipe), rounds=5, cohort=call), strict=True):
        torch.testing.assert_close(a.theta, b.theta, atol=1e-12, rtol=1e-10)


def test_attackers_round_the_grid_are_counted_among_those_who_came():
    clients = tampered(over_flower(), 1, with_(n=lambda v: -v))
    with pytest.warns(RuntimeWarning, match="client 1"):
        got = next(federate(Byzantine(clients, [0, 2], sign_flip(2.0)), rounds=1))
    want = rest(1, N)[0].deltas.clone()
    want[[0, 1]] *= -2
    assert got.answered.tolist() == [0, *range(2, N)]
    torch.testing.assert_close(got.deltas, want, atol=1e-13, rtol=0)


# -- how many are enough --------------------------------------------------------------------------


def test_with_a_minimum_the_missing_are_counted_and_named():
    clients = over_flower(minimum=6)
    clients.grid.lost = {101, 103}
    with pytest.warns(RuntimeWarning, match=r"client 1 .*no answer in time; client 3 .*no answer"):
        r = next(run := federate(clients, rounds=3, skip=1))
    assert len(r.answered) == 6 and clients.refused == {
        0: dict.fromkeys([1, 3], "no answer in time")
    }
    clients.grid.lost = {101, 103, 104}
    assert len(next(run).answered) == 0
    assert (
        "client 1 (node 101) failed in round 1: no answer in time; client 3"
        in run.history.failed[1]
    )
    clients.grid.lost = set()
    assert len(next(run).answered) == N


def test_fewer_are_enough_where_fewer_were_asked():
    clients = over_flower(minimum=6)
    assert len(next(federate(clients, rounds=1, cohort=3)).answered) == 3


def test_if_nobody_is_fit_the_round_fails_and_names_them():
    clients = over_flower()
    for k in range(N):
        tampered(clients, k, with_(n=lambda v: v * np.nan))
    with pytest.raises(RoundFailed, match=r"client 0 \(node 100\) failed in round 0.*and 3 more"):
        next(federate(clients, rounds=1))


# -- the node's side ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["3", 2.5, True, -1, None])
def test_the_number_of_a_node_is_an_integer(number):
    clients = over_flower()
    config = clients.grid.contexts[100].node_config
    config.pop("partition-id") if number is None else config.update({"partition-id": number})
    clients.grid.app = client_app(lambda context: (recipe_of(), P.x, P.y, P.parts[0]))
    with pytest.raises(ValueError, match="client_app: partition-id must be an integer >= 0"):
        next(federate(clients, rounds=1))


SENT = {
    "too long": (lambda m: {"theta": torch.cat([m["theta"], m["theta"][:1]])}, r"float64 \(73,\)"),
    "a row": (lambda m: {"theta": m["theta"][None]}, r"float64 \(73,\)"),
    "float32": (lambda m: {"theta": m["theta"].float()}, r"float64 \(73,\)"),
    "NaN": (lambda m: {"theta": m["theta"] * torch.nan}, "theta must be finite"),
    "no theta": (lambda m: {"w": m["theta"]}, "its names must be exactly"),
    "a vector beside that is NaN": (
        lambda m: {**m, "c": m["theta"] * torch.nan},
        "c must be finite",
    ),
}


@pytest.mark.parametrize("name", SENT)
def test_a_node_takes_no_broadcast_of_another_kind(name):
    change, why = SENT[name]
    clients = over_flower()
    letters = clients._letters
    clients._letters = lambda message, *how: letters(change(message), *how)
    with pytest.raises(ValueError, match=f"client_app: the broadcast.*{why}"):
        next(federate(clients, rounds=1))


# -- what is refused before round 0 ---------------------------------------------------------------

REFUSED = {
    "number of examples would be told in the clear.*equal=True": lambda: over_flower(
        recipe_of(chain(local_noise(0.5, 0.5), mean()))),
    "median.. weighs by n_k, .*sizes=": lambda: over_flower(
        recipe_of(chain(local_noise(0.5, 0.5), median()))),
    "Recipe: pipeline must be .* feddyn": lambda: over_flower(
        recipe_of(private_mean(0.5, 1.0, 8.0), METHODS["feddyn"](TASK))),
    "protects only 'delta', but this method also sends": lambda: over_flower(
        recipe_of(chain(local_noise(0.5, 0.5), total(8.0)), METHODS["scaffold"](TASK))),
    "directory must be an identity key for each client 0..7": lambda: over_flower(
        recipe_of(chain(clip(1.0), *secure_mean(1.0, 240)))),
    "GridClients: sizes must be an integer >= 1 for each client": lambda: over_flower(
        sizes={0: 3}),
    "sizes must be an integer >= 1": lambda: over_flower(sizes={**SIZES, 2: 0}),
    "node_of must be a node for each client": lambda: GridClients(
        recipe_of(), None, {0: 100, 1: 100}),
    "minimum must be an integer from 1 to 8": lambda: over_flower(minimum=9),
    "asynchronous: the clients must live in this process, .*got GridClients": lambda: asynchronous(
        over_flower(), rounds=1, concurrency=2),
    "must live in this process, .*got GridClients": lambda: asynchronous(
        Byzantine(over_flower(), [0], sign_flip()), rounds=1, concurrency=2),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_work_over_flower_is_refused_before_round_0(message):
    with pytest.raises(ValueError, match=message) as e:
        REFUSED[message]()
    assert "e.g." in str(e.value)


def test_the_wire_of_the_tests_still_is_the_drop_in():
    recipe = recipe_of()
    wire = Wire(recipe, P.x, P.y, P.parts)
    a, b = (list(federate(c, rounds=3, cohort=5)) for c in (wire, over_flower(recipe)))
    assert [bits(r.theta) for r in a] == [bits(r.theta) for r in b]
