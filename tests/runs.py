"""Runs of every kind, and all of a run as bytes: two are equal to the bit or they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from problems import METHODS, Problem, problem

from fedlearn import Recipe, Round, Run, Simulated, algorithms, federate
from fedlearn.aggregate import mean, multi_krum
from fedlearn.asynchronous import asynchronous
from fedlearn.fleet import fleet
from fedlearn.participation import dropouts, poisson, stragglers, uniform
from fedlearn.privacy import adaptive_clip, dp_federate, private_mean
from fedlearn.privacy.secure_aggregation import secure_mean
from fedlearn.transform import chain, clip, noise

ROUNDS = 5
Make = Callable[..., Run]  # (clients, how federate is called) -> the run


def look(theta: torch.Tensor) -> dict[str, float]:
    """Metrics that move when any number of theta does; the second is NaN in some rounds."""
    low = float(theta.min())
    return {"norm": float(theta.norm()), "root": low if low > -0.5 else float("nan")}


def plain(p: Problem, algorithm: Any, *pipeline: Any, machines: bool = False) -> Simulated:
    task = p.closed_form
    stages = {"pipeline": chain(*pipeline)} if pipeline else {}
    recipe = Recipe(algorithm(task), task.theta0, batch=16, epochs=2, seed=3, **stages)
    clock = fleet(len(p.parts), seed=1) if machines else None
    return Simulated(recipe, p.x, p.y, p.parts, fleet=clock)


def adaptive(p: Problem) -> Simulated:
    task = p.closed_form
    method, pipeline = adaptive_clip(algorithms.fedavgm(task, lr=0.1), 1.0, 4.0, bit_noise=1.0)
    return Simulated(Recipe(method, task.theta0, pipeline, batch=16, seed=3), p.x, p.y, p.parts)


def _federate(clients: Any, cohort: Any = 5, **how: Any) -> Run:
    how = {"rounds": ROUNDS, "evaluate": look, "every": 2, **how}
    return federate(clients, cohort=cohort, **how)


def _private(clients: Any, q: float = 0.5, delta: float = 1e-2, **how: Any) -> Run:
    how = {"rounds": ROUNDS, "evaluate": look, "every": 2, **how}
    return dp_federate(clients, q=q, delta=delta, **how)


def _async(clients: Any, **how: Any) -> Run:
    how = {"rounds": ROUNDS, "concurrency": 5, "buffer": 3, "evaluate": look, "every": 2, **how}
    return asynchronous(clients, **how)


def _with(make: Make, **more: Any) -> Make:
    return lambda clients, **how: make(clients, **{**more, **how})


fedavg = METHODS["fedavg"]
# what it is called: (the problem -> clients, clients -> the run)
KINDS: dict[str, tuple[Callable[[Problem], Any], Make]] = {
    **{name: (lambda p, m=m: plain(p, m), _federate) for name, m in METHODS.items()},
    "clip, mean, noise": (lambda p: plain(p, fedavg, clip(0.1), mean(), noise(0.01)), _federate),
    "multi-krum": (lambda p: plain(p, fedavg, multi_krum(1)), _federate),
    "secure mean": (
        lambda p: plain(p, METHODS["fedavgm"], clip(1.0), *secure_mean(1.0, 240)), _federate,
    ),
    "poisson, some rounds empty": (
        lambda p: plain(p, METHODS["scaffold"]), _with(_federate, cohort=poisson(0.1)),
    ),
    "dropouts, stragglers, a clock": (
        lambda p: plain(p, METHODS["feddyn"], machines=True),
        _with(_federate, cohort=stragglers(dropouts(uniform(6), 0.3), 0.5)),
    ),
    "private": (
        lambda p: plain(p, METHODS["fedadam"], *_stages(private_mean(0.5, 1.0, 4.0))), _private,
    ),
    "private, adaptive clipping": (adaptive, _private),
    "asynchronous": (lambda p: plain(p, fedavg, machines=True), _async),
    "asynchronous, fedadam": (lambda p: plain(p, METHODS["fedadam"], machines=True), _async),
    "fedasync": (
        lambda p: plain(p, fedavg, machines=True), _with(_async, buffer=1, rebase=True),
    ),
}  # fmt: skip


def _stages(pipeline: Any) -> tuple[Any, ...]:
    return (*pipeline.on_client, pipeline.reduce, *pipeline.on_server)


def start(kind: str, clients: Any = None, **how: Any) -> Run:
    """A run of this kind, over clients of its own unless they are given."""
    make, run = KINDS[kind]
    return run(make(problem()) if clients is None else clients, **how)


# -- to the bit ------------------------------------------------------------------------------------


def bits(thing: Any) -> Any:
    """Tensors, arrays and numbers as their bytes, in whatever they lie: NaN equals NaN."""
    if isinstance(thing, torch.Tensor):
        thing = thing.detach().cpu().numpy()
    if isinstance(thing, np.ndarray):
        return str(thing.dtype), thing.shape, thing.tobytes()
    if isinstance(thing, dict):
        return {k: bits(v) for k, v in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [bits(v) for v in thing]
    return thing.hex() if isinstance(thing, float) else thing


def of_round(r: Round) -> Any:
    masked = r.deltas.dtype == torch.int32  # secure aggregation: secrets are new each time
    return bits(tuple(r._replace(rows=torch.zeros(0)) if masked else r))


def of_run(run: Run) -> Any:
    """All that a run is: round number, state, memories, history; the ledger is in epsilon."""
    h = run.history
    return bits(
        {"t": run.t, "state": run.state, "memory": run.memory, "columns": h.columns,
         "stopped": h.stopped, "failed": h.failed, "theta": h.theta}
    )  # fmt: skip


def fresh(kind: str, **how: Any) -> tuple[list[Any], Any]:
    """The reference: rounds and end of an uninterrupted run over clients that nobody used."""
    run = start(kind, **how)
    return [of_round(r) for r in run], of_run(run)
