"""The Python that makes exactly a panel's run: what its Code button shows."""

import math
import re
import sys
from typing import Any

from ... import aggregate, compress, transform
from ...model import Task
from ...transform import Pipeline
from ..words import words
from .frames import WEIGHS, own_settings, split_arguments
from .settings import HIDDEN, Settings, load

_RUN = """\
{yours}{imports}from fedlearn import Recipe, Simulated, collect, federate
from fedlearn import algorithms, data, model, partition{more}
from fedlearn.rng import Use, numpy_rng

{loaded}rng = numpy_rng({seed}, Use.PARTITION)
parts = partition.{partition}({by}, {clients}, rng{split})
{seen}task = {task}
method = {made}
recipe = Recipe(method, task.theta0, {rule}batch={batch}, epochs={epochs}, seed={seed})
clients = Simulated(recipe, {x}, {y}, parts)
test = model.evaluator(task, d.x_test, d.y_test)
history = collect({run}, evaluate=test))
print(history["loss"][-1]{accuracy})
"""
_PRIVATE = "from fedlearn.privacy import dp_federate, private_mean\n"
_BY = {"by_attribute": "d.group"}  # the others look at the labels
# Feature or concept skew: the line before ``task``, with x or y in place of d.x or d.y.
_SEEN = {
    "none": "",
    "rotation": "x = skew.rotate(d.x, parts, np.linspace({low!r}, {high!r}, {clients}), d.shape)\n",
    "noise": "x = skew.add_noise(d.x, parts, np.linspace(0, {amount!r}, {clients}), seed={seed})\n",
    "brightness": "x = skew.brighten(d.x, parts, np.linspace(1, {dark!r}, {clients}))\n",
    "label_swap": (
        "swaps = [(0, 1) if k < {amount!r} * {clients} else None for k in range({clients})]\n"
        "y = skew.swap_labels(d.y, parts, swaps)\n"
    ),
}


def code(s: Settings) -> str:
    """The Python that makes exactly this run.

    Example:
        >>> print(code(Settings(alpha=0.1)).splitlines()[6])
        parts = partition.dirichlet_label(d.y.numpy(), 20, rng, alpha=0.1)
    """
    d = load(s.dataset)
    n_in, values, own = d.x[0].numel(), dict(vars(s)), yours(s)
    if not s.applies("epochs"):
        values.update(batch=None, epochs=1)
    linear = s.model == "softmax"
    shape = f"{n_in}, {d.classes}" if linear else f"{n_in}, {HIDDEN}, {d.classes}, seed={s.seed}"
    task = f"model.{'softmax_regression' if linear else 'mlp'}({shape})"
    if "net" in own:
        made = f"model.from_module(net{'' if d.classes else ', model.squared_error'})"
        task = "net" if isinstance(s.model, Task) else made
    a, numbers = s.amount, s.feature in ("rotation", "noise", "brightness")
    return _RUN.format(
        **values, by=_BY.get(s.partition, "d.y.numpy()"),
        split=_given(split_arguments(s)), made=_method(s),
        task=task, yours="".join(f"{k} = {v}  # your own\n" for k, v in own.items() if k != v),
        loaded="" if "d" in own else f"d = data.load({s.dataset!r})\n",
        accuracy=', history["accuracy"][-1]' if d.classes else "",
        seen=_SEEN[s.feature].format(**values, low=-90 * a, high=90 * a, dark=1 - a),
        imports=("import numpy as np\n\n" if numbers else "") + _PRIVATE * s.private + brought(s),
        more=", skew" if s.feature != "none" else "",
        run=_started(s),
        rule=_stages(s), x="x" if numbers else "d.x", y="y" if s.feature == "label_swap" else "d.y",
    )  # fmt: skip


def yours(s: Settings) -> dict[str, str]:
    """What is your own, as the code calls it: its name in the notebook."""
    given = {"d": (s.dataset, "your_dataset"), "net": (s.model, "your_model")}
    return {k: called(v, so) for k, (v, so) in given.items() if not isinstance(v, str)}


def called(value: Any, default: str) -> str:
    """The name of a variable of the notebook."""
    main = [*vars(sys.modules["__main__"]).items()]  # which another thread may change
    return next((k for k, v in main if v is value and not k.startswith("_")), default)


def literal(name: str, value: Any) -> str:
    """A setting as Python; what is your own by its name in the notebook."""
    if name == "extras":
        return f"{{{', '.join(f'{k!r}: {called(f, words(f))}' for k, f in value)}}}"
    if isinstance(value, Pipeline):
        return f"chain({words(value)})"
    plain = isinstance(value, (str, int, float)) or value is None
    return repr(value) if plain else called(value, f"your_{name}")


def _started(s: Settings) -> str:
    if not s.private:
        return f"federate(clients, rounds={s.rounds}, cohort={s.cohort}"
    budget = f", budget={s.budget!r}" if s.budget < math.inf else ""
    return f"dp_federate(clients, rounds={s.rounds}, delta=1 / {s.clients}**2{budget}"


def _stages(s: Settings) -> str:
    if s.private:
        return f"private_mean({s.clip!r}, {s.noise!r}, {s.rate!r} * {s.clients}), "
    return "" if isinstance(s.pipeline, str) else f"chain({words(s.pipeline)}), "


def brought(s: Settings) -> str:
    """The lines that import a pipeline's stages; one of your own is left to you."""
    names = ["chain", *re.findall(r"(\w+)\(", words(s.pipeline))]
    lines = []
    for room in (aggregate, compress, transform) if names[1:] else ():
        module = [(n, getattr(getattr(room, n, None), "__module__", "")) for n in names]
        if here := sorted({n for n, its in module if its == room.__name__}):
            lines.append(f"from {room.__name__} import {', '.join(here)}\n")
    return "".join(lines)


def _method(s: Settings) -> str:
    if not isinstance(s.method, str):
        return f"{called(s.method, words(s.method))}(task, {s.lr!r})  # your own"
    total = ", n_total=len(d.y)" if s.method in WEIGHS else ""
    name = "fedavg" if s.private else s.method
    return f"algorithms.{name}(task, lr={s.lr!r}{_given(own_settings(s))}{total})"


def _given(arguments: dict[str, float]) -> str:
    return "".join(f", {k}={v!r}" for k, v in arguments.items())
