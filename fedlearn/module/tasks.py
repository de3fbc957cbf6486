"""Any ``nn.Module`` as a task, its gradient by autograd, and the module given back."""

import torch
from torch import Tensor, nn

from ..checks import check
from ..task import Loss, Task, cross_entropy, views
from .checks import check_loss, check_module, one_each, shown
from .norm import copied
from .passes import sequential, stack
from .probe import Runner

_STACK_MAX = 30_000  # parameters; above this, stacking loses to one client after the other
_SLOW = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase)  # stacked, that is


def from_module(
    module: nn.Module, loss: Loss = cross_entropy, *, stacked: bool | None = None
) -> Task:
    """Any ``nn.Module`` as a :class:`Task`, its gradient by autograd.

    The task works on a copy: the module is never changed, nor an example, even if the forward
    writes into its input. It is f(theta, x) as a function: the first examples that the task sees
    are put through it a few times, and what is no function of theta and x is refused.

    Raises:
        ValueError: At once, with the layer and a cure: if the module keeps batch statistics or
            draws random numbers (BatchNorm, Dropout in training mode), has nothing to train,
            parameters of several types, or can't be copied; if ``loss`` averages over the batch;
            with ``stacked=True``, for layers that ``vmap`` gets wrong. With the first examples: if
            the forward draws, changes a buffer or a parameter, gives another number the second
            time, gives something else than one row of scores an example, or no gradient; if the
            loss of an example depends on others; with ``stacked=True``, if K clients at once and
            one after the other differ.

    Args:
        module: Maps x (B, ...) to scores (B, ...), one tensor. Its parameters that require a
            gradient become theta, in the order of ``module.named_parameters()``; one tied to
            another stands there once. :func:`to_module` is the way back.
        loss: Loss of every example, :func:`cross_entropy`, :func:`squared_error`, or one of
            PyTorch's with ``reduction="none"``. Of losses (B, ...) an example's is the mean.
        stacked: True: all K clients in one pass (``vmap`` forward, ordinary backward). False: one
            client after the other. None: stacked for small models without convolutions, where it is
            faster, unless the first examples show that it gives another gradient.

    Example:
        >>> task = from_module(nn.Linear(784, 10))
        >>> task.theta0.numel(), task.predict(task.theta0, torch.zeros(2, 784)).shape
        (7850, torch.Size([2, 10]))
    """
    check_module("from_module", module, stacked)
    check_loss("from_module", loss)
    kept = copied("from_module", module).cpu()  # as data and theta0 are; the run moves them
    run, losses = Runner(copied("from_module", kept)), one_each("from_module", loss)
    auto = run.theta0.numel() <= _STACK_MAX and not any(isinstance(m, _SLOW) for m in run.modules)
    run.stacked, run.must_stack = auto if stacked is None else stacked, bool(stacked)

    def backward(theta, x, y, mask, receive):  # type: ignore[no-untyped-def]
        run.look(theta.dtype, x.flatten(0, 1), y.flatten(0, 1), losses)
        how = run.scores, losses, run.shapes, theta, x, y, mask, receive
        if not run.stacked:
            return sequential(*how)
        try:
            return stack(*how)
        except RuntimeError as e:  # of vmap, which the first examples didn't show
            if stacked:
                raise run.unstackable(e) from e
            objectives = sequential(*how)
            run.stacked = False
            return objectives

    def grad(theta: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        g = torch.zeros(theta.shape, dtype=theta.dtype, device=theta.device)

        def store(rows, layers, grads):  # type: ignore[no-untyped-def]
            for out, part in zip(views(g[rows], run.shapes), grads, strict=True):
                out.copy_(part)

        return g, backward(theta, x, y, mask, store)

    def step(theta: Tensor, x: Tensor, y: Tensor, mask: Tensor, lr: float) -> Tensor:
        def apply(rows, layers, grads):  # type: ignore[no-untyped-def]
            torch._foreach_add_(layers, grads, alpha=-lr)  # views: theta moves

        return backward(theta, x, y, mask, apply)

    def predict(theta: Tensor, x: Tensor) -> Tensor:
        run.look(theta.dtype, x)
        return run.scores(views(theta, run.shapes), x)

    return Task(run.theta0, predict, shown("from_module", loss), grad, step, kept)


def to_module(task: Task, theta: Tensor) -> nn.Module:
    """The module that a task was made of, with theta for its trained parameters: the way back.

    A new copy, on the CPU, with its frozen and tied layers and its buffers:
    ``torch.save(to_module(task, theta).state_dict(), "net.pt")`` is read by PyTorch alone.

    Args:
        task: Of :func:`from_module`; ValueError for another, which has no module.
        theta: (d,) in the task's order and type, e.g. a round's; ValueError otherwise.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 2).requires_grad_(False))
        >>> task = from_module(net)
        >>> new = to_module(task, torch.tensor([1.0, 2.0, 3.0]))
        >>> new[0].weight.tolist(), new[0].bias.tolist(), torch.equal(new[1].weight, net[1].weight)
        ([[1.0, 2.0]], [3.0], True)
    """
    own, made = task.module, "from_module(nn.Linear(64, 10))"
    rule = "one that from_module made: this one has no module"
    check("to_module", "task", type(task).__name__, own is not None, rule, made)
    assert own is not None
    d, kind = task.theta0.numel(), task.theta0.dtype
    fits = isinstance(theta, Tensor) and (theta.shape, theta.dtype) == ((d,), kind)
    got = (*theta.shape, theta.dtype) if isinstance(theta, Tensor) else type(theta).__name__
    check("to_module", "theta", got, fits, f"({d},) of {kind}", f"theta.to({kind})")
    net = copied("to_module", own)
    trained = [p for p in net.parameters() if p.requires_grad]
    with torch.no_grad():
        for p, v in zip(trained, views(theta, [tuple(p.shape) for p in trained]), strict=True):
            p.copy_(v)
    return net
