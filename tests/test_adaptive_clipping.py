"""Adaptive clipping: its update by hand, its quantile, its noise, and what it costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import problem

from fedlearn import Recipe, Simulated, algorithms, federate, privacy
from fedlearn.algorithms.base import Algorithm
from fedlearn.participation import poisson
from fedlearn.transform import Context

dpa = pytest.importorskip("dp_accounting", reason="needs fedlearn[privacy]")


def still(rows: torch.Tensor) -> Algorithm:
    """A method whose client k always sends row k of ``rows``, told apart by its n."""
    task = problem().closed_form

    def client(message, shards, memory):
        own = rows[: len(shards.n)] if len(rows) > 1 else rows.expand(len(shards.n), -1)
        return {"delta": own, "loss": shards.n}, memory

    return algorithms.fedavg(task, 0.3)._replace(client=client)


def watched(method: Algorithm, seen: list[float]) -> Algorithm:
    def message(state):
        seen.append(float(state["clip"]))
        return method.message(state)

    return method._replace(message=message)


def run(method, pipeline, rounds, q=1.0, **how):
    p = problem()
    recipe = Recipe(method, p.closed_form.theta0, pipeline, seed=how.pop("seed", 0))
    clients = Simulated(recipe, p.x, p.y, p.parts, **how)
    return list(federate(clients, rounds=rounds, cohort=poisson(q)))


N, D = len(problem().parts), len(problem().closed_form.theta0)


def of_norm(norms) -> torch.Tensor:
    rows = torch.randn(len(norms), D, dtype=torch.float64, generator=torch.manual_seed(0))
    return rows / rows.norm(dim=1, keepdim=True) * torch.tensor(norms)[:, None]


# -- the update -----------------------------------------------------------------------------------


def test_one_round_by_hand():
    """S <- S exp(-eta (share - gamma)); theta moves by the sum of clipped rows over q N."""
    norms, seen = np.linspace(0.2, 1.6, N), []
    rows = of_norm(norms)
    how = {"quantile": 0.7, "lr": 0.3, "start": 0.75}
    method, pipeline = privacy.adaptive_clip(still(rows), 0.0, float(N), **how)
    got = run(watched(method, seen), pipeline, 2)
    share = (norms <= 0.75).mean()
    assert 0 < share < 1
    assert seen == pytest.approx([0.75, 0.75 * math.exp(-0.3 * (share - 0.7))], abs=1e-12)
    short = rows.numpy() * np.minimum(1, 0.75 / norms)[:, None]
    want = problem().closed_form.theta0.numpy() + short.sum(0) / N
    assert got[0].theta.numpy() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("gamma", [0.25, 0.5, 0.8])
def test_the_clip_finds_the_quantile(gamma):
    norms, seen = np.exp(np.random.default_rng(1).standard_normal(N)), []
    method, pipeline = privacy.adaptive_clip(
        still(of_norm(norms)), 0.0, float(N), quantile=gamma, lr=0.05, start=0.02
    )
    run(watched(method, seen), pipeline, 500)
    end = np.mean(seen[-50:])
    lower, upper = (np.quantile(norms, gamma, method=m) for m in ("lower", "higher"))
    assert 0.95 * lower < end < 1.05 * upper


def test_a_noisy_clip_stays_near_the_quantile():
    norms, seen = np.linspace(0.5, 1.5, N), []
    method, pipeline = privacy.adaptive_clip(
        still(of_norm(norms)), 1.0, float(N), lr=0.05, start=0.05, bit_noise=1.0
    )
    run(watched(method, seen), pipeline, 400)
    assert np.mean(seen[-200:]) == pytest.approx(1.0, abs=0.15)


# -- the noise, and what it is worth --------------------------------------------------------------


def test_both_parts_get_their_noise():
    """Update: z_delta S / (q N); share of bits: sigma_b / (q N)."""
    z, sigma, q, seen = 1.5, 1.2, 0.5, []
    method, pipeline = privacy.adaptive_clip(
        still(of_norm([1e-12])), z, q * N, lr=0.1, start=0.5, bit_noise=sigma
    )
    got = run(watched(method, seen), pipeline, 400, q=q)
    z_delta = 1 / math.sqrt(1 / z**2 - 1 / (2 * sigma) ** 2)
    thetas = torch.stack([problem().closed_form.theta0] + [r.theta for r in got])
    steps = thetas.diff(dim=0) / torch.tensor(seen)[:, None]
    assert steps.std().item() == pytest.approx(z_delta / (q * N), rel=0.02)
    K = np.array([len(r.answered) for r in got])[:-1]
    assert K.min() < K.max()
    share = 0.5 - np.diff(np.log(seen)) / 0.1  # solved for the noisy share; every bit is 1
    draws = (share - 0.5) * q * N - K / 2
    assert draws.std() == pytest.approx(sigma, rel=0.1)  # 399 draws: 3.5 % is one sigma
    assert abs(draws.mean()) < 4 * sigma / math.sqrt(len(draws))
    assert abs(np.corrcoef(draws, steps[:-1, 0])[0, 1]) < 0.2  # parts of one draw, but not the same


@pytest.mark.parametrize("z, sigma, q", [(1.0, 0.6, 0.1), (0.8, 5.0, 0.3), (3.0, 2.0, 1.0)])
def test_update_and_bits_together_cost_what_z_costs(z, sigma, q):
    """dp-accounting composes the two releases itself, with the noise that the stages carry."""
    method, pipeline = privacy.adaptive_clip(still(of_norm([1.0])), z, q * N, bit_noise=sigma)
    theta = method.message(method.init(problem().closed_form.theta0))["theta"]
    clients = Simulated(Recipe(method, theta[:-1], pipeline), problem().x, problem().y,
                        problem().parts)  # fmt: skip
    everyone = Context(0, 0, np.arange(N), np.arange(N))
    reply, _ = clients.run({"theta": theta}, everyone, clients.memory())
    row = reply["delta"][0]
    std = pipeline.on_server[0].std * q * N  # on every number of the sum
    update, bit = row[:-1].norm().item(), abs(row[-1].item())
    parts = [dpa.GaussianDpEvent(std / update), dpa.GaussianDpEvent(std / bit)]
    assert std / (2 * bit) == pytest.approx(sigma)  # a whole bit, 0 or 1, gets sigma_b
    both, alone = dpa.ComposedDpEvent(parts), dpa.GaussianDpEvent(z)
    sampled = [dpa.PoissonSampledDpEvent(q, event) for event in (both, alone)]
    for make, events in (
        (dpa.rdp.RdpAccountant, sampled),
        (dpa.pld.PLDAccountant, (both, alone)),  # takes no composition under sampling
    ):
        one, other = (
            make().compose(dpa.SelfComposedDpEvent(e, 20)).get_epsilon(1e-4) for e in events
        )
        assert one == pytest.approx(other, rel=1e-6)
    assert privacy.noise_multiplier(pipeline) == pytest.approx(z, rel=1e-9)


def test_no_row_is_longer_than_the_bound():
    rows = of_norm(np.geomspace(1e-6, 1e6, N))
    method, pipeline = privacy.adaptive_clip(still(rows), 1.0, float(N), bit_noise=0.7, start=1.0)
    sent = run(method, pipeline, 1)[0].deltas
    bound = pipeline.on_client[0].bound
    assert sent.norm(dim=1).max().item() == pytest.approx(bound, rel=1e-12)
    # a method that lies is cut to it, too: the promise doesn't rest on the client's arithmetic
    liar = method._replace(client=lambda *a: ({"delta": 1e9 * sent, "loss": sent[:, 0]}, {}))
    assert run(liar, pipeline, 1)[0].deltas.norm(dim=1).max().item() <= bound * (1 + 1e-12)


def test_dp_federate_reads_the_cost_off():
    p = problem()
    method, pipeline = privacy.adaptive_clip(
        algorithms.fedavg(p.closed_form, 0.3), 2.0, 0.5 * N, start=0.5, bit_noise=1.5
    )
    recipe = Recipe(method, p.closed_form.theta0, pipeline)
    clients = Simulated(recipe, p.x, p.y, p.parts)
    got = privacy.dp_federate(clients, rounds=50, q=0.5, delta=1e-3, budget=5.0)
    spent = [r.metrics["epsilon"] for r in got]
    want = privacy.epsilons(2.0, 0.5, len(spent), 1e-3)
    assert spent == pytest.approx(want, abs=1e-6)
    assert privacy.epsilon(2.0, 0.5, len(spent) + 1, 1e-3) > 5.0


# -- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fedavg", "fedadam", "scheduled"])
def test_without_a_learning_rate_it_is_a_fixed_clip_with_more_noise(method):
    task = problem().closed_form
    make = {
        "fedavg": lambda: algorithms.fedavg(task, 0.3),
        "fedadam": lambda: algorithms.fedadam(task, 0.3, 0.1),
        "scheduled": lambda: algorithms.scheduled(
            lambda lr: algorithms.fedavg(task, lr), lambda t: 0.3 * 0.9**t
        ),
    }[method]
    z, sigma = 1.0, 0.8
    z_delta = (z**-2 - (2 * sigma) ** -2) ** -0.5
    adapted = privacy.adaptive_clip(make(), z, 0.5 * N, lr=0.0, start=0.2, bit_noise=sigma)
    fixed = privacy.private_mean(0.2, z_delta, 0.5 * N)
    (mine,), (theirs,) = fixed.on_server, adapted[1].on_server
    assert mine.std == pytest.approx(0.2 * theirs.std)
    draw = lambda d, ctx: theirs.apply(d.new_zeros(len(d) + 1), ctx)[:-1]  # of another std: another
    scaled = mine._replace(apply=lambda d, ctx: d + 0.2 * draw(d, ctx))
    fixed = fixed._replace(on_server=(scaled,))
    a, b = run(*adapted, 12, q=0.5), run(make(), fixed, 12, q=0.5)
    for one, other in zip(a, b, strict=True):
        assert torch.allclose(one.theta, other.theta, rtol=0, atol=1e-12)
        assert one.sent == other.sent + 8 and one.received == other.received + 8 * bool(
            len(one.answered)
        )


def test_a_round_without_a_client_keeps_the_clip_but_for_noise():
    seen: list[float] = []
    method, pipeline = privacy.adaptive_clip(
        algorithms.fedavg(problem().closed_form, 0.3), 0.0, 0.001, lr=0.5, start=0.3
    )
    got = run(watched(method, seen), pipeline, 3, q=1e-4)
    assert all(len(r.answered) == 0 for r in got)
    assert seen == [0.3, 0.3, 0.3]


@pytest.mark.parametrize("K", [N, 0])
def test_the_methods_server_sees_the_combined_update_and_nothing_else(K):
    rows, seen = of_norm(np.linspace(0.2, 1.6, N)), []
    inner = still(rows)

    def server(state, delta, reply, p):
        seen.append((sorted(state), delta, reply, p))
        return inner.server(state, delta, reply, p)

    adapted = privacy.adaptive_clip(inner._replace(server=server), 0.0, float(N), start=0.75)
    run(*adapted, 1, q=1.0 if K else 1e-9)
    ((names, delta, reply, p),) = seen
    assert names == ["theta"] and reply == {} and p.shape == (0,)
    cut = rows * (0.75 / rows.norm(dim=1, keepdim=True)).clamp(max=1)
    assert torch.allclose(delta, cut[:K].sum(0) / N)


def test_a_row_that_is_not_finite_counts_as_none_its_bit_included():
    rows = of_norm(np.linspace(0.2, 1.6, N))
    rows[1, 3], seen = math.nan, []
    method, pipeline = privacy.adaptive_clip(still(rows), 0.0, float(N), lr=0.3, start=0.75)
    got = run(watched(method, seen), pipeline, 2)
    assert not got[0].deltas[1].any() and bool(got[1].theta.isfinite().all())
    bits = sum(0.5 if v <= 0.75 else -0.5 for i, v in enumerate(np.linspace(0.2, 1.6, N)) if i != 1)
    assert seen[1] == pytest.approx(0.75 * math.exp(-0.3 * bits / N), abs=1e-12)


def test_neither_chunks_nor_a_second_run_change_anything():
    make = lambda: privacy.adaptive_clip(
        algorithms.fedavg(problem().closed_form, 0.3), 1.0, 0.6 * N, bit_noise=1.0
    )
    a, b, c = (
        run(*make(), 6, q=0.6),
        run(*make(), 6, q=0.6, chunk=2),
        run(*make(), 6, q=0.6, seed=1),
    )
    assert torch.allclose(a[-1].theta, b[-1].theta, rtol=0, atol=1e-12)
    assert not torch.allclose(a[-1].theta, c[-1].theta)


# -- what is refused ------------------------------------------------------------------------------


def adapt(z=1.0, expected=4.0, method=None, **how):
    method = method or algorithms.fedavg(problem().closed_form, 0.3)
    return privacy.adaptive_clip(method, z, expected, **{"bit_noise": 1.0, **how})


BAD = {
    "z must be >= 0": lambda: adapt(z=-1.0),
    "expected must be > 0": lambda: adapt(expected=0.0),
    "quantile must be from 0 to 1": lambda: adapt(quantile=1.5),
    "lr must be >= 0": lambda: adapt(lr=-0.1),
    "start must be > 0": lambda: adapt(start=0.0),
    r"bit_noise must be > z / 2 = 1 .*got 0.2": lambda: adapt(z=2.0, bit_noise=None),
    r"bit_noise must be > z / 2 = 0.5 .*got 0.5": lambda: adapt(bit_noise=0.5),
    "lr must be >= 0 and finite, got nan": lambda: adapt(lr=math.nan),
    r"adaptive_clip\(0.5\) protects only 'delta', but this method also sends": lambda: run(
        *adapt(method=algorithms.scaffold(problem().closed_form, 0.1, 240)), 1
    ),
    "the server of feddyn reads 'n' of single clients": lambda: run(
        *adapt(method=algorithms.feddyn(problem().closed_form, 0.1, 0.1, 240)), 1
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_requests_are_refused_in_words(message):
    with pytest.raises(ValueError, match=message) as e:
        BAD[message]()
    assert "e.g." in str(e.value)
