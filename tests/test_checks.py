"""Every number that a function takes is checked in one way: its kind, its range, in words."""

from __future__ import annotations

import inspect
import math
import re

import numpy as np
import pytest
import torch
from problems import problem

from fedlearn import Recipe, Simulated, centralised, checks, federate, optim, participation, rng
from fedlearn import aggregate as agg
from fedlearn import algorithms as alg
from fedlearn.asynchronous import asynchronous, polynomial
from fedlearn.federated_optimizer import SGD
from fedlearn.fleet import fleet
from fedlearn.participation import available, dropouts, poisson, sample, stragglers, uniform
from fedlearn.privacy import adaptive_clip, dp_federate, local_noise, private_mean
from fedlearn.privacy.accounting import (
    calibrate,
    delta,
    epsilon,
    epsilons,
    fixed_cohort,
    local_epsilon,
    losses,
)
from fedlearn.transform import chain, clip, noise

P = problem()
T = P.closed_form
nan, inf = math.nan, math.inf


def recipe(**kw):
    return Recipe(alg.fedavg(T, 0.1), T.theta0, **{"batch": 16, "seed": 3, **kw})


def clients(**kw):
    r = kw.pop("recipe", None) or recipe()
    return Simulated(r, P.x, P.y, P.parts, **kw)


def go(**kw):
    return federate(clients(), **{"rounds": 2, **kw})


def late(**kw):
    how = {"rounds": 2, "concurrency": 4, "buffer": 2, **kw}
    return asynchronous(clients(fleet=fleet(8)), **how)


def private(**kw):
    r = recipe(pipeline=private_mean(1.0, 1.0, 4.0))
    return dp_federate(clients(recipe=r), **{"rounds": 2, "q": 0.5, "delta": 1e-2, **kw})


def torch_sgd(lr):
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr)


# function, argument: (how it is called, its kind, a value that is right)
WHOLE = {
    "Recipe batch": (lambda v: recipe(batch=v), 16),
    "Recipe epochs": (lambda v: recipe(epochs=v), 2),
    "Recipe seed": (lambda v: recipe(seed=v), 3),
    "Simulated chunk": (lambda v: clients(chunk=v), 3),
    "centralised n_clients": (lambda v: centralised(recipe(), P.x, P.y, v), 4),
    "federate rounds": (lambda v: go(rounds=v), 2),
    "federate every": (lambda v: go(every=v), 2),
    "federate skip": (lambda v: go(skip=v), 2),
    "federate cohort": (lambda v: go(cohort=v), 5),
    "checkpoint save_every": (lambda v: go(save_every=v), 2),
    "dp_federate rounds": (lambda v: private(rounds=v), 2),
    "dp_federate every": (lambda v: private(every=v), 2),
    "dp_federate skip": (lambda v: private(skip=v), 1),
    "asynchronous rounds": (lambda v: late(rounds=v), 2),
    "asynchronous every": (lambda v: late(every=v), 2),
    "asynchronous concurrency": (lambda v: late(concurrency=v), 3),
    "asynchronous buffer": (lambda v: late(buffer=v), 2),
    "uniform k": (uniform, 3),
    "weighted k": (lambda v: participation.weighted(v, [1, 2, 3]), 2),
    "available k": (lambda v: available(v, lambda t: np.ones(8)), 2),
    "sample n": (lambda v: sample(v, 1, 0, 0), 5),
    "sample k": (lambda v: sample(8, v, 0, 0), 5),
    "krum f": (agg.krum, 1),
    "multi_krum f": (agg.multi_krum, 1),
    "multi_krum m": (lambda v: agg.multi_krum(1, m=v), 2),
    "bulyan f": (agg.bulyan, 1),
    "geometric_median iterations": (lambda v: agg.geometric_median(v), 7),
    "scaffold option": (lambda v: alg.scaffold(T, 0.1, 240, option=v), 1),
    "fleet n": (fleet, 4),
    "epsilon rounds": (lambda v: epsilon(1.0, 0.5, v, 1e-2), 2),
    "delta rounds": (lambda v: delta(1.0, 0.5, v, 1.0), 2),
    "losses rounds": (lambda v: losses(1.0, 0.5, v), 2),
    "fixed_cohort rounds": (lambda v: fixed_cohort(1.0, 1, 2, v, 1e-2), 2),
    "fixed_cohort K": (lambda v: fixed_cohort(1.0, v, 2, 2, 1e-2), 2),
    "fixed_cohort N": (lambda v: fixed_cohort(1.0, 1, v, 2, 1e-2), 2),
    "epsilons rounds": (lambda v: epsilons(1.0, 0.5, v, 1e-2), 2),
    "calibrate rounds": (lambda v: calibrate(8.0, 1.0, v, 1e-2), 2),
    "numpy_rng seed": (rng.numpy_rng, 3),
    "numpy_rng path": (lambda v: rng.numpy_rng(0, v), 3),
}
NONE_IS_FINE = {  # "None for all of them", "None for K - f - 2"
    "Recipe batch", "Simulated chunk", "federate cohort", "uniform k", "multi_krum m",
    "dp_federate q",
}  # fmt: skip
POSITIVE = {
    **{f"{n} lr": (lambda v, f=f: f(T, v), 0.1)
       for n, f in (("fedavg", alg.fedavg), ("fedsgd", alg.fedsgd), ("fednova", alg.fednova))},
    "fedavg lr, by fedprox": (lambda v: alg.fedprox(T, v, 0.1), 0.1),
    "scaffold lr": (lambda v: alg.scaffold(T, v, 240), 0.1),
    "scaffold n_total": (lambda v: alg.scaffold(T, 0.1, v), 240),
    "scaffold server_lr": (lambda v: alg.scaffold(T, 0.1, 240, v), 0.5),
    "feddyn lr": (lambda v: alg.feddyn(T, v, 0.5, 240), 0.1),
    "feddyn alpha": (lambda v: alg.feddyn(T, 0.1, v, 240), 0.5),
    "feddyn n_total": (lambda v: alg.feddyn(T, 0.1, 0.5, v), 240),
    "fedavg server_lr": (lambda v: alg.fedavg(T, 0.1, v), 0.5),
    "fedavg server_lr, by fednova": (lambda v: alg.fednova(T, 0.1, v), 0.5),
    "fedavg lr, by fedopt": (lambda v: alg.fedopt(T, v, optim.sgd(1.0)), 0.1),
    "fedavg lr, by fedadam": (lambda v: alg.fedadam(T, v), 0.1),
    "momentum lr, by fedavgm": (lambda v: alg.fedavgm(T, 0.1, v), 0.5),
    "adagrad lr, by fedadagrad": (lambda v: alg.fedadagrad(T, 0.1, v), 0.1),
    "adam lr, by fedadam": (lambda v: alg.fedadam(T, 0.1, v), 0.1),
    "yogi tau, by fedyogi": (lambda v: alg.fedyogi(T, 0.1, tau=v), 1e-3),
    "sgd lr": (optim.sgd, 0.1),
    "momentum lr": (optim.momentum, 0.1),
    "adagrad lr": (optim.adagrad, 0.1),
    "adagrad tau": (lambda v: optim.adagrad(0.1, tau=v), 0.1),
    "adam lr": (optim.adam, 0.1),
    "adam tau": (lambda v: optim.adam(0.1, tau=v), 0.1),
    "yogi lr": (optim.yogi, 0.1),
    "yogi tau": (lambda v: optim.yogi(0.1, tau=v), 0.1),
    "federated_optimizer.SGD lr": (torch_sgd, 0.1),
    "clip max_norm": (clip, 1.0),
    "clipped_mean max_norm": (agg.clipped_mean, 1.0),
    "total expected": (agg.total, 4.0),
    "geometric_median tolerance": (lambda v: agg.geometric_median(3, v), 1e-5),
    "clip max_norm, by private_mean": (lambda v: private_mean(v, 1.0, 4.0), 1.0),
    "total expected, by private_mean": (lambda v: private_mean(1.0, 1.0, v), 4.0),
    "clip max_norm, by local_noise": (lambda v: local_noise(1.0, v), 1.0),
    "adaptive_clip expected": (lambda v: adaptive_clip(alg.fedavg(T, 0.1), 0.01, v), 4.0),
    "adaptive_clip start": (lambda v: adaptive_clip(alg.fedavg(T, 0.1), 0.1, 4.0, start=v), 0.5),
    "dp_federate budget": (lambda v: private(budget=v), 8.0),
    "fixed_cohort z": (lambda v: fixed_cohort(v, 1, 2, 2, 1e-2), 1.0),
    "calibrate target": (lambda v: calibrate(v, 1.0, 2, 1e-2), 4.0),
    "local_epsilon max_norm": (lambda v: local_epsilon(1.0, v, 2, 1e-2), 1.0),
    "fleet compute": (lambda v: fleet(3, compute=v), 0.1),
    "fleet down": (lambda v: fleet(3, down=v), 0.1),
    "fleet up": (lambda v: fleet(3, up=v), 0.1),
}  # fmt: skip
INF_IS_FINE = {"dp_federate budget"}
NOT_NEGATIVE = {
    "fedavg weight_decay": (lambda v: alg.fedavg(T, 0.1, weight_decay=v), 0.1),
    "fedprox mu": (lambda v: alg.fedprox(T, 0.1, v), 0.1),
    "fedsam rho": (lambda v: alg.fedsam(T, 0.1, v), 0.1),
    "moon mu": (lambda v: alg.moon(T, 0.1, T.predict, v), 0.1),
    "moon temperature": (lambda v: alg.moon(T, 0.1, T.predict, temperature=v), 0.5),
    "fednova mu": (lambda v: alg.fednova(T, 0.1, mu=v), 0.1),
    "noise std": (noise, 0.1),
    "local_noise std": (lambda v: local_noise(v, 1.0), 0.1),
    "private_mean z": (lambda v: private_mean(1.0, v, 4.0), 1.0),
    "adaptive_clip z": (lambda v: adaptive_clip(alg.fedavg(T, 0.1), v, 4.0), 0.1),
    "adaptive_clip lr": (lambda v: adaptive_clip(alg.fedavg(T, 0.1), 0.1, 4.0, lr=v), 0.1),
    "polynomial a": (polynomial, 0.5),
    "fleet spread": (lambda v: fleet(3, spread=v), 0.1),
    "epsilon z": (lambda v: epsilon(v, 1.0, 2, 1e-2), 1.0),
    "delta z": (lambda v: delta(v, 1.0, 2, 1.0), 1.0),
    "delta epsilon": (lambda v: delta(1.0, 1.0, 2, v), 1.0),
    "local_epsilon std": (lambda v: local_epsilon(v, 1.0, 2, 1e-2), 1.0),
}
BELOW_ONE = {
    "fedavg beta": (lambda v: alg.fedavg(T, 0.1, beta=v), 0.5),
    "fedsgd beta": (lambda v: alg.fedsgd(T, 0.1, v), 0.5),
    "fednova beta": (lambda v: alg.fednova(T, 0.1, beta=v), 0.5),
    "momentum beta": (lambda v: optim.momentum(0.1, v), 0.5),
    "momentum beta, by fedavgm": (lambda v: alg.fedavgm(T, 0.1, beta=v), 0.5),
    "adagrad beta1": (lambda v: optim.adagrad(0.1, v), 0.5),
    "adam beta1": (lambda v: optim.adam(0.1, v), 0.5),
    "adam beta2": (lambda v: optim.adam(0.1, beta2=v), 0.5),
    "yogi beta1": (lambda v: optim.yogi(0.1, v), 0.5),
    "yogi beta2": (lambda v: optim.yogi(0.1, beta2=v), 0.5),
    "trimmed_mean trim": (agg.trimmed_mean, 0.25),
}
CHANCE = {
    "poisson q": (poisson, 0.5),
    "dropouts rate": (lambda v: dropouts(uniform(), v), 0.5),
    "stragglers share": (lambda v: stragglers(uniform(), v), 0.5),
    "available chance": (lambda v: available(2, lambda t: v)(8, 0, 0), 0.5),
    "dp_federate q": (lambda v: private(q=v), 0.5),
    "dp_federate delta": (lambda v: private(delta=v), 0.01),
    "epsilon q": (lambda v: epsilon(1.0, v, 2, 1e-2), 0.5),
    "epsilon delta": (lambda v: epsilon(1.0, 1.0, 2, v), 0.01),
    "adaptive_clip quantile": (
        lambda v: adaptive_clip(alg.fedavg(T, 0.1), 0.1, 4.0, quantile=v), 0.5,
    ),
}  # fmt: skip
REAL = {**POSITIVE, **NOT_NEGATIVE, **BELOW_ONE, **CHANCE}
ALL = {**WHOLE, **REAL}

NO_NUMBER = {"None": None, "text": "0.1", "word": "a", "True": True, "False": False,
             "np.True_": np.True_, "list": [1, 2], "bytes": b"1", "complex": 1j, "object": object(),
             "nan": nan, "inf": inf, "-inf": -inf, "np.nan": np.float64("nan"),
             "two": torch.ones(2), "a negative one": -1, "np.int64(-3)": np.int64(-3)}  # fmt: skip
NO_WHOLE = {"1.5": 1.5, "2.0": 2.0, "np.float64(2)": np.float64(2.0), "a tensor": torch.tensor(2.0),
            "'2'": "2", "array": np.array([2, 3])}  # fmt: skip


def refused(what, value):
    """In a ValueError with function, argument, rule, value and example."""
    with pytest.raises(ValueError) as e:
        ALL[what][0](value)
    function, argument = what.split(",")[0].split(" ")
    said = str(e.value)
    if function == "numpy_rng":
        argument = "wants integers"
    assert said.startswith(f"{function}: "), said
    assert argument in said, said
    assert "must be" in said or "wants" in said, said
    if not isinstance(value, (np.ndarray, torch.Tensor)):
        plain = value.item() if isinstance(value, np.generic) else value
        assert f"got {value!r}" in said or f"got {plain!r}" in said, said
    example = said.rpartition("e.g. ")[2]
    assert re.match(r"\w+(=|\()", example) or re.fullmatch(r"[\w.']+", example), said
    return said


def fine(what, value, name):
    """Values that a rule allows although they are no number, or none of this list's."""
    if name == "None":
        return what in NONE_IS_FINE
    if name == "inf":
        return what in INF_IS_FINE
    if name == "list":  # a number a client: too few of them is another message
        return what.split(" ")[0] in {"dropouts", "stragglers", "available"}
    if name == "two":
        return what.split(" ")[0] in {"dropouts", "stragglers", "available"}
    return False


@pytest.mark.parametrize("what", ALL)
def test_what_is_no_number_in_range_is_refused_in_words(what, subtests):
    for name, value in NO_NUMBER.items():
        if not fine(what, value, name):
            with subtests.test(name):
                refused(what, value)


@pytest.mark.parametrize("what", WHOLE)
def test_what_is_not_whole_is_refused_in_words(what, subtests):
    for name, value in NO_WHOLE.items():
        with subtests.test(name):
            refused(what, value)


EDGES = {
    **{k: [0] for k in POSITIVE},
    **{k: [1, 1.0, np.float32(1)] for k in BELOW_ONE},
    **{k: [1.5, np.float32(1.01)] for k in CHANCE},
    "trimmed_mean trim": [0.5, np.float64(0.5)],
    "poisson q": [0, 1.01],
    "epsilon delta": [0, 1],
    "dp_federate delta": [0, 1],
    "federate cohort": [0, 9],
    "sample k": [9],
    "asynchronous concurrency": [0, 9],
    "scaffold option": [0, 3],
    "Recipe seed": [2**63],
    **{k: [0] for k in WHOLE if k.split(" ")[1] in ("rounds", "every", "batch", "epochs", "chunk",
       "buffer", "n_clients", "save_every", "iterations", "m") and "epsilon" not in k and
       k not in ("delta rounds", "fixed_cohort rounds")},
}  # fmt: skip


@pytest.mark.parametrize("what, value", [(k, v) for k, vs in EDGES.items() for v in vs])
def test_the_edges_are_refused(what, value):
    refused(what, value)


@pytest.mark.parametrize("kind", [int, np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("what", WHOLE)
def test_numpys_integers_are_integers(what, kind):
    make, right = WHOLE[what]
    make(kind(right))


@pytest.mark.parametrize("kind", [float, np.float64, np.float32, np.float16, torch.tensor])
@pytest.mark.parametrize("what", REAL)
def test_numpys_floats_and_a_tensor_of_one_are_numbers(what, kind):
    beside = ("dropouts", "stragglers", "available", "fleet", "calibrate", "epsilon")
    if kind is torch.tensor and what.split(" ")[0] in beside:
        return  # NumPy's
    make, right = REAL[what]
    if what in ("dp_federate q",):
        kind = float if kind is np.float16 else kind  # q N must be what the sum is divided by
    make(kind(right))


@pytest.mark.parametrize("what", REAL)
def test_a_whole_number_is_a_number(what):
    make, right = REAL[what]
    for one in (1, np.int64(1)):
        if what in BELOW_ONE or "delta" in what or what in ("dp_federate q", "adaptive_clip z"):
            continue  # 1 is too much
        make(one)


def test_what_was_wrong_before():
    krum = agg.krum(np.int64(1))
    rows = torch.tensor([[1.0], [1.1], [1.3], [1.05], [1e9]])
    assert krum.apply(rows, torch.ones(5) / 5).item() == pytest.approx(1.05)
    with pytest.raises(ValueError, match=r"multi_krum: m must be an integer >= 1, got 1\.5, e\.g"):
        agg.multi_krum(1, m=1.5)
    with pytest.raises(ValueError, match=r"weighted: k must be an integer >= 1, got None, e\.g"):
        participation.weighted(None, [1, 2])


@pytest.mark.parametrize(
    "weight", [None, "abc", "12", [None, 1], ["1", "2"], [nan, 1], [inf, 1], [-1, 2], [0, 0], [], 2,
               True, [[1, 2]], [1j, 1]],
)  # fmt: skip
def test_weights_are_numbers(weight):
    with pytest.raises(ValueError, match=r"^weighted: weight must be .*got .*e\.g\. weight="):
        participation.weighted(1, weight)


@pytest.mark.parametrize("value", [[0.1, nan], [0.1, -0.1], [0.1, 1.1], ["a", "b"], [None, 0.1]])
def test_a_chance_a_client_is_a_probability_each(value):
    for make in (
        lambda: dropouts(uniform(), value),
        lambda: stragglers(uniform(), value),
        lambda: available(1, lambda t: value)(2, 0, 0),
    ):
        with pytest.raises(ValueError, match=r"^\w+: (rate|share|chance) must be .*e\.g\. "):
            make()


# -- and what is accepted works, to the bit of Python's own ----------------------------------------


def bits(**kw):
    run = federate(clients(recipe=kw.pop("recipe")), **kw)
    return [r.theta.numpy().tobytes() for r in run]


@pytest.mark.parametrize("make", [
    lambda f: alg.fedavg(T, f(0.1), f(0.5), f(0.5), f(0.25)),
    lambda f: alg.fedsgd(T, f(0.1), f(0.5)),
    lambda f: alg.fedprox(T, f(0.1), f(0.5)),
    lambda f: alg.scaffold(T, f(0.1), f(240), f(0.5)),
    lambda f: alg.fednova(T, f(0.1), f(0.5), f(0.5), f(0.25)),
    lambda f: alg.feddyn(T, f(0.1), f(0.5), f(240)),
    lambda f: alg.fedavgm(T, f(0.1), f(0.5), f(0.5)),
    lambda f: alg.fedadam(T, f(0.1), f(0.05), f(0.5), f(0.75), f(0.125)),
    lambda f: alg.fedyogi(T, f(0.1), f(0.05), f(0.5), f(0.75), f(0.125)),
    lambda f: alg.fedadagrad(T, f(0.1), f(0.05), f(0.5), f(0.125)),
], ids=["fedavg", "fedsgd", "fedprox", "scaffold", "fednova", "feddyn", "fedavgm", "fedadam",
        "fedyogi", "fedadagrad"])  # fmt: skip
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_run_with_numpys_floats_is_the_run_with_pythons(make, kind):
    """np.float32(0.1) is the number 0.10000000149..., and nothing is rounded to 32 bits by it."""
    runs = []
    for f in (kind, lambda v: float(kind(v))):
        method, stages = make(f), chain(clip(f(0.5)), agg.clipped_mean(f(0.25)), noise(f(0.125)))
        name = method.client.__qualname__.split(".")[0]
        if name in ("scaffold", "fednova", "feddyn"):  # they want a mean, the last nothing else
            stages = chain(*([] if name == "feddyn" else [clip(f(0.5))]), agg.mean())
        made = Recipe(method, T.theta0, stages, batch=16, epochs=2, seed=3)
        runs.append(bits(recipe=made, rounds=3, cohort=5))
    assert runs[0] == runs[1]


def test_a_run_with_numpys_integers_is_the_run_with_pythons():
    made = [
        bits(
            recipe=Recipe(
                alg.fedavg(T, 0.1), T.theta0, chain(agg.multi_krum(i(1), i(2))), i(16), i(2), i(3)
            ),
            rounds=i(3),
            cohort=i(5),
            every=i(2),
            skip=i(1),
        )
        for i in (int, np.int64)
    ]
    assert made[0] == made[1]


# -- the rules themselves --------------------------------------------------------------------------


def test_a_message_has_function_argument_rule_value_and_example():
    said = {
        "f: a must be > 0 and finite, got -1, e.g. a=0.1": (checks.positive, -1),
        "f: a must be >= 0 and finite, got -1, e.g. a=0.1": (checks.not_negative, -1),
        "f: a must be >= 0 and < 1, got -1, e.g. a=0.9": (checks.below_one, -1),
        "f: a must be > 0 and <= 1, got -1, e.g. a=0.1": (checks.probability, -1),
        "f: a must be an integer >= 1, got -1, e.g. a=10": (checks.whole, -1),
    }
    for words, (rule, value) in said.items():
        with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
            rule("f", "a", value)
    with pytest.raises(ValueError, match=r"^f: a must be an integer from 2 to 5, got 6"):
        checks.whole("f", "a", 6, 2, 5)
    with pytest.raises(ValueError, match=r"^f: a must be one of x, y, got 'z', e\.g\. a='x'$"):
        checks.one_of("f", "a", "z", ["x", "y"])
    checks.one_of("f", "a", 1, [1, 2])
    with pytest.raises(ValueError):
        checks.one_of("f", "a", True, [1, 2])


def test_a_new_argument_is_a_new_line_here():
    """Every argument of the methods, rules, calls and optimisers that is annotated as a number."""
    tested = {tuple(k.split(",")[0].split(" ")) for k in ALL}
    by_another = {"fedprox lr", "fedopt lr", "fedavgm lr", "fedavgm server_lr", "fedavgm beta",
                  "fednova server_lr"}  # fmt: skip
    by_another |= {"fedprox server_lr", "fedprox weight_decay"}
    by_another |= {f"{n} {a}" for n in ("fedsam", "moon") for a in ("lr", "server_lr")}
    by_another |= {f"{n} {a}" for n in ("fedadagrad", "fedadam", "fedyogi")
                   for a in ("lr", "server_lr", "beta1", "beta2", "tau")}  # fmt: skip
    untested = set()
    for module in (alg, agg, participation, optim):
        for name, f in vars(module).items():
            if name.startswith("_") or not inspect.isfunction(f):
                continue
            if not f.__module__.startswith(module.__name__) or name in ("nbytes", "payload"):
                continue
            for argument, p in inspect.signature(f).parameters.items():
                kinds = {"int", "float", "int | None", "float | None"}
                kind = p.annotation
                kind = kind if isinstance(kind, str) else inspect.formatannotation(kind)
                if kind in kinds and (name, argument) not in tested:
                    untested.add(f"{name} {argument}")
    assert untested - by_another <= {"sample seed", "sample t", "accumulated lr",
                                     "accumulated beta", "accumulated mu"}  # fmt: skip
