"""Feature skew and concept shift: every client sees, or names, things in its own way.

A partition decides who holds what; these functions then change the examples of each client. Each
takes one number a client and returns changed copies: (x, parts, amount (N,)) -> x. Pictures in
[0, 1] stay there; what is not in [0, 1], standardised features, say, is never clipped.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .checks import check
from .data import tensor
from .partition.base import rows
from .rng import Use, numpy_rng


def rotate(
    x: Tensor,
    parts: list[np.ndarray],
    degrees: Sequence[float],
    shape: tuple[int, ...],
    fill: float | None = None,
) -> Tensor:
    """Turn client k's pictures by ``degrees[k]``, counter-clockwise, filling the corners.

    Args:
        x: (n, features) pictures lying flat. A changed copy is returned.
        parts: N index arrays.
        degrees: (N,) finite angles, else ValueError.
        shape: Of one picture, ``Dataset.shape``; ValueError if x has no such pictures.
        fill: What lies behind a picture. None: 0, black; ValueError if x holds numbers below 0,
            among which 0 is a grey.

    Example:
        >>> x = torch.tensor([[1.0, 0.0, 0.0, 0.0]])  # a picture of 2x2, its top left is 1
        >>> rotate(x, [np.array([0])], [90.0], (2, 2))
        tensor([[0., 0., 1., 0.]])

    Reference:
        Hsieh, Phanishayee, Mutlu, Gibbons, 2020, "The non-IID data quagmire of decentralized
        machine learning", §2, for feature skew; rotation as in Ghosh et al., 2020 (IFCA), §6.
    """
    from torchvision.transforms.v2 import InterpolationMode, functional

    if len(shape) < 2:
        raise ValueError(
            f"rotate: needs pictures, got examples of shape {shape}, e.g. data.load('digits')"
        )
    x = _real("rotate", x)
    flat = x.dim() == 2 and x.shape[1] == np.prod(shape)
    rule = f"pictures of shape {shape} lying flat"
    check("rotate", "x", tuple(x.shape), flat, rule, "x.flatten(1)")
    black = float(x.min()) if fill is None else 0.0
    rule = "given for pictures with numbers below 0, which are not black at 0"
    check("rotate", "fill", fill, black >= 0, rule, f"{black:.3g}")
    bilinear, behind = InterpolationMode.BILINEAR, float(fill or 0.0)

    def turn(own: Tensor, angle: float) -> Tensor:
        if not angle:
            return own
        pictures = own.unflatten(1, shape if len(shape) == 3 else (1, *shape)) - behind
        turned = functional.rotate(pictures, angle, interpolation=bilinear) + behind
        return turned.flatten(1)

    return _each("rotate", x, parts, degrees, turn)


def add_noise(x: Tensor, parts: list[np.ndarray], std: Sequence[float], seed: int = 0) -> Tensor:
    """Add Gaussian noise of standard deviation ``std[k]`` to client k's features.

    Where all of x lies in [0, 1] the result is clipped to it; elsewhere nothing is clipped.

    Args:
        x: (n, features) real numbers. A changed copy is returned.
        parts: N index arrays.
        std: (N,) standard deviations, >= 0 and finite, else ValueError.
        seed: The draw of client k depends on (seed, k) alone.

    Example:
        >>> x = torch.full((2, 3), 0.5)
        >>> add_noise(x, [np.array([0]), np.array([1])], [0.0, 0.2])[0]
        tensor([0.5000, 0.5000, 0.5000])

    Reference:
        Li, Diao, Chen, He, 2022, NIID-Bench, §IV-B: client k gets noise of variance sigma * k / N.
    """
    check("add_noise", "std", min(std, default=0), not any(s < 0 for s in std), ">= 0", [0.0, 0.1])
    x = _real("add_noise", x)
    clip = _clip(x)
    draws = iter(numpy_rng(seed, Use.SKEW, k) for k in range(len(parts)))

    def blur(own: Tensor, s: float) -> Tensor:
        noise = torch.from_numpy(next(draws).standard_normal(own.shape)).to(own)
        return clip(own + s * noise) if s else own

    return _each("add_noise", x, parts, std, blur)


def brighten(x: Tensor, parts: list[np.ndarray], factor: Sequence[float]) -> Tensor:
    """Multiply client k's features by ``factor[k]``.

    Where all of x lies in [0, 1] the result is clipped to it; elsewhere nothing is clipped.

    Args:
        x: (n, features) real numbers. A changed copy is returned.
        parts: N index arrays.
        factor: (N,) factors, >= 0 and finite, else ValueError; 1 changes nothing, 0 is black.

    Example:
        >>> brighten(torch.tensor([[0.4, 0.8]]), [np.array([0])], [1.5])
        tensor([[0.6000, 1.0000]])
    """
    good = not any(f < 0 for f in factor)
    check("brighten", "factor", min(factor, default=0), good, ">= 0", [1.0, 0.5])
    x = _real("brighten", x)
    clip = _clip(x)
    return _each("brighten", x, parts, factor, lambda own, f: clip(own * f))


def swap_labels(
    y: Tensor, parts: list[np.ndarray], pairs: Sequence[tuple[int, int] | None]
) -> Tensor:
    """Concept shift: client k calls label a b and label b a; None leaves a client as it is.

    Args:
        y: (n, ...) classes, integers, else ValueError. A changed copy is returned.
        parts: N index arrays.
        pairs: (N,) pairs (a, b), or None; ValueError if there isn't one a client, or if y holds no
            such label.

    Example:
        >>> swap_labels(torch.tensor([0, 1, 1]), [np.array([0, 1]), np.array([2])], [(0, 1), None])
        tensor([1, 0, 1])

    Reference:
        Kairouz et al., 2021, "Advances and open problems in federated learning", §3.1 ("same
        features, different label").
    """
    N, rule = len(parts), f"a pair or None for each of {len(parts)} clients"
    check("swap_labels", "pairs", len(pairs), len(pairs) == N, rule, f"[(4, 9)] + [None] * {N - 1}")
    y = tensor("swap_labels", "y", y)
    check(
        "swap_labels", "y", str(y.dtype), not y.is_floating_point(), "integer classes", "y.long()"
    )
    there = y.unique().tolist()
    for swap in filter(None, pairs):
        known = len(swap) == 2 and all(label in there for label in swap)
        rule = f"two labels that y holds, of {there[:20]}"
        check("swap_labels", "a pair", tuple(swap), known, rule, tuple(there[-2:]))
    out = y.clone()
    for own, pair in zip(rows("swap_labels", parts, len(y), empty=True), pairs, strict=True):
        if pair is not None:
            mine, (a, b) = y[own], pair
            out[own] = torch.where(mine == a, b, torch.where(mine == b, a, mine)).to(y.dtype)
    return out


def _real(name: str, x: Tensor) -> Tensor:
    """x as a tensor; ValueError for integers, whose changes would be cut to whole numbers."""
    x = tensor(name, "x", x)
    check(name, "x", str(x.dtype), x.is_floating_point(), "real numbers", "x.float() / 255")
    return x


def _clip(x: Tensor) -> Callable[[Tensor], Tensor]:
    inside = bool(((x >= 0) & (x <= 1)).all())
    return lambda v: v.clamp(0, 1) if inside else v


def _each(
    name: str,
    x: Tensor,
    parts: list[np.ndarray],
    amounts: Sequence[float],
    change: Callable[[Tensor, float], Tensor],
) -> Tensor:
    if len(amounts) != len(parts) or not np.isfinite(amounts).all():
        raise ValueError(
            f"{name}: needs one finite number for each of {len(parts)} clients, got "
            f"{list(amounts)[:5]}, e.g. np.linspace(0, 1, {len(parts)})"
        )
    out = x.clone()
    for own, amount in zip(rows(name, parts, len(x), empty=True), amounts, strict=True):
        out[own] = change(x[own], float(amount))
    return out
