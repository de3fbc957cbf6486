"""Byzantine clients against formulas, SciPy and plain loops; who breaks which rule, and when."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import Wire, problem

from fedlearn import Recipe, Simulated, algorithms, data, federate, model, partition
from fedlearn import aggregate as A
from fedlearn.attacks.byzantine import (
    Byzantine,
    gaussian,
    inner_product,
    label_flip,
    little_is_enough,
    sign_flip,
    z_max,
)
from fedlearn.participation import sample
from fedlearn.rng import Use, numpy_rng
from fedlearn.transform import Context, chain, clip

close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
CTX = Context(3, 5, np.arange(8), np.array([1, 4]))


def rows(n: int, d: int = 6, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64) + torch.arange(d)


# -- each attack, beside its formula --------------------------------------------------------------


def test_sign_flip_and_what_it_makes_of_the_mean():
    own = rows(2)
    close(sign_flip(3.0)(rows(6), own, CTX), -3 * own)
    for f, scale in itertools.product(range(1, 8), (1.0, 3.0, 7.0)):
        row = rows(1)
        delta = torch.cat([row.expand(8 - f, -1), sign_flip(scale)(row, row.expand(f, -1), CTX)])
        got = A.mean().apply(delta, torch.full((8,), 1 / 8, dtype=torch.float64))
        close(got, ((8 - f) - scale * f) / 8 * row[0])


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("f", [1, 3])
def test_inner_product_and_what_it_makes_of_the_mean(f, epsilon):
    honest = rows(8 - f)
    sent = inner_product(epsilon)(honest, rows(f, seed=1), CTX)
    assert sent.shape == (f, 6) and bool((sent == sent[0]).all())
    got = A.mean().apply(torch.cat([honest, sent]), torch.full((8,), 1 / 8, dtype=torch.float64))
    close(got, ((8 - f) - epsilon * f) / 8 * honest.mean(0))


def test_gaussian_has_its_deviation_and_no_mean():
    ctx = CTX._replace(answered=np.arange(50))
    sent = gaussian(0.3)(rows(3, 2000), torch.zeros(50, 2000, dtype=torch.float64), ctx)
    assert sent.std().item() == pytest.approx(0.3, rel=0.01)
    assert abs(sent.mean().item()) < 0.004
    assert abs(np.corrcoef(sent[0], sent[1])[0, 1]) < 0.1  # each client its own


def test_gaussian_is_a_function_of_seed_round_and_client():
    own = torch.zeros(2, 5, dtype=torch.float64)
    a = gaussian(2.0)(rows(1), own, CTX)
    for k, row in zip((1, 4), a, strict=True):
        alone = gaussian(2.0)(rows(4), own[:1], CTX._replace(answered=np.array([k])))
        close(alone[0], row)
        bits = int(np.float64(2.0).view(np.uint64))
        draw = numpy_rng(3, Use.ATTACK, 5, 0, bits, k, 0).standard_normal(5)
        close(row, 2 * torch.from_numpy(draw))
    turned = gaussian(2.0)(rows(1), own, CTX._replace(answered=np.array([4, 1])))
    close(turned.flip(0), a)
    for other in (CTX._replace(round=6), CTX._replace(seed=4)):
        assert not torch.equal(gaussian(2.0)(rows(1), own, other), a)


def test_little_is_enough_lies_z_deviations_below_the_mean():
    honest = rows(9)
    sent = little_is_enough(1.5)(honest, rows(3), CTX)
    table = honest.numpy()
    want = table.mean(0) - 1.5 * np.sqrt(((table - table.mean(0)) ** 2).mean(0))
    np.testing.assert_allclose(sent.numpy(), np.tile(want, (3, 1)))
    close(
        little_is_enough()(honest, rows(6), CTX),
        little_is_enough(z_max(15, 6))(honest, rows(6), CTX),
    )


def test_z_max_against_scipy():
    """Baruch et al., Algorithm 3: 24 of 50 need s = 2 supporters: 24 of 26 lie nearer."""
    stats = pytest.importorskip("scipy.stats")
    assert z_max(50, 24) == pytest.approx(stats.norm.ppf(24 / 26))
    for K in range(3, 60):
        for f in range(1, (K + 1) // 2):  # the honest are the majority
            s = np.floor(K / 2 + 1) - f
            want = stats.norm.ppf((K - f - s) / (K - f))
            assert z_max(K, f) == pytest.approx(max(want, 0.0), abs=1e-12), (K, f)
            if f <= 2 - K % 2:
                assert z_max(K, f) == 0


@given(st.integers(1, 60), st.data())
def test_z_max_is_a_number_for_every_cohort(K, drawn):
    f = drawn.draw(st.integers(0, K))
    assert 0 <= z_max(K, f) < 4


def test_z_max_hides_the_attackers_behind_a_majority():
    """What z is for: of normal honest values, s lie beyond mu - z sigma, in the mean."""
    K, f = 31, 12
    s = K // 2 + 1 - f
    honest = np.random.default_rng(0).standard_normal((20_000, K - f))
    beyond = (honest < -z_max(K, f)).sum(1).mean()
    assert beyond == pytest.approx(s, rel=0.02)


def test_label_flip_by_a_loop():
    y = torch.from_numpy(np.random.default_rng(0).integers(0, 10, 90))
    parts = partition.iid(y.numpy(), 6, numpy_rng(0))
    got = label_flip(y, parts, np.array([4, 1]), 10)
    for k, own in enumerate(parts):
        for i in own:
            assert got[i] == (9 - y[i] if k in (1, 4) else y[i])
    assert torch.equal(label_flip(got, parts, [1, 4], 10), y)  # twice is nothing
    assert torch.equal(label_flip(y, parts, [], 10), y)
    assert label_flip(y.to(torch.uint8), parts, [0], 10).dtype == torch.uint8


# -- the wrapper ----------------------------------------------------------------------------------


def made(attack, attackers, *, rule=None, place=Simulated, stages=(), method=None, **more):
    p = problem()
    task = p.closed_form
    method = method or algorithms.fedavg(task, 0.3)
    recipe = Recipe(method, task.theta0, chain(*stages, rule or A.mean()), batch=16, seed=3)
    return recipe, Byzantine(place(recipe, p.x, p.y, p.parts, **more), attackers, attack)


def ran(clients, ctx):
    """What comes back in one round of a new run."""
    method, theta = clients.recipe.algorithm, clients.recipe.theta
    return clients.run(method.message(method.init(theta)), ctx, clients.memory())[0]


def test_only_the_attackers_rows_change():
    _, bad = made(sign_flip(4.0), [6, 2])
    S = np.array([0, 2, 3, 6])
    ctx = Context(3, 1, S, S)
    before, after = ran(bad.clients, ctx), ran(bad, ctx)
    factor = torch.tensor([1.0, -4.0, 1.0, -4.0], dtype=torch.float64)
    close(after["delta"], factor[:, None] * before["delta"])
    assert set(after) == set(before)
    for name in set(before) - {"delta"}:
        assert torch.equal(after[name], before[name])


def test_what_the_clients_answered_is_left_alone():
    """Who keeps a reply, for a plot or a second wrapper, keeps what was sent."""
    _, bad = made(sign_flip(4.0), [2])
    ctx = Context(3, 1, np.arange(8), np.arange(8))
    kept = ran(bad.clients, ctx)
    bad.clients.run = lambda message, ctx, memory: (kept, memory)
    before = kept["delta"].clone()
    assert not torch.equal(ran(bad, ctx)["delta"], before)
    assert torch.equal(kept["delta"], before)


def test_the_attack_sees_the_honest_rows_its_own_and_its_numbers():
    seen = []

    def spy(honest, own, ctx):
        seen.append((honest, own, ctx))
        return own

    _, bad = made(spy, [1, 5, 7])
    S = np.array([0, 1, 4, 5])
    ctx = Context(3, 2, np.arange(6), S, work=np.array([1.0, 0.4, 1.0, 0.7]))
    ran(bad, ctx)
    honest, own, theirs = seen[0]
    everybody = ran(bad.clients, ctx)["delta"]
    close(honest, everybody[[0, 2]])
    close(own, everybody[[1, 3]])
    assert theirs.answered.tolist() == [1, 5] and theirs.work.tolist() == [0.4, 0.7]
    assert theirs.round == 2 and theirs.called.tolist() == list(range(6))


def test_a_cohort_without_an_attacker_and_one_of_attackers_alone():
    _, bad = made(inner_product(2.0), [0, 1])
    there, alone = np.array([3, 5]), np.array([0, 1])
    for S in (there, alone):
        ctx = Context(3, 0, S, S)
        before, after = ran(bad.clients, ctx)["delta"], ran(bad, ctx)["delta"]
        want = before if S is there else (-2.0 * before.mean(0)).expand(2, -1)  # their own to see
        close(after, want)
    nobody = np.array([], dtype=int)
    assert ran(bad, Context(3, 0, nobody, nobody))["delta"].shape[0] == 0


ATTACKS = [sign_flip(2.0), gaussian(0.1), little_is_enough(), inner_product(0.5)]


@pytest.mark.parametrize("attack", ATTACKS)
def test_partial_cohorts_run_and_the_chunk_is_no_matter(attack):
    ends = []
    for chunk in (1, 3, 8):
        _, bad = made(attack, [0, 3, 4, 7], chunk=chunk)
        *_, last = federate(bad, rounds=8, cohort=3)
        ends.append(last.theta)
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], atol=1e-9, rtol=1e-9)


def test_it_wraps_any_clients():
    ends = []
    for place in (Simulated, Wire):
        _, bad = made(gaussian(0.1), [2], place=place)
        *_, last = federate(bad, rounds=3, cohort=5)
        ends.append(last.theta)
    torch.testing.assert_close(*ends, atol=1e-9, rtol=1e-9)


def test_one_kind_of_attackers_round_another():
    _, bad = made(sign_flip(2.0), [0])
    both = Byzantine(bad, [1], inner_product(1.0))
    S = np.array([0, 1, 2])
    ctx = Context(3, 0, S, S)
    plain, got = ran(bad.clients, ctx)["delta"], ran(both, ctx)["delta"]
    close(got[0], -2 * plain[0])
    close(got[1], -(-2 * plain[0] + plain[2]) / 2)  # sees the flipped one as honest
    close(got[2], plain[2])


def test_a_clip_on_the_client_binds_the_obedient_alone():
    _, bad = made(sign_flip(50.0), [0], stages=[clip(0.01)])
    S = np.arange(8)
    norms = ran(bad, Context(3, 0, S, S))["delta"].norm(dim=1)
    assert norms[0] > 0.4 and (norms[1:] <= 0.01 + 1e-9).all()


def test_a_methods_second_vector_stays_as_trained():
    p = problem()
    _, bad = made(
        sign_flip(2.0), [0], method=algorithms.scaffold(p.closed_form, lr=0.2, n_total=240)
    )
    rounds = list(federate(bad, rounds=2))
    assert len(rounds) == 2 and rounds[-1].theta.isfinite().all()


def test_a_run_goes_by_the_recipe_of_the_clients_that_are_wrapped():
    recipe, bad = made(sign_flip(), [])
    assert bad.recipe is bad.clients.recipe is recipe
    for r, s in zip(*(federate(c, rounds=3, cohort=5) for c in (bad, bad.clients)), strict=True):
        assert np.array_equal(r.answered, sample(8, 5, recipe.seed, r.t))
        assert torch.equal(r.theta, s.theta) and torch.equal(r.deltas, s.deltas)


# -- in a run: who falls, and when ----------------------------------------------------------------

DIGITS = data.load("digits")
TASK = model.softmax_regression(64, 10)
TEST = model.evaluator(TASK, DIGITS.x_test, DIGITS.y_test)


def accuracy(rule, f, attack, rounds=25, N=11):
    parts = partition.iid(DIGITS.y.numpy(), N, numpy_rng(0, Use.PARTITION))
    recipe = Recipe(algorithms.fedavg(TASK, lr=0.5), TASK.theta0, chain(rule), epochs=2)
    clients = Byzantine(Simulated(recipe, DIGITS.x, DIGITS.y, parts), range(f), attack)
    *_, last = federate(clients, rounds=rounds, evaluate=TEST, every=rounds)
    return last.metrics["accuracy"]


def test_the_mean_falls_to_one_and_robust_rules_dont():
    huge = sign_flip(50.0)
    assert accuracy(A.mean(), 0, huge) > 0.9
    assert accuracy(A.mean(), 1, huge) < 0.3
    for rule in (A.median(), A.trimmed_mean(0.1), A.krum(1), A.geometric_median(), A.bulyan(1)):
        assert accuracy(rule, 1, huge) > 0.88, rule.name


def test_each_rule_survives_what_it_promises():
    for rule, f in ((A.median(), 4), (A.krum(4), 4), (A.multi_krum(4), 4), (A.bulyan(2), 2)):
        assert accuracy(rule, f, sign_flip(5.0)) > 0.8, rule.name
    assert accuracy(A.median(), 6, sign_flip(5.0)) < 0.3  # the majority attacks


# -- what is refused ------------------------------------------------------------------------------

_P, Y = problem(), torch.tensor([0, 1, 9])
BAD = {
    r"sign_flip: scale must be > 0": lambda: sign_flip(-1.0),
    r"sign_flip: scale must be .* finite, got inf": lambda: sign_flip(float("inf")),
    r"gaussian: std must be > 0 and finite, got nan": lambda: gaussian(float("nan")),
    r"inner_product: epsilon must": lambda: inner_product(0.0),
    r"little_is_enough: z must": lambda: little_is_enough(-0.1),
    r"z_max: f must be an integer from 0 to K = 5": lambda: z_max(5, 6),
    r"z_max: K must": lambda: z_max(0, 0),
    r"Byzantine: attackers must be different client numbers from 0 to 7, got \[8\]": lambda: made(
        sign_flip(), [8]
    ),
    r"Byzantine: attackers .* got \[-1\]": lambda: made(sign_flip(), [-1]),
    r"Byzantine: attackers .* got \[2, 2\]": lambda: made(sign_flip(), [2, 2]),
    r"Byzantine: attackers .* got \[0, 1, 2, 3, 4, 5, 6, 7, 8\]": lambda: made(
        sign_flip(), range(9)
    ),
    r"Byzantine: attackers .* got \[True\]": lambda: made(sign_flip(), [True]),
    r"label_flip: attackers must": lambda: label_flip(Y, [np.arange(3)], [1], 10),
    r"label_flip: classes must be more than any label, got 9": lambda: label_flip(
        Y, [np.arange(3)], [0], 9
    ),
    r"Byzantine: the attack must return a row for each of its 2 clients": lambda: next(
        federate(made(lambda honest, own, ctx: own[0], [0, 1])[1], rounds=1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_refused_in_words(words):
    with pytest.raises(ValueError, match=words) as e:
        BAD[words]()
    assert "got" in str(e.value) and "e.g." in str(e.value)
