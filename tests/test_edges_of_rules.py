"""Rules and bounds at their edges: rows that are no numbers, weights, rounding, methods."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import METHODS, problem, quadratics

from fedlearn import Diverged, Recipe, Simulated, algorithms, federate
from fedlearn import aggregate as A
from fedlearn.algorithms.fednova import accumulated
from fedlearn.attacks.byzantine import Byzantine
from fedlearn.history import History
from fedlearn.privacy import local_noise, private_mean, secure_mean
from fedlearn.transform import After, Context, Reduce, Rowwise, chain, clip, noise, reach

TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
RULES = {  # and how many of eleven clients each withstands
    "clipped mean": (A.clipped_mean(4.0), 11),
    "median": (A.median(), 5),
    "trimmed mean": (A.trimmed_mean(0.3), 3),
    "krum": (A.krum(4), 4),
    "multi-krum": (A.multi_krum(4), 4),
    "geometric median": (A.geometric_median(), 5),
    "bulyan": (A.bulyan(2), 2),
}


def updates(K: int = 11, d: int = 6, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return (torch.randn(K, d, generator=g) + torch.arange(d) / 4).to(dtype)


BAD = {
    "inf": torch.inf, "-inf": -torch.inf, "nan": torch.nan, "1e30": 1e30, "-1e30": -1e30,
    "1e38": 1e38, "60000": 6e4,
}  # fmt: skip


@pytest.mark.parametrize("where", ["one number", "the row", "mixed"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", RULES)
def test_what_is_no_number_moves_a_rule_no_farther_than_it_promises(name, dtype, bad, where):
    rule, f = RULES[name]
    delta, f = updates(dtype=dtype), min(f, 5)
    honest = delta[f:].float()
    for k in range(f):
        value = BAD[bad] if where != "mixed" else [*BAD.values()][k % len(BAD)]
        value = torch.tensor(value).to(dtype)  # 1e30 is inf in float16
        delta[k, slice(0, 1) if where == "one number" else slice(None)] = value
    out = rule.apply(delta, torch.ones(11) / 11)
    assert out.dtype == dtype and out.isfinite().all()
    if name == "clipped mean":
        assert out.float().norm() <= 4.0 * 1.01
    else:
        radius = (honest - honest.mean(0)).norm(dim=1).max()
        assert (out.float() - honest.mean(0)).norm() < 3 * radius


def test_one_infinite_row_counts_as_nothing_in_a_clipped_mean():
    rows, p = updates(4), torch.tensor([0.1, 0.2, 0.3, 0.4])
    rule = A.clipped_mean(1.0).apply
    for bad in (torch.inf, -torch.inf, torch.nan, 1e30):
        without = rows.clone()
        rows[2, 1], without[2] = bad, 0.0
        torch.testing.assert_close(rule(rows, p), rule(without, p))


def test_the_mean_shows_who_sent_what_is_no_number():
    p = problem()
    recipe = Recipe(METHODS["fedavg"](p.closed_form), p.closed_form.theta0)
    nan = lambda honest, own, ctx: own * torch.nan
    with pytest.raises(Diverged, match="the update of client 3 is inf or NaN"):
        next(federate(Byzantine(Simulated(recipe, p.x, p.y, p.parts), [3], nan), rounds=1))


@pytest.mark.parametrize("K", [1, 2, 5])
@pytest.mark.parametrize("dtype", TYPES)
def test_few_rows_and_rows_that_are_alike(K, dtype):
    row, p = updates(1, dtype=dtype), torch.ones(K) / K
    small = [A.krum(1)] if K == 5 else []
    for rule in (A.mean(), A.median(), A.trimmed_mean(0.2), A.geometric_median(), *small):
        torch.testing.assert_close(rule.apply(row.expand(K, -1), p), row[0])
        apart = updates(K, dtype=dtype)
        out = rule.apply(apart, p)
        assert ((apart.amin(0) <= out) & (out <= apart.amax(0))).all()


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_rules_see_distances_whose_squares_leave_float32(scale):
    if scale > 1:  # two far apart among rows that are all long
        delta = updates(11) * scale
        want = A.krum(4).apply(delta.double(), None)
        assert torch.equal(A.krum(4).apply(delta, None).double(), want)
        got = A.geometric_median().apply(delta, torch.ones(11) / 11)
        want = A.geometric_median().apply(delta.double(), torch.ones(11).double() / 11)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)
    assert clip(scale).apply(updates(3), None, {}, None)[0].isfinite().all()


# -- the geometric median -------------------------------------------------------------------------


def test_four_rows_with_a_hundredth_of_the_weight_do_not_win():
    """They were the answer: half of the rows, and 1 % of the weight."""
    rows = torch.tensor([[9.0, 9.0]] * 4 + [[0.0, 0.0], [0.1, 0.0], [0.0, 0.1]])
    p = torch.tensor([0.0025] * 4 + [0.33] * 3)
    out = A.geometric_median().apply(rows, p)
    assert out.norm() < 0.1


@pytest.mark.parametrize("share, captured", [(0.49, False), (0.51, True)])
def test_the_geometric_median_breaks_at_half_of_the_weight(share, captured):
    rows = torch.cat([torch.full((8, 3), 1e6), updates(3, 3)])
    p = torch.cat([torch.full((8,), share / 8), torch.full((3,), (1 - share) / 3)])
    out = A.geometric_median(1000).apply(rows, p)
    assert (out.norm() > 1e5) == captured


def cost(z: np.ndarray, rows: np.ndarray, p: np.ndarray) -> float:
    return float(p @ np.linalg.norm(rows - z, axis=1))


def slow_minimum(rows: np.ndarray, p: np.ndarray) -> float:
    """The least weighted sum of distances: at a row, or where a minimiser ends."""
    from scipy import optimize

    at = min(range(len(rows)), key=lambda k: cost(rows[k], rows, p))
    how = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 5000, "maxfev": 5000}
    starts = (rows[at], p @ rows / p.sum())
    ends = [
        optimize.minimize(cost, s, args=(rows, p), method="Nelder-Mead", options=how).fun
        for s in starts
    ]
    return min(cost(rows[at], rows, p), *ends)


@settings(max_examples=60)
@given(st.data())
def test_the_geometric_median_is_the_weighted_minimum(data):
    pytest.importorskip("scipy")
    K = data.draw(st.integers(1, 7))
    number = st.integers(-5, 5).map(float)
    rows = np.array(data.draw(st.lists(st.tuples(number, number), min_size=K, max_size=K)))
    p = np.array(
        data.draw(st.lists(st.sampled_from([0.0, 0.01, 1.0, 2.5]), min_size=K, max_size=K))
    )
    if p.sum() == 0:
        assert not A.geometric_median().apply(torch.tensor(rows), torch.tensor(p)).any()
        return
    scaled = torch.tensor(
        p * data.draw(st.sampled_from([1.0, 1 / p.sum()]))
    )  # they need not sum to 1
    got = A.geometric_median(5000, 1e-12).apply(torch.tensor(rows), scaled).numpy()
    assert cost(got, rows, p) <= slow_minimum(rows, p) + 1e-4 * p.sum()


# -- a clip is a bound ----------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 30, 7850, 199_210])
@pytest.mark.parametrize("dtype", TYPES)
def test_no_row_behind_a_clip_is_longer_than_it_says(dtype, d):
    """It was 2.6e-5 too long in float32 at d = 199,210, and 0.4 % in bfloat16."""
    g = torch.Generator().manual_seed(0)
    most = {torch.float16: 2e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6, torch.float64: 1e-11}
    for S, scale in itertools.product((1e-3, 0.5, 7.3), (1e-4, 1.0)):
        rows = (scale * torch.randn(2, d, generator=g, dtype=torch.float64)).to(dtype)
        got, _ = clip(S).apply(rows, None, {}, None)
        length = [math.sqrt(math.fsum(v * v for v in row.tolist())) for row in got]
        assert got.dtype == dtype and max(length) <= S
        short = rows.double().norm(dim=1) <= S
        assert torch.equal(got[short], rows[short])  # who needn't be cut keeps every bit
        for cut in np.array(length)[~short.numpy()]:
            assert cut >= S * (1 - most[dtype])


@pytest.mark.parametrize("dtype", TYPES)
def test_every_stage_that_promises_a_norm_keeps_it(dtype):
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 5000, generator=g).to(dtype)
    ctx, n = Context(0, 0, np.arange(4), np.arange(4)), torch.ones(4)
    for stage in (local_noise(0.0, 0.3), *private_mean(0.3, 0.0, 4.0).on_client):
        out, _ = stage.apply(rows, n, {}, ctx)
        assert (out.double().norm(dim=1) <= 0.3).all()
    many = rows if rows.element_size() > 2 else rows.float()
    assert ((many.double() * reach(many, 0.3).double()).norm(dim=1) <= 0.3 * (1 + 1e-7)).all()


def test_small_norms_are_bounded_too():
    for S, v, dtype in itertools.product((1e-8, 1e-7, 1e-20), (1.0, 1e-7), TYPES):
        out, _ = clip(S).apply(torch.full((1, 3), v, dtype=dtype), None, {}, None)
        assert (out.double().norm() <= S).all()
    out, _ = clip(1e-20).apply(torch.full((1, 1), 1e-15), None, {}, None)
    assert out.item() == pytest.approx(1e-20, rel=1e-6)


# -- methods that want the plain mean -------------------------------------------------------------


def ends(make, pipeline, sizes=(3, 1), epochs=5, rounds=4000):  # type: ignore[no-untyped-def]
    task, x, y, parts = quadratics([1.0, 4.0], [0.0, 1.0], sizes)
    recipe = Recipe(make(task), task.theta0, pipeline, batch=None, epochs=epochs)
    *_, last = federate(Simulated(recipe, x, y, parts), rounds=rounds)
    return last.theta.item()


FEDDYN = lambda task: algorithms.feddyn(task, 0.1, alpha=0.5, n_total=4)
MINE = After("mine", lambda delta, ctx: delta)
NOT_PLAIN = {
    "clip(0.05)": chain(clip(0.05), A.mean()),
    "noise(0.1)": chain(A.mean(), noise(0.1)),
    "median()": chain(A.median()),
    "total(4)": chain(A.total(4)),
    "my rule": chain(Reduce("my rule", lambda delta, p: p @ delta)),
    "my stage": chain(Rowwise("my stage", lambda d, n, m, ctx: (d, m)), A.mean()),
    "mine": chain(A.mean(), MINE),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_feddyn_is_refused_where_the_server_gets_something_else(name):
    """Behind clip(.05) it ended at 1.398; the optimum is 4/7."""
    with pytest.raises(ValueError, match="Recipe: pipeline must be a weighted mean") as e:
        ends(FEDDYN, NOT_PLAIN[name])
    assert name in str(e.value) and "feddyn" in str(e.value) and "e.g." in str(e.value)
    with pytest.raises(ValueError, match="weighted mean and nothing else"):
        ends(
            lambda task: algorithms.scheduled(lambda lr: FEDDYN(task), lambda t: 0.1),
            NOT_PLAIN[name],
        )


def test_feddyn_behind_plain_stages_ends_at_the_optimum():
    same = Rowwise("same", lambda d, n, m, ctx: (d, m), plain=True)
    rule = Reduce("mine", lambda delta, p: p @ delta, plain=True)
    for pipeline in (chain(A.mean()), chain(same, rule, MINE._replace(plain=True))):
        assert ends(FEDDYN, pipeline, rounds=600) == pytest.approx(4 / 7, abs=1e-6)
    assert Recipe(FEDDYN(None), torch.zeros(1), chain(*secure_mean(8.0, 4))).pipeline.bent == []


@pytest.mark.parametrize("option", [1, 2])
@pytest.mark.parametrize("sizes, optimum", [((1, 1), 0.8), ((3, 1), 4 / 7)])
def test_scaffold_behind_a_clip_still_ends_at_the_optimum(sizes, optimum, option):
    """What its clients remember is their gradient, whatever became of the update."""
    make = lambda task: algorithms.scaffold(task, 0.1, n_total=sum(sizes), option=option)
    got = ends(make, chain(clip(0.05), A.mean()), sizes, rounds=400)
    assert got == pytest.approx(optimum, abs=1e-6)


ROBUST = [
    A.median(), A.trimmed_mean(0.2), A.krum(1), A.multi_krum(1), A.geometric_median(), A.bulyan(0),
    A.clipped_mean(1.0), Reduce("my rule", lambda delta, p: delta.mean(0)),
]  # fmt: skip


@pytest.mark.parametrize("rule", ROBUST, ids=lambda r: r.name)
@pytest.mark.parametrize("method, extra", [("scaffold", "delta_c"), ("fednova", "a")])
def test_what_a_rule_does_not_guard_is_refused_before_round_0(method, extra, rule):
    """One client's NaN ended SCAFFOLD under the median: its server adds delta_c up as it comes."""
    p = problem()
    recipe = Recipe(METHODS[method](p.closed_form), p.closed_form.theta0, chain(rule))
    with pytest.raises(ValueError) as e:
        federate(Simulated(recipe, p.x, p.y, p.parts), rounds=1)
    for word in (rule.name, "combines only 'delta'", extra, "e.g. fedavg", "mean()"):
        assert word in str(e.value)


def test_what_sends_delta_alone_runs_under_every_rule():
    p = problem()
    for rule in (*ROBUST, A.total(8.0)):
        recipe = Recipe(METHODS["fedadam"](p.closed_form), p.closed_form.theta0, chain(rule))
        assert next(federate(Simulated(recipe, p.x, p.y, p.parts), rounds=1)).theta.isfinite().all()


# -- FedNova's a ----------------------------------------------------------------------------------


def impulses(steps: int, lr: float, beta: float, mu: float) -> list[float]:
    """What each gradient weighs in delta / -lr: one gradient of 1, at step i, and nothing else."""
    out = []
    for i in range(steps):
        w = v = 0.0
        for t in range(steps):
            v = beta * v + (t == i) + mu * w
            w -= lr * v
        out.append(-w / lr)
    return out


@pytest.mark.parametrize("beta, mu", [(0, 0), (0.9, 0), (0, 3), (0.5, 9), (0.9, 9), (0.9, 0.5)])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_fednova_divides_by_the_norm_of_what_gradients_weigh(steps, beta, mu):
    want = sum(abs(v) for v in impulses(steps, 0.1, beta, mu))
    got = accumulated(torch.tensor([[float(steps)]], dtype=torch.float64), 0.1, beta, mu)
    assert got.item() == pytest.approx(want, rel=1e-12)


def test_momentum_and_a_pull_swing_so_the_sum_is_not_the_norm():
    """The sum went below 0 where the norm is 8.19: the server would have stepped backwards."""
    weights = impulses(8, 0.1, 0.99, 5.0)
    assert sum(weights) == pytest.approx(-0.03, abs=0.005)
    a = accumulated(torch.tensor([[8.0]], dtype=torch.float64), 0.1, 0.99, 5.0)
    assert a.item() == pytest.approx(sum(map(abs, weights))) == pytest.approx(8.19, abs=0.005)


# -- a metric is one number -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [np.array([0.1, 0.9]), torch.tensor([0.1, 0.9]), [0.1, 0.9], {"a": 1}, "0.9", None]
)
@pytest.mark.parametrize("every", [1, 2])
def test_a_metric_per_class_is_refused_with_the_cure(value, every):
    """With every=2 it was a column of arrays and NaN: "inhomogeneous shape", long after the run."""
    p = problem()
    recipe = Recipe(METHODS["fedavg"](p.closed_form), p.closed_form.theta0)
    run = federate(
        Simulated(recipe, p.x, p.y, p.parts),
        rounds=4, every=every, evaluate=lambda theta: {"recall": value},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"metrics\['recall'\] must be a number.*e\.g\."):
        list(run)
    with pytest.raises(ValueError, match="must be a number"):
        History().check({"recall": value})
