"""Everything that decides a run, checked once, when a control has moved."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ...algorithms import Algorithm
from ...checks import RoundFailed, check, is_whole, number, one_of, positive, probability
from ...data import Dataset, fit
from ...data import load as load_data
from ...model import Task, cross_entropy, from_module, mlp, softmax_regression, squared_error
from ...transform import Pipeline, Reduce
from ..words import ENGLISH, Words, said, words

DATASETS = ("digits", "breast_cancer", "wine", "toy", "mnist", "fashion_mnist", "cifar10")
MODELS = ("softmax", "mlp")
PARTITIONS = {  # and the setting that is its skew
    "iid": None,
    "dirichlet_label": "alpha",
    "dirichlet_client": "alpha",
    "shards": "shards_each",
    "labels_per_client": "labels_each",
    "quantity": "alpha",
    "label_and_quantity": "alpha",
    "by_attribute": None,
}
FEATURES = ("none", "rotation", "noise", "brightness", "label_swap")
METHODS: dict[str, tuple[str, ...]] = {  # and the settings that each has beside the clients' lr
    "fedavg": (),
    "fedsgd": (),
    "fedprox": ("mu",),
    "scaffold": (),
    "fednova": (),
    "feddyn": ("mu",),
    "fedavgm": ("server_lr", "beta"),
    "fedadagrad": ("server_lr",),
    "fedadam": ("server_lr",),
    "fedyogi": ("server_lr",),
    "dp_fedavg": ("noise", "rate", "clip", "budget"),
}
OWN = tuple(dict.fromkeys(name for names in METHODS.values() for name in names))
Method = str | Callable[[Task, float], Algorithm]  # a name of METHODS, or (task, lr) -> Algorithm
Axis = tuple[str, Sequence[Any]]  # a setting's name and its values

HIDDEN = 32  # units of the hidden layer of "mlp"
BOUNDS = {"krum": "K >= 2 f + 3", "multi_krum": "K >= 2 f + 3", "bulyan": "K >= 4 f + 3"}

_ONE_OF = {"dataset": DATASETS, "model": MODELS, "partition": (*PARTITIONS,), "feature": FEATURES}
_YOURS: dict[str, tuple[Any, str]] = {  # what may be your own instead of a name
    "dataset": (Dataset, "of data.own(frame, y='label')"),
    "model": ((Task, nn.Module), "a Task or nn.Module"),
    "method": (Callable, "a function (task, lr) -> Algorithm"),
}
COLUMNS = ("loss", "accuracy", "bytes", "drift", "worst")  # of every run; and of private ones:
SPENT = ("epsilon", "budget", "updates", "noise")
_TAKEN = ("clients", "counts", "labels", "note", "reference", "reference_name", "boundary")
_WHOLE = ("clients", "labels_each", "shards_each", "epochs", "rounds", "batch", "cohort", "seed")
_OR_NONE = {"batch": "all of a client's examples", "cohort": "everybody"}
_MOST = {"amount": 1.0, "mu": math.inf, "beta": 0.999, "noise": math.inf}  # from 0 on


@lru_cache(maxsize=8)
def load(of: str | Dataset) -> Dataset:
    """A data set by name, kept; your own as it is."""
    return load_data(of) if isinstance(of, str) else of


@lru_cache(maxsize=8)
def make_task(of: str | Dataset, model: str | Task | nn.Module, seed: int) -> Task:
    """The model for the data, kept; ValueError if your own of either doesn't fit the other."""
    d, made = load(of), model  # type: Dataset, Any
    check("panel", "dataset", d.name, isinstance(d.x, Tensor), "of tensors", "data.own(x, y)")
    if isinstance(model, nn.Module):
        made = from_module(model, cross_entropy if d.classes else squared_error)
    elif model == "mlp":
        made = mlp(d.x[0].numel(), HIDDEN, d.classes or 1, seed=seed)
    elif isinstance(model, str):
        made = softmax_regression(d.x[0].numel(), d.classes or 1)
    if not (isinstance(of, str) and isinstance(model, str)):
        for x, y in ((d.x, d.y), (d.x_test, d.y_test)):
            fit("panel", made, x, y)
    return made


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run. Two equal settings give the same curve.

    Attributes:
        dataset: ``digits``, ``breast_cancer``, ``wine``, ``toy``, ``mnist``, ``fashion_mnist`` or
            ``cifar10``; or your own, see :func:`fedlearn.data.own`.
        model: ``softmax`` (regression) or ``mlp`` (one hidden layer of 32); or your own, a Task or
            an ``nn.Module`` (as it is when it is first used), whose scores fit the data.
        clients: N.
        partition: A function of :mod:`fedlearn.partition`, by name; ``by_attribute`` is the split
            that the data come with: the forms that the digits were written on.
        alpha: Concentration of the Dirichlet splits.
        labels_each: Labels of a client under ``labels_per_client``.
        shards_each: Shards of a client under ``shards``.
        size_alpha: Concentration of the sizes under ``label_and_quantity``.
        feature: What each client does to its examples, evenly from the first client to the last;
            the test set stays as it is. ``rotation``: pictures turned by -90 to 90 degrees times
            the amount; ``noise``: Gaussian, of standard deviation 0 to the amount; ``brightness``:
            times 1 down to 1 - amount; ``label_swap``: this share of the clients calls class 0
            class 1, and 1 0 (concept shift).
        amount: How much, from 0 to 1.
        method: ``fedavg``, ``fedsgd``, ``fedprox``, ``scaffold``, ``fednova``, ``feddyn``,
            ``fedavgm``, ``fedadagrad``, ``fedadam``, ``fedyogi`` or ``dp_fedavg``; or your own, a
            function (task, lr) -> Algorithm.
        mu: Pull towards the broadcast theta: FedProx's mu, FedDyn's alpha.
        server_lr: eta_s of FedAvgM, FedAdagrad, FedAdam and FedYogi.
        beta: Momentum of FedAvgM.
        noise: z of DP-FedAvg: :func:`fedlearn.privacy.dp_federate`, with delta = 1 / N**2.
        rate, clip: Its q, the chance to be in a cohort, and S, the most an update measures.
        budget: The epsilon at which its run ends; ``math.inf`` for none.
        epochs: E.
        lr: The clients' learning rate.
        batch: B, or None for all of a client's examples.
        cohort: K, clients called each round; None for everybody.
        pipeline: Stages between a client's update and the server's step, of
            :func:`fedlearn.transform.chain`; or ``"mean"``. A rule that guards against f attackers
            needs so many clients called: Krum and multi-Krum K >= 2 f + 3, Bulyan K >= 4 f + 3.
        rounds: Length of a run.
        seed: Of the split, the start, the cohorts and the shuffles.
        extras: More columns, ``{name: function}``, each of a :class:`~fedlearn.history.Round`.

    Raises:
        ValueError: If a value is out of its range; the message names the rule and an example.

    Example:
        >>> Settings(alpha=0.1).applies("alpha"), Settings(partition="iid").applies("alpha")
        (True, False)
    """

    dataset: str | Dataset = "digits"
    model: str | Task | nn.Module = "softmax"
    clients: int = 20
    partition: str = "dirichlet_label"
    alpha: float = 0.1
    labels_each: int = 2
    shards_each: int = 2
    size_alpha: float = 1.0
    feature: str = "none"
    amount: float = 0.5
    method: Method = "fedavg"
    mu: float = 0.1
    server_lr: float = 0.1
    beta: float = 0.9
    noise: float = 1.0
    rate: float = 0.2
    clip: float = 0.5
    budget: float = math.inf
    epochs: int = 5
    lr: float = 1.0
    batch: int | None = 32
    cohort: int | None = None
    pipeline: Pipeline | str = "mean"
    rounds: int = 60
    seed: int = 0
    extras: Any = ()

    def __post_init__(self) -> None:
        for name, known in (_ONE_OF | {"method": (*METHODS,)}).items():
            v, (kind, hint) = getattr(self, name), _YOURS.get(name, ((), ""))
            rule = f"one of {', '.join(known)}" + f", or your own, {hint}" * bool(hint)
            fine = isinstance(v, kind) or (isinstance(v, str) and v in known)
            check("panel", name, v, fine, rule, repr(known[0]))
        for name in _WHOLE:
            v, low = getattr(self, name), int(name != "seed")
            none = f", or None for {_OR_NONE[name]}" if name in _OR_NONE else ""
            fine = is_whole(v, low) or (v is None and bool(none))
            check("panel", name, v, fine, f"an integer >= {low}{none}", 5)
        for name in ("alpha", "size_alpha", "lr", "server_lr", "clip"):
            positive("panel", name, getattr(self, name), 0.5)
        probability("panel", "rate", self.rate, 0.2)
        check("panel", "budget", self.budget, number(self.budget) > 0, "> 0", 8.0)
        for name, top in _MOST.items():
            rule = f"from 0 to {top:g}" if top < math.inf else ">= 0"
            v = getattr(self, name)
            check("panel", name, v, 0 <= number(v) <= top, rule, 0.5)
        most = f"at most clients={self.clients}"
        fine = (self.cohort or 1) <= self.clients
        check("panel", "cohort", self.cohort, fine, most, max(1, self.clients // 2))
        self._check_pipeline()
        self._check_extras()
        if not (isinstance(self.dataset, str) and isinstance(self.model, str)):
            make_task(self.dataset, self.model, self.seed)  # do they fit?

    def _check_extras(self) -> None:
        """Made (name, function) pairs, which can be compared and kept."""
        given = self.extras.items() if isinstance(self.extras, Mapping) else self.extras
        named = [e if isinstance(e, tuple) else (getattr(e, "__name__", e), e) for e in given]
        rule = "functions of a round under names of their own"
        for name, f in named:
            fine = isinstance(name, str) and callable(f) and name not in (*COLUMNS, *SPENT, *_TAKEN)
            check("panel", "extras", name, fine, rule, "{'length': lambda r: r.theta.norm()}")
        object.__setattr__(self, "extras", tuple(named))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what a run has one number of a round."""
        classes = isinstance(self.dataset, str) or self.dataset.classes
        of_all = [c for c in COLUMNS if classes or c not in ("accuracy", "worst")]
        return (*of_all, *SPENT * self.private, *(name for name, _ in self.extras))

    @property
    def plain(self) -> bool:
        """Whether names and numbers say it all, and nothing is your own."""
        named = (self.dataset, self.model, self.method, self.pipeline)
        return all(isinstance(v, str) for v in named) and not self.extras

    def _check_pipeline(self) -> None:
        """Before any round: can the rule work with as many clients as are called?"""
        if isinstance(self.pipeline, str):
            one_of("panel", "pipeline", self.pipeline, ("mean",))
            return
        rule, got = "of transform.chain, or 'mean'", type(self.pipeline).__name__
        check("panel", "pipeline of dp_fedavg", got, not self.private, "its own", "'mean'")
        check("panel", "pipeline", got, isinstance(self.pipeline, Pipeline), rule, "chain(krum(2))")
        K = self.cohort or self.clients
        if refusal := refused(self.pipeline.reduce, K):
            bound = BOUNDS.get(self.pipeline.reduce.name.split("(")[0], "")
            raise ValueError(f"panel: {refusal}" + f" ({bound}, and K = {K} here)" * bool(bound))

    @property
    def private(self) -> bool:
        """Whether the run is differentially private, and its epsilon known."""
        return self.method == "dp_fedavg"

    def applies(self, name: str) -> bool:
        """Whether a setting makes a difference to this run."""
        if name in ("alpha", "labels_each", "shards_each"):
            return PARTITIONS[self.partition] == name
        if name == "size_alpha":
            return self.partition == "label_and_quantity"
        if name == "amount":
            return self.feature != "none"
        if name in OWN:
            return isinstance(self.method, str) and name in METHODS[self.method]
        if name in ("epochs", "batch"):
            return self.method != "fedsgd"  # one gradient over everything
        if name == "cohort":
            return not self.private  # each client throws its own coin
        return True

    def split_words(self, say: Words = ENGLISH, skew: bool = True) -> str:
        """The split in words: ``shards split, shards each = 2``; or without its skew."""
        own = self.partition == "by_attribute" and not isinstance(self.dataset, str)
        text = say("{split} split", split=say("by group") if own else words(self.partition, say))
        names = (PARTITIONS[self.partition], "size_alpha" * self.applies("size_alpha"))
        more = [said(n, getattr(self, n), say) for n in names if n and skew]
        return say(", ").join([text, *more])

    def shift_words(self, say: Words = ENGLISH) -> str:
        """How clients' examples differ, in words; nothing where they don't."""
        text = {
            "none": "",
            "rotation": ", turned by {low:.0f}° to {high:.0f}°",
            "noise": ", noise up to {a:.2g}",
            "brightness": ", brightness down to {dark:.2g}",
            "label_swap": ", labels 0 and 1 swapped by {a:.0%} of the clients",
        }[self.feature]
        a = self.amount
        return say(text, low=-90 * a, high=90 * a, a=a, dark=1 - a)


@lru_cache(maxsize=512)
def refused(rule: Reduce, K: int) -> str:
    """Why a rule can't work on K updates, in words; nothing if it can."""
    try:
        rule.apply(torch.zeros(K, 1), torch.full((K,), 1 / K))
    except RoundFailed as e:
        return str(e)
    return ""


def least(pipeline: Pipeline | str, most: int, say: Words = ENGLISH) -> str:
    """What a rule needs, for the tips of sliders: ``; krum(3) needs 9 or more``."""
    if isinstance(pipeline, str) or not refused(pipeline.reduce, 1):
        return ""
    enough = next((K for K in range(2, most + 1) if not refused(pipeline.reduce, K)), None)
    n = enough or say("more than {most}", most=most)
    return say("; {rule} needs {n} or more", rule=pipeline.reduce.name, n=n)


def check_names(who: str, given: Mapping[str, Any], taken: Sequence[str] = ()) -> None:
    """Refuse a setting that there isn't, and one that is ``taken`` by another argument."""
    known = [f for f in Settings.__dataclass_fields__ if f not in taken]
    for name in given:
        if name in taken:
            raise ValueError(f"{who}: {name} is given twice, it varies already; leave out {name}=")
        check(who, "a setting", name, name in known, f"one of {', '.join(known)}", "'alpha'")


def pairs(s: Settings, x: Axis, y: Axis, seeds: Sequence[int] | None = None) -> list[Settings]:
    """The settings of every cell of a map, row by row; of each cell one a seed."""
    each: list[dict[str, Any]] = [{"seed": n} for n in ((s.seed,) if seeds is None else seeds)]
    return [replace(s, **n | {x[0]: a, y[0]: b}) for b in y[1] for a in x[1] for n in each]
