"""Differential privacy: two other accountants, the noise that is really there, what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import problem

from fedlearn import Recipe, Simulated, algorithms, federate, privacy
from fedlearn.aggregate import mean, total
from fedlearn.participation import poisson
from fedlearn.transform import After, Context, chain, clip, noise

pytest.importorskip("dp_accounting", reason="needs fedlearn[privacy]")


# -- epsilon --------------------------------------------------------------------------------------


def test_epsilon_and_sigma_of_the_oracles():
    assert privacy.epsilon(1.0, 0.1, 100, 1e-3) == pytest.approx(4.7844, abs=1e-4)
    assert privacy.calibrate(8.0, 0.1, 100, 1e-3) == pytest.approx(0.778, abs=1e-3)


def rdp_epsilon(z, q, T, delta, orders=range(2, 257)):
    """Mironov, Talwar, Zhang, 2019, §3.3, at integer orders; the classic conversion. Plain Python.

    A = sum_k C(a, k) (1-q)^(a-k) q^k exp((k² - k) / (2 z²));
    eps = min over a of (T log(A) + log(1/d)) / (a - 1)
    """
    best = math.inf
    for a in orders:
        logs = [
            math.lgamma(a + 1) - math.lgamma(k + 1) - math.lgamma(a - k + 1)
            + (a - k) * math.log1p(-q) + k * math.log(q) + (k * k - k) / (2 * z * z)
            for k in range(a + 1)
        ]  # fmt: skip
        top = max(logs)
        rdp = (top + math.log(sum(math.exp(v - top) for v in logs))) / (a - 1)
        best = min(best, T * rdp + math.log(1 / delta) / (a - 1))
    return best


@pytest.mark.parametrize(
    "z, epochs, expected", [(1.3, 1, 0.71), (1.3, 15, 1.16), (1.1, 60, 2.91), (0.7, 45, 6.86)]
)
def test_the_independent_accountant_meets_the_oracles_and_bounds_ours(z, epochs, expected):
    q, T = 240 / 60_000, epochs * 250
    rdp = rdp_epsilon(z, q, T, 1e-5)
    assert rdp == pytest.approx(expected, abs=0.011)
    ours = privacy.epsilon(z, q, T, 1e-5)
    assert 0.25 * rdp < ours < rdp  # PLD is tighter, the more the smaller epsilon


def test_one_gaussian_is_the_closed_form():
    """Balle, Wang, 2018, Theorem 8: delta(eps) of the Gaussian mechanism, solved by bisection."""
    phi = lambda v: 0.5 * math.erfc(-v / math.sqrt(2))
    for z in (0.5, 1.0, 3.0):
        lo, hi = 0.0, 100.0
        for _ in range(80):
            e = (lo + hi) / 2
            d = phi(1 / (2 * z) - e * z) - math.exp(e) * phi(-1 / (2 * z) - e * z)
            lo, hi = (e, hi) if d > 1e-5 else (lo, e)
        assert privacy.epsilon(z, 1.0, 1, 1e-5) == pytest.approx(hi, abs=1e-6)
        assert privacy.epsilon(3 * z, 1.0, 9, 1e-5) == pytest.approx(hi, abs=1e-6)  # nine = one


@pytest.mark.parametrize("z, q, T", [(1.0, 0.1, 30), (3.0, 0.5, 30), (0.6, 0.02, 40)])
def test_a_growing_composition_meets_the_direct_one(z, q, T):
    """Round by round, once per round, against dp-accounting from scratch on a finer grid."""
    dpa = pytest.importorskip("dp_accounting")
    grown = privacy.epsilons(z, q, T, 1e-3)
    assert len(grown) == T and grown == sorted(grown)
    for t in (1, 2, T):
        fine = dpa.pld.PLDAccountant(value_discretization_interval=5e-4)
        event = dpa.PoissonSampledDpEvent(q, dpa.GaussianDpEvent(z))
        exact = fine.compose(dpa.SelfComposedDpEvent(event, t)).get_epsilon(1e-3)
        assert -1e-6 < grown[t - 1] - exact < 1e-3
        assert grown[t - 1] == pytest.approx(privacy.epsilon(z, q, t, 1e-3), abs=1e-6)


def test_the_ledger_remembers_and_may_be_asked_in_any_order():
    long = privacy.epsilons(1.1, 0.2, 12, 1e-3)
    assert privacy.epsilons(1.1, 0.2, 5, 1e-3) == long[:5]
    assert privacy.epsilons(1.1, 0.2, 12, 1e-4)[4] > long[4]
    assert privacy.epsilons(1.1, 0.2, 0, 1e-3) == []
    assert privacy.epsilons(0.0, 0.2, 2, 1e-3) == [math.inf, math.inf]
    assert privacy.epsilons(2.0, 1.0, 3, 1e-3)[2] == privacy.epsilon(2.0, 1.0, 3, 1e-3)


def test_the_central_limit_figure_is_below_the_truth():
    """mu-GDP of T sampled Gaussians: mu = q sqrt(T (exp(1 / z²) - 1)). Below: so it is not shown.

    Bu, Dong, Long, Su, 2020, "Deep learning with Gaussian differential privacy", Corollary 4.
    """
    mu = 0.1 * math.sqrt(100 * (math.exp(1.0) - 1))
    limit = privacy.epsilon(1 / mu, 1.0, 1, 1e-3)  # mu-GDP is one Gaussian release with z = 1 / mu
    assert limit == pytest.approx(4.40, abs=0.01)
    assert limit < privacy.epsilon(1.0, 0.1, 100, 1e-3) - 0.3


SETTINGS = [
    (z, q, T)
    for z in (0.7, 1.0, 1.5, 3.0, 8.0)
    for q in (0.01, 0.05, 0.2, 0.5, 1.0)
    for T in (5, 60)
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # log(0) and alphas inside opacus
def test_opacus_agrees_on_fifty_settings():
    """Its PRV accountant is another algorithm and other code: within 1 %, or 0.01 of epsilon."""
    prv = pytest.importorskip("opacus.accountants").PRVAccountant
    assert len(SETTINGS) == 50
    for z, q, T in SETTINGS:
        ours = privacy.epsilon(z, q, T, 1e-4)
        accountant = prv()
        accountant.history.append((z, q, T))
        theirs = accountant.get_epsilon(1e-4, eps_error=0.01 * max(ours, 1.0) / 2)
        assert ours == pytest.approx(theirs, rel=0.01, abs=0.01), (z, q, T)


def test_epsilon_grows_with_rounds_and_sampling_and_falls_with_noise():
    e = privacy.epsilon
    assert e(1.0, 0.1, 0, 1e-3) == 0 and math.isinf(e(0.0, 0.1, 1, 1e-3))
    assert e(1.0, 0.1, 10, 1e-3) < e(1.0, 0.1, 20, 1e-3) < e(1.0, 0.2, 20, 1e-3)
    assert e(2.0, 0.1, 20, 1e-3) < e(1.0, 0.1, 20, 1e-3) < e(1.0, 0.1, 20, 1e-5)
    assert e(1.0, 0.1, 100, 1e-3) > 4.40  # the central-limit figure lies below the truth


# -- the noise and the bound ----------------------------------------------------------------------


def test_noise_multiplier_is_read_off_the_stages():
    assert privacy.noise_multiplier(privacy.private_mean(0.3, 1.7, 12)) == pytest.approx(1.7)
    by_hand = chain(clip(2.0), total(10), noise(0.3))
    assert privacy.noise_multiplier(by_hand) == pytest.approx(0.3 / (2.0 / 10))
    assert privacy.noise_multiplier(chain(clip(2.0), total(10))) == 0


def test_the_name_of_the_noise_is_its_formula():
    for S, z, expected in ((0.5, 1.0, 20), (0.3, 1.75, 12), (1, 0, 4)):
        (stage,) = privacy.private_mean(S, z, expected).on_server
        assert stage.name == f"noise({z:g} * {S:g} / {expected:g})"
        assert eval(stage.name, {"noise": float}) == pytest.approx(stage.std)


@pytest.mark.parametrize("expected, q", [(4.0, 0.5), (0.1 * 8, 0.1), (8.0, 1.0), (8 / 3, 1 / 3)])
def test_q_is_read_off_the_pipeline(expected, q):
    p = problem()
    recipe = Recipe(
        algorithms.fedavg(p.closed_form, 0.3),
        p.closed_form.theta0,
        privacy.private_mean(0.5, 1.0, expected),
    )
    clients = Simulated(recipe, p.x, p.y, p.parts)
    read, said = (
        list(privacy.dp_federate(clients, rounds=4, delta=1e-3, **how)) for how in ({}, {"q": q})
    )
    for r, s in zip(read, said, strict=True):
        assert np.array_equal(r.called, s.called) and torch.equal(r.theta, s.theta)
        assert r.metrics["epsilon"] == pytest.approx(s.metrics["epsilon"], rel=1e-9)


def test_one_client_moves_the_sum_by_no_more_than_its_share():
    """Neighbouring cohorts: everyone, and everyone but client 3, whatever client 3 sends."""
    pipeline, rows = chain(clip(0.5), total(4)), 100 * torch.randn(5, 9, dtype=torch.float64)
    S = np.arange(5)
    ctx, n = Context(0, 0, S, S), torch.ones(5, dtype=torch.float64)
    cut, _ = pipeline.encode(rows, n, {}, ctx)
    assert (cut.norm(dim=1) <= 0.5 + 1e-12).all()
    whole = pipeline.combine({"delta": cut}, n / 5, ctx)
    without = pipeline.combine({"delta": cut[[0, 1, 2, 4]]}, n[:4] / 4, ctx)
    assert (whole - without).norm() <= 0.5 / 4 + 1e-12


def test_the_noise_that_is_added_has_the_promised_variance():
    p = problem()
    task = p.closed_form
    still = algorithms.fedavg(task, 0.3)._replace(
        client=lambda m, shards, memory: (
            {"delta": torch.zeros(len(shards.n), 73, dtype=torch.float64), "loss": shards.n},
            memory,
        )
    )
    recipe = Recipe(still, task.theta0, privacy.private_mean(0.5, z=2.0, expected=4.0))
    clients = Simulated(recipe, p.x, p.y, p.parts)
    thetas = [task.theta0] + [r.theta for r in federate(clients, rounds=200, cohort=poisson(0.5))]
    steps = torch.stack([b - a for a, b in zip(thetas, thetas[1:])])  # noqa: RUF007
    want = 2.0 * 0.5 / 4.0
    assert steps.std().item() == pytest.approx(want, rel=0.03)  # 14,600 draws: 0.6 % is one sigma
    assert abs(steps.mean().item()) < 4 * want / math.sqrt(steps.numel())
    rounds = steps - steps.mean(0)
    assert abs((rounds[:-1] * rounds[1:]).mean()) < 0.05 * want**2  # no round repeats another


def test_a_round_without_a_client_still_adds_its_noise():
    p = problem()
    recipe = Recipe(
        algorithms.fedavg(p.closed_form, 0.3),
        p.closed_form.theta0,
        privacy.private_mean(0.5, 1.0, 0.008),
    )
    clients = Simulated(recipe, p.x, p.y, p.parts)
    r = next(privacy.dp_federate(clients, rounds=1, q=0.001, delta=1e-3))
    assert len(r.answered) == 0 and math.isnan(r.loss)
    assert not torch.equal(r.theta, recipe.theta)


def test_the_run_ends_before_the_budget_is_overspent():
    p = problem()
    recipe = Recipe(
        algorithms.fedavg(p.closed_form, 0.3),
        p.closed_form.theta0,
        privacy.private_mean(0.5, 1.0, 4.0),
    )
    clients = Simulated(recipe, p.x, p.y, p.parts)
    run = privacy.dp_federate(clients, rounds=40, q=0.5, delta=1e-3, budget=9.0)
    spent = [r.metrics["epsilon"] for r in run]
    for t, e in enumerate(spent):
        assert e == pytest.approx(privacy.epsilon(1.0, 0.5, t + 1, 1e-3), abs=1e-6) and e <= 9.0
    assert privacy.epsilon(1.0, 0.5, len(spent) + 1, 1e-3) > 9.0


def test_a_client_that_diverges_neither_stops_the_run_nor_is_named():
    """Whether the run ends would be an outcome that only client 2 makes possible: epsilon = inf."""
    p = problem()
    x = p.x.clone()
    x[torch.as_tensor(p.parts[2])] *= 1e200
    pipeline = privacy.private_mean(0.5, 1.0, 8.0)
    recipe = Recipe(algorithms.fedavg(p.closed_form, 0.3), p.closed_form.theta0, pipeline)
    clients = Simulated(recipe, x, p.y, p.parts)
    got = list(privacy.dp_federate(clients, rounds=3, q=1.0, delta=1e-3))
    assert len(got) == 3 and all(r.theta.isfinite().all() for r in got)
    assert (got[0].deltas.norm(dim=1) <= 0.5 + 1e-12).all() and not got[0].deltas[2].any()


# -- the server sees the noisy sum, and nothing else ----------------------------------------------


BY_HAND = chain(clip(0.5), total(4.0), noise(0.125))  # what noise_multiplier's messages recommend


@pytest.mark.parametrize("pipeline", [BY_HAND, privacy.private_mean(0.5, 1.0, 4.0)])
@pytest.mark.parametrize("name", ["scaffold", "fednova"])
def test_a_server_that_reads_single_clients_is_refused_before_round_0(name, pipeline):
    task = problem().closed_form
    method = {
        "scaffold": lambda: algorithms.scaffold(task, 0.1, 240),
        "fednova": lambda: algorithms.fednova(task, 0.1),
    }[name]()
    recipe = Recipe(method, task.theta0, pipeline)
    clients = Simulated(recipe, problem().x, problem().y, problem().parts)
    with pytest.raises(ValueError, match=f"server of {name} reads .* of single clients.*e.g. fed"):
        privacy.dp_federate(clients, rounds=2, q=0.5, delta=1e-3)


@pytest.mark.parametrize("pipeline", [BY_HAND, privacy.private_mean(0.5, 1.0, 4.0)])
def test_feddyn_is_refused_by_the_recipe_already(pipeline):
    task = problem().closed_form
    with pytest.raises(ValueError, match=r"Recipe: pipeline must be .* feddyn.*e\.g\."):
        Recipe(algorithms.feddyn(task, 0.1, 0.1, 240), task.theta0, pipeline)


def test_clients_that_send_more_than_delta_are_refused_whatever_the_stages_say():
    inner = algorithms.fedavg(problem().closed_form, 0.3)

    def client(message, shards, memory):
        reply, memory = inner.client(message, shards, memory)
        return {**reply, "secret": reply["delta"]}, memory

    with pytest.raises(ValueError, match=r"clip\(0.5\) protects only 'delta'.*\['secret'\]"):
        run_with(BY_HAND, inner._replace(client=client))


@pytest.mark.parametrize("q", [1.0, 0.5, 1e-4])
def test_the_server_is_given_an_empty_reply_and_no_weights(q):
    inner, seen = algorithms.fedavg(problem().closed_form, 0.3), []

    def server(state, delta, reply, p):
        seen.append((dict(reply), p.shape))
        return inner.server(state, delta, reply, p)

    pipeline = privacy.private_mean(0.5, 1.0, 8 * q)
    got = run_with(pipeline, inner._replace(server=server), q=q)
    assert len(got) == 2 and seen == [({}, (0,))] * 3  # the probe, and two rounds


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedsgd", "fedavgm", "fedadam", "scheduled"])
@pytest.mark.parametrize("q", [0.5, 1e-4])
def test_other_methods_run_as_under_federate(name, q):
    """The seal changes nothing for a server that needs the sum alone, in empty rounds too."""
    task, p = problem().closed_form, problem()
    method = {
        "fedavg": lambda: algorithms.fedavg(task, 0.3),
        "fedprox": lambda: algorithms.fedprox(task, 0.3, 0.1),
        "fedsgd": lambda: algorithms.fedsgd(task, 0.3),
        "fedavgm": lambda: algorithms.fedavgm(task, 0.3),
        "fedadam": lambda: algorithms.fedadam(task, 0.3, 0.1),
        "scheduled": lambda: algorithms.scheduled(
            lambda lr: algorithms.fedavg(task, lr), lambda t: 0.3 * 0.9**t
        ),
    }[name]()
    pipeline = privacy.private_mean(0.5, 1.0, 8 * q)
    recipe = Recipe(method, task.theta0, pipeline)
    clients = Simulated(recipe, p.x, p.y, p.parts)
    plain = federate(clients, rounds=4, cohort=poisson(q))
    want = [r.theta for r in plain]
    clients = Simulated(recipe, p.x, p.y, p.parts)
    got = [r.theta for r in privacy.dp_federate(clients, rounds=4, q=q, delta=1e-3)]
    assert len(want) == len(got) and all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_run_goes_by_the_recipe_of_the_clients(seed):
    p = problem()
    method = algorithms.fedavg(p.closed_form, 0.3)
    recipe = Recipe(method, p.closed_form.theta0, GOOD, seed=seed)
    clients = Simulated(recipe, p.x, p.y, p.parts)
    got = list(privacy.dp_federate(clients, rounds=3, q=0.5, delta=1e-3))
    want = list(federate(clients, rounds=3, cohort=poisson(0.5)))
    for r, s in zip(got, want, strict=True):
        assert np.array_equal(r.called, poisson(0.5)(8, seed, r.t).called)
        assert torch.equal(r.theta, s.theta)


def test_local_noise_is_each_clients_own():
    S = np.arange(400)
    ctx, zero = Context(0, 3, S, S), torch.zeros(400, 50, dtype=torch.float64)
    stage = privacy.local_noise(0.7, 1.0)
    out, _ = stage.apply(zero, torch.ones(400), {}, ctx)
    assert out.std().item() == pytest.approx(0.7, rel=0.03)
    assert out.mean(0).std().item() == pytest.approx(0.7 / 20, rel=0.3)  # independent rows cancel
    alone, _ = stage.apply(zero[:1], torch.ones(1), {}, Context(0, 3, S, S[7:8]))
    assert torch.equal(alone[0], out[7])  # whoever else takes part
    assert privacy.local_epsilon(2.0, 1.0, 1, 1e-5) == privacy.epsilon(1.0, 1.0, 1, 1e-5)


# -- what is refused ------------------------------------------------------------------------------


def run_with(pipeline, method=None, **how):
    p = problem()
    method = method or algorithms.fedavg(p.closed_form, 0.3)
    recipe = Recipe(method, p.closed_form.theta0, pipeline)
    clients = Simulated(recipe, p.x, p.y, p.parts)
    how = {"rounds": 2, "q": 0.5, "delta": 1e-3, **how}
    return list(privacy.dp_federate(clients, **how))


def scaffold():
    return algorithms.scaffold(problem().closed_form, 0.1, 240)


GOOD = privacy.private_mean(0.5, 1.0, 4.0)
BAD = {
    "mean\\(\\) promises no share for one client.* all that holds is 2 S": lambda: run_with(
        chain(clip(1.0), mean(), noise(0.1))
    ),
    r"one stage right behind the sum.*got noise\(0.3\) -> noise\(0.4\)": lambda: run_with(
        chain(clip(0.5), total(4.0), noise(0.3), noise(0.4))
    ),
    r"one stage right behind the sum.*got ten -> noise\(0.4\)": lambda: run_with(
        chain(clip(0.5), total(4.0), After("ten", lambda d, ctx: 10 * d), noise(0.4))
    ),
    "dp_federate: rounds must be an integer >= 1": lambda: run_with(GOOD, rounds=0),
    "dp_federate: every must be an integer >= 1": lambda: run_with(GOOD, every=0),
    "last stage on a client must bound": lambda: run_with(chain(total(4.0), noise(0.1))),
    "q must be > 0 and <= 1, got 1.25": lambda: run_with(
        privacy.private_mean(0.5, 1.0, 10.0), q=None
    ),
    "divided by q N = 4, got 5": lambda: run_with(privacy.private_mean(0.5, 1.0, 5.0)),
    "delta must be > 0 and < 1": lambda: run_with(GOOD, delta=1.0),
    "q must be > 0 and <= 1": lambda: run_with(GOOD, q=0.0),
    "budget must be > 0": lambda: run_with(GOOD, budget=0.0),
    "clip: max_norm must be > 0": lambda: privacy.private_mean(0.0, 1.0, 4.0),
    "private_mean: z must be >= 0": lambda: privacy.private_mean(1.0, -1.0, 4.0),
    "total: expected must be > 0": lambda: privacy.private_mean(1.0, 1.0, 0.0),
    "epsilons: rounds must be": lambda: privacy.epsilons(1.0, 0.1, -1, 1e-3),
    "epsilons: delta must be > 0 and < 1": lambda: privacy.epsilons(1.0, 0.1, 1, 0.0),
    "epsilon: rounds must be": lambda: privacy.epsilon(1.0, 0.1, -1, 1e-3),
    "calibrate: target must be > 0": lambda: privacy.calibrate(0.0, 0.1, 10, 1e-3),
    r"local_noise\(0.1, 1.0\) protects only 'delta'": lambda: list(
        federate(
            Simulated(
                Recipe(
                    scaffold(), problem().closed_form.theta0,
                    chain(privacy.local_noise(0.1, 1.0), mean()),
                ),
                problem().x, problem().y, problem().parts,
            ),
            rounds=1,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_requests_are_refused_in_words(message):
    with pytest.raises(ValueError, match=message) as e:
        BAD[message]()
    assert "e.g." in str(e.value)
