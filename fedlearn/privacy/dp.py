"""Differential privacy: DP-FedAvg and its noise. What it is worth: ``accounting.py``.

The protected unit is a client: epsilon bounds how much the models of all rounds together can tell
about whether client k took part at all. Every round each client joins with probability q, its
update is cut to norm S, the sum gets Gaussian noise of z S a number, and is divided by q N.
"""

import math
import secrets
from dataclasses import replace

import torch
from torch import Tensor

from ..aggregate import total
from ..algorithms.base import Algorithm, Reply, State
from ..checks import check, not_negative, number
from ..loop import Account, Clients, Evaluate, Place, Run
from ..participation import Call, poisson
from ..recipe import Recipe
from ..rng import Use
from ..transform import Context, Memory, Pipeline, Rowwise, chain, clip, noise
from .accounting import check_odds, ledger


def private_mean(max_norm: float, z: float, expected: float) -> Pipeline:
    """clip -> total -> noise: (Σ_k clip(delta_k, S) + N(0, (z S)²)) / (q N), a pipeline.

    A method that sends more than ``delta`` is refused: the rest would be neither cut nor noised.

    Args:
        max_norm: S, the norm that no update exceeds.
        z: Noise multiplier: standard deviation of the sum's noise over S; 0 for none.
        expected: q N, the cohort's expected size. ValueError if a number is out of range.

    Whoever knows the seed of the run can subtract the noise, unless ``Recipe(secret=True)``.

    Example:
        >>> [s.name for s in private_mean(0.5, z=1.0, expected=10).on_server]  # z S / (q N)
        ['noise(1 * 0.5 / 10)']

    Reference:
        McMahan, Ramage, Talwar, Zhang, 2018, "Learning differentially private recurrent language
        models", Algorithm 1.
    """
    not_negative("private_mean", "z", z, 1.0)
    cut, divide = clip(max_norm)._replace(private=True), total(expected)
    draw = noise(z * max_norm / expected)
    return chain(cut, divide, draw._replace(name=f"noise({z:g} * {max_norm:g} / {expected:g})"))


def noise_multiplier(pipeline: Pipeline) -> float:
    """z: the noise of a pipeline over what one client can change. What the accountant wants.

    Read off the stages themselves: bound S behind the last clip, share 1 / (q N) of a row in the
    sum, noise std: z = std / (S share).

    Args:
        pipeline: As ``private_mean`` makes it.

    Raises:
        ValueError: If one client's influence is not bounded: no clip, or a weighted mean, whose
            weights move with the others; or if the noise is not one draw right behind the sum. The
            message says which and why.

    Example:
        >>> noise_multiplier(private_mean(0.5, z=1.1, expected=10))
        1.1
    """
    bounds = [s.bound for s in pipeline.on_client]
    if not bounds or bounds[-1] is None:
        last = pipeline.on_client[-1].name if bounds else "none"
        raise ValueError(
            "privacy: the last stage on a client must bound its update, else one client can move "
            f"the model without limit; got {last}, e.g. chain(clip(1.0), total(10), noise(0.1))"
        )
    reduce = pipeline.reduce
    if reduce.share is None:
        raise ValueError(
            f"privacy: {reduce.name} promises no share for one client: in a mean its weight "
            "n_k / n depends on its size and on who else takes part, so that behind a clip at S "
            f"all that holds is 2 S, and shares would leak n_k; got {reduce.name}, e.g. "
            "total(q * N), where every client moves the result by at most S / (q N)"
        )
    z = _noise_std(pipeline) / (bounds[-1] * reduce.share)
    return float(f"{z:.12g}")  # as it was given: clips that differ share one account


def _noise_std(pipeline: Pipeline) -> float:
    stages = pipeline.on_server
    if any(s.std for s in stages[1:]):
        got = " -> ".join(s.name for s in stages)
        raise ValueError(
            "privacy: the noise must be one stage right behind the sum: the account reads one "
            "draw, and a stage before the noise may enlarge what it should hide; got "
            f"{got}, e.g. chain(clip(1.0), total(10), noise(0.1))"
        )
    return stages[0].std if stages else 0.0


def local_noise(std: float, max_norm: float) -> Rowwise:
    """Local differential privacy: every client adds its own noise to its clipped update.

    The server needn't be trusted, and the noise of K clients adds up: K times the variance of one
    draw on the sum. A method that sends more than ``delta`` is refused.

    Nobody but the client may know its noise: it comes from the seed, for lessons and tests, unless
    ``Recipe(secret=True)``; over Flower it is each node's own secret. In one process the loop keeps
    n_k and the loss for its books, which no noise hides; over Flower neither is sent.

    Args:
        std: Of the noise on every number, >= 0.
        max_norm: S, the norm to which the update is cut first. ValueError if a number is out of
            range.

    Example:
        >>> local_noise(0.5, 1.0).name
        'local_noise(0.5, 1.0)'
    """
    not_negative("local_noise", "std", std, 0.5)
    shorten = clip(max_norm)

    def apply(delta: Tensor, n: Tensor, memory: Memory, ctx: Context) -> tuple[Tensor, Memory]:
        short, memory = shorten.apply(delta, n, memory, ctx)
        return short + ctx.noise(Use.LOCAL_NOISE, std, short), memory

    return Rowwise(f"local_noise({std}, {max_norm})", apply, private=True, std=number(std))


def dp_federate(
    clients: Clients,
    *,
    rounds: int,
    delta: float,
    q: float | None = None,
    budget: float = math.inf,
    evaluate: Evaluate | None = None,
    every: int = 1,
    skip: int = 0,
    checkpoint: Place = None,
    save_every: int = 1,
    resume: Place | Run | bool = None,
) -> Run:
    """Federated rounds whose epsilon is known, and which end before the budget is overspent.

    The cohort is Poisson-sampled; a round without a client still adds its noise: that nobody came
    is a secret, too. The method's ``server`` is given the noisy sum alone: an empty reply and no
    weights, so that no other number of a client reaches theta.

    What epsilon covers: ``theta`` of every round, and what is computed from it alone: ``sent``,
    ``metrics`` on data of nobody in the population, the round in which the budget ends the run.
    Nothing else of a :class:`~fedlearn.history.Round` may leave the server: ``called``,
    ``answered``, ``deltas``, ``p``, ``loss``, ``received`` and ``seconds`` are exact. Whoever
    learns the cohorts, or the seed that draws them and the noise, is promised nothing by q.

    So a release wants ``Recipe(secret=True)``: cohorts and noise come from the operating system. A
    round that is begun again, after Ctrl-C or from an older checkpoint, then draws new noise: what
    was seen of its first try is a release beside those on the account. With a seed it draws the
    same.

    Args:
        clients: Where the clients are. Their recipe has a pipeline of ``private_mean``, or another
            that ``noise_multiplier`` accepts; its method must send ``delta`` alone, and its server
            read nothing else.
        rounds: T, at most.
        delta: 0 < delta < 1.
        q: Probability with which a client joins a round. None: the pipeline's divisor, q N, over N;
            another q is refused.
        budget: The largest epsilon that may be spent.
        evaluate, every, skip, checkpoint, save_every: As for ``federate``.
        resume: As for ``federate``; the rounds before are on the account.

    Returns:
        A :class:`~fedlearn.loop.Run`; ``metrics["epsilon"]`` is what has been spent. It ends before
        the round that would exceed the budget.

    Raises:
        ValueError: At once, if one client's influence is not bounded, the divisor is not q N, the
            server wants single clients' numbers, a number is out of range, or what is resumed had
            another recipe, q or delta. From the iterator, if clients send more than ``delta``.

    Example:
        >>> from fedlearn import algorithms, data, model, partition
        >>> from fedlearn.rng import numpy_rng
        >>> digits, task = data.load("digits"), model.softmax_regression(64, 10)
        >>> parts = partition.iid(digits.y, 100, numpy_rng(0, Use.PARTITION))
        >>> pipeline = private_mean(0.5, z=1.0, expected=20)
        >>> recipe = Recipe(algorithms.fedavg(task, lr=0.5), task.theta0, pipeline)
        >>> from fedlearn import Simulated
        >>> clients = Simulated(recipe, digits.x, digits.y, parts)
        >>> run = dp_federate(clients, rounds=99, delta=1e-3, budget=4.0)  # q = 20 / 100
        >>> spent = [r.metrics["epsilon"] for r in run]
        >>> spent[-1] <= 4.0, len(spent) < 99
        (True, True)

    Reference:
        McMahan et al., 2018, Algorithm 1, with this accountant in place of the moments accountant.
    """
    recipe = clients.recipe
    z, share = noise_multiplier(recipe.pipeline), recipe.pipeline.reduce.share
    assert share is not None
    q = float(f"{1 / share / clients.count:.12g}") if q is None else q
    check_odds("dp_federate", q, delta)
    check("dp_federate", "budget", budget, number(budget) > 0, "> 0", 8.0)
    expected = q * clients.count
    if not math.isclose(1 / share, expected, rel_tol=1e-6):
        raise ValueError(
            f"dp_federate: the sum must be divided by q N = {expected:g}, got {1 / share:g}, "
            f"e.g. private_mean(1.0, z=1.0, expected={expected:g})"
        )
    spending = {"z": z, "q": float(q), "delta": float(delta)}
    account = Account(budget, spending, ledger(**spending).after)
    sealed, call = _sealed(recipe), poisson(q)
    call = _secretly(call) if recipe.secret else call
    run = Run("dp_federate", clients, sealed, call, rounds, evaluate, every, skip, account=account)
    return run.begin(checkpoint, save_every, resume)


def _secretly(call: Call) -> Call:
    """The same cohorts from the operating system's randomness, whatever the seed."""
    return lambda n, seed, t: call(n, secrets.randbits(63), t)._replace(seed=seed)


def _sealed(recipe: Recipe) -> Recipe:
    """The recipe, with nothing of a client but its clipped delta on the way to theta."""
    stages = tuple(s._replace(private=True) for s in recipe.pipeline.on_client)
    method = blind(recipe.algorithm)
    state = method.init(recipe.theta)
    theta = method.message(state)["theta"]
    method.server(state, torch.zeros_like(theta), {}, theta[:0])  # refuses at once, if at all
    return replace(recipe, algorithm=method, pipeline=recipe.pipeline._replace(on_client=stages))


def blind(method: Algorithm) -> Algorithm:
    """The method, its server given the combined update alone; ValueError if it reads more."""

    def server(state: State, delta: Tensor, reply: Reply, p: Tensor) -> State:
        try:
            return method.server(state, delta, {}, p[:0])
        except (KeyError, IndexError) as e:
            name = method.server.__qualname__.split(".")[0]
            raise ValueError(
                f"privacy: the server of {name} reads {e} of single clients, which no noise hides; "
                "it must do with the noisy sum, e.g. fedavg, fedprox, fedavgm or fedadam"
            ) from e

    return method._replace(server=server, folds=server)
