"""Compression: what a stage does to a row, its cost, what is owed, what it may stand beside."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import Wire as OverTheWire
from problems import problem, run

from fedlearn import Recipe, Simulated, algorithms, collect, data, federate, model, partition
from fedlearn.aggregate import mean, median, total
from fedlearn.asynchronous import asynchronous
from fedlearn.compress import (
    downlink,
    error_feedback,
    majority_vote,
    quantise,
    random_k,
    sign,
    top_k,
)
from fedlearn.fleet import Fleet
from fedlearn.participation import Call
from fedlearn.privacy import noise_multiplier
from fedlearn.privacy.secure_aggregation import secure_mean
from fedlearn.rng import Use, numpy_rng
from fedlearn.transform import Context, Rowwise, chain, clip, noise

D = 650  # softmax regression on the digits
ONE = np.arange(1)
STAGES = {
    "quantise": quantise(4),
    "quantise, norm": quantise(3, scale="norm"),
    "quantise, nearest": quantise(4, stochastic=False),
    "quantise, fixed": quantise(4, scale=2.0),
    "random_k": random_k(20),
    "random_k, not scaled": random_k(20, scaled=False),
    "random_k, shared": random_k(20, shared=True),
    "top_k": top_k(20),
    "top_k, share": top_k(0.03),
    "sign": sign(),
    "sign, step": sign(0.01),
    "error_feedback": error_feedback(top_k(20)),
    "error_feedback, random": error_feedback(random_k(20, scaled=False)),
}
UNBIASED = [name for name, s in STAGES.items() if s.unbiased]


def row(seed: int, d: int = 40, rows: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_t(4, (rows, d)))


def at(t: int, clients: int = 1, seed: int = 0) -> Context:
    S = np.arange(clients)
    return Context(seed, t, S, S)


def coded(stage: Rowwise, x: torch.Tensor, ctx: Context) -> torch.Tensor:
    memory = {
        k: v.expand(len(x), *v.shape) for k, v in stage.memory(x.new_zeros(x.shape[1])).items()
    }
    return stage.apply(x, torch.ones(len(x)), memory, ctx)[0]


# -- what a stage does to a row -------------------------------------------------------------------


@pytest.mark.parametrize("name", UNBIASED)
def test_an_unbiased_stage_is_right_on_average(name):
    """Monte Carlo: the mean of T draws lies within five of its own standard errors, everywhere."""
    T, x = 4000, row(1)
    draws = torch.cat([coded(STAGES[name], x, at(t)) for t in range(T)])
    error = draws.std(0) / math.sqrt(T)
    assert ((draws.mean(0) - x[0]).abs() <= 5 * error + 1e-12).all()
    assert draws.std(0).max() > 0


def test_the_others_are_not_and_say_so():
    assert UNBIASED == ["quantise", "quantise, norm", "random_k", "random_k, shared"]
    for name in STAGES.keys() - set(UNBIASED) - {"quantise, fixed"}:
        x = row(1)
        draws = torch.cat([coded(STAGES[name], x, at(t)) for t in range(200)])
        assert (draws.mean(0) - x[0]).norm() > 0.02 * x.norm(), name
    beyond = coded(quantise(4, scale=2.0), torch.tensor([[9.0]]), at(0))
    assert beyond.item() == 2.0, "a fixed range cuts, which no draw makes up for"


def test_random_k_errs_by_d_over_k_minus_one():
    x, k = row(2), 8
    error = [(coded(random_k(k), x, at(t)) - x).square().sum() for t in range(3000)]
    assert np.mean(error) == pytest.approx(float(x.square().sum()) * (40 / k - 1), rel=0.05)


@given(st.integers(0, 99), st.integers(1, 40))
def test_top_k_leaves_out_no_more_than_any_other_choice(seed, k):
    x = row(seed)
    out = coded(top_k(k), x, at(0))
    assert (out != 0).sum() == k and torch.equal(out[out != 0], x[out != 0])
    left = (out - x).square().sum()
    assert left == pytest.approx(float(x.square().sort().values[0, : 40 - k].sum()))
    assert left <= (1 - k / 40) * x.square().sum() + 1e-12


@given(st.integers(2, 16), st.integers(0, 99), st.booleans())
def test_steps_of_quantisation_lie_on_the_grid_and_near(bits, seed, stochastic):
    x = row(seed)
    s = 2 ** (bits - 1) - 1
    r = x.abs().max()
    out = coded(quantise(bits, stochastic=stochastic), x, at(seed))
    steps = out / r * s
    assert torch.allclose(steps, steps.round(), atol=1e-9) and steps.abs().max() <= s + 1e-9
    assert (out - x).abs().max() <= r / s * (1 if stochastic else 0.5) + 1e-12


def test_the_scaled_sign_is_the_nearest_of_all_signs():
    x = row(3)
    out, best = coded(sign(), x, at(0)), x.sign() * x.abs().mean()
    assert torch.allclose(out, best)
    for other in (0.9, 1.1):
        assert (out - x).norm() < (other * out - x).norm()


@pytest.mark.parametrize("name", STAGES)
def test_a_row_is_coded_from_itself_alone_whatever_the_others_and_their_order(name):
    x, stage = row(4, rows=6), STAGES[name]
    S = np.array([5, 3, 9, 0, 7, 2])
    ctx = Context(1, 2, S, S)
    whole = coded(stage, x, ctx)
    for some in ([0], [4, 1], [5, 4, 3, 2, 1, 0]):
        torch.testing.assert_close(coded(stage, x[some], ctx.keep(np.array(some))), whole[some])
    assert coded(stage, x[:0], ctx.keep(np.zeros(0, int))).shape == (0, 40)


def test_draws_differ_by_client_round_and_place_and_follow_the_seed():
    x = torch.ones(2, 200)
    stage = random_k(20)
    a = coded(stage, x, at(0, 2))
    assert not torch.equal(a[0], a[1]) and torch.equal(a, coded(stage, x, at(0, 2)))
    assert not torch.equal(a, coded(stage, x, at(1, 2)))
    assert not torch.equal(a, coded(stage, x, at(0, 2, seed=1)))
    shared = coded(random_k(20, shared=True), x, at(0, 2))
    assert torch.equal(shared[0], shared[1])
    twice = chain(random_k(20), random_k(20), mean())  # the second draws anew
    rows, _ = twice.encode(x, torch.ones(2), (), at(0, 2))
    assert 0 < (rows[0] != 0).sum() < 20


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rows_keep_their_type_and_zero_and_nan_are_seen(name, dtype):
    x = torch.zeros(2, D, dtype=dtype)
    x[1, 3] = torch.nan
    out = coded(STAGES[name], x, at(0, 2))
    assert out.dtype == dtype
    assert "step" in name or not out[0].any(), "nothing to send, nothing sent"
    assert out[1].isnan().any(), "what went wrong is not hidden"


# -- what it costs --------------------------------------------------------------------------------

COST = {  # bits of a row of 650 float32, counted by hand
    "none": ((), 650 * 32),
    "4 bits": ((quantise(4),), 650 * 4 + 32),
    "2 bits": ((quantise(2),), 650 * 2 + 32),  # 166.5 bytes
    "a fixed grid": ((quantise(3, scale=2.0),), 650 * 3),
    "top 6": ((top_k(6),), 6 * (32 + 10)),  # 31.5 bytes
    "top 1 %": ((top_k(0.01),), 6 * 42),  # 6.5 rounded to even
    "random 65": ((random_k(65),), 65 * 32),
    "signs": ((sign(),), 650 + 32),
    "signs of a step": ((sign(0.1),), 650),
    "owed": ((error_feedback(sign()),), 682),
    "six numbers of four bits": ((top_k(6), quantise(4)), 6 * (4 + 10) + 32),
    "clipped behind": ((top_k(6), clip(1.0)), 6 * 42),
    "clipped before": ((clip(1.0), quantise(4)), 2632),
    "all of them": ((top_k(10_000),), 650 * 42),
}


@pytest.mark.parametrize("name", COST)
def test_bits_by_hand(name):
    stages, bits = COST[name]
    assert chain(*stages, mean()).wire(torch.zeros(3, D)).bits == bits


def test_behind_a_stage_that_says_nothing_every_number_is_sent_in_full():
    mine = Rowwise("mine", lambda d, n, m, ctx: (d + 1, m))
    assert chain(top_k(6), mine, mean()).wire(torch.zeros(1, D)).bits == 650 * 32
    assert chain(mine, mean()).wire(torch.zeros(1, D).double()).bits == 650 * 64


def digits(pipeline, method=algorithms.fedavg, N=20, **kw):  # type: ignore[no-untyped-def]
    d, task = data.load("digits"), model.softmax_regression(64, 10)
    parts = partition.dirichlet_label(d.y, N, numpy_rng(0, Use.PARTITION), alpha=0.1)
    recipe = Recipe(method(task, 0.5), task.theta0, pipeline, epochs=5)
    test = model.evaluator(task, d.x_test, d.y_test)
    return Simulated(recipe, d.x, d.y, parts, **kw), test


def test_the_books_of_a_run_count_what_is_sent():
    clients, _ = digits(chain(error_feedback(top_k(6)), mean()))
    run = federate(clients, rounds=3, cohort=4)
    for r in run:
        assert (r.sent, r.received) == (2600, 32)  # 31.5 bytes, the last one filled up
    assert run.history["bytes"].tolist() == [4 * 2632 * (t + 1) for t in range(3)]
    dense, _ = digits(chain(mean()))
    assert next(federate(dense, rounds=1)).received == 2600


def test_what_a_method_sends_beside_delta_is_counted_in_full():
    scaffold = lambda task, lr: algorithms.scaffold(task, lr, n_total=1437)
    clients, _ = digits(chain(top_k(6), mean()), scaffold)
    assert next(federate(clients, rounds=1)).received == 32 + 2600


def test_the_clock_runs_by_what_is_sent():
    N, line = 20, 100.0  # bytes a second; nothing else takes time
    fleet = Fleet(np.full(N, 1e-12), np.full(N, line), np.full(N, line))
    for stages, up in (((), 2600), ((top_k(6),), 32)):
        clients, _ = digits(chain(*stages, mean()), fleet=fleet)
        assert next(federate(clients, rounds=1)).seconds == pytest.approx((2600 + up) / line)
        run = asynchronous(clients, rounds=1, concurrency=5, buffer=5)
        assert next(run).seconds == pytest.approx((2600 + up) / line)
        assert run.history["bytes"][0] == 5 * (2600 + up)


# -- what is owed ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage", [top_k(3), sign(), quantise(2, stochastic=False), random_k(5, scaled=False)]
)
def test_sent_and_owed_are_together_all_updates(stage):
    owing, memory = error_feedback(stage), {"error": torch.zeros(1, 40).double()}
    x, sent = row(5, rows=30), torch.zeros(1, 40).double()
    for t in range(30):
        out, memory = owing.apply(x[t : t + 1], torch.ones(1), memory, at(t))
        sent += out
    torch.testing.assert_close(sent + memory["error"], x.sum(0, keepdim=True))


def uphill(stage: Rowwise, steps: int = 200, gamma: float = 0.01) -> float:
    """Beznosikov et al. (2020), Example 1: three quadratics whose top-1 gradients point uphill."""
    a = torch.tensor([[-3.0, 2, 2], [2, -3, 2], [2, 2, -3]], dtype=torch.float64)
    x = torch.ones(3, dtype=torch.float64)
    memory = {k: v.expand(3, 3) for k, v in stage.memory(x).items()}
    for t in range(steps):
        gradients = 2 * (a @ x)[:, None] * a + x / 2  # of <a_k, x>² + ‖x‖²/4
        sent, memory = stage.apply(-gamma * gradients, torch.ones(3), memory, at(t, 3))
        x = x + sent.mean(0)
    return float(x.norm())


def test_top_1_goes_uphill_as_its_authors_computed_and_a_memory_repairs_it():
    assert uphill(top_k(1)) == pytest.approx(math.sqrt(3) * (1 + 11 * 0.01 / 6) ** 200)
    same = Rowwise("same", lambda d, n, m, ctx: (d, m))
    assert uphill(same) < 0.2 and uphill(error_feedback(top_k(1))) < 0.2


def test_a_client_that_is_not_called_keeps_what_it_owes():
    clients, _ = digits(chain(error_feedback(top_k(6)), mean()))
    run = federate(clients, rounds=2, cohort=4)
    first = next(run).answered
    owed = run.memory[1]["error"].clone()
    assert [k for k in range(20) if owed[k].any()] == sorted(first)
    second = next(run).answered
    for k in set(first) - set(second):
        assert torch.equal(run.memory[1]["error"][k], owed[k])


def test_a_run_with_a_memory_is_resumed_bit_by_bit(tmp_path):
    make = lambda: digits(chain(error_feedback(random_k(20, scaled=False)), mean()), downed)[0]
    whole = collect(federate(make(), rounds=6)).theta
    collect(federate(make(), rounds=3, checkpoint=tmp_path / "run"))
    assert torch.equal(collect(federate(make(), rounds=6, resume=tmp_path / "run")).theta, whole)


@pytest.mark.parametrize("name", STAGES)
def test_over_the_message_path_it_is_the_same_run(name):
    p = problem()
    algorithm = algorithms.fedavg(p.closed_form, lr=0.3)
    pipeline = chain(STAGES[name], mean())
    here = run(algorithm, p.closed_form.theta0, p, pipeline=pipeline)[-1].theta
    recipe = Recipe(algorithm, p.closed_form.theta0, pipeline, batch=16, epochs=2, seed=3)
    there = list(federate(OverTheWire(recipe, p.x, p.y, p.parts), rounds=4, cohort=5))[-1].theta
    torch.testing.assert_close(here, there, atol=1e-11, rtol=1e-10)


def test_chunks_change_nothing():
    bits = {}
    for chunk in (1, 7, 20):
        clients, _ = digits(chain(error_feedback(top_k(6)), quantise(4), mean()), chunk=chunk)
        bits[chunk] = [r.deltas for r in federate(clients, rounds=2)][-1]
    for chunk in (1, 7):
        torch.testing.assert_close(bits[chunk], bits[20], atol=1e-5, rtol=1e-3)


# -- majority vote --------------------------------------------------------------------------------


def test_a_vote_counts_clients_and_not_their_size():
    rows = torch.tensor([[5.0, -1e9, 0.0], [-1.0, 0.1, 1.0], [-1.0, 0.1, -1.0]])
    out = majority_vote(0.1).apply(rows, torch.tensor([0.98, 0.01, 0.01]))
    assert out.tolist() == pytest.approx([-0.1, 0.1, 0.0])
    signs = coded(sign(0.3), rows, at(0, 3))
    assert majority_vote(0.1).apply(signs, torch.ones(3) / 3)[:2].tolist() == pytest.approx(
        [-0.1, 0.1]
    )


def test_fewer_than_half_of_the_voters_change_no_number_on_which_the_rest_agree():
    honest = row(6).sign().expand(11, -1)
    for f in range(6):
        rows = honest.clone()
        rows[:f] = -1e6 * honest[:f]
        assert torch.equal(majority_vote(0.1).apply(rows, torch.ones(11) / 11), 0.1 * honest[0])


# -- the way down ---------------------------------------------------------------------------------


def downed(task, lr):  # type: ignore[no-untyped-def]
    return downlink(algorithms.fedavg(task, lr), top_k(32))


def test_the_broadcast_is_whole_once_and_then_what_is_new():
    clients, _ = digits(chain(mean()), downed)
    assert [r.sent for r in federate(clients, rounds=3)] == [2600, 168, 168]  # 32 * 42 bits
    N, line = 20, 100.0
    fleet = Fleet(np.full(N, 1e-12), np.full(N, line), np.full(N, line))
    clients, _ = digits(chain(mean()), downed, fleet=fleet)
    seconds = [r.seconds for r in federate(clients, rounds=2)]
    assert seconds == pytest.approx([52.0, 27.68])


def test_theta_and_what_the_server_owes_are_together_the_steps_it_took():
    """An independent loop: the plain server's step from the compressed theta, top-k by argsort."""
    clients, _ = digits(chain(mean()), downed)
    run = federate(clients, rounds=4)
    theta, owed = clients.recipe.theta.clone(), torch.zeros(D)
    for r in run:
        want = r.p @ r.deltas + owed
        sent = torch.zeros(D)
        best = want.abs().argsort(descending=True)[:32]
        sent[best] = want[best]
        theta, owed = theta + sent, want - sent
        torch.testing.assert_close(r.theta, theta)
        torch.testing.assert_close(run.state["owed"], owed, atol=1e-6, rtol=1e-4)


def test_sending_all_down_is_the_method_itself():
    every = lambda task, lr: downlink(algorithms.fedadam(task, lr, server_lr=0.03), top_k(D))
    clients, test = digits(chain(mean()), every)
    plain, _ = digits(chain(mean()), lambda t, lr: algorithms.fedadam(t, lr, server_lr=0.03))
    a, b = (collect(federate(c, rounds=5)).theta for c in (clients, plain))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_a_round_that_calls_fewer_is_refused_and_one_without_an_answer_owes_on():
    clients, _ = digits(chain(mean()), downed)
    with pytest.raises(ValueError, match=r"cohort of round 0.*every client.*got 5.*cohort=None"):
        next(federate(clients, rounds=1, cohort=5))

    def silent(N: int, seed: int, t: int) -> Context:
        S = np.arange(N)
        return Context(seed, t, S, S[: 0 if t == 1 else N])

    call: Call = silent
    run = federate(clients, rounds=3, cohort=call)
    first, owed = next(run).theta, run.state["owed"].clone()
    assert torch.equal(next(run).theta, first) and torch.equal(run.state["owed"], owed)
    with pytest.raises(ValueError, match=r"asynchronous: .*theta alone"):
        fleet = Fleet(*(np.ones(20) for _ in range(3)))
        asynchronous(digits(chain(mean()), downed, fleet=fleet)[0], rounds=1, concurrency=2,
                     buffer=1)  # fmt: skip


# -- what it may stand beside ---------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_behind_a_clip_privacy_refuses_a_stage_and_before_it_takes_it(name):
    with pytest.raises(ValueError, match="last stage on a client must bound"):
        noise_multiplier(chain(clip(1.0), STAGES[name], total(10), noise(0.1)))
    pipeline = chain(STAGES[name], clip(1.0), total(10), noise(0.1))
    assert noise_multiplier(pipeline) == pytest.approx(1.0)


def test_a_row_behind_a_clip_is_longer_than_the_clip():
    """Why: what DP would have to know, measured."""
    x = clip(1.0).apply(row(7, D, 20), torch.ones(20), {}, at(0, 20))[0]
    for stage in (quantise(2), random_k(65), quantise(2, scale="norm")):
        assert coded(stage, x, at(0, 20)).norm(dim=1).max() > 1.5


def test_secure_aggregation_takes_compressed_rows_and_sends_them_in_full():
    def end(*stages):  # type: ignore[no-untyped-def]
        clients, _ = digits(chain(*stages), N=5)
        return next(federate(clients, rounds=1))

    masked = end(random_k(65, shared=True), *secure_mean(50.0, 1437))
    plain = end(random_k(65, shared=True), mean())
    torch.testing.assert_close(masked.theta, plain.theta, atol=1e-4, rtol=1e-4)
    assert masked.received == 4 * 651 and plain.received == 260
    with pytest.raises(ValueError, match=r"top_k: .*not masked ones.*got torch.int32"):
        mask, *rest = secure_mean(50.0, 1437)
        end(mask, top_k(6), *rest)


def test_rules_take_compressed_rows():
    clients, _ = digits(chain(quantise(4), median()))
    assert next(federate(clients, rounds=1)).theta.isfinite().all()


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: quantise(1), ["quantise", "bits", "got 1", "e.g."]),
        (lambda: quantise(17), ["quantise", "bits", "got 17"]),
        (lambda: quantise(2.5), ["quantise", "bits", "got 2.5"]),
        (lambda: quantise(4, scale="l2"), ["quantise", "'max', 'norm'", "got 'l2'"]),
        (lambda: quantise(4, scale=-1.0), ["quantise", "scale", "got -1.0"]),
        (lambda: quantise(4, scale=math.inf), ["quantise", "scale", "got inf"]),
        (lambda: top_k(0), ["top_k", "k must be", "got 0", "e.g."]),
        (lambda: top_k(1.5), ["top_k", "got 1.5"]),
        (lambda: top_k(math.nan), ["top_k", "got nan"]),
        (lambda: top_k(True), ["top_k", "got True"]),
        (lambda: random_k(-0.1), ["random_k", "got -0.1"]),
        (lambda: sign(0), ["sign", "step", "got 0"]),
        (lambda: majority_vote(math.nan), ["majority_vote", "step", "got nan"]),
        (lambda: error_feedback(random_k(6)), ["error_feedback", "random_k(6)", "scaled=False"]),
        (lambda: error_feedback(quantise(2)), ["error_feedback", "unbiased", "stochastic=False"]),
        (lambda: error_feedback(error_feedback(sign())), ["error_feedback", "without a memory"]),
        (lambda: error_feedback(mean()), ["error_feedback", "top_k(0.01)"]),
        (lambda: error_feedback(secure_mean(1.0, 9)[0]), ["error_feedback", "secret"]),
        (lambda: downlink(algorithms.fedavg(model.softmax_regression(2, 2), 0.1), quantise(4)),
         ["downlink", "unbiased"]),
        (lambda: downlink(algorithms.fedavg(model.softmax_regression(2, 2), 0.1),
                          random_k(4, scaled=False)), ["downlink", "without a draw"]),
        (lambda: downlink(downed(model.softmax_regression(2, 2), 0.1), top_k(1)),
         ["downlink", "compressed already"]),
    ],
)  # fmt: skip
def test_bad_input_says_what_and_how(call, said):
    with pytest.raises(ValueError) as error:
        call()
    for part in said:
        assert part in str(error.value)


# -- what it is for -------------------------------------------------------------------------------


@pytest.mark.slow
def test_top_1_percent_stalls_and_its_memory_repairs_it():
    """Measured before the package had it, 100 rounds, three seeds: .805 alone, .950 owing."""
    end = {}
    for name, stage in {"top": top_k(6), "owing": error_feedback(top_k(6))}.items():
        clients, test = digits(chain(stage, mean()))
        end[name] = collect(federate(clients, rounds=60, evaluate=test, every=60))["accuracy"][-1]
    assert end["top"] < 0.86 and end["owing"] > 0.9
