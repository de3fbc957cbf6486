"""The optimiser that tutorials imagine: ``federated_optimizer.SGD(model.parameters(), lr)``.

``from torch.optim import federated_optimizer`` can't run: PyTorch has no such module. This is the
small thing it would be. Clients call ``loss.backward()`` and hand their gradient over with
:meth:`receive`; the server calls :meth:`step`, which applies Σ_k p_k g_k. Lesson 3 builds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .checks import below_one, number, positive
from .task import wide


class SGD(torch.optim.SGD):
    """``torch.optim.SGD`` whose gradient is the clients' weighted mean: FedSGD.

    theta <- theta - lr * Σ_k p_k g_k,  p_k = weight_k / Σ_j weight_j.

    Args:
        params: ``model.parameters()``.
        lr: Learning rate, > 0 and finite.
        momentum: beta, of the server.

    Raises:
        ValueError: If ``lr`` is not > 0 and finite, ``momentum`` not >= 0 and < 1; if a weight is
            not > 0, or a gradient not finite; if :meth:`step` is called before any client has
            handed a gradient over, while one has not, or with a closure.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> opt = SGD(model.parameters(), lr=1.0)
        >>> for x, n_k in ((1.0, 30), (5.0, 10)):  # two clients of 30 and 10 examples
        ...     model(torch.tensor([[x]])).sum().backward()
        ...     opt.receive(weight=n_k)
        >>> opt.step()
        >>> model.weight.item()  # -(30 * 1 + 10 * 5) / 40
        -2.0

    Reference:
        McMahan et al., 2017, §2 (FederatedSGD); Reddi et al., 2021, for optimisers on the server.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.0):
        positive("federated_optimizer.SGD", "lr", lr)
        below_one("federated_optimizer.SGD", "momentum", momentum)
        super().__init__(params, lr=lr, momentum=momentum)

    def receive(self, weight: float) -> None:
        """Take the gradient a client left in ``.grad`` with its weight n_k, and clear ``.grad``."""
        positive("receive", "weight", weight, "n_k")
        weight = number(weight)
        if all(p.grad is None for p in self._parameters()):
            raise ValueError("receive: no gradient to hand over; call loss.backward() first")
        given = [p.grad for p in self._parameters() if p.grad is not None]
        finite = all(bool(g.isfinite().all()) for g in given)
        if not finite:
            raise ValueError(
                "receive: the gradient holds NaN or inf, which would spoil every client's; call "
                "zero_grad() to leave this client out"
            )
        for p in self._parameters():
            if p.grad is not None:
                into = self.state[p].setdefault("received", torch.zeros_like(wide(p)))
                into.add_(p.grad, alpha=weight)
                p.grad = None
        # beside lr, so that state_dict, deepcopy and pickle carry it like everything else
        group = self.param_groups[0]
        group["received"] = group.get("received", 0.0) + weight

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Apply the weighted mean of what was received since the last step."""
        total = self.param_groups[0].get("received", 0.0)
        if not total:
            raise ValueError(
                "step: no client has handed a gradient over; call loss.backward() and "
                "receive(weight=n_k) for every client first"
            )
        if closure is not None or any(p.grad is not None for p in self._parameters()):
            raise ValueError(
                "step: a closure's gradient, or what lies in .grad, is in no mean; call "
                "receive(weight=n_k) for it, or zero_grad() to leave it out, then step()"
            )
        for p in self._parameters():
            if "received" in self.state[p]:
                p.grad = self.state[p].pop("received").div_(total).to(p)
        self.param_groups[0]["received"] = 0.0
        out = super().step(closure)
        self.zero_grad()
        return out

    def _parameters(self) -> Iterable[Tensor]:
        return (p for group in self.param_groups for p in group["params"])
