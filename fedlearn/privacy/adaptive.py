"""Adaptive clipping: the clip S follows a quantile of the updates' norms, privately.

A client adds one number to its update: whether the update was shorter than S. The server learns the
noisy share of those that were, and moves S. Update and bit are one vector, cut as one, noised as
one, so the round is one Gaussian mechanism and costs what its z costs.
"""

import math

import torch
from torch import Tensor

from ..algorithms.base import Algorithm, Kept, Message, Reply, State
from ..batches import Shards
from ..checks import check, not_negative, number, positive
from ..task import wide
from ..transform import Pipeline, chain
from .dp import blind, private_mean


def adaptive_clip(
    method: Algorithm,
    z: float,
    expected: float,
    *,
    quantile: float = 0.5,
    lr: float = 0.2,
    start: float = 0.1,
    bit_noise: float | None = None,
) -> tuple[Algorithm, Pipeline]:
    r"""Clip at a norm that follows the updates' quantile: S <- S exp(-lr (share - quantile)).

    share = (Σ_k (b_k - 1/2) + N(0, bit_noise²)) / (q N) + 1/2 with b_k = 1 if ‖delta_k‖ <= S. The
    sum of the clipped updates gets noise N(0, (z_delta S)²), z_delta = (z⁻² - (2 bit_noise)⁻²)^-½:
    a little more than z S, so that both together cost what z costs.

    What travels, each way (d + 1,): theta and S go out; a client sends its row
    (delta_k / max(‖delta_k‖, S), (z_delta / bit_noise) (b_k - 1/2)). No row is longer than
    z_delta / z, and noise z_delta on every number of the sum is right for both parts. So clip,
    total and noise are those of ``private_mean``, and ``noise_multiplier`` reads z off them. The
    promise rests on the pipeline alone: the method's server is given the noisy sum and nothing
    else of a client, so whatever it does, it can't spend more.

    Args:
        method: What clients and server do; it must send ``delta`` alone, and its server read
            nothing else, e.g. ``fedavg``.
        z: Noise multiplier of the round as a whole; 0 for no noise at all.
        expected: q N, the cohort's expected size.
        quantile: gamma, the share of updates to be left uncut, 0..1.
        lr: eta_C >= 0; 0 keeps S.
        start: S in round 0, > 0.
        bit_noise: sigma_b, noise on the number of bits; None for q N / 20. 2 sigma_b > z.

    Whoever knows the seed of the run can subtract the noise, unless ``Recipe(secret=True)``.

    Returns:
        The method and the pipeline for a ``Recipe``. The server's state holds ``clip``, S; the
        broadcast's last number is S. ``Round.deltas`` are the rows as sent, (K, d + 1).

    Raises:
        ValueError: If a number is out of range; from the method's ``server``, if it reads single
            clients' numbers.

    Example:
        >>> from fedlearn.algorithms import fedavg
        >>> from fedlearn.model import softmax_regression
        >>> from fedlearn.privacy import noise_multiplier
        >>> task = softmax_regression(64, 10)
        >>> method, pipeline = adaptive_clip(fedavg(task, lr=0.5), z=1.0, expected=20, start=0.5)
        >>> method.message(method.init(task.theta0))["theta"][-1], noise_multiplier(pipeline)
        (tensor(0.5000), 1.0)

    Reference:
        Andrew, Thakkar, McMahan, Ramaswamy, 2021, "Differentially private learning with adaptive
        clipping", Algorithm 1 and Theorem 1.

    Differs from the paper: the cohort's size is not known to the server, so the noisy sum of the
    shifted bits is divided by q N and 1/2 added back; a round without a client then leaves S
    where it is, but for noise and gamma. The server's momentum belongs to ``method``.
    """
    not_negative("adaptive_clip", "z", z, 1.0)
    positive("adaptive_clip", "expected", expected, 10)
    check("adaptive_clip", "quantile", quantile, 0 <= number(quantile) <= 1, "from 0 to 1", 0.5)
    not_negative("adaptive_clip", "lr", lr, 0.2)
    positive("adaptive_clip", "start", start, 0.1)
    bound, scale = _shape(z, expected / 20 if bit_noise is None else bit_noise)
    method = blind(method)

    def init(theta: Tensor) -> State:
        return {**method.init(theta), "clip": torch.full_like(theta[0], start)}

    def message(state: State) -> Message:
        inner = method.message(_without(state))
        return {**inner, "theta": torch.cat([inner["theta"], state["clip"][None]])}

    def client(message: Message, shards: Shards, memory: Kept) -> tuple[Reply, Kept]:
        theta, S = message["theta"][:-1], message["theta"][-1]
        reply, memory = method.client({**message, "theta": theta}, shards, memory)
        delta = wide(reply["delta"])
        norm = delta.norm(dim=1, keepdim=True)
        bit = (norm <= S).to(norm) - 0.5
        row = torch.cat([delta / norm.clamp(min=float(S)), scale * bit], 1)
        return {**reply, "delta": row.to(theta)}, memory

    def server(state: State, delta: Tensor, reply: Reply, p: Tensor) -> State:
        S, share = state["clip"], delta[-1] / scale + 0.5
        inner = method.server(_without(state), S * delta[:-1], {}, p)
        return {**inner, "clip": S * torch.exp(-lr * (share - quantile))}

    folds = server if method.folding else None
    adapted = Algorithm(init, client, server, message, method.memory, method.task, folds=folds)
    return adapted, _named(private_mean(bound, z, expected), f"adaptive_clip({quantile:g})")


def _shape(z: float, bit_noise: float) -> tuple[float, float]:
    """(bound of a row, scale of a bit). Theorem 1: z⁻² = z_delta⁻² + (2 sigma_b)⁻²."""
    if not z:  # no noise: any scale will do
        return math.sqrt(1.25), 1.0
    rule = f"> z / 2 = {z / 2:g} (None is q N / 20), so that the bits' noise alone would do"
    good = z / 2 < number(bit_noise) < math.inf
    check("adaptive_clip", "bit_noise", bit_noise, good, rule, float(z))
    z_delta = (z**-2 - (2 * bit_noise) ** -2) ** -0.5
    return z_delta / z, z_delta / bit_noise  # the bound is √(1² + (scale / 2)²)


def _without(state: State) -> State:
    """The state of the method inside."""
    return {k: v for k, v in state.items() if k != "clip"}


def _named(pipeline: Pipeline, name: str) -> Pipeline:
    (cut,) = pipeline.on_client
    return chain(cut._replace(name=name), pipeline.reduce, *pipeline.on_server)
