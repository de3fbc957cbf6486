"""How an attacker searches: two optimisers, what they lower, and what is checked first."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import check, is_whole, whole


class Guess(NamedTuple):
    """Where a search stands.

    Attributes:
        x: (B, ...) the examples found so far.
        y: (B, C) probabilities of their labels; (B,) where the labels were given.
        loss: What is being minimised, at x.
        step: Steps taken, 0 for the start.
    """

    x: Tensor
    y: Tensor
    loss: float
    step: int


def lbfgs(
    loss: Callable[[], Tensor],
    variables: list[Tensor],
    now: Callable[[], tuple[Tensor, Tensor]],
    steps: int,
    enough: float,
) -> Iterator[Guess]:
    """One line search a step; the loss of a guess is the loss at that guess."""
    search = torch.optim.LBFGS(
        variables,
        max_iter=1,  # a step is an iteration; what it learned is kept from step to step
        max_eval=25,
        history_size=50,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        search.zero_grad()
        value = loss()
        value.backward()
        return value.item()

    step, value = 0, loss().item()
    while math.isfinite(value):
        yield Guess(*now(), value, step)
        if step == steps or value <= enough:
            return
        search.step(closure)
        step, before, value = step + 1, value, loss().item()
        if value == before:  # the line search found nothing better: nor will the next
            return


def signed_adam(
    loss: Callable[[], Tensor], x: Tensor, y: Tensor, steps: int, lr: float
) -> Iterator[Guess]:
    """Adam on the signs of the slope, its rate falling thrice; x stays within [0, 1]."""
    search = torch.optim.Adam([x], lr)
    falls = [round(steps * f) for f in (3 / 8, 5 / 8, 7 / 8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(search, falls, gamma=0.1)
    for step in range(steps + 1):
        search.zero_grad()
        value = loss()
        yield Guess(x.detach().clone(), y, value.item(), step)
        if step == steps or not math.isfinite(value.item()):
            return
        value.backward()
        assert x.grad is not None
        x.grad.sign_()
        search.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(0, 1)


def relative(name: str, target: Tensor) -> Callable[[Tensor], Tensor]:
    """‖g - target‖² / ‖target‖²."""
    whole = target @ target
    return lambda g: ((as_long_as(name, g, target) - target) ** 2).sum() / whole


def as_long_as(name: str, g: Tensor, target: Tensor) -> Tensor:
    """g, if it has the target's length."""
    if g.shape != target.shape:
        raise ValueError(
            f"{name}: target must have the length of the client's message, {tuple(g.shape)}, got "
            f"{tuple(target.shape)}, e.g. send(x, y)"
        )
    return g


def start(rng: np.random.Generator, shape: Sequence[int], target: Tensor) -> Tensor:
    """x' uniform in [0, 1]."""
    return torch.from_numpy(rng.random(tuple(shape))).to(target).requires_grad_()


def variation(shape: Sequence[int], picture: tuple[int, int] | None) -> Callable[[Tensor], Tensor]:
    """TV: the mean absolute difference of neighbouring pixels, down and across."""
    h, w = picture or tuple(shape)[-2:]
    pixels = math.prod(shape[1:])
    whole_sizes = is_whole(h, 2) and is_whole(w, 2)
    if not whole_sizes or (len(shape) < 3 and not picture) or pixels % (h * w):
        raise ValueError(
            "invert_cosine: total variation needs pictures: picture must be (h, w) and fill an "
            f"example of {pixels} numbers, got {picture}, e.g. picture=(8, 8)"
        )

    def variation(x: Tensor) -> Tensor:
        v = x.reshape(-1, h, w)
        return (v[:, 1:] - v[:, :-1]).abs().mean() + (v[..., 1:] - v[..., :-1]).abs().mean()

    return variation


def check_search(name: str, target: Tensor, shape: Sequence[int], steps: int) -> None:
    """What every search is given: a message to match, a batch's shape, steps."""
    fine = target.dim() == 1 and target.is_floating_point() and bool(target.isfinite().all())
    fine = fine and not target.requires_grad and bool((target != 0).any())
    rule = "a finite vector (d,) other than 0, without a graph"
    check(name, "target", target, fine, rule, "send(x, y)")
    sizes = np.iterable(shape) and len(shape) >= 2 and all(map(is_whole, shape))
    check(name, "shape", shape, sizes, "(B, ...), integers >= 1", "(1, 64)")
    whole(name, "steps", steps, example=100)


def check_labels(name: str, y: Tensor, shape: Sequence[int]) -> None:
    """One integer label an example."""
    ok = tuple(y.shape) == (shape[0],) and y.dtype == torch.int64 and bool((y >= 0).all())
    rule = f"{shape[0]} integer labels >= 0, int64, one an example"
    check(name, "y", y, ok, rule, "torch.tensor([3])")
