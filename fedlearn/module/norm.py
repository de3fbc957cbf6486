"""A module without batch statistics, and copies that share nothing with their original."""

import copy
from collections.abc import Iterable

from torch import Tensor, nn


def copied(name: str, module: nn.Module, *, shared: Iterable[Tensor] = ()) -> nn.Module:
    """A module that shares no number with the given one but those ``shared``.

    ValueError of ``name`` if it can't be copied.
    """
    held = [v for m in module.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    derived = {id(v): v.detach().clone() for v in held if not v.is_leaf}  # prune, weight_norm
    try:
        return copy.deepcopy(module, derived | {id(v): v for v in shared})
    except Exception as e:  # whatever a student's own attribute can't do
        why = " ".join(str(e).split())[:150]
        raise ValueError(
            f"{name}: the module must survive copy.deepcopy, got {type(e).__name__} ({why}); keep "
            f"open files, locks and computed tensors outside of it, e.g. nn.Linear(64, 10)"
        ) from e


def without_batch_norm(module: nn.Module) -> nn.Module:
    """A copy of the module with ``nn.GroupNorm`` in the place of every batch normalisation.

    Batch statistics are of one client's examples: their mean over clients is nobody's. GroupNorm
    normalises every example by itself, over groups of channels: groups = the largest divisor of C
    up to 32 that leaves two channels each (24 for 48, 1 for 7); one group after
    ``nn.BatchNorm1d``, where a channel may hold a single number. Weight, bias and eps are carried
    over, running statistics are dropped: train it anew.

    ValueError if a ``nn.BatchNorm1d`` has one channel: nothing is left to normalise by; or if the
    module can't be copied.

    Args:
        module: Any module; it isn't changed.

    Example:
        >>> without_batch_norm(nn.Sequential(nn.Conv2d(3, 48, 3), nn.BatchNorm2d(48)))[1]
        GroupNorm(24, 48, eps=1e-05, affine=True...)

    Reference: Wu, He, 2018, "Group normalization"; Hsieh, Phanishayee, Mutlu, Gibbons, 2020, "The
    non-IID data quagmire of decentralized machine learning", §5, put it in the place of BatchNorm.
    """
    net = copied("without_batch_norm", module)
    made: dict[nn.Module, nn.Module] = {}
    for name, m in list(net.named_modules(remove_duplicate=False)):
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            if m not in made:
                made[m] = _group_norm(name, m)
            parent, _, last = name.rpartition(".")
            if not name:
                return made[m]
            setattr(net.get_submodule(parent), last, made[m])
    return net


def _group_norm(name: str, m: nn.modules.batchnorm._BatchNorm) -> nn.Module:
    C, flat = m.num_features, isinstance(m, nn.BatchNorm1d)
    if flat and C == 1:
        raise ValueError(
            f"without_batch_norm: layer {name or 'itself'} (BatchNorm1d) must have two channels or "
            f"more, got 1, which normalised by itself is 0; leave it out, e.g. nn.Identity()"
        )
    groups = 1 if flat else max(g for g in range(1, 33) if C % g == 0 and (g == 1 or 2 * g <= C))
    new = nn.GroupNorm(groups, C, m.eps, m.affine).train(m.training)
    new.weight, new.bias = m.weight, m.bias  # of the copy; None without affine
    return new
