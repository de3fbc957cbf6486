"""What differential privacy is worth: epsilon and delta, by Google's dp-accounting (an extra)."""

import math
import threading
from functools import lru_cache
from typing import Any

import numpy as np

from ..checks import check, not_negative, number, positive, probability, whole


def epsilon(z: float, q: float, rounds: int, delta: float) -> float:
    """epsilon of (epsilon, delta)-differential privacy after T rounds (PLD).

    The composition of T Poisson-sampled Gaussian mechanisms under adding or removing one client, by
    Google's dp-accounting (privacy loss distributions; for q = 1 the Gaussian's closed form). No
    approximation by a central limit is ever shown as epsilon: it lies below the truth. A cohort of
    fixed size is not covered: its epsilon is another, for other neighbours.

    What it returns is never too small. It is 0 where a client is called at all with a chance of at
    most ``delta``: then anything may be published. Where the loss takes so many values that a
    distribution would take minutes (z below 0.001, or millions of rounds), or where ``delta`` is
    below 1e-12, it is the bound by Rényi divergence, or by the Gaussian without sampling.

    Args:
        z: Noise multiplier; 0 gives infinity.
        q: Probability with which a client joins a round, 0 < q <= 1.
        rounds: T >= 0.
        delta: 0 < delta < 1, far below 1 / N. ValueError if a number is out of range.

    Example:
        >>> round(epsilon(1.0, q=0.1, rounds=100, delta=1e-3), 2)
        4.78

    Reference:
        Koskela, Jälkö, Honkela, 2020, "Computing tight differential privacy guarantees using FFT".
        Balle, Wang, 2018, "Improving the Gaussian mechanism for differential privacy", Theorem 8.
        Mironov, Talwar, Zhang, 2019, "Rényi differential privacy of the sampled Gaussian
        mechanism", for the bound.
    """
    _checked("epsilon", z, q, rounds, delta)
    if _chance(q, rounds) <= delta:
        return 0.0
    if not z:
        return math.inf
    z, q, delta = float(z), float(q), float(delta)
    return _gaussian(z, rounds, delta) if q == 1 else _sampled(z, q, int(rounds), delta)


def epsilons(z: float, q: float, rounds: int, delta: float) -> list[float]:
    """epsilon after 1, 2, ..., T rounds, (T,): what a run spends as it goes.

    The same numbers as :func:`epsilon`'s, one composition a round: 2 to 10 ms each, and none for
    rounds that were asked for before.

    Args:
        z, q, rounds, delta: As for :func:`epsilon`, which also says what raises.

    Example:
        >>> [round(e, 2) for e in epsilons(1.0, q=0.1, rounds=4, delta=1e-3)]
        [0.65, 0.84, 0.98, 1.09]
    """
    _checked("epsilons", z, q, rounds, delta)
    spent = ledger(float(z), float(q), float(delta))
    return [spent.after(t + 1) for t in range(rounds)]


def delta(z: float, q: float, rounds: int, epsilon: float) -> float:
    """delta of (epsilon, delta)-differential privacy after T rounds: what escapes ``epsilon``.

    Never too small: below 1e-12 T, which no loss distribution tells, it is that. For q = 1 it is
    exact, Φ(1 / 2 s - epsilon s) - e^epsilon Φ(-1 / 2 s - epsilon s) with s = z / √T.

    Args:
        z, q, rounds: As for :func:`epsilon`, which also says where it comes from.
        epsilon: >= 0 and finite. ValueError if a number is out of range.

    Example:
        >>> round(delta(1.0, q=1.0, rounds=1, epsilon=1.0), 4)  # Φ(-1/2) - e Φ(-3/2)
        0.1269
    """
    from scipy.special import log_ndtr

    _checked("delta", z, q, rounds, 0.5)
    not_negative("delta", "epsilon", epsilon, 1.0)
    z, q, e, least, most = float(z), float(q), float(epsilon), 1e-12 * rounds, _chance(q, rounds)
    if not z or not rounds:
        return most
    s = z / math.sqrt(rounds)
    a, b = log_ndtr(0.5 / s - e * s), e + log_ndtr(-0.5 / s - e * s)
    most = min(most, -math.exp(a) * math.expm1(b - a) if b < a else 0.0)  # without sampling
    total = _total(z, q, int(rounds)) if q < 1 and z >= 1e-3 and most > least else None
    return most if total is None else min(most, max(least, total.get_delta_for_epsilon(e)))


def losses(
    z: float, q: float, rounds: int, *, swapped: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The privacy loss of T rounds, log(Pr[o | with] / Pr[o | without]), (m,); its chances (m,).

    With the client; for q = 1 it is N(T / 2 z², T / z²). Its values lie on a grid, the last is inf:
    delta = Σ chance max(0, 1 - e^(epsilon - loss)), or that of the swapped worlds, is no less.

    Args:
        z, q, rounds: As for :func:`epsilon`; z > 0, T >= 1. ValueError if the values are too many.
        swapped: log(Pr[o | without] / Pr[o | with]), and its chances without the client.

    Example:
        >>> values, chances = losses(2.0, q=1.0, rounds=8)
        >>> print(f"{values[:-1] @ chances[:-1]:.3f}, {chances.sum():.6f}")  # T / 2 z², and 1
        1.000, 1.000000
    """
    _checked("losses", z, q, rounds, 0.5)
    whole("losses", "rounds", rounds, example=100)
    total = _total(float(z), float(q), int(rounds)) if z >= 1e-3 else None
    rule = ">= 0.001, for fewer rounds: the loss takes too many values"
    check("losses", "z", z, total is not None, rule, max(1.0, 2 * z))
    assert total is not None
    pmf = (total._pmf_add if swapped else total._pmf_remove).to_dense_pmf()
    grid = (pmf._lower_loss + np.arange(pmf.size)) * pmf._discretization
    return np.append(grid, math.inf), np.append(pmf._probs, pmf._infinity_mass)


def fixed_cohort(z: float, K: int, N: int, rounds: int, delta: float) -> tuple[float, float]:
    """epsilon of T cohorts of exactly K of N clients: what it is at least, and at most.

    Whoever comes takes somebody's place: the sum moves by 2 S where one client sends the opposite
    of all others. That is T Poisson rounds of z / 2, whether it stays away or is replaced: at
    least. At most, for one that is replaced: by Rényi divergence, or as if all took part.

    Args:
        z, rounds, delta: As for :func:`epsilon`, which also says what raises; z > 0.
        K, N: Clients in a cohort, 1 to N; of all.

    Example:
        >>> [round(e, 2) for e in fixed_cohort(1.0, 20, 100, rounds=60, delta=1e-4)]
        [37.53, 108.65]

    Reference: Lebeda, Regehr, Kamath, Steinke, 2024, "Avoiding pitfalls for privacy accounting";
    Wang, Balle, Kasiviswanathan, 2019, "Subsampled Rényi differential privacy".
    """
    whole("fixed_cohort", "N", N, example=100)
    whole("fixed_cohort", "K", K, 1, N, example=20)
    positive("fixed_cohort", "z", z, 1.0)
    _checked("fixed_cohort", z, K / N, rounds, delta)
    q, half, T = K / N, float(z) / 2, int(rounds)
    most = _gaussian(half, T, delta) if T else 0.0
    if q == 1 or not T or not 1e-3 <= half <= 1e4:
        return most if q == 1 else 0.0, most
    dp, total = _accounting(), _total(half, q, T, low=True)
    with np.errstate(all="ignore"):
        upper = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
        event = dp.SampledWithoutReplacementDpEvent(N, K, dp.GaussianDpEvent(half))
        bound = float(upper.compose(dp.SelfComposedDpEvent(event, T)).get_epsilon(delta))
        least = float(total.get_epsilon_for_delta(delta)) if total else 0.0
    return min(max(0.0, least), most), min(bound, most)


def calibrate(target: float, q: float, rounds: int, delta: float) -> float:
    """The least noise multiplier z for which T rounds stay within epsilon = ``target``.

    Args:
        target: epsilon, > 0.
        q, rounds, delta: As for :func:`epsilon`, which also says what raises; T >= 1, and delta
            below the chance that a client is called at all: with more, no noise is enough, and no
            promise.

    Example:
        >>> round(calibrate(8.0, q=0.1, rounds=100, delta=1e-3), 2)
        0.78
    """
    check_odds("calibrate", q, delta)
    positive("calibrate", "target", target, 8.0)
    whole("calibrate", "rounds", rounds, example=100)
    chance = _chance(q, rounds)
    rule = f"< {chance:g}, the chance that a client is called at all: else z = 0 keeps it"
    check("calibrate", "delta", delta, delta < chance, rule, f"{chance / 100:.1g}")
    least = epsilon(2.0**30, q, rounds, delta)
    rule = f">= {least:.3g} for these rounds and this delta: z = 2**30 reaches no less"
    check("calibrate", "target", target, target >= least, rule, max(8.0, 2 * least))
    search, make = _accounting().calibrate_dp_mechanism, lambda: _Guess(q, rounds)
    return float(search(make, lambda z: z, float(target), float(delta), tol=1e-4))


def local_epsilon(std: float, max_norm: float, rounds: int, delta: float) -> float:
    """epsilon that a client is promised by ``local_noise`` if it takes part in T rounds.

    Whatever it holds, its update moves within a ball of radius S: two such differ by at most 2 S.

    Args:
        std: Of the noise on every number.
        max_norm: S.
        rounds: T in which it takes part.
        delta: 0 < delta < 1. ValueError if a number is out of range.

    Example:
        >>> local_epsilon(1.0, 0.5, rounds=1, delta=1e-3) == epsilon(1.0, 1.0, 1, 1e-3)
        True
    """
    positive("local_epsilon", "max_norm", max_norm, 1.0)
    not_negative("local_epsilon", "std", std, 0.5)
    return epsilon(std / (2 * max_norm), 1.0, rounds, delta)


def check_odds(name: str, q: float, delta: float) -> None:
    """q and delta, as every account wants them."""
    probability(name, "q", q, 0.1)
    check(name, "delta", delta, 0 < number(delta) < 1, "> 0 and < 1, far below 1 / N", 1e-5)


def _checked(name: str, z: float, q: float, rounds: int, delta: float) -> None:
    check_odds(name, q, delta)
    not_negative(name, "z", z, 1.0)
    whole(name, "rounds", rounds, 0, example=100)


def _accounting() -> Any:
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as e:
        raise ImportError(
            "fedlearn.privacy needs dp-accounting: pip install 'fedlearn[privacy]'"
        ) from e
    return dp_accounting


class _Guess:
    """What dp-accounting's calibration asks of an accountant: epsilon for z, or for another z."""

    def __init__(self, q: float, rounds: int):
        self.q, self.rounds, self.z = q, rounds, math.nan
        self.ledger = _accounting().NoOpDpEvent()

    def compose(self, z: float) -> "_Guess":
        """As the accountant's; here the event is z."""
        self.z = z
        return self

    def get_epsilon(self, delta: float) -> float:
        """As the accountant's."""
        return epsilon(self.z, self.q, self.rounds, delta)


_GRID = 1e-3  # of the privacy loss: ten times faster than the default, 2e-5 too high at epsilon 5
_FEW, _MANY, _MOST = 100, 10_000, 200_000  # its values: of a round at least, about; of all


def _chance(q: float, rounds: int) -> float:
    """1 - (1 - q)^T: that a client is called at all."""
    return 1.0 if q == 1 else -math.expm1(float(rounds) * math.log1p(-q))


def _resolved(z: float, rounds: int, delta: float) -> bool:
    """Whether a loss distribution tells delta: it has values for z; each round adds 1e-16 wrong."""
    return z >= 1e-3 and delta >= 1e-12 * max(rounds, 1)


def _grid(z: float, q: float) -> float:
    """Step of the loss's values: _GRID, unless a round would have very few of them or very many."""
    far = (0.5 + 10 * z) / z / z  # without sampling, ten standard deviations out
    high = far + math.log(q) if far > 700 else math.log1p(q * math.expm1(far))
    span = high + min(math.inf if q == 1 else -math.log1p(-q), 10 / z + 0.5 / z / z)
    return min(_GRID, span / _FEW) if span < 50 else span / _MANY


@lru_cache(maxsize=64)
def _round(z: float, q: float, grid: float, low: bool = False) -> Any:
    """The loss distribution of one round, rounded up; or down."""
    pld = _accounting().pld.privacy_loss_distribution
    how = {"pessimistic_estimate": not low, "use_connect_dots": not low}
    with np.errstate(all="ignore"):
        return pld.from_gaussian_mechanism(
            z, value_discretization_interval=grid, sampling_prob=q, **how
        )


def _composed(one: Any, rounds: int, grid: float, low: bool = False) -> Any:
    """The loss distribution of T rounds, as arrays: a sparse one is raised to the power T first."""
    pld = _accounting().pld.privacy_loss_distribution
    if rounds > 1:
        pmfs = one._pmf_remove, one._pmf_add
        dense = [pmf.to_dense_pmf().self_compose(rounds) for pmf in pmfs]
        one = pld.PrivacyLossDistribution(*dense)
    return pld.identity(grid, not low).compose(one)


@lru_cache(maxsize=16)
def _total(z: float, q: float, rounds: int, low: bool = False) -> Any:
    """The loss distribution of T rounds; None where it has very few values, or very many."""
    if q == 1:
        z, rounds = z / math.sqrt(rounds), 1
    grid = _grid(z, q)
    while grid < 500 and (one := _round(z, q, grid, low))._pmf_remove.size >= _FEW / 2:
        if (size := _size(one, rounds)) <= _MOST:
            with np.errstate(all="ignore"):
                return _composed(one, rounds, grid, low)
        grid *= 1.2 * size / _MOST
    return None


def _size(one: Any, rounds: int) -> int:
    """How many values the loss of T rounds may take."""
    bounds = _accounting().pld.common.compute_self_convolve_bounds
    probs = [pmf.to_dense_pmf()._probs for pmf in (one._pmf_remove, one._pmf_add)]
    ends = [bounds(p, rounds, 1e-15) if rounds > 1 else (0, len(p)) for p in probs]
    return max(high - low for low, high in ends)


@lru_cache(maxsize=4096)
def _sampled(z: float, q: float, rounds: int, delta: float) -> float:
    total = _total(z, q, rounds) if _resolved(z, rounds, delta) else None
    if total is None:
        return _bound(z, q, rounds, delta)
    with np.errstate(all="ignore"):
        spent = float(total.get_epsilon_for_delta(delta))
    return spent if spent < math.inf else _bound(z, q, rounds, delta)


def _bound(z: float, q: float, rounds: int, delta: float) -> float:
    """No less than epsilon, for any numbers: by Rényi divergence, or as if all took part.

    At order a = 2, 3, ..: T log(1 + Σ_k C(a, k) (1 - q)^(a - k) q^k (e^((k² - k) / 2 z²) - 1)) /
    (a - 1) + log(1 - 1 / a) - log(delta a) / (a - 1). No term of the sum is negative.
    """
    best, orders = _gaussian(z, rounds, delta), (*range(2, 65), *(2**i for i in range(7, 14)))
    factorial = np.concatenate([[0.0], np.log(np.arange(1.0, orders[-1] + 1)).cumsum()])  # its log
    for a in orders:
        k = np.arange(2, a + 1)
        v = np.clip((k * k - k) * (0.5 / z / z), 1e-300, 1e300)
        log_expm1 = v + np.log(-np.expm1(-v))
        chosen = factorial[a] - factorial[k] - factorial[a - k]
        logs = chosen + (a - k) * math.log1p(-q) + k * math.log(q) + log_expm1
        renyi = rounds * float(np.logaddexp(0.0, np.logaddexp.reduce(logs)))
        best = min(best, (renyi - math.log(delta * a)) / (a - 1) + math.log1p(-1 / a))
    return max(0.0, best)


def _gaussian(z: float, rounds: int, delta: float) -> float:
    """T releases with z are one with s = z / sqrt(T); far out 1 / 2 s² + sqrt(-2 log delta) / s.

    It is 0 where delta is at least the total variation, erf(1 / sqrt(8) s).
    """
    s = z / math.sqrt(rounds)
    if s == 0 or math.erf(1 / s / math.sqrt(8)) <= delta:
        return 0.0 if s else math.inf
    if 1e-6 < s < 1e6:
        with np.errstate(all="ignore"):
            return max(0.0, float(_accounting().get_epsilon_gaussian(s, delta)))
    return 0.5 / s / s + math.sqrt(-2 * math.log(delta)) / s


class Ledger:
    """What T rounds have spent, for T = 1, 2, ...: each is composed once, then remembered."""

    def __init__(self, z: float, q: float, delta: float):
        self.z, self.q, self.delta = z, q, delta
        self.spent: list[float] = []
        self._one: Any = None  # loss distribution of one round
        self._all: Any = None  # of all rounds so far
        self._lock = threading.Lock()  # a panel's thread and the notebook's ask at once

    def after(self, rounds: int) -> float:
        """epsilon after that many rounds."""
        z, q, delta = self.z, self.q, self.delta
        few = q < 1 and _chance(q, rounds) > delta and _resolved(z, rounds, delta)
        with self._lock:
            while few and len(self.spent) < rounds and self._fits():
                self._compose()
                self.spent.append(float(self._all.get_epsilon_for_delta(delta)))
            if few and len(self.spent) >= rounds:
                return self.spent[rounds - 1]
        return epsilon(z, q, rounds, delta)

    def _fits(self) -> bool:
        """Whether one round more is a matter of milliseconds; else each is composed anew."""
        if self._all is None:
            return _grid(self.z, self.q) == _GRID
        return self._all._pmf_remove.size <= _MOST

    def _compose(self) -> None:
        if self._one is None:
            self._one = self._all = _round(self.z, self.q, _GRID)
            return
        cut = self.delta * 1e-9  # of the tail, counted as infinite loss: keeps the arrays short
        self._all = self._all.compose(self._one, tail_mass_truncation=cut)


ledger = lru_cache(maxsize=64)(Ledger)
