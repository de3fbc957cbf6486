"""What can be known to be wrong of a module and its loss before an example is seen."""

import contextlib
import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..checks import check
from ..task import Loss, binary_cross_entropy, cross_entropy, squared_error

_OURS = (cross_entropy, squared_error, binary_cross_entropy)
_NORMS = nn.modules.batchnorm._NormBase


def check_module(name: str, module: nn.Module, stacked: bool | None) -> None:
    """Raise the ``ValueError`` of ``name`` for a module that can't be trained federatedly.

    Example:
        >>> check_module("from_module", nn.BatchNorm1d(4), None)
        Traceback (most recent call last):
        ...
        ValueError: from_module: layer itself (BatchNorm1d) keeps batch statistics, ...
    """
    is_one = isinstance(module, nn.Module)
    check(name, "module", type(module).__name__, is_one, "an nn.Module", "nn.Linear(64, 10)")
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError(f"{name}: no parameter requires a gradient, e.g. nn.Linear(64, 10)")
    for layer, m in module.named_modules():
        why = _why(m, bool(stacked))
        if why:
            raise ValueError(f"{name}: layer {layer or 'itself'} ({type(m).__name__}) {why}")
    trained = {k: p for k, p in module.named_parameters() if p.requires_grad}
    kinds = {p.dtype: k for k, p in reversed(trained.items())}
    if len(kinds) > 1:
        got = ", ".join(f"{kind} in {k}" for kind, k in kinds.items())
        raise ValueError(
            f"{name}: all parameters must be of one type, for theta is one vector, got {got}; "
            f"e.g. module.float()"
        )
    dtype, first = next(iter(kinds.items()))
    if not dtype.is_floating_point:
        raise ValueError(
            f"{name}: parameters must be real numbers, got {dtype} in {first}; keep real and "
            f"imaginary part, e.g. nn.Parameter(torch.view_as_real(w))"
        )
    hooked = [k for k, p in trained.items() if p._backward_hooks or _after(p)]
    if hooked:
        raise ValueError(
            f"{name}: parameter {hooked[0]} has a hook on its gradient, which theta has not; "
            f"change gradients in the method, e.g. descend(..., grad=...)"
        )
    _check_memory(name, trained, dict(module.named_buffers()))


def _why(m: nn.Module, stacked: bool) -> str:
    """Why a layer can't be had; empty if it can."""
    known = vars(m)
    if isinstance(m, torch.jit.ScriptModule):
        return "is compiled by torch.jit; hand over the module that it was made of"
    if any(is_lazy(v) for v in (*m.parameters(False), *m.buffers(False))):
        return "has no size before its first use; call module(x[:2]) once before"
    if any(v.is_meta for v in (*m.parameters(False), *m.buffers(False))):
        return "has no numbers (device meta); call module.to_empty(device='cpu') and set them"
    if isinstance(m, _NORMS):
        batch = isinstance(m, nn.modules.batchnorm._BatchNorm)
        if batch and (m.training or not m.track_running_stats):
            return (
                "keeps batch statistics, which would mix clients; put an nn.GroupNorm in its place "
                "with model.without_batch_norm(module), or call module.eval() first, which fixes "
                "the statistics it has"
            )
        if m.training and m.track_running_stats:
            return (
                "keeps batch statistics, which would mix clients; take "
                f"{type(m).__name__}({m.num_features}), which keeps none, or call module.eval()"
            )
    draws = "draws from the global generator: leave it out, or call module.eval() first"
    several = isinstance(m, nn.RNNBase) and m.num_layers > 1  # dropout is between layers
    own = isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0
    inner = (several or isinstance(m, nn.MultiheadAttention)) and known["dropout"] > 0
    if m.training and (own or inner or (isinstance(m, nn.RReLU) and m.lower < m.upper)):
        return draws
    if known.get("max_norm") is not None and isinstance(m, (nn.Embedding, nn.EmbeddingBag)):
        return "rewrites its weights in the forward pass (max_norm); leave max_norm out"
    if stacked and isinstance(m, (nn.RNNBase, nn.RNNCellBase, nn.EmbeddingBag)):
        return "can't be run by vmap for K clients; use from_module(module, stacked=False)"
    if stacked and isinstance(m, nn.Embedding):
        for word, is_set in (
            ("padding_idx", m.padding_idx is not None),
            ("scale_grad_by_freq", m.scale_grad_by_freq),
            ("sparse", m.sparse),
        ):
            if is_set:
                return f"has {word}, which vmap forgets; use from_module(module, stacked=False)"
    return ""


def _after(p: Tensor) -> Any:
    return getattr(p, "_post_accumulate_grad_hooks", None)


def _check_memory(name: str, trained: dict[str, nn.Parameter], buffers: dict[str, Tensor]) -> None:
    """Two names of one memory that aren't one parameter: a step of one would move the other."""
    at: dict[tuple[torch.device, int], str] = {}
    for k, v in {**trained, **buffers}.items():
        other = at.setdefault((v.device, v.data_ptr()), k) if v.numel() else k
        if other != k and other in trained:
            raise ValueError(
                f"{name}: {k} and {other} must not share memory unless they are one parameter; tie "
                f"them, e.g. module.b.weight = module.a.weight, or clone one"
            )


def check_loss(name: str, loss: Any) -> None:
    """Raise the ``ValueError`` of ``name`` for a loss that is known not to be one an example.

    Example:
        >>> check_loss("from_module", nn.CrossEntropyLoss())
        Traceback (most recent call last):
        ...
        ValueError: from_module: loss must give one number an example, got reduction='mean', ...
    """
    made = callable(loss) and not isinstance(loss, type)
    got = getattr(loss, "__name__", type(loss).__name__)
    rule = "a function of scores and y, made already"
    check(name, "loss", got, made, rule, "nn.MSELoss(reduction='none')")
    if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        raise ValueError(
            f"{name}: loss must have nothing to train, got parameters of {got}, which are no part "
            f"of theta; make them the module's, e.g. as more scores"
        )
    reduction = getattr(loss, "reduction", None) or _default(loss, "reduction") or "none"
    if reduction != "none":
        good = f"nn.{type(loss).__name__}(reduction='none')"
        if not isinstance(loss, nn.Module):
            good = f"lambda z, y: F.{got}(z, y, reduction='none')"
        raise ValueError(
            f"{name}: loss must give one number an example, got reduction={reduction!r}, which "
            f"mixes them, e.g. {good}"
        )


def _default(f: Any, argument: str) -> Any:
    try:
        found = inspect.signature(f).parameters.get(argument)
    except ValueError:  # a builtin says nothing
        return None
    return None if found is None or found.default is found.empty else found.default


def one_each(name: str, loss: Loss) -> Loss:
    """The loss as one number an example: the mean over what else it returns; ValueError otherwise.

    Example:
        >>> mse = one_each("from_module", nn.MSELoss(reduction="none"))
        >>> mse(torch.zeros(2, 3), torch.tensor([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0]]))
        tensor([1., 3.])
    """

    mine = loss in _OURS

    def losses(scores: Tensor, y: Tensor) -> Tensor:
        each = loss(scores, y) if mine else _careful(name, loss, scores, y)
        ok = isinstance(each, Tensor) and each.shape[:1] == y.shape[:1]
        if not ok or each.numel() > max(scores.numel(), y.numel()):
            raise ValueError(
                f"{name}: loss must give one number an example, got "
                f"{tuple(each.shape) if isinstance(each, Tensor) else 'none'} from scores "
                f"{tuple(scores.shape)} and y {tuple(y.shape)}, e.g. with reduction='none', and "
                f"scores of y's shape: squeeze(-1) for y (B,)"
            )
        return each if each.dim() == 1 else each.flatten(1).mean(1)

    return losses


def _careful(name: str, loss: Loss, scores: Tensor, y: Tensor) -> Any:
    """A user's loss: it may write into what it gets, and pair (B, 1) with (B,)."""
    own = scores.clone(), y.clone()
    try:
        if scores.shape == y.shape or 1 not in (*scores.shape[1:], *y.shape[1:]):
            return loss(*own)
        with (
            warnings.catch_warnings()
        ):  # that is (B, B), of which PyTorch only warns; (1, 1) may be
            warnings.filterwarnings("error" if len(y) > 1 else "ignore", "Using a target size")
            with contextlib.suppress(UserWarning):
                return loss(*own)
        return None
    except (ValueError, RuntimeError) as e:
        raise ValueError(
            f"{name}: loss can't take scores {tuple(scores.shape)} of {scores.dtype} and y "
            f"{tuple(y.shape)} of {y.dtype} ({str(e).splitlines()[0]}), e.g. scores of y's shape: "
            f"squeeze(-1) for y (B,)"
        ) from e


def shown(name: str, loss: Loss) -> Loss:
    """The task's loss: the package's own as they are, which others know by name."""
    return loss if loss in _OURS else one_each(name, loss)
