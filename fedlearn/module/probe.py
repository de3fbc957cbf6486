"""A module as a function of its layers and x, and what the first examples show of it."""

import contextlib
import itertools
import math
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from ..task import Loss, views
from .norm import copied
from .passes import sequential, stack

_NAME = "from_module"
_LOOKING = threading.RLock()  # a look compares generators that all threads draw from


class Runner:
    """A module as scores(layers, x). It looks at the first examples, and then never again.

    An object and no closure: what it learns is nothing that a checkpoint would have to know.
    """

    def __init__(self, net: nn.Module) -> None:
        trained = {k: p.detach() for k, p in net.named_parameters() if p.requires_grad}
        still = {k: p.detach() for k, p in net.named_parameters() if not p.requires_grad}
        self.net, self.modules, self.names = net, list(net.modules()), list(trained)
        self.fixed = still | dict(net.named_buffers())
        self.shapes = [tuple(p.shape) for p in trained.values()]
        self.theta0 = torch.cat([p.reshape(-1) for p in trained.values()])
        self.stacked, self.must_stack = False, False
        self._looked = self._done = self._judged = False
        self._nets: dict[int, nn.Module] = {}

    def scores(self, layers: Any, x: Tensor) -> Tensor:
        """The forward of these layers, on a copy of x: it may write into its input.

        In a net of this thread's own: the layers stand in it while it runs. Numbers are shared.
        """
        me = threading.get_ident()
        if me not in self._nets:
            numbers = itertools.chain(self.net.parameters(), self.net.buffers())
            self._nets[me] = copied(_NAME, self.net, shared=numbers)
        rest = {k: v.to(x.device) for k, v in self.fixed.items()}
        given = {**dict(zip(self.names, layers)), **rest}
        out: Tensor = functional_call(self._nets[me], given, (x.clone(),))
        return out

    def look(
        self, kind: torch.dtype, x: Tensor, y: Tensor | None = None, losses: Loss | None = None
    ) -> None:
        """Raise a ValueError if the module is no function; give up stacking where it is wrong.

        Two examples that differ show whether one depends on the other. Until there are, look at
        what there is, once. ``kind`` is theta's, which may be another than the module's.
        """
        if (self._done and (self._judged or y is None)) or not len(x) or _traced(x):
            return
        with _LOOKING:
            self._look(kind, x, y, losses)

    def _look(self, kind: torch.dtype, x: Tensor, y: Tensor | None, losses: Loss | None) -> None:
        at, differ = _two(x)
        few = x[at].detach()
        if not self._done and (differ or not self._looked):
            self._is_function(kind, few)
            if self.stacked:
                self._is_stackable(kind, few)
            self._looked, self._done = True, differ
        if y is not None and losses is not None and not self._judged and len(few) > 1:
            self._is_apart(kind, few, y[at], losses)
            self._judged = True

    def unstackable(self, e: Exception) -> ValueError:
        """What vmap says, as our error."""
        first = (str(e).splitlines() or [type(e).__name__])[0]
        return ValueError(
            f"{_NAME}: vmap can't run this module for K clients at once ({first}); use "
            f"from_module(module, stacked=False)"
        )

    def _is_function(self, kind: torch.dtype, few: Tensor) -> None:
        layers = views(self._near(1, kind, few.device)[0], self.shapes)
        why = _trouble(copied(_NAME, self.net), self.names, layers, self.fixed, few)
        if not why:
            return
        calm = copied(_NAME, self.net).eval()
        cure = "scores must be a function of theta and x alone, e.g. count outside of the module"
        if "draws random" in why:
            cure = "leave it out, or hand F.dropout training=self.training and call module.eval()"
        with contextlib.suppress(Exception):  # another in evaluation is not the one to tell
            if not _trouble(calm, self.names, layers, self.fixed, few):
                cure = "leave it out, or call module.eval() first"
        raise ValueError(f"{_NAME}: {why}; {cure}")

    def _near(self, K: int, kind: torch.dtype, device: torch.device) -> Tensor:
        """K parameter vectors (K, d) near theta0, none of them 0 anywhere, without a draw."""
        d, like = self.theta0.numel(), self.theta0.double()
        wave = 0.05 * (torch.arange(1, d + 1) * torch.arange(1, K + 1)[:, None]).double().sin()
        near = torch.where(like == 0, wave, like * (1 + wave.to(like.device)).to(like.device))
        return near.to(device, kind)

    def _is_stackable(self, kind: torch.dtype, few: Tensor) -> None:
        """Three clients, two of them with padding: at once as one after the other?"""
        x = torch.stack([few, few, few.flip(0)])
        mask = torch.ones(x.shape[:2], dtype=kind, device=x.device)
        mask[1:, 1:] = 0.0
        theta, got = self._near(3, kind, x.device), []
        watch = _Embeddings()
        for way in (sequential, stack):
            g = torch.zeros_like(theta)
            receive = lambda rows, layers, grads, g=g: [
                out.copy_(v) for out, v in zip(views(g[rows], self.shapes), grads, strict=True)
            ]
            how = self.scores, _wavy, self.shapes, theta, x, mask, mask, receive
            try:
                with watch if way is sequential else _strict(self.must_stack):
                    objectives = way(*how)
            except Exception as e:  # of one example alone, or of vmap
                if self.must_stack:
                    raise self.unstackable(e) from e
                self.stacked = False
                return
            got.append((objectives, g))
        why = watch.found or self._differs(*got)
        if why and self.must_stack:
            raise ValueError(
                f"{_NAME}: K clients at once (vmap) are not what one after the other is: {why}; "
                f"use from_module(module, stacked=False)"
            )
        self.stacked = not why

    def _differs(self, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> str:
        if not _close(one[0], other[0]):
            return "the scores beside padding differ, so a layer mixes the examples of a batch"
        floor = 0.01 * float(one[1].abs().nan_to_num().max())
        parts = zip(self.names, views(one[1], self.shapes), views(other[1], self.shapes))
        wrong = [k for k, a, b in parts if not _close(a, b, floor)]
        return f"the gradient of {', '.join(wrong)} differs" if wrong else ""

    def _is_apart(self, kind: torch.dtype, few: Tensor, y: Tensor, losses: Loss) -> None:
        """The loss of an example is its own, whatever stands beside it."""
        theta = self._near(1, kind, few.device)[0]
        with torch.no_grad(), _generators(few.device) as drawn:
            z = self.scores(views(theta, self.shapes), few)
            untouched = drawn()
            both, alone = losses(z, y), losses(z[:1], y[:1])
            moved = drawn() != untouched
        if moved or not _close(both[:1], alone):
            got = "one that draws random numbers" if moved else "one that depends on the others"
            raise ValueError(
                f"{_NAME}: loss must give every example a number of its own, got {got}, e.g. "
                f"nn.CrossEntropyLoss(reduction='none')"
            )


def _two(x: Tensor) -> tuple[list[int], bool]:
    """Rows of two examples that differ, if there are two; else of what there is."""
    head = x[:64].detach().reshape(len(x[:64]), math.prod(x.shape[1:]))
    other = (head != head[:1]).any(1).nonzero()
    return ([0, int(other[0])], True) if len(other) else ([0, 1][: len(x)], False)


def _traced(x: Tensor) -> bool:
    """Inside vmap or grad of torch.func numbers can't be looked at."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(x))


def _wavy(z: Tensor, y: Tensor) -> Tensor:
    """A number an example, to which every score counts otherwise."""
    flat = z.unsqueeze(-1).flatten(1)
    return flat @ torch.arange(1, flat.shape[1] + 1, device=z.device).cos().to(z.dtype)


def _close(a: Tensor, b: Tensor, floor: float = 0.0) -> bool:
    """Equal up to rounding, as far as the largest number of a, or the floor, has digits."""
    tol = torch.finfo(a.dtype).eps ** 0.5
    most = max(float(a.abs().nan_to_num().max()) if a.numel() else 0.0, floor)
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=tol * most, equal_nan=True)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


# -- is it a function? ----------------------------------------------------------------------------


def _trouble(net: nn.Module, names: Any, layers: Any, fixed: Any, few: Tensor) -> str:
    """What makes the module more than a function of its layers and x, with the layer's name."""
    seen: list[Tensor] = []
    for way in (torch.no_grad, torch.no_grad, torch.enable_grad):
        own = [v.clone().requires_grad_(way is torch.enable_grad) for v in layers]
        given = dict(zip(names, own)) | {k: v.clone().to(few.device) for k, v in fixed.items()}
        before = {k: (v, v._version, v.detach().clone()) for k, v in given.items()}
        with way(), _generators(few.device) as drawn, _first(net, drawn) as drew:
            untouched = drawn()
            out = functional_call(net, given, (few.clone(),))
            if drawn() != untouched:
                return f"{drew[0] if drew else 'the forward'} draws random numbers"
        _check_scores(out, len(few))
        for k, (v, version, number) in before.items():
            if given[k] is not v or v._version != version or not _same(v.detach(), number):
                what = "parameter" if k in names else "buffer"
                return f"{_layer(net, k.rpartition('.')[0])} changes its {what} {k} when it is used"
        seen.append(out)
    if not _close(seen[0], seen[1]):
        off = float((seen[0] - seen[1]).abs().max())
        return f"two calls at one theta differ, by {off:.2g}: the module keeps something or draws"
    if not seen[2].requires_grad:
        raise ValueError(
            f"{_NAME}: no gradient reaches the parameters; compute scores without torch.no_grad(), "
            f"detach() or argmax, e.g. nn.Linear(64, 10)"
        )
    return ""


def _check_scores(out: Any, n: int) -> None:
    """One tensor, a row an example."""
    if isinstance(out, Tensor) and out.shape[:1] == (n,) and out.is_floating_point():
        return
    got, cure = type(out).__name__, "return the scores alone"
    if isinstance(out, Tensor):
        got = f"shape {tuple(out.shape)} of {out.dtype} for {n} example{'s' * (n > 1)}"
        cure = "put the examples first (batch_first=True), and leave argmax to the evaluation"
    elif isinstance(out, (tuple, list, dict)):
        at = next(iter(out)) if isinstance(out, dict) else 0
        got = f"a {got} of {len(out)}"
        cure = f"wrap it in a module whose forward returns self.net(x)[{at!r}], say"
    raise ValueError(
        f"{_NAME}: the module must return scores (B, ...), one tensor, got {got}; {cure}"
    )


def _layer(net: nn.Module, name: str) -> str:
    return f"layer {name or 'itself'} ({type(net.get_submodule(name)).__name__})"


@contextlib.contextmanager
def _first(net: nn.Module, drawn: Any) -> Iterator[list[str]]:
    """The layers that drew, the innermost first: when each begins, nothing of its own has been."""
    drew: list[str] = []
    before: list[Any] = []

    def ends(name: str) -> None:
        if before.pop() != drawn():
            drew.append(_layer(net, name))

    hooks: list[Any] = []
    for k, m in net.named_modules():
        hooks.append(m.register_forward_pre_hook(lambda *_: before.append(drawn())))
        hooks.append(m.register_forward_hook(lambda *_, k=k: ends(k)))
    try:
        yield drew
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _generators(device: torch.device) -> Iterator[Any]:
    """What the global generators are, to be compared; and then they are put back."""
    on_gpu = device.type == "cuda"

    def states() -> list[Any]:
        gpu = torch.cuda.get_rng_state(device) if on_gpu else torch.zeros(0)
        return [torch.get_rng_state(), gpu, random.getstate(), np.random.get_state()]  # noqa: NPY002

    def text(some: list[Any]) -> list[Any]:
        torch_, gpu, python, numpy = some
        return [torch_.tolist(), gpu.tolist(), python, numpy[1].tobytes(), numpy[2:]]

    before = states()
    try:
        yield lambda: text(states())
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[2])
        np.random.set_state(before[3])  # noqa: NPY002
        if on_gpu:
            torch.cuda.set_rng_state(before[1], device)


# -- can it be stacked? ---------------------------------------------------------------------------


class _Embeddings(TorchDispatchMode):
    """Sees what two examples may not show: an embedding that vmap's rule gets wrong."""

    found = ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten.embedding.default and (
            any(args[3:]) or max((-1, *args[2:3])) >= 0
        ):
            self.found = "vmap forgets an embedding's padding_idx and scale_grad_by_freq"
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _strict(forced: bool) -> Iterator[None]:
    """An operation that vmap has no rule for, and would loop over, is an error unless forced."""
    functorch: Any = torch._C._functorch
    before = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(before and forced)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(before)
