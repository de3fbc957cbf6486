"""Noise is drawn once: no two draws are the same, and what one knows of a run subtracts none."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from problems import METHODS, Wire, problem, run
from runs import bits

import fedlearn.transform
from fedlearn import Recipe, Simulated, algorithms, federate
from fedlearn.aggregate import mean, total
from fedlearn.asynchronous import asynchronous
from fedlearn.attacks.byzantine import Byzantine, gaussian, inner_product, sign_flip
from fedlearn.checks import RoundFailed
from fedlearn.fleet import fleet
from fedlearn.participation import poisson, uniform, weighted
from fedlearn.privacy import adaptive_clip, dp_federate, local_noise, private_mean
from fedlearn.transform import Context, chain, clip, noise

P = problem()
TASK = P.closed_form
N, D = len(P.parts), len(TASK.theta0)


def standing(d=D):
    """A method whose clients stand still: what they send is the noise alone."""

    def client(message, shards, memory):
        return {"delta": shards.n.new_zeros(len(shards.n), d), "loss": shards.n}, memory

    return algorithms.fedavg(TASK, 0.3)._replace(client=client)


def clients_of(pipeline, method=None, place=Simulated, theta=TASK.theta0, chunk=None, **how):
    recipe = Recipe(method or algorithms.fedavg(TASK, 0.3), theta, pipeline, **how)
    more = {} if place is Wire else {"fleet": fleet(N), "chunk": chunk}
    return place(recipe, P.x, P.y, P.parts, **more)


def flowing(clients, rounds=6, **how):
    return asynchronous(clients, rounds=rounds, concurrency=5, buffer=3, **how)


def unlike(rows):
    """No two rows alike: correlations of unit normals in d numbers are about 1 / sqrt(d)."""
    table = np.corrcoef(torch.as_tensor(rows).double().numpy())
    return np.abs(table[np.triu_indices(len(table), 1)]).max() < 6 / math.sqrt(len(rows[0]))


# -- the paths ------------------------------------------------------------------------------------


def twice(clients, make, tmp_path, rounds=6):
    """A run that is resumed half-way from its checkpoint, and one that goes on from a Run."""
    head = make(clients, rounds=rounds, checkpoint=tmp_path / "a", save_every=1)
    for _ in range(rounds // 2):
        next(head)
    list(make(clients, rounds=rounds, resume=tmp_path / "a"))


ADAPTED = adaptive_clip(algorithms.fedavg(TASK, 0.3), 1.0, 4.0, bit_noise=1.0)
LOCAL = chain(local_noise(0.5, 1.0), local_noise(0.5, 1.0), mean(), noise(0.1), noise(0.1))
KINDS = {
    "rounds, two stages each": (
        lambda: clients_of(LOCAL), lambda c, **how: federate(c, cohort=5, **how),
    ),
    "a client twice in a cohort, in chunks": (
        lambda: clients_of(LOCAL, chunk=2),
        lambda c, **how: federate(c, cohort=weighted(12, [1] * N, replace=True), **how),
    ),
    "poisson, chunks of one": (
        lambda: clients_of(LOCAL, chunk=1),
        lambda c, **how: federate(c, cohort=poisson(0.4), **how),
    ),
    "asynchronous": (lambda: clients_of(LOCAL), flowing),
    "asynchronous, two kinds of attackers": (
        lambda: Byzantine(
            Byzantine(clients_of(LOCAL), [0, 1, 2], gaussian(1.0)), [5], gaussian(1.0)
        ),
        flowing,
    ),
    "private": (
        lambda: clients_of(private_mean(0.5, 1.0, 4.0)),
        lambda c, **how: dp_federate(c, q=0.5, delta=1e-2, **how),
    ),
    "private, adaptive": (
        lambda: clients_of(ADAPTED[1], ADAPTED[0]),
        lambda c, **how: dp_federate(c, q=0.5, delta=1e-2, **how),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_no_draw_of_a_run_has_the_path_of_another_over_a_resume_too(kind, tmp_path, monkeypatch):
    if "private" in kind:
        pytest.importorskip("dp_accounting")
    paths, real = [], fedlearn.transform.numpy_rng

    def spy(*path):
        paths.append(tuple(map(int, path)))
        return real(*path)

    monkeypatch.setattr(fedlearn.transform, "numpy_rng", spy)
    make, start = KINDS[kind]
    twice(make(), start, tmp_path)
    again = [path for path, times in Counter(paths).items() if times > 1]
    assert len(paths) >= 6
    # a client in the air over the resume was trained before it, or is after, but not both
    assert not again


@pytest.mark.parametrize("kind", ["rounds, two stages each", "asynchronous"])
def test_a_seeded_run_that_is_resumed_draws_the_same_noise(kind, tmp_path):
    make, start = KINDS[kind]
    whole = [bits(r.theta) for r in start(make(), rounds=6)]
    head = start(make(), rounds=6, checkpoint=tmp_path / "a")
    first = [bits(next(head).theta) for _ in range(3)]
    rest = [bits(r.theta) for r in start(make(), rounds=6, resume=tmp_path / "a")]
    assert first + rest == whole


def test_every_message_of_an_asynchronous_run_has_noise_of_its_own():
    """Round 0 for all gave each client one vector for ever."""
    clients = clients_of(chain(local_noise(0.5, 1.0), mean()), standing())
    rows = torch.cat([r.deltas for r in flowing(clients, rounds=20)])
    assert len(rows) == 60 and len({bits(row)[2] for row in rows}) == 60
    assert unlike(rows) and rows.std().item() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_a_client_that_is_drawn_twice_draws_twice(chunk):
    clients = clients_of(chain(local_noise(0.5, 1.0), mean()), standing(), chunk=chunk, equal=True)
    call = weighted(20, [1] * N, replace=True)
    assert max(Counter(call(N, 0, 0).called.tolist()).values()) > 2
    rows = next(federate(clients, rounds=1, cohort=call)).deltas
    assert unlike(rows)
    want = clients_of(chain(local_noise(0.5, 1.0), mean()), standing(), equal=True)
    assert torch.equal(rows, next(federate(want, rounds=1, cohort=call)).deltas)  # at any chunk


@pytest.mark.parametrize(
    "pipeline",
    [
        chain(mean(), noise(0.1), noise(0.1)),
        chain(mean(), noise(0.06), noise(0.08), noise(0.1)),
        chain(local_noise(0.4, 1e9), local_noise(0.4, 1e9), total(4.0)),
    ],
)
def test_the_variances_of_two_stages_add_up(pipeline):
    """Of one draw twice .1 and .1 were .2; two draws are .141."""
    clients = clients_of(pipeline, standing(), equal=True)
    run = federate(clients, rounds=60, cohort=N)
    steps = torch.stack([TASK.theta0] + [r.theta for r in run]).diff(dim=0)
    local = [math.sqrt(N) * s.std / 4.0 for s in pipeline.on_client]
    want = math.hypot(*local, *(s.std for s in pipeline.on_server))
    assert want == pytest.approx(0.4 if local else 0.1 * math.sqrt(2))
    assert steps.std().item() == pytest.approx(want, rel=0.05)  # 4,380 draws: 1 % is one sigma
    assert unlike(steps)


# -- what subtracts nothing -----------------------------------------------------------------------


def one_step(pipeline, method=None, **how):
    clients = clients_of(pipeline, method, batch=None, **how)
    return next(federate(clients, rounds=1)).theta


@pytest.mark.parametrize("where", ["server", "clients", "adaptive"])
def test_two_runs_of_one_seed_do_not_tell_the_sum(where):
    """s + n and s + 2 n of one seed gave s = 2 (s + n) - (s + 2 n), exactly.

    Of independent draws the same difference is off by N(0, 4 + 4) of the first's variance.
    """

    def private(z):
        method = algorithms.fedavg(TASK, 0.3)
        if where == "server":
            return private_mean(0.5, z, 8.0), method, z * 0.5 / 8
        if where == "clients":
            return chain(local_noise(z, 0.5), total(8.0)), method, z * math.sqrt(8) / 8
        method, pipeline = adaptive_clip(method, z, 8.0, start=0.5, bit_noise=1e6)
        return pipeline, method, z * 0.5 / 8

    theta = {z: one_step(*private(z)[:2]) for z in (0.0, 1.0, 2.0)}
    off = 2 * theta[1.0] - theta[2.0] - theta[0.0]
    std = private(1.0)[2]
    assert off.square().mean().sqrt().item() == pytest.approx(math.sqrt(8) * std, rel=0.35)


# -- the operating system's -----------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.025, 3.098969252421011 / 40, 1e-300, 2.0**40 / 3])
def test_a_last_digit_that_another_machine_finds_changes_no_draw(std):
    """Of a z that is searched for, or a clip that follows the updates, by exp."""
    S = np.arange(4)
    draw = lambda std: noise(std).apply(torch.zeros(9, dtype=torch.float64), Context(0, 3, S, S))
    near, far = (draw(std * (1 + e)) / std for e in (1e-12, 1e-7))
    assert torch.allclose(near, draw(std) / std, rtol=1e-11, atol=0)
    assert not torch.allclose(far, draw(std) / std, rtol=0.01, atol=0)


@pytest.mark.parametrize("start", [flowing, lambda c: federate(c, rounds=6, cohort=5)])
def test_secret_noise_is_new_in_every_run_and_has_its_deviation(start):
    pipeline = chain(local_noise(0.5, 1.0), mean(), noise(0.25))
    runs = [list(start(clients_of(pipeline, standing(), secret=True))) for _ in range(2)]
    a, b = (torch.cat([r.deltas for r in one]) for one in runs)
    assert unlike(torch.cat([a, b])) and a.std().item() == pytest.approx(0.5, rel=0.1)
    assert not any(torch.equal(r.theta, s.theta) for r, s in zip(*runs, strict=True))
    for r, s in zip(*runs, strict=True):  # cohorts are no noise
        assert np.array_equal(r.answered, s.answered)


def test_what_the_server_adds_is_secret_too():
    clients = clients_of(chain(mean(), noise(0.5)), standing(), secret=True)
    thetas = [r.theta - TASK.theta0 for _ in range(3) for r in federate(clients, rounds=1)]
    assert unlike(torch.stack(thetas))


def test_clients_that_are_asked_directly_keep_the_recipes_secret():
    """A Context made by hand says nothing of secrets."""
    clients = clients_of(chain(local_noise(0.5, 1.0), mean()), standing(), secret=True)
    ctx = uniform(5)(N, 0, 0)
    rows = [clients.run({"theta": TASK.theta0}, ctx, clients.memory())[0]["delta"] for _ in "ab"]
    assert not ctx.secret and unlike(torch.cat(rows))


def test_without_noise_a_secret_run_has_the_bits_of_the_other():
    thetas = [[bits(r.theta) for r in run(METHODS["scaffold"](TASK), TASK.theta0, P, secret=s)]
              for s in (True, False)]  # fmt: skip
    assert thetas[0] == thetas[1]


def test_secret_cohorts_of_a_private_run_are_no_function_of_the_seed():
    pytest.importorskip("dp_accounting")
    how = {"rounds": 12, "q": 0.5, "delta": 1e-2}
    start = lambda secret: dp_federate(
        clients_of(private_mean(0.5, 1.0, 4.0), standing(), secret=secret), **how
    )
    asked = lambda run: [r.called.tolist() for r in run]
    seeded = [poisson(0.5)(N, 0, t).called.tolist() for t in range(12)]
    a, b = asked(start(True)), asked(start(True))
    assert asked(start(False)) == seeded
    assert a != b and a != seeded and b != seeded  # 2^-96 by chance
    assert 0.3 < np.mean([len(S) for S in a + b]) / N < 0.7


def test_a_round_that_failed_names_those_who_were_called_though_cohorts_are_secret():
    pytest.importorskip("dp_accounting")
    clients, asked = clients_of(private_mean(0.5, 1.0, 4.0), secret=True), []

    def fails(message, ctx, memory):
        asked.append(ctx.called.tolist())
        raise RoundFailed("lost; e.g. wait")

    clients.run = fails
    run = dp_federate(clients, rounds=12, q=0.5, delta=1e-2, skip=12)
    assert [r.called.tolist() for r in run] == asked


def test_a_checkpoint_of_a_seeded_run_is_no_secret_runs(tmp_path):
    pipeline = private_mean(0.5, 1.0, 4.0)
    next(federate(clients_of(pipeline), rounds=3, checkpoint=tmp_path / "a"))
    with pytest.raises(ValueError, match=r"recipe\.secret was False, is True"):
        federate(clients_of(pipeline, secret=True), rounds=3, resume=tmp_path / "a")


@pytest.mark.parametrize("secret", [1, "yes", None, np.array([True])])
def test_secret_is_true_or_false(secret):
    with pytest.raises(ValueError, match="Recipe: secret must be True or False, got"):
        clients_of(chain(mean()), secret=secret)


# -- attackers in an asynchronous run -------------------------------------------------------------


def test_attackers_strike_in_an_asynchronous_run():
    """Of the first buffer, by hand: everybody started from theta_0."""
    pipeline = chain(mean())
    honest = next(flowing(clients_of(pipeline)))
    bad = honest.answered[[0, 2]].tolist()
    struck = next(flowing(Byzantine(clients_of(pipeline), bad, sign_flip(3.0))))
    want = honest.deltas * torch.tensor([[-3.0], [1.0], [-3.0]], dtype=torch.float64)
    assert torch.equal(struck.deltas, want) and np.array_equal(struck.answered, honest.answered)
    torch.testing.assert_close(struck.theta, TASK.theta0 + struck.p @ want)


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_attackers_see_the_buffer_and_not_who_trains_at_the_same_time(chunk):
    make = lambda: Byzantine(clients_of(chain(mean()), chunk=chunk), [0, 3], inner_product(1.0))
    for r in flowing(make()):
        bad = np.isin(r.answered, [0, 3])
        if bad.any() and not bad.all():
            want = -r.deltas[torch.from_numpy(~bad)].mean(0)
            for row in r.deltas[torch.from_numpy(bad)]:
                torch.testing.assert_close(row, want)


def test_no_attackers_change_nothing_in_an_asynchronous_run():
    a, b = clients_of(LOCAL), Byzantine(clients_of(LOCAL), [], sign_flip(1.0))
    assert [bits(r.theta) for r in flowing(a)] == [bits(r.theta) for r in flowing(b)]


def test_an_asynchronous_run_under_attack_goes_on_from_its_checkpoint(tmp_path):
    make = lambda: Byzantine(clients_of(chain(mean())), [0, 3], gaussian(0.1))
    whole = [bits(r.theta) for r in flowing(make())]
    head = flowing(make(), checkpoint=tmp_path / "a")
    first = [bits(next(head).theta) for _ in range(2)]
    assert first + [bits(r.theta) for r in flowing(make(), resume=tmp_path / "a")] == whole
    with pytest.raises(ValueError, match="attack"):
        other = Byzantine(clients_of(chain(mean())), [0, 3], gaussian(0.2))
        flowing(other, resume=tmp_path / "a")


@pytest.mark.parametrize("attacked", [False, True])
def test_clients_of_another_place_are_refused_by_asynchronous_in_words(attacked):
    clients = clients_of(chain(mean()), place=Wire)
    clients = Byzantine(clients, [0], sign_flip(1.0)) if attacked else clients
    with pytest.raises(ValueError, match=r"asynchronous: .*got Wire, e.g. Simulated\(recipe"):
        flowing(clients)


@pytest.mark.parametrize(
    "sent", [lambda own: own.numpy(), lambda own: None, lambda own: own[0], lambda own: own + 0j]
)
def test_an_attack_returns_real_rows(sent):
    bad = Byzantine(clients_of(chain(mean())), [0], lambda honest, own, ctx: sent(own))
    with pytest.raises(ValueError, match="Byzantine: the attack must return a row for each"):
        next(federate(bad, rounds=1))


# -- calls of one's own ---------------------------------------------------------------------------


S = np.array([1, 4])
CALLS = {
    "always round 0": (lambda n, seed, t: uniform(3)(n, seed, 0), r"those of the call, \(0, 1\)"),
    "a seed of its own": (lambda n, seed, t: uniform(3)(n, 5, t), r"those of the call, \(0, 0\)"),
    "numbers alone": (lambda n, seed, t: S, "a Context, got 'ndarray'"),
    "a negative number": (lambda n, seed, t: Context(seed, t, S - 2, S - 2), "client numbers 0..7"),
    "a number too high": (lambda n, seed, t: Context(seed, t, S + 4, S + 4), "client numbers 0..7"),
    "a mask": (lambda n, seed, t: Context(seed, t, S > 2, S > 2), "client numbers 0..7"),
    "bytes": (lambda n, seed, t: Context(seed, t, S.astype("u1"), S), "client numbers 0..7"),
    "floats": (lambda n, seed, t: Context(seed, t, S, S / 1.0), "answered must be an array of cl"),
    "a list": (lambda n, seed, t: Context(seed, t, [1, 4], S), "called must be an array of client"),
    "a table": (lambda n, seed, t: Context(seed, t, S, S[None]), "client numbers 0..7"),
    "an answer of one not called": (lambda n, seed, t: Context(seed, t, S, S + 1), "among those c"),
    "work for one": (
        lambda n, seed, t: Context(seed, t, S, S, np.ones(1)),
        "work must be None, or 2",
    ),
    "work that is NaN": (lambda n, seed, t: Context(seed, t, S, S, np.nan * S), "from 0 to 1"),
    "work beyond all": (lambda n, seed, t: Context(seed, t, S, S, 2.0 * S), "from 0 to 1"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_not_of_its_round_is_refused(name):
    call, why = CALLS[name]
    run = federate(clients_of(chain(mean(), noise(0.1))), rounds=3, cohort=call)
    with pytest.raises(ValueError, match=why) as e:
        list(run)
    assert str(e.value).startswith("cohort: ") and "e.g." in str(e.value)


# -- what a method of one's own replies -----------------------------------------------------------

WRONG = {
    "one vector": (lambda r: {**r, "delta": r["delta"][0]}, "reply\\['delta'\\]"),
    "a row too few": (lambda r: {**r, "delta": r["delta"][1:]}, "reply\\['delta'\\]"),
    "a number too many": (
        lambda r: {**r, "delta": torch.nn.functional.pad(r["delta"], (0, 1))}, "reply\\['delta'\\]",
    ),
    "one number": (lambda r: {**r, "delta": r["delta"].sum()}, "reply\\['delta'\\]"),
    "another type": (lambda r: {**r, "delta": r["delta"].float()}, "got .73, torch.float32"),
    "an array": (lambda r: {**r, "delta": r["delta"].numpy()}, "reply\\['delta'\\]"),
    "no delta": (lambda r: {"loss": r["loss"]}, "reply\\['delta'\\]"),
    "no loss": (lambda r: {"delta": r["delta"]}, "reply\\['loss'\\]"),
    "a loss for all": (lambda r: {**r, "loss": r["loss"].mean()}, "reply\\['loss'\\]"),
    "a column of losses": (lambda r: {**r, "loss": r["loss"][:, None]}, "reply\\['loss'\\]"),
    "a vector for all beside": (lambda r: {**r, "c": r["delta"][0]}, "reply\\['(c|lr)'\\] must be"),
    "a number beside": (lambda r: {**r, "lr": 0.1}, "reply\\['(c|lr)'\\] must be"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_method_whose_reply_has_other_rows_is_named(name):
    """(d,) and (K, 1) broadcast to a wrong mean without a word."""
    change, said = WRONG[name]
    inner = algorithms.fedavg(TASK, 0.3)

    def my_method(message, shards, memory):
        reply, memory = inner.client(message, shards, memory)
        return change(reply), memory

    method = inner._replace(client=my_method)
    with pytest.raises(ValueError, match=said) as e:
        next(federate(clients_of(chain(mean()), method), rounds=1))
    assert "test_a_method_whose_reply" in str(e.value) or "my_method" in str(e.value)
    assert "e.g." in str(e.value)


BENT = {
    "n is 0": lambda r: {**r, "n": 0 * r["n"]},
    "n is negative": lambda r: {**r, "n": -r["n"]},
    "n is NaN": lambda r: {**r, "n": torch.nan * r["n"]},
    "n is infinite": lambda r: {**r, "n": torch.inf * r["n"]},
    "n is one number": lambda r: {**r, "n": r["n"].sum()},
    "n is missing": lambda r: {k: v for k, v in r.items() if k != "n"},
    "a row is missing": lambda r: {k: v[1:] for k, v in r.items()},
    "one vector": lambda r: {**r, "delta": r["delta"][0]},
    "a loss too many": lambda r: {**r, "loss": torch.cat([r["loss"], r["loss"]])},
    "added up, without an n of all": lambda r: {**added(r), "n": torch.tensor(1.0)},
    "added up, without n": lambda r: {k: v for k, v in added(r).items() if k != "n"},
    "added up, one n of each short": lambda r: {**added(r), "each": r["n"][1:]},
    "added up, an n of each is 0": lambda r: {**added(r), "each": 0 * r["n"]},
    "added up, a loss too many": lambda r: {**added(r), "loss": r["loss"]},
}


def added(reply):
    """What clients of one's own may answer instead: one row for all, and n of each."""
    return {k: v[:1] for k, v in reply.items()} | {"each": reply["n"]}


@pytest.mark.parametrize("name", BENT)
def test_clients_of_ones_own_whose_reply_has_other_rows_are_refused(name):
    clients = clients_of(chain(mean()), place=Wire)
    asked = clients.run
    clients.run = lambda message, ctx, memory: (BENT[name](asked(message, ctx, memory)[0]), ())
    with pytest.raises(ValueError, match=r"clients.run: reply\['(delta|n|loss|each)'\] must be"):
        next(federate(clients, rounds=1))


def test_stages_behind_a_clip_still_draw_what_the_numbers_of_lesson_13_promise():
    """4 N times the variance where clients add noise of 2 z S each and the server would z S."""
    S = uniform()(100, 0, 0)
    z, ones, noisy = 3.0, torch.ones(100), {}
    pipelines = {"server": private_mean(0.5, z, 100.0), "clients": chain(
        local_noise(2 * z * 0.5, 0.5), clip(1e9), total(100.0))}  # fmt: skip
    for name, p in pipelines.items():
        rows, _ = p.encode(torch.zeros(100, 2000), ones, (), S)
        noisy[name] = p.combine({"delta": rows}, ones / 100, S).var()
    assert (noisy["clients"] / noisy["server"]).item() == pytest.approx(400, rel=0.1)
