"""What a module must not hold, to be trained federatedly."""

from torch import nn


def check_module(name: str, module: nn.Module, stacked: bool | None) -> None:
    """Raise the ``ValueError`` of ``name`` for a module that can't be trained federatedly.

    Example:
        >>> check_module("from_module", nn.BatchNorm1d(4), None)
        Traceback (most recent call last):
        ...
        ValueError: from_module: layer itself (BatchNorm1d) keeps batch statistics, ...
    """
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError(f"{name}: no parameter requires a gradient, e.g. nn.Linear(64, 10)")
    for layer, m in module.named_modules():
        norm, why = isinstance(m, nn.modules.batchnorm._NormBase), ""
        whole_batch = isinstance(m, nn.modules.batchnorm._BatchNorm) and not m.track_running_stats
        if norm and (whole_batch or (m.training and m.track_running_stats)):
            why = "keeps batch statistics, which would mix clients; use nn.GroupNorm(min(32, C), C)"
        elif isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0:
            why = "draws from the global generator: leave it out, or call module.eval() first"
        elif stacked and isinstance(m, nn.RNNBase):
            why = "can't be run by vmap for K clients; use from_module(module, stacked=False)"
        if why:
            raise ValueError(f"{name}: layer {layer or 'itself'} ({type(m).__name__}) {why}")
