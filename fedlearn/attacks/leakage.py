"""What a gradient or a model tells without any search: an input, labels, who was trained on.

A server that keeps to the protocol sees exactly these numbers, and needs no more than these lines.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import check, is_whole, number, whole


def invert_linear(
    weight_grad: Tensor, bias_grad: Tensor, rows: Sequence[int] | None = None
) -> Tensor:
    r"""The input of a fully connected layer, from the gradients of its weights and biases.

    With scores z = W x + b every row k has ∂L/∂W_k = (∂L/∂z_k) x and ∂L/∂b_k = ∂L/∂z_k, so that

        x = (∂L/∂W_k) / (∂L/∂b_k),

    whatever stands behind the layer. It is exact for one example; all rows together are solved by
    least squares, x = Σ_k ∂L/∂b_k ∂L/∂W_k / Σ_k (∂L/∂b_k)². For a batch row k gives a mixture,
    Σ_i δ_ik x_i / Σ_i δ_ik: one example exactly where a unit is active for that example alone.

    Args:
        weight_grad: ∂L/∂W (units, inputs).
        bias_grad: ∂L/∂b (units,).
        rows: Units whose own ratios are wanted; None for one answer from all of them.

    Returns:
        x (inputs,); with ``rows`` (len(rows), inputs), a ratio each.

    Raises:
        ValueError: If the shapes don't belong together, or every bias gradient (or one of
            ``rows``) is 0.

    Example:
        >>> from fedlearn.model import softmax_regression, views
        >>> task, x = softmax_regression(3, 2), torch.tensor([0.2, 0.5, 1.0])
        >>> y, mask = torch.tensor([[1]]), torch.ones(1, 1)
        >>> g, _ = task.grad(task.theta0[None], x[None, None], y, mask)
        >>> invert_linear(*views(g[0], [(2, 3), (2,)]))
        tensor([0.2000, 0.5000, 1.0000])

    Reference:
        Phong, Aono, Hayashi, Wang, Moriai, 2017, "Privacy-preserving deep learning: revisited and
        enhanced"; Geiping et al., 2020, "Inverting gradients", Proposition 3.1.

    Differs from the papers: least squares over all rows instead of one row. The proposition is
    about a network, whose biased layer may stand behind others without biases; here it is about the
    input of the layer that has the bias.
    """
    units = len(bias_grad) if bias_grad.dim() == 1 else -1
    if weight_grad.dim() != 2 or len(weight_grad) != units or not weight_grad.numel():
        raise ValueError(
            "invert_linear: wants weight_grad (units, inputs) and bias_grad (units,), got "
            f"{tuple(weight_grad.shape)} and {tuple(bias_grad.shape)}, e.g. (10, 64) and (10,)"
        )
    finite = bool(weight_grad.isfinite().all() and bias_grad.isfinite().all())
    check("invert_linear", "weight_grad", "NaN or inf", finite, "finite, like bias_grad", "g[:640]")
    if rows is None:
        scale = bias_grad.abs().max()  # squares of tiny gradients would underflow
        _not_zero(bool(scale > 0), "every bias gradient is 0", "the layer saw no gradient at all")
        g = bias_grad / scale
        return (g / (g @ g)) @ (weight_grad / scale)
    inside = len(rows) > 0 and all(is_whole(k, -units, units - 1) for k in rows)
    check("invert_linear", "rows", list(rows), inside, f"units 0..{units - 1}", [0])
    at = torch.as_tensor(list(map(int, rows)))
    g = bias_grad[at, None]
    _not_zero(bool((g != 0).all()), f"a bias gradient of rows {list(rows)} is 0", "leave it out")
    return weight_grad[at] / g


def _not_zero(ok: bool, what: str, so: str) -> None:
    if not ok:
        raise ValueError(f"invert_linear: {what}: x can't be had from 0 / 0; {so}, e.g. rows=[3]")


def reveal_label(grad: Tensor) -> int:
    """The label 0..C-1 of a single example, by the signs of the last layer's gradient.

    With cross-entropy ∂L/∂b_c = softmax_c - [c = y]: below 0 for the label, above 0 for all others.
    Without biases the rows ∂L/∂W_c = (softmax_c - [c = y]) hᵀ tell it, too: the label's points
    against every other.

    Args:
        grad: The last layer's bias gradient (C,), or its weight gradient (C, inputs), C >= 3.

    Raises:
        ValueError: If not exactly one class stands out: a batch, or an example that the model is so
            sure of that the gradient is 0.

    Example:
        >>> reveal_label(torch.tensor([0.2, -0.9, 0.7]))
        1

    Reference:
        Zhao, Mopuri, Bilen, 2020, "iDLG: improved deep leakage from gradients".

    Differs from the paper: its rule is on the weights' rows, ∇W_cᵀ ∇W_j <= 0 for all j ≠ c. Here
    the biases' signs are read where they are given, and rows must have products < 0, so that a row
    of zeros is no second label.
    """
    fine = grad.dim() in (1, 2) and len(grad) > grad.dim()
    rule = "of shape (C,) with C >= 2, or (C, inputs) with C >= 3"
    check("reveal_label", "grad", tuple(grad.shape), fine, rule, "g[-10:]")
    finite = grad.is_floating_point() and bool(grad.isfinite().all())
    check("reveal_label", "grad", grad, finite, "finite real numbers", "g[-10:]")
    if grad.dim() == 1:
        alone = grad < 0
    else:
        unit = grad / grad.norm(dim=1, keepdim=True).clamp(min=torch.finfo(grad.dtype).tiny)
        against = (unit @ unit.T < 0).sum(1)
        alone = against == len(grad) - 1
    if int(alone.sum()) != 1:
        raise ValueError(
            "reveal_label: exactly one class must point against the others, as it does for one "
            f"example; got {int(alone.sum())}, e.g. label_counts(bias_grad, batch=8) for a batch"
        )
    return int(alone.nonzero())


def label_counts(bias_grad: Tensor, batch: int, expected: Tensor | None = None) -> Tensor:
    r"""How many examples of each label a batch holds, (C,) int64, from the last bias gradient.

    The gradient of the mean cross-entropy is ∂L/∂b_c = q_c - n_c / B, with q the batch's mean
    softmax. So n_c = B (q_c - ∂L/∂b_c), rounded to whole numbers that add up to B. Exact where q is
    known: softmax regression at theta = 0 has q = 1/C. Elsewhere q is an estimate. A model that has
    learned makes q follow the labels; then q ≈ Σ_j n_j P_j / B with P_j the mean softmax of other
    examples with label j, and n is the least-squares solution of B ∂L/∂b = (Pᵀ - I) n and Σ n = B.
    (The columns of Pᵀ - I add up to 0, so that the last equation is needed. A model that is sure of
    every example has P ≈ I: its counts are hardly better than a guess, or worse.)

    Args:
        bias_grad: ∂L/∂b (C,).
        batch: B >= 1, how many examples the gradient averages, else ValueError.
        expected: What the attacker knows of the softmax from examples of its own: its mean (C,), or
            its mean for each label (C, C), a row a label. None for 1/C. ValueError if
            these are no probabilities.

    Example:
        >>> label_counts(torch.tensor([1 / 3 - 0.5, 1 / 3, 1 / 3 - 0.5]), batch=4)
        tensor([2, 0, 2])
        >>> q = torch.tensor([0.5, 0.25, 0.25])  # the model favours label 0
        >>> label_counts(q - torch.tensor([0.75, 0.0, 0.25]), batch=4, expected=q)
        tensor([3, 0, 1])

    Reference:
        Ma et al., 2023, "Instance-wise batch label restoration via gradients in
        federated learning"; Wainakh et al., 2022, "User-level label leakage from gradients in
        federated learning".

    Differs from the papers: Ma et al. take the softmaxes of a batch's examples from embeddings that
    they restore from the weights' gradient, and solve with a pseudoinverse; here what is known of
    the softmax is an argument, and the counts are whole and add up to B. Wainakh et al. need no
    softmax: they estimate what an example adds to a gradient ("impact", "offset"), from the
    gradient, from dummy inputs or from examples of their own, and subtract greedily.
    """
    name, C = "label_counts", bias_grad.numel()
    shaped = bias_grad.dim() == 1 and C >= 2
    check(name, "bias_grad", tuple(bias_grad.shape), shaped, "(C,), C >= 2", "g[-10:]")
    finite = bias_grad.is_floating_point() and bool(bias_grad.isfinite().all())
    check(name, "bias_grad", bias_grad, finite, "finite real numbers", "g[-10:]")
    whole(name, "batch", batch, example=8)
    q = bias_grad.new_full((C,), 1 / C) if expected is None else expected
    sums = q.sum(-1) if q.shape in ((C,), (C, C)) else torch.zeros(())
    fits = bool((q >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all())
    rule = f"{C} probabilities that add up to 1, or {C} rows of them"
    check(name, "expected", q, fits, rule, "torch.ones(C) / C")
    g, q = bias_grad.double(), q.double()
    return _whole(batch * (q - g) if q.dim() == 1 else _solved(g, int(batch), q), int(batch))


def _solved(g: Tensor, batch: int, by_label: Tensor) -> Tensor:
    """n of B g = (Pᵀ - I) n and Σ n = B."""
    C = len(g)
    A = torch.cat([by_label.T - torch.eye(C).to(g), torch.ones(1, C).to(g)])
    solution: Tensor = torch.linalg.lstsq(A, batch * torch.cat([g, torch.ones(1).to(g)])).solution
    return solution


def _whole(n: Tensor, total: int) -> Tensor:
    """The whole numbers >= 0 nearest to n (by squares) that add up to total: one more at a time."""
    counts = torch.zeros_like(n)
    for _ in range(total):
        counts[(n - counts).argmax()] += 1
    return counts.long()


class Membership(NamedTuple):
    """What a loss threshold tells about who was trained on.

    Attributes:
        threshold: Losses at or below it are called members.
        tpr: Share of members that are.
        fpr: Share of the others that are, too.
        advantage: tpr - fpr: 0 for a guess, 1 for certainty.
        auc: Probability that a member's loss is below another's, ties counted half.
    """

    threshold: float
    tpr: float
    fpr: float
    advantage: float
    auc: float


def membership(members: Tensor, others: Tensor, threshold: float | None = None) -> Membership:
    """Membership inference by a loss threshold: what a model fits well, it was trained on.

    Args:
        members: (m,) losses of training examples; ValueError if a group is empty or a loss NaN.
        others: (n,) losses of examples that were not trained on, from the same population.
        threshold: Losses at or below it are called members, e.g. the mean training loss, which
            servers often publish. None: the threshold with the largest advantage on these very
            losses, an upper bound of what any threshold reaches on them (the two-sample
            Kolmogorov-Smirnov distance, one-sided). It is above 0 without any signal, too.

    Example:
        >>> found = membership(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0.3, 0.8, 2.0]))
        >>> round(found.threshold, 2), round(found.advantage, 2), round(found.auc, 2)
        (0.2, 0.67, 0.78)

    Reference:
        Yeom, Giacomelli, Fredrikson, Jha, 2018, "Privacy risk in machine learning: analyzing the
        connection to overfitting" (threshold adversary; membership advantage).

    Differs from the paper: its threshold adversary compares two known densities of the error; a
    cut, e.g. at the mean training loss, is the usual simplification.
    """
    groups = [np.asarray(v, float) for v in (members, others)]
    for name, v in zip(("members", "others"), groups, strict=True):
        fine = v.ndim == 1 and len(v) > 0 and not np.isnan(v).any()
        rule = "losses (n,), at least one and none NaN"
        check("membership", name, v, fine, rule, "task.loss(z, y)")
    a, b = map(np.sort, groups)
    below = np.searchsorted(b, a, "left") + np.searchsorted(b, a, "right")
    auc = 1 - below.sum() / 2 / (len(a) * len(b))
    if threshold is None:
        cuts = np.concatenate([[-math.inf], a])  # between two members the others only add up
        called = lambda v: np.searchsorted(v, cuts, "right") / len(v)
        threshold = float(cuts[(called(a) - called(b)).argmax()])
    check("membership", "threshold", threshold, not math.isnan(number(threshold)), "a number", 0.1)
    threshold = number(threshold)
    tpr, fpr = float((a <= threshold).mean()), float((b <= threshold).mean())
    return Membership(float(threshold), tpr, fpr, tpr - fpr, float(auc))
