"""Clients that send what they like: a wrapper for any clients, and attacks as small functions.

An attack sees what the honest clients of the round send and what its own clients would have sent:
(honest (H, d), own (f, d), ctx) -> (f, d). That is an *omniscient* attacker: no real one knows as
much. A proof against every such attack covers the weaker ones; that a rule withstands these five
is a measurement. ``sign_flip`` and ``gaussian`` don't look; ``label_flip`` changes data and nothing
else.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from ..algorithms import Message, Reply
from ..checks import check, is_whole, positive, whole
from ..data import tensor
from ..loop import Clients
from ..partition.base import rows
from ..recipe import Memories
from ..rng import Use
from ..task import wide
from ..transform import Context

Attack = Callable[[Tensor, Tensor, Context], Tensor]  # honest (H, d), own (f, d), ctx -> (f, d)


class Byzantine:
    """Clients of which some attack: all train, then the attackers' rows of ``delta`` are replaced.

    The attackers act behind the client's stages of the pipeline: a clip that runs on the client
    binds the obedient. What else the reply holds, ``n`` and a method's second vector, stays as
    trained. A cohort without an attacker stays as it is; in one without an honest client the
    attackers have their own updates to look at.

    Args:
        clients: Whom to wrap, e.g. ``Simulated``; or another ``Byzantine``, for attackers of a
            second kind, who see what those of the first kind send.
        attackers: Different numbers of the clients that attack, e.g. ``range(2)``, else ValueError.
        attack: What they send instead, e.g. ``sign_flip(5.0)``. Its ``ctx.answered`` are the
            attackers of this round, which raises ValueError if it returns another shape.

    Example:
        >>> from fedlearn import algorithms, model
        >>> from fedlearn import Recipe, Simulated
        >>> task = model.softmax_regression(2, 2)
        >>> recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0)
        >>> parts = [np.array([0]), np.array([1])]
        >>> honest = Simulated(recipe, torch.eye(2), torch.tensor([0, 1]), parts)
        >>> from fedlearn.diagnostics import updates
        >>> a, _ = updates(honest)
        >>> b, _ = updates(Byzantine(honest, [1], sign_flip(3.0)))
        >>> bool((b[0] == a[0]).all() and (b[1] == -3 * a[1]).all())
        True

    Reference:
        Lamport, Shostak, Pease, 1982, "The Byzantine generals problem", for the name; Blanchard, El
        Mhamdi, Guerraoui, Stainer, 2017, "Machine learning with adversaries", §2, for the model.
    """

    def __init__(self, clients: Clients, attackers: Sequence[int] | np.ndarray, attack: Attack):
        self.clients, self.count, self.device = clients, clients.count, clients.device
        self.recipe, self.memory = clients.recipe, clients.memory
        self.attackers, self.attack = _attackers("Byzantine", attackers, clients.count), attack

    def run(self, message: Message, ctx: Context, memory: Memories) -> tuple[Reply, Memories]:
        """Train the clients ``ctx.answered``, then replace the attackers' updates."""
        reply, kept = self.clients.run(message, ctx._replace(rows=True), memory)
        return self.strike(reply, ctx.heard(reply)), kept

    def strike(self, reply: Reply, ctx: Context) -> Reply:
        """The reply of ``ctx.answered`` with the attackers' updates in place of their own."""
        bad = np.isin(ctx.answered, self.attackers)
        if not bad.any():
            return reply
        delta, them = reply["delta"].clone(), torch.from_numpy(bad).to(self.device)
        own = delta[them]
        seen = own if bad.all() else delta[~them]
        sent = self.attack(seen, own, ctx.keep(bad))
        got = tuple(sent.shape) if isinstance(sent, Tensor) else type(sent).__name__
        if got != own.shape or sent.is_complex():
            raise ValueError(
                f"Byzantine: the attack must return a row for each of its {len(own)} clients, "
                f"{tuple(own.shape)}, real, got {got}, e.g. -own"
            )
        delta[them] = sent.to(delta)
        return {**reply, "delta": delta}


def sign_flip(scale: float = 1.0) -> Attack:
    """-scale times the own update: uphill instead of downhill.

    If all updates are alike, f of K equal clients turn the mean into ((K - f) - scale f) / K of an
    honest one: it points backwards beyond f = K / (1 + scale). In a run it gets worse: honest
    updates shrink as the model fits their data, the attackers' hardly do.

    Args:
        scale: How many times as long, > 0 and finite, else ValueError.

    Example:
        >>> sign_flip(2.0)(torch.zeros(3, 2), torch.tensor([[1.0, -0.5]]), None)
        tensor([[-2.,  1.]])
    """
    positive("sign_flip", "scale", scale, 1.0)
    return lambda honest, own, ctx: -scale * own


def gaussian(std: float) -> Attack:
    """Noise instead of an update: every number from N(0, std²), independent of all data.

    A client's draw is a function of seed, round, client and ``std``, in a secret run, too: no noise
    that protects anybody.

    Args:
        std: > 0 and finite, else ValueError.

    Example:
        >>> ctx = Context(0, 3, np.arange(4), np.array([1]))
        >>> gaussian(1.0)(torch.zeros(3, 2), torch.zeros(1, 2), ctx).shape
        torch.Size([1, 2])

    Reference:
        Blanchard et al., 2017 ("Gaussian Byzantine", with a standard deviation of 200).
    """
    positive("gaussian", "std", std, 0.2)

    def attack(honest: Tensor, own: Tensor, ctx: Context) -> Tensor:
        return ctx._replace(secret=False).noise(Use.ATTACK, std, own)

    return attack


def little_is_enough(z: float | None = None) -> Attack:
    """All attackers send mu - z sigma: coordinate by coordinate, within the honest spread.

    mu and sigma are the honest updates' mean and standard deviation. Some honest clients lie beyond
    mu - z sigma, so the attackers aren't the outliers; but all of them lie on the same side.
    Omniscient.

    Args:
        z: How many standard deviations, >= 0 and finite, else ValueError; None for :func:`z_max` of
            the round's K and f.

    Example:
        >>> honest = torch.tensor([[1.0], [3.0]])  # mean 2, standard deviation 1
        >>> little_is_enough(1.5)(honest, torch.zeros(2, 1), None)
        tensor([[0.5000],
                [0.5000]])

    Reference:
        Baruch, Baruch, Goldberg, 2019, "A little is enough: circumventing defenses for distributed
        learning", Algorithm 3. Its program's default is z = 1.5.

    Differs from the paper: its attackers see their own clients' updates only, and estimate mu and
    sigma from these.
    """
    good = z is None or 0 <= z < math.inf
    check("little_is_enough", "z", z, good, ">= 0 and finite, or None", 1.5)

    def attack(honest: Tensor, own: Tensor, ctx: Context) -> Tensor:
        f = len(own)
        far = z_max(len(honest) + f, f) if z is None else z
        rows = wide(honest)
        row = rows.mean(0) - far * rows.std(0, correction=0)
        return row.to(own).expand_as(own)

    return attack


def z_max(K: int, f: int) -> float:
    """How far f of K attackers may go so that a majority still lies farther out, or with them.

    A majority needs s = ⌊K/2⌋ + 1 - f honest supporters. The share of honest clients that may lie
    nearer is (K - f - s) / (K - f), and z >= 0 is the normal quantile of that share. It is 0 up to
    f = 2 (K even) or 1 (K odd): so few can't hide anything.

    Args:
        K: Clients of the round, >= 1, else ValueError.
        f: Attackers among them, from 0 to K, else ValueError.

    Example:
        >>> round(z_max(50, 24), 3)  # s = 2, 24 of 26
        1.426
        >>> z_max(20, 2)
        0.0

    Reference:
        Baruch, Baruch, Goldberg, 2019, Algorithm 3, steps 1 and 2.

    Differs from the paper: never below 0, and s at least 1, where chance makes the attackers the
    cohort's majority.
    """
    whole("z_max", "K", K, example=20)
    check("z_max", "f", f, is_whole(f, 0, K), f"an integer from 0 to K = {K}", min(4, K))
    honest, supporters = K - f, max(K // 2 + 1 - f, 1)
    nearer = honest - supporters
    return max(NormalDist().inv_cdf(nearer / honest), 0.0) if nearer > 0 else 0.0


def inner_product(epsilon: float) -> Attack:
    """All attackers send -epsilon times the honest mean: short, and pointing backwards. Omniscient.

    A rule that follows them returns something whose inner product with the honest mean is negative;
    a small epsilon makes a short update, and length is what many rules look at. f of K equal
    clients turn the mean into ((K - f) - epsilon f) / K of the honest one.

    Args:
        epsilon: > 0 and finite, else ValueError.

    Example:
        >>> inner_product(0.5)(torch.tensor([[1.0], [3.0]]), torch.zeros(1, 1), None)
        tensor([[-1.]])

    Reference:
        Xie, Koyejo, Gupta, 2019, "Fall of empires: breaking Byzantine-tolerant SGD by inner product
        manipulation".
    """
    positive("inner_product", "epsilon", epsilon, 0.5)
    return lambda honest, own, ctx: (-epsilon * wide(honest).mean(0)).to(own).expand_as(own)


def label_flip(
    y: Tensor, parts: list[np.ndarray], attackers: Sequence[int] | np.ndarray, classes: int
) -> Tensor:
    """The attackers call every label c C - 1 - c, and train as honestly as anybody.

    Data poisoning: it needs no change of the client's program.

    Args:
        y: (n, ...) classes. A changed copy is returned.
        parts: N index arrays.
        attackers: Different numbers of the clients that do it, else ValueError.
        classes: C; ValueError if a label of theirs is not in 0..C-1.

    Example:
        >>> parts = [np.array([0, 1]), np.array([2])]
        >>> label_flip(torch.tensor([0, 1, 2]), parts, [0], classes=10)
        tensor([9, 8, 2])

    Reference:
        Fang, Cao, Jia, Gong, 2020, "Local model poisoning attacks to Byzantine-robust federated
        learning" (its label flipping attack).
    """
    y = tensor("label_flip", "y", y)
    check("label_flip", "y", str(y.dtype), not y.is_floating_point(), "integer classes", "y.long()")
    out, parts = y.clone(), rows("label_flip", parts, len(y), empty=True)
    for k in _attackers("label_flip", attackers, len(parts)):
        mine = y[parts[k]]
        good = bool(((mine >= 0) & (mine < classes)).all())
        check("label_flip", "classes", classes, good, "more than any label", int(y.max()) + 1)
        out[parts[k]] = classes - 1 - mine
    return out


def _attackers(name: str, attackers: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """(f,) different client numbers, ascending."""
    given = list(attackers)
    good = all(is_whole(k, 0, count - 1) for k in given) and len(set(given)) == len(given)
    rule = f"different client numbers from 0 to {count - 1}"
    check(name, "attackers", given, good, rule, list(range(min(2, count))))
    return np.array(sorted(given), dtype=np.int64)
