"""A backdoor: the model does its work, but sees the attacker's label wherever a trigger is shown.

Poisoned data put it in, a boost makes one client enough. A *trigger* is a function of examples,
x (n, ...) -> (n, ...): :func:`stamp` for pictures.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from ..checks import check, is_whole, number, positive, probability, whole
from ..data import fit, like, tensor
from ..model import Task
from ..partition.base import rows
from ..rng import Use, numpy_rng
from ..transform import Context
from .byzantine import Attack, _attackers

Trigger = Callable[[Tensor], Tensor]  # examples (n, ...) -> the same with the trigger in them


def stamp(x: Tensor, shape: tuple[int, ...], size: int = 2, value: float = 1.0) -> Tensor:
    """A square patch in the bottom right corner of every picture.

    Args:
        x: (n, features) pictures lying flat. A changed copy is returned.
        shape: Of one picture, ``Dataset.shape``: (h, w) or (channels, h, w).
        size: The patch's side in pixels, from 1 to the picture's.
        value: Of its pixels, in every channel. ValueError if x has no such pictures.

    Example:
        >>> import torch
        >>> stamp(torch.zeros(1, 9), (3, 3)).reshape(3, 3)
        tensor([[0., 0., 0.],
                [0., 1., 1.],
                [0., 1., 1.]])

    Reference:
        Gu, Dolan-Gavitt, Garg, 2017, "BadNets: identifying vulnerabilities in the machine learning
        model supply chain" (bright pixels in a corner).
    """
    flat = len(shape) in (2, 3) and x.dim() == 2 and x.shape[1] == math.prod(shape)
    rule = f"(n, features) pictures of shape {tuple(shape)} lying flat"
    check("stamp", "x", tuple(x.shape), flat, rule, "digits.x")
    check("stamp", "x", x.dtype, x.is_floating_point(), "of real numbers", "digits.x")
    fits = is_whole(size, 1, min(shape[-2:]))
    check("stamp", "size", size, fits, f"an integer from 1 to {min(shape[-2:])}", 2)
    check("stamp", "value", value, math.isfinite(number(value)), "finite", 1.0)
    out = x.clone()
    out.unflatten(1, shape)[..., -size:, -size:] = value
    return out


def poison(
    x: Tensor,
    y: Tensor,
    parts: list[np.ndarray],
    attackers: Sequence[int] | np.ndarray,
    trigger: Trigger,
    target: int,
    *,
    share: float = 0.5,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Put the trigger into a share of the attackers' examples, and call these ``target``.

    Args:
        x: (n, ...) examples.
        y: (n,) classes. Changed copies of x and y are returned.
        parts: N index arrays.
        attackers: Different numbers of the clients that do it, else ValueError.
        trigger: x (m, ...) -> (m, ...), e.g. ``lambda x: stamp(x, (8, 8))``.
        target: The label to be seen wherever the trigger is, an integer >= 0, else ValueError.
        share: Of each attacker's examples, > 0 and <= 1, else ValueError; at least one. The rest
            keeps the model good at its work, so that nobody notices.
        seed: Which examples of client k are taken depends on (seed, k) alone.

    Example:
        >>> import torch
        >>> x, y = torch.zeros(4, 9), torch.arange(4)
        >>> parts = [np.array([0, 1]), np.array([2, 3])]
        >>> x2, y2 = poison(x, y, parts, [1], lambda x: stamp(x, (3, 3)), 7, share=1.0)
        >>> y2, x2.sum(1)
        (tensor([0, 1, 7, 7]), tensor([0., 0., 4., 4.]))

    Reference:
        Gu, Dolan-Gavitt, Garg, 2017 (BadNets); on clients: Bagdasaryan, Veit, Hua, Estrin,
        Shmatikov, 2020, "How to backdoor federated learning".
    """
    x, y = tensor("poison", "x", x), tensor("poison", "y", y)
    parts = rows("poison", parts, len(y), empty=True)
    bad = _attackers("poison", attackers, len(parts))
    probability("poison", "share", share, 0.5)
    whole("poison", "target", target, 0, example=7)
    _are_classes("poison", x, y)
    x, y = x.clone(), y.clone()
    for k in bad:
        own = parts[k]
        check("poison", f"parts[{k}]", own, len(own) > 0, "rows, one at least", "np.arange(10)")
        m = max(1, round(share * len(own)))
        some = numpy_rng(seed, Use.ATTACK, int(k)).choice(own, size=m, replace=False)
        x[some], y[some] = _shown("poison", trigger, x[some]), target
    return x, y


def _are_classes(name: str, x: Tensor, y: Tensor) -> None:
    fine = y.shape == (len(x),) and not y.is_floating_point() and len(x) > 0
    rule = f"a class for each of {len(x)} examples, (n,) integers"
    check(name, "y", f"{tuple(y.shape)} {y.dtype}", fine, rule, "digits.y")


def _shown(name: str, trigger: Trigger, x: Tensor) -> Tensor:
    """The examples with the trigger in them; one for all would be spread over them unnoticed."""
    out = trigger(x)
    same = out.shape == x.shape and bool(out.isfinite().all())
    rule = f"examples -> finite ones of the same shape {tuple(x.shape)}"
    check(name, "trigger", tuple(out.shape), same, rule, "lambda x: stamp(x, (8, 8))")
    return out


def boost(factor: float) -> Attack:
    """The own update ``factor`` times as long: *model replacement*.

    In a mean, an attacker with weight p_k and factor 1 / (server_lr p_k) puts the server where its
    own model is, once the honest updates have become small: theta + delta_k + Σ_j≠k p_j delta_j.

    Args:
        factor: > 0 and finite, else ValueError; 1 changes nothing. The paper's n / eta is K for K
            equal clients.

    Example:
        >>> import torch
        >>> boost(20.0)(torch.zeros(19, 1), torch.tensor([[0.5]]), None)
        tensor([[10.]])

    Reference:
        Bagdasaryan et al., 2020 ("model replacement").
    """
    positive("boost", "factor", factor, 20.0)
    return lambda honest, own, ctx: factor * own


def hide(radius: float = 0.7) -> Attack:
    """The own update, pulled towards the honest mean until it is nobody's outlier. Omniscient.

    mu + (own - mu) min(1, r / ‖own - mu‖), with mu the honest mean and r = ``radius`` times the
    median of the honest distances to it. With radius < 1 an attacker lies nearer to the centre than
    half of the honest: a rule that keeps what is central may well keep the attackers.

    Args:
        radius: In median honest distances, > 0 and finite, else ValueError.

    Example:
        >>> import torch
        >>> honest = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])  # both at distance 1
        >>> hide(0.5)(honest, torch.tensor([[0.0, 8.0]]), None)
        tensor([[0.0000, 0.5000]])

    Reference:
        The idea of Bagdasaryan et al., 2020 ("constrain-and-scale").

    Differs from the paper: there the distance is a term of the attacker's loss; here it is a
    projection, and the attacker sees the honest updates.
    """
    positive("hide", "radius", radius, 0.7)

    def attack(honest: Tensor, own: Tensor, ctx: Context) -> Tensor:
        mu = honest.mean(0)
        r = radius * (honest - mu).norm(dim=1).median()
        off = own - mu
        return mu + off * (r / off.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)

    return attack


def backdoor_rate(
    task: Task, theta: Tensor, x: Tensor, y: Tensor, trigger: Trigger, target: int
) -> float:
    """How often the trigger works: the share of examples of OTHER classes then seen as ``target``.

    From 0 to 1. Compare with the rate of an honest model: what it mistakes for ``target``.

    Args:
        task: The model.
        theta: (d,) its parameters.
        x: (m, ...) test examples, without the trigger.
        y: (m,) their true classes.
        trigger, target: As for :func:`poison`; ValueError if all examples are of class ``target``,
            the model has no such class, or its scores are NaN.

    Example:
        >>> import torch
        >>> from fedlearn.model import softmax_regression
        >>> task = softmax_regression(4, 3)
        >>> theta = torch.zeros(15)
        >>> theta[-1] = 1.0  # the last bias: this model always says 2
        >>> x, y = torch.zeros(3, 4), torch.tensor([0, 1, 2])
        >>> backdoor_rate(task, theta, x, y, lambda x: stamp(x, (2, 2), 1), target=2)
        1.0

    Reference:
        Bagdasaryan et al., 2020 (their "backdoor accuracy").
    """
    x, y = (like(v, theta) for v in fit("backdoor_rate", task, x, y, theta))
    whole("backdoor_rate", "target", target, 0, example=7)
    _are_classes("backdoor_rate", x, y)
    scores = task.predict(theta, x[:1])
    rule = "a model with a score for each class"
    check("backdoor_rate", "task", tuple(scores.shape), scores[0].numel() > 1, rule, "mlp(64, 10)")
    others = y != target
    good = bool(others.any())
    check("backdoor_rate", "target", target, good, "not the class of all examples", 7)
    scores = task.predict(theta, _shown("backdoor_rate", trigger, x[others]))
    known = target < scores.shape[-1]
    check("backdoor_rate", "target", target, known, f"a class 0..{scores.shape[-1] - 1}", 1)
    check("backdoor_rate", "theta", theta, bool(scores.isfinite().all()), "finite", "state.theta")
    return float((scores.argmax(-1) == target).double().mean())
