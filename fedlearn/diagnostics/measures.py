"""Measures of heterogeneity: of the data, of the gradients, of the updates, of the models.

Notation: client k of N holds n_k examples, p_k = n_k / n; q_{k,c} is the share of label c among
them, q_c = Σ_k p_k q_{k,c} its share overall.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import check, number
from ..data import check_population, like
from ..task import Task, wide
from ..transform import Context


def label_distance(counts: np.ndarray) -> np.ndarray:
    """Distance of every client's label mix from the overall one, (N,): Σ_c |q_{k,c} - q_c|.

    0: the same mix; at most 2. With C equally frequent labels, a client with m of them has
    2 (1 - m/C): 1.6 for two labels of ten, 1.8 for one.

    Args:
        counts: (N, C) examples per client and label, from :func:`fedlearn.partition.counts`;
            ValueError if it has another shape, holds a negative number, or a client has none.

    Example:
        >>> label_distance(np.eye(10))[:2].round(6)
        array([1.8, 1.8])

    Reference:
        Zhao, Li, Lai, Suda, Civin, Chandra, 2018, "Federated learning with non-IID data", §3, who
        call it the earth mover's distance (of labels with distance 1 between any two, twice that).
    """
    q, p = _shares("label_distance", counts)
    return np.abs(q - p @ q).sum(1)


def jensen_shannon(counts: np.ndarray) -> float:
    """Weighted Jensen-Shannon divergence of the clients' label mixes, in bits.

    JS = H(Σ_k p_k q_k) - Σ_k p_k H(q_k) with H the entropy to base 2: how many bits the label of an
    example tells about which client holds it. 0: all mixes equal; log2 C: one label each; never
    above log2 min(N, C).

    Args:
        counts: As for :func:`label_distance`, which also says what raises.

    Example:
        >>> jensen_shannon(np.eye(4)), jensen_shannon(np.ones((4, 4)))
        (2.0, 0.0)

    Reference:
        Lin, 1991, "Divergence measures based on the Shannon entropy", eq. 5.1.
    """
    q, p = _shares("jensen_shannon", counts)
    return float(max(_entropy(p @ q) - p @ _entropy(q), 0.0))


def effective_classes(counts: np.ndarray) -> np.ndarray:
    """How many equally frequent labels a client's mix is worth, (N,) from 1 to C: 1 / Σ_c q_{k,c}².

    Σ_c q² is the chance that two of its examples have the same label; for ``dirichlet_client`` its
    expectation is (alpha + 1) / (C alpha + 1).

    Args:
        counts: As for :func:`label_distance`, which also says what raises.

    Example:
        >>> effective_classes(np.array([[5, 5, 0], [9, 0, 0]]))
        array([2., 1.])

    Reference:
        Hill, 1973, "Diversity and evenness", the number of order 2 (inverse Simpson index).
    """
    q, _ = _shares("effective_classes", counts)
    return 1.0 / (q**2).sum(1)


def gini(sizes: np.ndarray) -> float:
    """Imbalance of the clients' sizes: G = Σ_i Σ_j |n_i - n_j| / (2 N² mean(n)).

    0 for equal sizes, up to 1 - 1/N when one client holds everything.

    Args:
        sizes: (N,) examples of every client; ValueError if one is negative or all are 0.

    Example:
        >>> gini([10, 10, 10, 10]), gini([0, 0, 0, 40])
        (0.0, 0.75)

    Reference:
        Gini, 1912; the sorted form used here: Sen, 1973, "On economic inequality", §2.
    """
    n = np.sort(np.asarray(sizes, float))
    good = len(n) > 0 and n[0] >= 0 and n.sum() > 0
    check("gini", "sizes", sizes, good, ">= 0 and not all 0", [30, 10])
    i = np.arange(1, len(n) + 1)
    return float((2 * i - len(n) - 1) @ n / (len(n) * n.sum()))


def tail(values: np.ndarray, share: float = 0.1) -> float:
    """Mean of the worst share of the clients: (Σ_{i<=m} v_(i) + (s - m) v_(m+1)) / s.

    v_(1) <= v_(2) <= ... are the sorted values, s = share · N, m its whole part; where s isn't
    whole, the last client counts in part, so that the tail moves smoothly with the share: from the
    minimum (s <= 1) to the mean (share = 1). It says what a mean hides and what a minimum, one
    client's luck, exaggerates.

    Args:
        values: (N,) what is better when larger, accuracies say, in their unit; of losses take
            ``-tail(-loss)``. Masked values, of clients without a test example, are left out.
            ValueError if none is left or one is NaN.
        share: In (0, 1], else ValueError.

    Example:
        >>> accuracy = np.array([0.9, 0.5, 0.8, 1.0, 0.7])
        >>> tail(accuracy, 0.4), tail(accuracy, 0.3), tail(accuracy, 1)
        (0.6, 0.566666..., 0.78)

    Reference:
        Rockafellar, Uryasev, 2000, "Optimization of conditional value-at-risk"; the worst tenth of
        the clients: Li, Sanjabi, Beirami, Smith, 2020, "Fair resource allocation in federated
        learning", Table 1.
    """
    v = np.sort(np.ma.compressed(values).astype(float))
    check("tail", "values", values, len(v) > 0 and not np.isnan(v).any(), "numbers", [0.9, 0.7])
    check("tail", "share", share, 0 < number(share) <= 1, "from above 0 to 1", 0.1)
    s = share * len(v)
    weight = np.clip(s - np.arange(len(v)), 0, 1)
    return float(weight @ v / weight.sum())


def client_gradients(
    task: Task, theta: Tensor, x: Tensor, y: Tensor, parts: list[np.ndarray]
) -> Tensor:
    """∇L_k(theta) of every client, over all of its examples. (N, d)

    Args:
        task: The model and its loss.
        theta: (d,); or (N, d), a model a client.
        x: (n, ...).
        y: (n, ...). ValueError if x, y and parts don't fit, as for ``Simulated``.
        parts: N index arrays, none empty.

    Example:
        >>> from fedlearn.model import softmax_regression
        >>> task = softmax_regression(2, 2)
        >>> x, y = torch.eye(2), torch.tensor([0, 1])
        >>> client_gradients(task, task.theta0, x, y, [np.array([0]), np.array([1])])[:, 4:]
        tensor([[-0.5000,  0.5000],
                [ 0.5000, -0.5000]])
    """
    own = check_population("client_gradients", task, x, y, parts, theta)
    x, y = like(own.x, theta), like(own.y, theta)
    rows = []
    for at, theta_k in zip(
        own.parts, each_model("client_gradients", theta, len(own.parts)), strict=True
    ):
        mask = wide(torch.ones(1, len(at), dtype=theta.dtype, device=theta.device))
        rows.append(task.grad(theta_k[None], x[at][None], y[at][None], mask)[0][0])
    return torch.stack(rows)


def updates(
    clients: Any, theta: Tensor | None = None, cohort: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """What these clients send in a first round from ``theta``: (K, d), and their examples n (K,).

    delta_k = theta_k - theta, as it leaves the client's stages; nothing of a run changes.

    Args:
        clients: As for ``federate``, e.g. a :class:`~fedlearn.Simulated`.
        theta: (d,); None for the recipe's.
        cohort: Their K numbers; None for all. ValueError if a client doesn't exist.

    Example:
        >>> from fedlearn import Recipe, Simulated, algorithms, model
        >>> task = model.softmax_regression(2, 2)
        >>> recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0)
        >>> two = Simulated(recipe, torch.eye(2), torch.tensor([0, 1]), [[0], [0, 1]])
        >>> deltas, n = updates(two)
        >>> deltas.shape, n
        (torch.Size([2, 6]), tensor([1., 2.]))
    """
    recipe, N = clients.recipe, clients.count
    who = np.arange(N) if cohort is None else np.array(cohort, int)
    good = bool(((who >= 0) & (who < N)).all())
    check("updates", "cohort", cohort, good, f"numbers of clients, 0 to {N - 1}", [0])
    state = recipe.algorithm.init((recipe.theta if theta is None else theta).to(clients.device))
    ctx = Context(recipe.seed, 0, who, who, rows=True)
    reply, _ = clients.run(recipe.algorithm.message(state), ctx, clients.memory())
    return reply["delta"], reply["n"]


def each_model(name: str, theta: Tensor, N: int) -> Tensor:
    """(N, d), of one theta for all or one a client."""
    fits = theta.dim() == 1 or (theta.dim() == 2 and len(theta) == N)
    rule = f"(d,), or (N, d) with N={N} clients"
    check(name, "theta", tuple(theta.shape), fits, rule, "task.theta0")
    return theta.detach().expand(N, -1)


class Dissimilarity(NamedTuple):
    """What :func:`gradient_dissimilarity` returns.

    Attributes:
        B2: B²(theta) = Σ_k p_k ‖∇L_k‖² / ‖∇L‖²; infinite where the global gradient is 0 and a
            client's is not.
        G2: G²(theta) = Σ_k p_k ‖∇L_k - ∇L‖², the variance among the clients' gradients.
    """

    B2: float
    G2: float


def gradient_dissimilarity(gradients: Tensor, p: Tensor) -> Dissimilarity:
    """How much the clients' gradients disagree, relative to the global one and absolutely.

    With ∇L = Σ_k p_k ∇L_k:  B² = Σ_k p_k ‖∇L_k‖² / ‖∇L‖²,  G² = Σ_k p_k ‖∇L_k - ∇L‖², tied by
    Σ_k p_k ‖∇L_k‖² = G² + ‖∇L‖². So B² >= 1, and B² = 1 only if all gradients are equal. Near the
    optimum ‖∇L‖ goes to 0 and B² to infinity while G² stays: B² can't be bounded there unless the
    clients share an optimum.

    Args:
        gradients: (N, d), from :func:`client_gradients`.
        p: (N,) weights summing to 1; ValueError if they don't, or don't fit.

    Example:
        >>> g = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> gradient_dissimilarity(g, torch.tensor([0.5, 0.5]))
        Dissimilarity(B2=2.0, G2=0.5)

    Reference:
        B²: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, 2020, FedProx, Definition 3. G²:
        Karimireddy et al., 2020, SCAFFOLD, (A1): Σ_k p_k ‖∇L_k‖² <= G² + B² ‖∇L‖², which the
        identity above meets with B = 1 and G² the largest G²(theta).
    """
    _weights("gradient_dissimilarity", gradients, p)
    gradients = wide(gradients)
    p = p.to(gradients)
    g = p @ gradients
    mean_square, square = float(p @ gradients.square().sum(1)), float(g.square().sum())
    spread = float(p @ (gradients - g).square().sum(1))
    if square > 0:
        return Dissimilarity(mean_square / square, spread)
    return Dissimilarity(1.0 if mean_square == 0 else float("inf"), spread)


class Drift(NamedTuple):
    """What :func:`drift` returns.

    Attributes:
        each: (K,) ‖delta_k‖ = ‖theta_k - theta‖, how far every client went.
        together: ‖Σ_k p_k delta_k‖, how far the server goes.
        lost: 1 - ‖Σ_k p_k delta_k‖² / Σ_k p_k ‖delta_k‖², the share of the updates (in squared
            length) that cancels in the mean: 0 if all agree, 1 if the mean is 0.
    """

    each: Tensor
    together: float
    lost: float


def drift(deltas: Tensor, p: Tensor) -> Drift:
    """How far the clients went, and how much of it cancels in the mean.

    Args:
        deltas: (K, d) updates, ``Round.deltas``.
        p: (K,) weights summing to 1, ``Round.p``; ValueError if they don't, or don't fit.

    Example:
        >>> d = drift(torch.tensor([[3.0, 4.0], [3.0, -4.0]]), torch.tensor([0.5, 0.5]))
        >>> d.each.tolist(), d.together, round(d.lost, 2)
        ([5.0, 5.0], 3.0, 0.64)

    Reference:
        Karimireddy et al., 2020, SCAFFOLD, §3 ("client drift"); ``lost`` is the variance share of
        the updates.
    """
    _weights("drift", deltas, p)
    deltas = wide(deltas)
    p = p.to(deltas)
    each, together = deltas.norm(dim=1), float((p @ deltas).norm())
    total = float(p @ each.square())
    return Drift(each, together, 1.0 - together**2 / total if total > 0 else 0.0)


def cosines(deltas: Tensor, p: Tensor) -> Tensor:
    """Cosine of every client's update to the weighted mean, (K,); 0 where one of them is 0.

    Args:
        deltas, p: As for :func:`drift`, which also says what raises.

    Example:
        >>> cosines(torch.tensor([[3.0, 4.0], [3.0, -4.0]]), torch.tensor([0.5, 0.5]))
        tensor([0.6000, 0.6000])
    """
    _weights("cosines", deltas, p)
    deltas = wide(deltas)
    mean = p.to(deltas) @ deltas
    length = deltas.norm(dim=1) * mean.norm()
    return torch.where(length > 0, deltas @ mean / length.clamp(min=1e-30), 0.0)


def weight_divergence(theta: Tensor, reference: Tensor) -> float:
    """Distance from the centrally trained model: ‖theta - reference‖ / ‖reference‖.

    Args:
        theta: (d,) federated parameters.
        reference: (d,) those of the same recipe with all data in one place; ValueError if it is 0
            or of another shape.

    Example:
        >>> weight_divergence(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]))
        1.25

    Reference:
        Zhao et al., 2018, eq. 2.
    """
    theta, reference = wide(theta), wide(reference)
    if theta.shape != reference.shape or float(reference.norm()) == 0:
        raise ValueError(
            f"weight_divergence: needs two vectors (d,), the reference not 0, got shapes "
            f"{tuple(theta.shape)} and {tuple(reference.shape)}, norm {float(reference.norm()):.3g}"
        )
    return float((theta - reference).norm() / reference.norm())


def _shares(name: str, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """q (N, C), p (N,)."""
    n = np.asarray(counts, float)
    good = n.ndim == 2 and not (n < 0).any() and not (n.sum(1) == 0).any()
    rule, so = "(N, C), >= 0, with no empty client", "partition.counts(parts, labels, classes)"
    check(name, "counts", n.shape, good, rule, so)
    return n / n.sum(1, keepdims=True), n.sum(1) / n.sum()


def _entropy(q: np.ndarray) -> np.ndarray:
    return -(q * np.log2(np.where(q > 0, q, 1.0))).sum(-1)


def _weights(name: str, rows: Tensor, p: Tensor) -> None:
    real = rows.is_floating_point()  # masked ones are none
    if not real or rows.dim() != 2 or p.shape != rows.shape[:1] or abs(float(p.sum()) - 1) > 1e-4:
        raise ValueError(
            f"{name}: needs real rows (K, d) and weights p (K,) that sum to 1, got shapes "
            f"{tuple(rows.shape)} and {tuple(p.shape)}, sum {float(p.sum()):.4g}, e.g. n / n.sum()"
        )
