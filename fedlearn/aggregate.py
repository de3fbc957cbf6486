"""Aggregation rules: the (K, d) matrix of updates and the weights p (K,) -> one vector (d,).

The mean gives a single client all power: it can move it anywhere. The robust rules bound what f
clients of K can do. Each states its breakdown point, the share of clients from which on they can
carry the result arbitrarily far. The price: they look at updates one client a vote, without the
weights p (unless said otherwise), and take a client with unusual data for an attacker.

Each function makes a Reduce stage and raises ValueError for a number out of range. A pipeline asks
its rule only where somebody answered.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .checks import RoundFailed, check, is_whole, number, positive, whole
from .task import weighted, wide
from .transform import Reduce, reach


def mean() -> Reduce:
    """The weighted mean, sum_k p_k delta_k: one product of a row and a matrix, p @ Delta.

    Breakdown point: 0, one client suffices.

    Example:
        >>> import torch
        >>> mean().apply(torch.tensor([[0.0, 4.0], [4.0, 0.0]]), torch.tensor([0.75, 0.25]))
        tensor([1., 3.])

    Reference: McMahan et al., 2017, Algorithm 1, with p_k = n_k / n.
    """
    rule = lambda delta, p: weighted(p, delta)
    return Reduce("mean()", rule, plain=True, fold=rule)


def total(expected: float) -> Reduce:
    """The sum of the updates over a number fixed in advance: Σ_k delta_k / (q N).

    What differential privacy wants: a client that joins or leaves moves the result by its own
    update / (q N) and nothing else. In a mean the others' weights would change, too.
    ``expected`` is q N, the cohort's expected size, > 0. No client at all gives 0.

    Example:
        >>> total(10).apply(torch.ones(3, 2), torch.ones(3) / 3)
        tensor([0.3000, 0.3000])

    Reference: McMahan, Ramage, Talwar, Zhang, 2018, "Learning differentially private recurrent
    language models", §3, the estimator f_f.
    """
    positive("total", "expected", expected, 10)
    add = lambda delta, p: wide(delta).sum(0).to(delta)
    rule = lambda delta, p: (wide(delta).sum(0) / expected).to(delta)
    return Reduce(f"total({expected:g})", rule, 1 / expected, fold=add)


def clipped_mean(max_norm: float) -> Reduce:
    """The weighted mean of updates that the server has shortened to ``max_norm`` = S > 0.

    Σ_k p_k delta_k min(1, S / ‖delta_k‖), with the weights p. f clients move it by at most S times
    their weight, wherever they point: a bound, but no breakdown point, as S bounds honest clients
    too. An update without a finite norm counts as 0, as behind :func:`~fedlearn.transform.clip`.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [300.0, 400.0]])
        >>> clipped_mean(1.0).apply(rows, torch.tensor([0.5, 0.5]))
        tensor([0.8000, 0.4000])

    Reference: Sun, Kairouz, Suresh, McMahan, 2019, "Can you really backdoor federated learning?",
    §3.
    """
    positive("clipped_mean", "max_norm", max_norm, 1.0)

    def apply(delta: Tensor, p: Tensor) -> Tensor:
        sane = delta.isfinite().all(1)
        rows = wide(delta[sane])
        return weighted(p[sane] * reach(rows, max_norm)[:, 0], rows).to(delta)

    return Reduce(f"clipped_mean({max_norm})", apply, fold=apply)


def median() -> Reduce:
    """The coordinate-wise median; of an even number the mean of the middle two.

    Breakdown point: 1/2. With fewer than half of the clients bad every number stays between two
    honest ones.

    Example:
        >>> rows = torch.tensor([[1.0], [2.0], [1e9]])
        >>> median().apply(rows, torch.ones(3) / 3)
        tensor([2.])

    Reference: Yin, Chen, Ramchandran, Bartlett, 2018, "Byzantine-robust distributed learning:
    towards optimal statistical rates", Algorithm 1, option I.
    """
    return _rule("median()", lambda delta, p: _median(delta))


def trimmed_mean(trim: float) -> Reduce:
    """Coordinate by coordinate, the mean without the ``trim`` largest and smallest shares.

    f = ⌊trim K⌋ values are cut at EACH end, 0 <= trim < 1/2. Breakdown point: trim; 0 is the
    unweighted mean.

    Example:
        >>> rows = torch.tensor([[-1e9], [1.0], [2.0], [3.0], [1e9]])
        >>> trimmed_mean(0.2).apply(rows, torch.ones(5) / 5)
        tensor([2.])

    Reference: Yin et al., 2018, Algorithm 1, option II.
    """
    check("trimmed_mean", "trim", trim, 0 <= number(trim) < 0.5, ">= 0 and < 1/2", 0.2)
    cut = lambda K: int(trim * K + 1e-9)  # 0.2 * 5 is 1, whatever floats make of it
    return _rule(f"trimmed_mean({trim})", lambda delta, p: _middle(delta, cut(len(delta))))


def krum(f: int) -> Reduce:
    """The one update that lies closest to its neighbours: least sum of squared distances.

    score_k = Σ ‖delta_k - delta_j‖² over its K - f - 2 nearest. Withstands f >= 0 attackers if
    K >= 2 f + 3; a smaller cohort is refused in the round.

    Example:
        >>> rows = torch.tensor([[1.0], [1.1], [1.3], [1.05], [1e9]])
        >>> krum(1).apply(rows, torch.ones(5) / 5)
        tensor([1.0500])

    Reference: Blanchard, El Mhamdi, Guerraoui, Stainer, 2017, "Machine learning with adversaries:
    Byzantine tolerant gradient descent" (Krum).
    """
    whole("krum", "f", f, 0, example=1)
    return multi_krum(f, 1)._replace(name=f"krum({f})")


def multi_krum(f: int, m: int | None = None) -> Reduce:
    """The mean of the m updates with the least Krum scores.

    Args:
        f: How many attackers to expect, >= 0; K >= 2 f + 3, as for :func:`krum`.
        m: How many are kept, from 1 to K - f; None for K - f - 2.

    Example:
        >>> rows = torch.tensor([[1.0], [1.2], [1.4], [1.1], [1e9]])
        >>> multi_krum(1).apply(rows, torch.ones(5) / 5)
        tensor([1.1500])

    Reference: Blanchard et al., 2017 (Multi-Krum).
    """
    whole("multi_krum", "f", f, 0, example=1)
    check("multi_krum", "m", m, m is None or is_whole(m), "an integer >= 1", 3)

    def apply(delta: Tensor, p: Tensor) -> Tensor:
        K = len(delta)
        _enough("krum", K, f, max(2 * f + 3, f + (m or 0)))
        keep = K - f - 2 if m is None else m
        best = _ranked(_squared_distances(delta), delta.norm(dim=1), f)[:keep]
        return delta[best].mean(0)

    return _rule(f"multi_krum({f}, {m})", apply)


def geometric_median(iterations: int = 100, tolerance: float = 1e-7) -> Reduce:
    """The point with the least weighted sum of distances, argmin_z Σ_k p_k ‖delta_k - z‖.

    Weiszfeld's steps, z <- Σ w_k delta_k / Σ w_k with w_k = p_k / max(‖delta_k - z‖, nu), from the
    coordinate-wise median by weight; nu is a millionth of the updates' spread, the weighted median
    of their distances from there. Breakdown point: 1/2 of the weight p. 0 where nobody has any.

    Args:
        iterations: At most so many steps, >= 1.
        tolerance: > 0. Ends when z moves by less than this share of the spread.

    Example:
        >>> rows = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1e9, 1e9]])
        >>> geometric_median().apply(rows, torch.ones(4) / 4)
        tensor([0., 0.])

    Reference: Pillutla, Kakade, Harchaoui, 2022, "Robust aggregation for federated learning",
    Algorithm 2 (smoothed Weiszfeld).
    """
    whole("geometric_median", "iterations", iterations, example=100)
    positive("geometric_median", "tolerance", tolerance, 1e-7)

    def apply(delta: Tensor, p: Tensor) -> Tensor:
        sane = delta.isfinite().all(1) & (p > 0)
        if not sane.any():
            return torch.where(p[:, None] > 0, delta, 0).sum(0)  # NaN, or 0 where nobody counts
        delta, p = _roomy(delta[sane]), p[sane]  # inf and NaN have no place in a sum
        p = p.to(delta)
        low, high = _weighted_middle(delta, p)
        z = (low + high) / 2
        distances = (delta - z).norm(dim=1, keepdim=True)
        spread = _weighted_middle(distances, p)[0]
        if spread == 0:  # half of the weight agrees: theirs is the answer
            return z
        for _ in range(iterations):
            w = p / (delta - z).norm(dim=1).clamp(min=1e-6 * spread)
            before, z = z, (w @ delta) / w.sum()
            if (z - before).norm() <= tolerance * spread:
                break
        return z

    return _rule("geometric_median()", apply)


def bulyan(f: int) -> Reduce:
    """Krum's choice of K - 2 f updates, then a trimmed mean round their median.

    Krum picks the best of what is left, K - 2 f times; then, coordinate by coordinate, the
    K - 4 f values nearest to the median are averaged. Withstands f >= 0 attackers if K >= 4 f + 3,
    also those that hide one huge coordinate in a near vector; a smaller cohort is refused.

    Example:
        >>> rows = torch.tensor([[1.0], [1.1], [1.2], [0.9], [1.0], [1.1], [1e9]])
        >>> round(bulyan(1).apply(rows, torch.ones(7) / 7).item(), 3)
        1.033

    Reference: El Mhamdi, Guerraoui, Rouault, 2018, "The hidden vulnerability of distributed
    learning in Byzantium", Algorithm 1.
    """
    whole("bulyan", "f", f, 0, example=1)

    def apply(delta: Tensor, p: Tensor) -> Tensor:
        K = len(delta)
        _enough("bulyan", K, f, 4 * f + 3)
        distances, norms, left = _squared_distances(delta), delta.norm(dim=1), list(range(K))
        chosen: list[int] = []
        while len(chosen) < K - 2 * f:
            some = torch.tensor(left, device=delta.device)
            best = int(_ranked(distances[some][:, some], norms[some], f)[0])
            chosen.append(left.pop(best))
        kept = delta[chosen]
        near = (kept - _median(kept)).abs().argsort(0)[: K - 4 * f]
        return kept.gather(0, near).mean(0)

    return _rule(f"bulyan({f})", apply)


def _rule(name: str, apply: Callable[[Tensor, Tensor], Tensor]) -> Reduce:
    """A rule that gives 0 where nobody answered, worked out in 32 bits or more."""
    some = lambda delta, p: apply(wide(delta), p).to(delta)
    return Reduce(name, lambda delta, p: some(delta, p) if len(delta) else delta.sum(0))


def _middle(delta: Tensor, cut: int) -> Tensor:
    """Coordinate by coordinate the mean without the ``cut`` largest and smallest."""
    ordered = delta.sort(0).values
    return ordered[cut : len(delta) - cut].mean(0)


def _median(delta: Tensor) -> Tensor:
    """Coordinate by coordinate the middle number, or the mean of the middle two."""
    return _middle(delta, (len(delta) - 1) // 2)


def _weighted_middle(delta: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinate by coordinate the numbers with half of the weight on either side: (d,) twice."""
    ordered, order = delta.sort(0)
    below = p[order].cumsum(0) / p.sum()
    low, high = (below < 0.5 - 1e-6).sum(0), (below <= 0.5 + 1e-6).sum(0)  # floats may miss 1/2
    at = lambda i: ordered.gather(0, i.clamp(max=len(p) - 1)[None])[0]
    return at(low), at(high)


def _roomy(delta: Tensor) -> Tensor:
    """The rows, in 64 bits if the square of a number among them leaves 32."""
    large = delta.isfinite().all(1) & ~delta.square().sum(1).isfinite()
    return delta.double() if large.any() else delta


def _squared_distances(delta: Tensor) -> Tensor:
    """(K, K) ‖delta_k - delta_j‖², exact where a product of large numbers would cancel."""
    delta = _roomy(delta)
    return torch.stack([(delta - row).square().sum(1) for row in delta])


def _ranked(distances: Tensor, norms: Tensor, f: int) -> Tensor:
    """Rows by Krum's score: the sum over their K - f - 2 nearest (at least one), best first.

    Two that are each other's nearest may tie: then the shorter goes first, whatever their order.
    """
    near = max(len(distances) - f - 2, 1)
    scores = distances.sort(1).values[:, 1 : near + 1].sum(1)
    by_norm = norms.argsort()
    return by_norm[scores[by_norm].argsort(stable=True)]


def _enough(name: str, K: int, f: int, need: int) -> None:
    """Raise RoundFailed unless a rule has its ``need`` updates."""
    if need > K:
        raise RoundFailed(
            f"{name}: f={f} attackers need a cohort of at least {need}, got {K} updates, "
            f"e.g. cohort={need} or a smaller f"
        )
