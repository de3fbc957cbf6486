"""Gradient inversion by search: examples whose gradient is the one that was sent.

The attacker is a server that keeps to the protocol. It knows how a client makes its message of its
examples, a function ``send(x, y)`` as :mod:`fedlearn.attacks.messages` makes it, and looks for x'
(and y') with send(x', y') = what it received. That it finds none proves nothing: a better start or
a better prior may. How it is searched: :mod:`fedlearn.attacks.search`.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..checks import check, not_negative, positive, whole
from ..rng import Use, numpy_rng
from . import search
from .messages import Send
from .search import Guess


def dlg(
    send: Send,
    target: Tensor,
    shape: Sequence[int],
    classes: int,
    *,
    steps: int = 100,
    seed: int = 0,
    restart: int = 0,
    enough: float = 1e-10,
) -> Iterator[Guess]:
    """Deep leakage from gradients: min over x', y' of ‖send(x', y') - g‖² / ‖g‖², by L-BFGS.

    The labels are searched for together with the examples, as softmax of free numbers.

    Args:
        send: What the client does: ``gradient(task, theta)``, ``update(task, theta, lr, steps)``.
        target: g (d,), what it sent.
        shape: (B, ...) of the batch that is looked for.
        classes: C.
        steps: L-BFGS steps at most, each with one line search.
        seed: Of the start.
        restart: Which start: another number, another start.
        enough: The search ends when the loss is at or below it.

    Returns:
        An iterator of :class:`Guess`: the start, then one a step.

    Raises:
        ValueError: If an argument is out of range, or the message's length isn't the target's.

    Example:
        >>> from fedlearn.attacks import gradient
        >>> from fedlearn.model import softmax_regression
        >>> task, x, y = softmax_regression(4, 3), torch.rand(1, 4), torch.tensor([2])
        >>> send = gradient(task, task.theta0)
        >>> *_, last = dlg(send, send(x, y), (1, 4), 3)
        >>> torch.allclose(last.x, x, atol=1e-3), last.y.argmax().item()
        (True, 2)

    Reference:
        Zhu, Liu, Han, 2019, "Deep leakage from gradients", Algorithm 1.

    Differs from the paper: the distance is relative, so that its scale doesn't matter to the
    search; L-BFGS with a Wolfe line search, where Algorithm 1 writes a gradient step (the
    experiments use L-BFGS); labels as softmax, as in the released code; x' starts uniform in
    [0, 1], not from N(0, 1); a batch is searched for all at once, not an example at a time.
    """
    whole("dlg", "classes", classes, 2)
    search.check_search("dlg", target, shape, steps)
    not_negative("dlg", "enough", enough, 1e-10)
    rng = numpy_rng(seed, Use.GUESS, restart)
    x = search.start(rng, shape, target)
    logits = torch.from_numpy(rng.standard_normal((shape[0], classes))).to(target)
    logits.requires_grad_()
    distance = search.relative("dlg", target)
    loss = lambda: distance(send(x, logits.softmax(-1)))
    now = lambda: (x.detach().clone(), logits.detach().softmax(-1))
    return search.lbfgs(loss, [x, logits], now, steps, enough)


def idlg(
    send: Send,
    target: Tensor,
    shape: Sequence[int],
    y: Tensor,
    *,
    steps: int = 100,
    seed: int = 0,
    restart: int = 0,
    enough: float = 1e-10,
) -> Iterator[Guess]:
    """DLG with labels that are known: min over x' of ‖send(x', y) - g‖² / ‖g‖², by L-BFGS.

    For one example :func:`~fedlearn.attacks.reveal_label` gives the label, for a batch
    :func:`~fedlearn.attacks.label_counts` the labels in some order, which is all that matters.

    Args:
        send, target, shape, steps, seed, restart, enough: As for :func:`dlg`, which also says what
            is returned and what raises.
        y: (B,) labels.

    Example:
        >>> from fedlearn.attacks import gradient
        >>> from fedlearn.model import softmax_regression
        >>> task, x, y = softmax_regression(4, 3), torch.rand(1, 4), torch.tensor([2])
        >>> send = gradient(task, task.theta0)
        >>> *_, last = idlg(send, send(x, y), (1, 4), y)
        >>> torch.allclose(last.x, x, atol=1e-3)
        True

    Reference:
        Zhao, Mopuri, Bilen, 2020, "iDLG: improved deep leakage from gradients", Algorithm 1.

    Differs from the paper: as :func:`dlg`; the labels are an argument; batches, too.
    """
    search.check_search("idlg", target, shape, steps)
    search.check_labels("idlg", y, shape)
    not_negative("idlg", "enough", enough, 1e-10)
    x = search.start(numpy_rng(seed, Use.GUESS, restart), shape, target)
    distance = search.relative("idlg", target)
    now = lambda: (x.detach().clone(), y)
    return search.lbfgs(lambda: distance(send(x, y)), [x], now, steps, enough)


def invert_cosine(
    send: Send,
    target: Tensor,
    shape: Sequence[int],
    y: Tensor,
    *,
    tv: float = 0.0,
    picture: tuple[int, int] | None = None,
    steps: int = 400,
    lr: float = 0.1,
    seed: int = 0,
    restart: int = 0,
) -> Iterator[Guess]:
    """Inverting gradients: min over x' in [0, 1] of 1 - cos(send(x', y), g) + tv TV(x').

    Adam on the sign of the slope; its rate falls to a tenth after 3/8, 5/8 and 7/8 of the steps;
    after each step x' is cut to [0, 1]. The cosine doesn't see the norm, so that clipping the whole
    message changes nothing (clipping each example's gradient does). The total variation TV, the
    mean absolute difference of neighbouring pixels, is a prior: pictures are smooth. It helps where
    the gradient leaves the pictures open.

    Args:
        send, target, shape, seed, restart: As for :func:`dlg`, which also says what is returned and
            what raises.
        y: (B,) labels.
        tv: Weight of the total variation, >= 0.
        picture: (h, w) of an example that lies flat; None if ``shape`` ends in it.
        steps: How many.
        lr: Of the first steps: how far a pixel moves in one.

    Example:
        >>> from fedlearn.attacks import gradient
        >>> from fedlearn.model import softmax_regression
        >>> task, x, y = softmax_regression(4, 3), torch.rand(1, 4), torch.tensor([2])
        >>> send = gradient(task, task.theta0)
        >>> *_, last = invert_cosine(send, 7 * send(x, y), (1, 4), y)
        >>> torch.allclose(last.x, x, atol=0.01)
        True

    Reference:
        Geiping, Bauermeister, Dröge, Moeller, 2020, "Inverting gradients: how easy is it to break
        privacy in federated learning?", the cost of §4.

    Differs from the paper: x' starts uniform in [0, 1]; fewer steps and, without :func:`best`, no
    restarts.
    """
    search.check_search("invert_cosine", target, shape, steps)
    search.check_labels("invert_cosine", y, shape)
    positive("invert_cosine", "lr", lr)
    not_negative("invert_cosine", "tv", tv, 0.01)
    smooth = search.variation(shape, picture) if tv else None
    x = search.start(numpy_rng(seed, Use.GUESS, restart), shape, target)

    def loss() -> Tensor:
        g = search.as_long_as("invert_cosine", send(x, y), target)
        out = 1 - torch.cosine_similarity(g, target, dim=0)
        return out + tv * smooth(x) if smooth else out

    return search.signed_adam(loss, x, y, steps, lr)


def best(
    attack: Callable[[int], Iterator[Guess]], restarts: int = 4, enough: float = 1e-8
) -> Guess:
    """The :class:`Guess` with the smallest loss among all steps of several starts.

    Args:
        attack: restart -> a search, e.g. ``lambda r: dlg(send, g, (1, 64), 10, restart=r)``.
        restarts: How many starts at most, >= 1; ValueError if not, or if no loss was finite.
        enough: No further start when the loss is at or below it.

    Example:
        >>> searches = [[3.0, 2.0], [4.0, 1.0]]
        >>> guesses = lambda r: (Guess(None, None, v, t) for t, v in enumerate(searches[r]))
        >>> best(guesses, restarts=2).loss
        1.0
    """
    whole("best", "restarts", restarts, example=4)
    not_negative("best", "enough", enough, 1e-8)
    found: Guess | None = None
    for r in range(restarts):
        for guess in attack(r):
            if math.isfinite(guess.loss) and (found is None or guess.loss < found.loss):
                found = guess
        if found and found.loss <= enough:
            break
    if found is None:
        raise ValueError(
            f"best: no search gave a finite loss in {restarts} starts; is the target finite and "
            "the learning rate small enough, e.g. lr=0.1?"
        )
    return found


def match(guess: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """How close a guessed batch is: mean squared error of each example after the best assignment.

    A gradient doesn't know the order of its batch, so the guesses are matched to the examples such
    that the errors' sum is smallest (the Hungarian method).

    Args:
        guess, truth: (B, ...) both, else ValueError. -> errors (B,), and order (B,):
            ``guess[order[i]]`` belongs to ``truth[i]``.

    Example:
        >>> truth = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        >>> match(truth.flip(0) + 0.1, truth)
        (tensor([0.0100, 0.0100]), tensor([1, 0]))
    """
    if guess.shape != truth.shape or guess.dim() < 2 or not guess.numel():
        raise ValueError(
            "match: wants two batches of one shape (B, ...), got "
            f"{tuple(guess.shape)} and {tuple(truth.shape)}, e.g. (4, 64) and (4, 64)"
        )
    for name, batch in (("guess", guess), ("truth", truth)):
        fine = batch.is_floating_point() and bool(batch.isfinite().all())
        check("match", name, batch, fine, "finite real numbers", "last.x")
    from scipy.optimize import linear_sum_assignment

    a, b = guess.detach().flatten(1), truth.detach().flatten(1)
    cost = ((b[:, None] - a[None]) ** 2).mean(-1)  # (truth, guess)
    found = torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1]).to(cost.device)
    return cost.gather(1, found[:, None])[:, 0], found
