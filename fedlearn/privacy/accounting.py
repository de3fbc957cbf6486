"""What differential privacy is worth: epsilon, by Google's dp-accounting (an extra)."""

import math
import threading
from functools import lru_cache
from typing import Any

from ..checks import check, not_negative, number, positive, probability, whole


def epsilon(z: float, q: float, rounds: int, delta: float) -> float:
    """epsilon of (epsilon, delta)-differential privacy after T rounds (PLD).

    The composition of T Poisson-sampled Gaussian mechanisms under adding or removing one client, by
    Google's dp-accounting (privacy loss distributions; for q = 1 the Gaussian's closed form). No
    approximation by a central limit is ever shown as epsilon: it lies below the truth. A cohort of
    fixed size is not covered: its epsilon is another, for other neighbours.

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
    """
    _checked("epsilon", z, q, rounds, delta)
    if not rounds:
        return 0.0
    if not z:
        return math.inf
    return _gaussian(z, rounds, delta) if q == 1 else _pld(z, q, rounds, delta)


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


def calibrate(target: float, q: float, rounds: int, delta: float) -> float:
    """The least noise multiplier z for which T rounds stay within epsilon = ``target``.

    Args:
        target: epsilon, > 0.
        q, rounds, delta: As for :func:`epsilon`, which also says what raises; T >= 1.

    Example:
        >>> round(calibrate(8.0, q=0.1, rounds=100, delta=1e-3), 2)
        0.78
    """
    check_odds("calibrate", q, delta)
    positive("calibrate", "target", target, 8.0)
    whole("calibrate", "rounds", rounds, example=100)
    dpa = _accounting()
    make = lambda: dpa.pld.PLDAccountant(value_discretization_interval=_GRID)
    event = lambda z: _event(z, q, rounds)
    return float(dpa.calibrate_dp_mechanism(make, event, target, delta, tol=1e-4))


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
    except ImportError as e:
        raise ImportError(
            "fedlearn.privacy needs dp-accounting: pip install 'fedlearn[privacy]'"
        ) from e
    return dp_accounting


def _event(z: float, q: float, rounds: int) -> Any:
    dpa = _accounting()
    one = dpa.GaussianDpEvent(z)
    some = one if q == 1 else dpa.PoissonSampledDpEvent(q, one)
    return dpa.SelfComposedDpEvent(some, int(rounds))  # NumPy's integers are none there


_GRID = 1e-3  # of the privacy loss: ten times faster than the default, 2e-5 too high at epsilon 5


@lru_cache(maxsize=4096)
def _pld(z: float, q: float, rounds: int, delta: float) -> float:
    accountant = _accounting().pld.PLDAccountant(value_discretization_interval=_GRID)
    return float(accountant.compose(_event(z, q, rounds)).get_epsilon(delta))


def _gaussian(z: float, rounds: int, delta: float) -> float:
    """T releases with z are one with z / sqrt(T)."""
    return max(0.0, float(_accounting().get_epsilon_gaussian(z / math.sqrt(rounds), delta)))


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
        if not self.z or self.q == 1:
            return epsilon(self.z, self.q, rounds, self.delta)
        with self._lock:
            while len(self.spent) < rounds:
                self._compose()
                self.spent.append(float(self._all.get_epsilon_for_delta(self.delta)))
            return self.spent[rounds - 1]

    def _compose(self) -> None:
        if self._one is None:
            losses = _accounting().pld.privacy_loss_distribution
            how = {"value_discretization_interval": _GRID, "sampling_prob": self.q}
            self._one = self._all = losses.from_gaussian_mechanism(self.z, **how)
            return
        cut = self.delta * 1e-9  # of the tail, counted as infinite loss: keeps the arrays short
        self._all = self._all.compose(self._one, tail_mass_truncation=cut)


ledger = lru_cache(maxsize=64)(Ledger)
