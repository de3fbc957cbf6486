"""What mutants taught (``benchmarks/mutants.py``): exact counts, bounds from both sides, scores."""

from __future__ import annotations

import inspect
import itertools
import math
import statistics
import time

import numpy as np
import pytest
import torch

from fedlearn import Recipe, RoundFailed, algorithms, collect, federate, partition
from fedlearn import aggregate as A
from fedlearn.algorithms import base
from fedlearn.algorithms.fednova import accumulated
from fedlearn.batches import Shards
from fedlearn.compress import sign
from fedlearn.descend import descend
from fedlearn.model import softmax_regression
from fedlearn.partition.base import _top_up
from fedlearn.partition.files import write_whole
from fedlearn.privacy import adaptive_clip, dp_federate, noise_multiplier
from fedlearn.privacy.accounting import _bound, calibrate
from fedlearn.privacy.secure_aggregation import (
    FixedPoint,
    enroll,
    secure_mean,
    secure_sum,
    wire_bytes,
)
from fedlearn.transform import After, chain, clip, noise

close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def rows_of(K: int, d: int, seed: int) -> list[list[float]]:
    return np.random.default_rng([K, d, seed]).normal(size=(K, d)).tolist()


def matrix(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def even(K: int) -> torch.Tensor:
    return torch.full((K,), 1 / K, dtype=torch.float64)


# -- Krum and Bulyan in plain Python ---------------------------------------------------------------


def squared(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b))


def krum_scores(rows: list[list[float]], f: int) -> list[float]:
    """score_k: the sum of the squared distances to its K - f - 2 nearest, itself left out."""
    near = max(len(rows) - f - 2, 1)
    return [
        sum(sorted(squared(row, other) for j, other in enumerate(rows) if j != k)[:near])
        for k, row in enumerate(rows)
    ]


def krum_order(rows: list[list[float]], f: int) -> list[int]:
    """Best first; of two with one score (each other's nearest) the shorter."""
    scores, lengths = krum_scores(rows, f), [squared(r, [0.0] * len(r)) for r in rows]
    return sorted(range(len(rows)), key=lambda k: (scores[k], lengths[k]))


def average(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows)]


@pytest.mark.parametrize("f", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("more", [0, 1, 2, 5])
def test_multi_krum_ranks_all_updates_as_the_scores_do(f, more):
    """For every m: the m best, one after the other, so that each score counts and not the least."""
    K = 2 * f + 3 + more
    for seed in range(5):
        rows = rows_of(K, 3, seed)
        order = krum_order(rows, f)
        for m in range(1, K - f + 1):
            got = A.multi_krum(f, m).apply(matrix(rows), even(K))
            close(got, matrix([average([rows[k] for k in order[:m]])])[0])
        close(A.krum(f).apply(matrix(rows), even(K)), matrix([rows[order[0]]])[0])
        kept = average([rows[k] for k in order[: K - f - 2]])  # m=None
        close(A.multi_krum(f).apply(matrix(rows), even(K)), matrix([kept])[0])


def bulyan_by_hand(rows: list[list[float]], f: int) -> list[float]:
    """Krum's best of what is left, K - 2 f times; then by coordinate the K - 4 f nearest."""
    K, left, kept = len(rows), list(rows), []
    while len(kept) < K - 2 * f:
        kept.append(left.pop(krum_order(left, f)[0]))
    out = []
    for column in zip(*kept):
        middle = statistics.median(column)
        nearest = sorted(column, key=lambda v: abs(v - middle))[: K - 4 * f]
        out.append(sum(nearest) / len(nearest))
    return out


@pytest.mark.parametrize("f", [0, 1, 2, 3])
@pytest.mark.parametrize("more", [0, 1, 2])
def test_bulyan_chooses_and_averages_as_many_as_its_paper_says(f, more):
    K = 4 * f + 3 + more
    for seed in range(4):
        rows = rows_of(K, 4, seed)
        got = A.bulyan(f).apply(matrix(rows), even(K))
        close(got, matrix([bulyan_by_hand(rows, f)])[0])


@pytest.mark.parametrize("f", [0, 1, 2, 3])
def test_the_smallest_cohort_of_a_rule_is_the_one_it_states(f):
    for make, need in ((A.krum, 2 * f + 3), (A.multi_krum, 2 * f + 3), (A.bulyan, 4 * f + 3)):
        assert make(f).apply(matrix(rows_of(need, 2, 0)), even(need)).isfinite().all()
        said = f"f={f} attackers need a cohort of at least {need}, got {need - 1} updates"
        with pytest.raises(RoundFailed, match=said):
            make(f).apply(matrix(rows_of(need - 1, 2, 0)), even(need - 1))


@pytest.mark.parametrize("f, K", [(0, 5), (1, 7), (2, 9), (3, 9)])
def test_multi_krum_keeps_at_most_all_but_f(f, K):
    rows = matrix(rows_of(K, 2, 0))
    assert A.multi_krum(f, K - f).apply(rows, even(K)).isfinite().all()
    with pytest.raises(RoundFailed, match=f"at least {K + 1}, got {K} updates"):
        A.multi_krum(f, K - f + 1).apply(rows, even(K))
    if not f:  # m = K is the mean of all
        close(A.multi_krum(0, K).apply(rows, even(K)), rows.mean(0))


def test_krum_of_equal_scores_takes_the_shorter():
    """K = 3, f = 0: one neighbour, and two are each other's."""
    rows = matrix([[5.0, 0.0], [5.0, 1.0], [90.0, 0.0]])
    for order in itertools.permutations(range(3)):
        assert A.krum(0).apply(rows[list(order)], even(3)).tolist() == [5.0, 0.0]


# -- the other rules -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trim, K, cut", [(0.2, 5, 1), (0.29, 100, 29), (0.3, 10, 3), (0.19, 5, 0), (0.49, 2, 0)]
)
def test_a_trimmed_mean_cuts_so_many_at_each_end(trim, K, cut):
    """0.29 * 100 is 28.999999999999996 in floats, and 29 all the same."""
    values = np.random.default_rng(K).normal(size=K) ** 3
    want = np.sort(values)[cut : K - cut].mean()
    got = A.trimmed_mean(trim).apply(torch.from_numpy(values[:, None]), even(K))
    assert got.item() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("trim", [0.0, 0.5 - 1e-9])
def test_trim_may_be_all_that_is_below_a_half(trim):
    assert A.trimmed_mean(trim).apply(torch.ones(3, 1), torch.ones(3) / 3).item() == 1.0


def weighted_middle(values: np.ndarray, p: np.ndarray) -> tuple[float, float]:
    """The values, from below, at which half of the weight is reached, and is exceeded."""
    order = np.argsort(values)
    below = np.cumsum(p[order]) / p.sum()
    at = lambda half: float(values[order][np.searchsorted(below, half)])
    return at(0.5 - 1e-12), at(0.5 + 1e-12)


def weiszfeld(rows: np.ndarray, p: np.ndarray, steps: int, tolerance: float) -> np.ndarray:
    """The steps of the docstring, in NumPy."""
    z = np.array([sum(weighted_middle(column, p)) / 2 for column in rows.T])
    spread = weighted_middle(np.linalg.norm(rows - z, axis=1), p)[0]
    for _ in range(steps):
        w = p / np.maximum(np.linalg.norm(rows - z, axis=1), 1e-6 * spread)
        before, z = z, w @ rows / w.sum()
        if np.linalg.norm(z - before) <= tolerance * spread:
            break
    return z


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("tolerance", [1e-7, 0.02, 0.3])
def test_the_geometric_median_takes_so_many_steps_and_ends_when_it_rests(steps, tolerance):
    for K in (4, 5, 9):
        rows, p = np.array(rows_of(K, 3, steps)), np.arange(1.0, K + 1) / (K * (K + 1) / 2)
        got = A.geometric_median(steps, tolerance).apply(torch.from_numpy(rows), torch.tensor(p))
        close(got, torch.from_numpy(weiszfeld(rows, p, steps, tolerance)))


def test_the_geometric_median_is_by_default_a_hundred_steps_or_a_ten_millionth():
    rows = np.array(rows_of(6, 2, 1)) ** 3
    p = np.array([0.45, 0.11, 0.11, 0.11, 0.11, 0.11])  # close to a half: the steps are slow
    got = A.geometric_median().apply(torch.from_numpy(rows), torch.tensor(p))
    close(got, torch.from_numpy(weiszfeld(rows, p, 100, 1e-7)))


def test_a_client_that_sends_infinity_has_no_weight_in_the_geometric_median():
    rows = matrix(rows_of(5, 2, 0))
    bad = torch.cat([rows, torch.tensor([[torch.inf, 0.0], [0.0, torch.nan]])])
    p = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 0.25, 0.25], dtype=torch.float64)
    close(A.geometric_median().apply(bad, p), A.geometric_median().apply(rows, p[:5]))


def test_a_clipped_mean_keeps_directions_weights_and_short_updates():
    rows = matrix([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    p = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    got = A.clipped_mean(2.0).apply(rows, p)
    close(got, matrix([[0.5 * 1.2 + 0.25 * 0.3, 0.5 * 1.6 + 0.25 * 0.4]])[0])


def test_of_nobody_every_rule_makes_nothing():
    none = torch.zeros(0, 3)
    rules = [A.median(), A.trimmed_mean(0.2), A.krum(1), A.multi_krum(1), A.geometric_median()]
    for rule in [*rules, A.bulyan(1), A.mean(), A.total(2.0), A.clipped_mean(1.0)]:
        assert rule.apply(none, torch.zeros(0)).tolist() == [0.0, 0.0, 0.0], rule.name


# -- the population's size -------------------------------------------------------------------------


def test_the_population_may_be_a_millionth_smaller_than_the_cohort_and_no_more():
    """n is float32, and a sum of it may round."""
    n = torch.tensor([60.0, 40.0], dtype=torch.float64)
    for short in (0.0, 0.5e-6, 0.9e-6):
        assert base.check_total("scaffold", 100 * (1 - short), n) == 100 * (1 - short)
    for short in (1.5e-6, 1e-5, 0.01):
        with pytest.raises(ValueError, match="scaffold: n_total must be all clients' examples"):
            base.check_total("scaffold", 100 * (1 - short), n)
    assert base.check_total("scaffold", 1000, n) == 1000
    for bad in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="scaffold: n_total must be > 0 and finite"):
            base.check_total("scaffold", bad)


# -- a round's books, its batches and its files ----------------------------------------------------


def test_the_bytes_of_a_client_are_a_whole_number():
    reply = {"delta": torch.zeros(3, 5), "loss": torch.zeros(3), "n": torch.ones(3)}
    for rows in (reply, {k: v[:0] for k, v in reply.items()}):
        assert type(base.payload(rows, chain(A.mean()))) is int
    assert base.payload(reply, chain(A.mean())) == 5 * 4
    more = {**reply, "a": torch.zeros(3, 1, dtype=torch.float64)}
    assert base.payload(more, chain(A.mean())) == 5 * 4 + 8
    assert base.payload(more, chain(sign(), A.mean())) == 5 + 8  # 37 bits: five bytes


def test_a_client_without_a_batch_sends_zeros_by_every_method():
    """Whoever is called and has no step to do: nothing is divided by its 0 steps."""
    task = softmax_regression(2, 2)
    x, y = torch.eye(2), torch.tensor([0, 1])
    index, mask = torch.zeros(2, 1, 2, dtype=torch.int64), torch.tensor([[[1.0, 1.0]], [[0, 0]]])
    shards = Shards(x, y, index, mask, torch.tensor([2.0, 0.0]))
    methods = [
        algorithms.fedavg(task, 0.1, beta=0.5, weight_decay=0.1),
        algorithms.fedsgd(task, 0.1),
        algorithms.fedprox(task, 0.1, mu=1.0),
        algorithms.scaffold(task, 0.1, n_total=2),
        algorithms.scaffold(task, 0.1, n_total=2, option=1),
        algorithms.fednova(task, 0.1, beta=0.5, mu=1.0),
        algorithms.feddyn(task, 0.1, alpha=1.0, n_total=2),
    ]
    for method in methods:
        start = torch.linspace(-1, 1, 6)
        message = method.message(method.init(start))
        kept = {k: v.expand(2, -1) for k, v in method.memory(start).items()}
        reply, kept = method.client(message, shards, kept)
        for name, rows in {**reply, **kept}.items():
            assert not rows[1].any(), (method.client, name)  # NaN is not 0
        assert reply["delta"][0].any()


def test_a_stage_of_a_user_adds_no_noise_unless_it_says_so():
    halve = After("halve", lambda delta, ctx: delta / 2)
    assert halve.std == 0.0
    assert noise_multiplier(chain(clip(1.0), A.total(4.0), halve)) == 0.0
    assert noise_multiplier(chain(clip(1.0), A.total(4.0), noise(0.5), halve)) == 2.0


@pytest.mark.parametrize("q", [0, -0.1, 1.1, math.nan, None])
def test_calibrate_wants_a_probability(q):
    with pytest.raises(ValueError, match=r"^calibrate: q must be > 0 and <= 1, got "):
        calibrate(4.0, q, 2, 1e-2)


@pytest.mark.parametrize("delta", [0, 1, -1e-3, math.nan, None])
def test_calibrate_wants_a_delta(delta):
    with pytest.raises(ValueError, match=r"^calibrate: delta must be > 0 and < 1"):
        calibrate(4.0, 0.5, 2, delta)


def test_a_new_file_may_be_read_by_all_and_an_old_one_keeps_its_mode(tmp_path):
    path = write_whole(tmp_path / "new", b"a")
    assert path.stat().st_mode & 0o7777 == 0o644
    path.chmod(0o640)
    assert write_whole(path, b"b").stat().st_mode & 0o7777 == 0o640


def test_every_stage_of_secure_aggregation_has_the_bytes_of_its_own_messages():
    """K = 4, d = 3, nobody silent: each stage's messages made once more, and weighed."""
    K, d, t = 4, 3, 3
    rows = np.arange(K * d, dtype=np.uint32).reshape(K, d)
    done = secure_sum(rows, threshold=t)
    clients, server = enroll(range(K), 0, t)
    adverts = [clients[k].advertise() for k in range(K)]
    keys = server.keys(adverts)
    shares = [clients[k].share(keys) for k in range(K)]
    letters = server.route(m for own in shares for m in own)
    masked = [clients[k].mask(rows[k], letters[k]) for k in range(K)]
    for m in masked:
        server.add(m)
    answered = server.answered()
    votes = [clients[k].vote(answered) for k in range(K)]
    tally = server.votes(votes)
    opened = [clients[k].open(tally) for k in range(K)]
    up = {"keys": adverts, "shares": shares, "masked": masked, "votes": votes, "opened": opened}
    down = {"keys": [keys] * K, "shares": [letters[k] for k in range(K)], "masked": [[]] * K,
            "votes": None, "opened": [[]] * K}  # fmt: skip
    down["votes"] = [[answered, tally]] * K
    assert list(done.up) == list(done.down) == list(done.seconds) == list(up)
    for stage in up:
        assert done.up[stage].tolist() == [wire_bytes(m) for m in up[stage]], stage
        assert done.down[stage].tolist() == [wire_bytes(m) for m in down[stage]], stage
        assert done.seconds[stage] > 0


# -- what is taken where nothing is said -----------------------------------------------------------

DEFAULTS = {
    algorithms.fedavg: {"server_lr": 1.0, "beta": 0.0, "weight_decay": 0.0},
    algorithms.fedsgd: {"beta": 0.0},
    algorithms.fedprox: {"server_lr": 1.0},
    algorithms.scaffold: {"server_lr": 1.0, "option": 2},
    algorithms.fednova: {"server_lr": 1.0, "beta": 0.0, "mu": 0.0},
    algorithms.feddyn: {},
    algorithms.fedavgm: {"server_lr": 1.0, "beta": 0.9},
    algorithms.fedadagrad: {"server_lr": 0.1, "beta1": 0.0, "tau": 1e-3},
    algorithms.fedadam: {"server_lr": 0.03, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
    algorithms.fedyogi: {"server_lr": 0.03, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
    descend: {"mu": 0.0, "shift": None, "beta": 0.0, "weight_decay": 0.0, "grad": None},
    accumulated: {"beta": 0.0, "mu": 0.0},
    A.geometric_median: {"iterations": 100, "tolerance": 1e-7},
    A.multi_krum: {"m": None},
    Recipe: {"batch": 32, "epochs": 1, "seed": 0, "equal": False, "secret": False},
    partition.dirichlet_label: {"min_size": 1},
    partition.shards: {"per_client": 2},
    partition.labels_per_client: {"labels_each": 2},
    partition.label_and_quantity: {"size_alpha": 1.0},
    partition.by_attribute: {"n_clients": None, "rng": None},
    adaptive_clip: {"quantile": 0.5, "lr": 0.2, "start": 0.1, "bit_noise": None},
    secure_mean: {"bits": None, "threshold": None},
    secure_sum: {"threshold": None, "dropped": None, "round": 0, "code": None},
}
RUN = {"evaluate": None, "every": 1, "skip": 0, "checkpoint": None, "save_every": 1, "resume": None}
DEFAULTS[federate] = {"cohort": None, "deltas": False, **RUN}
DEFAULTS[dp_federate] = {"q": None, "budget": math.inf, **RUN}


@pytest.mark.parametrize("function", DEFAULTS, ids=lambda f: f.__name__)
def test_a_default_is_what_its_documentation_says(function):
    """A default is a promise: who leaves it out gets other numbers if it moves."""
    given = inspect.signature(function).parameters.values()
    plain = lambda v: v is None or isinstance(v, (bool, int, float))
    has = {p.name: p.default for p in given if p.default is not p.empty and plain(p.default)}
    assert has == DEFAULTS[function]


@pytest.mark.parametrize("function", [f for f in DEFAULTS if "algorithms" in f.__module__])
def test_every_method_says_what_its_clients_minimise(function):
    """So that data are checked against the model before the first round."""
    if function is accumulated:
        return
    task = softmax_regression(2, 2)
    more = {"mu": 0.1} if function is algorithms.fedprox else {}
    more |= {"n_total": 4} if function in (algorithms.scaffold, algorithms.feddyn) else {}
    more |= {"alpha": 1.0} if function is algorithms.feddyn else {}
    method = function(task, lr=0.1, **more)
    assert method.task is task
    assert algorithms.scheduled(lambda lr: method, lambda t: 0.1).task is task


def test_chain_knows_its_stages_wherever_another_thing_stands():
    for stages in ((object(), A.mean()), (A.mean(), object()), ("clip", A.mean()), (None,)):
        with pytest.raises(ValueError, match=r"^chain: needs Rowwise stages, then exactly one"):
            chain(*stages)


def test_an_update_as_long_as_the_clip_counts_as_uncut():
    """b_k = 1 if ||delta_k|| <= S: 5 is no longer than 5."""
    task = softmax_regression(1, 2)
    method = algorithms.fedavg(task, 0.1)

    def client(message, shards, memory):
        return {"delta": torch.tensor([[3.0, 4.0], [3.0, 4.1], [0.0, 4.9]])}, memory

    adapted, _ = adaptive_clip(method._replace(client=client), z=0.0, expected=3, start=5.0)
    message = adapted.message(adapted.init(torch.zeros(2)))
    reply, _ = adapted.client(message, None, {})
    assert reply["delta"][:, -1].tolist() == [0.5, -0.5, 0.5]
    assert reply["delta"][0, :2].tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("alpha", [0, -1.0, math.nan, math.inf, None])
def test_a_concentration_is_refused_by_the_function_that_was_called(alpha):
    y, rng = np.repeat(np.arange(3), 10), np.random.default_rng(0)
    calls = {
        "dirichlet_label": lambda: partition.dirichlet_label(y, 3, rng, alpha),
        "dirichlet_client": lambda: partition.dirichlet_client(y, 3, rng, alpha),
        "label_and_quantity": lambda: partition.label_and_quantity(y, 3, rng, alpha),
        "quantity": lambda: partition.quantity(y, 3, rng, alpha),
        "client_mixes": lambda: partition.client_mixes(3, 3, rng, alpha),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name}: alpha must be > 0 and finite, got "):
            call()
    with pytest.raises(ValueError, match=r"^label_and_quantity: size_alpha must be > 0 and finite"):
        partition.label_and_quantity(y, 3, rng, 1.0, size_alpha=alpha)


def test_a_poor_client_is_topped_up_from_whoever_is_largest_then():
    """20 and 12 give ten examples away, one by one: eight of the first, then one of each."""
    owner = np.repeat([0, 1], [20, 12])
    parts = _top_up(owner, 7, np.random.default_rng(0), 2)
    assert [len(p) for p in parts] == [11, 11, 2, 2, 2, 2, 2]
    assert parts.note == "5 of 7 clients topped up to 2"
    assert sorted(np.concatenate(parts)) == list(range(32))
    rich = _top_up(np.repeat([0, 1], [3, 2]), 2, np.random.default_rng(0), 2)
    assert rich.note == "" and [len(p) for p in rich] == [3, 2]


def test_no_bits_behind_the_point_are_bits():
    code = FixedPoint(bound=4.0, clients=3, bits=0)
    assert code.scale == 1.0 and code.encode(np.array([3.4, -2.6])).tolist() == [3, 2**32 - 3]


def test_a_bar_is_shown_to_who_asks_for_one(capsys):
    collect([])
    assert capsys.readouterr().err == ""
    collect([], progress=7)
    assert "/7" in capsys.readouterr().err


def test_as_many_examples_of_a_label_as_owners_are_enough():
    labels = np.repeat([0, 1], 4)
    parts = partition.labels_per_client(labels, 4, np.random.default_rng(0), labels_each=2)
    assert all(sorted(labels[rows]) == [0, 1] for rows in parts)


def test_the_stages_of_a_secure_sum_take_no_longer_than_the_whole():
    began = time.perf_counter()
    seconds = secure_sum(np.ones((4, 5), np.uint32)).seconds
    whole = time.perf_counter() - began
    assert all(0 <= v <= whole for v in seconds.values()) and 0 < sum(seconds.values()) <= whole


@pytest.mark.parametrize(("z", "q", "rounds"), [(2.0, 0.01, 1000), (1.0, 0.1, 50), (5.0, 0.3, 300)])
def test_the_bound_where_no_distribution_is_held_is_renyis(z, q, rounds):
    """Of Google's own accountant by Rényi divergence, at the same whole orders."""
    from dp_accounting import PoissonSampledDpEvent, SelfComposedDpEvent, rdp
    from dp_accounting.dp_event import GaussianDpEvent

    orders = [*range(2, 65), *(2**i for i in range(7, 14))]
    one = PoissonSampledDpEvent(q, GaussianDpEvent(z))
    theirs = rdp.RdpAccountant(orders).compose(SelfComposedDpEvent(one, rounds))
    assert _bound(z, q, rounds, 1e-5) == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-6)
