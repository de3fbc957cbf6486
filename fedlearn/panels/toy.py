"""Federated learning on a plane: every model can be seen whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .panel import Panel


class ToyPanel(Panel):
    """Points of a plane, two to six clients, a small network: watch where each draws the line.

    The plane at the right shows every client's points in its colour and mark, its decision boundary
    after its local steps (dashed), and the shared model's after the round (thick).

    Args:
        show: As for :class:`Panel`.
        clients: N, at most six: each has a colour and a mark.
        alpha: Concentration of the Dirichlet split.
        epochs: E.
        lr: Learning rate.
        batch: B.
        rounds: Length of a run.
        predict: The question under the picture.
        seconds: How long a run started by the Run button takes at least.
        parts: Pictures; the third is as high as the first two together.
        **more: Any other setting of :class:`Panel`.

    Raises:
        ValueError: If there are more than six clients, or the data lie in no plane.

    Example:
        >>> panel = ToyPanel(clients=3, rounds=3)
        >>> panel.parts[-1].clients, len(panel.parts[-1].lengths)  # the shared model and three more
        (3, 4)
        >>> panel.close()
    """

    _most_clients = 6

    def __init__(
        self,
        *,
        show: Sequence[str] = ("clients", "alpha", "epochs", "lr"),
        clients: int = 3,
        alpha: float = 0.3,
        epochs: int = 10,
        lr: float = 0.5,
        batch: int | None = 32,
        rounds: int = 60,
        predict: str = "Predict first: where do the dashed lines go when α falls to 0.01?",
        seconds: float = 3.0,
        parts: Sequence[str] = ("accuracy", "holdings", "boundary"),
        **more: Any,
    ):
        if not 1 <= clients <= 6:
            raise ValueError(
                f"ToyPanel: clients must be an integer from 1 to 6, got {clients!r}, e.g. 3"
            )
        if "dataset" in show or more.get("dataset", "toy") != "toy":
            raise ValueError("ToyPanel: shows the toy plane alone; for other data use Panel")
        more = {"dataset": "toy", "model": "mlp", **more}
        super().__init__(
            show=show, clients=clients, alpha=alpha, epochs=epochs, lr=lr, batch=batch,
            rounds=rounds, predict=predict, seconds=seconds, parts=parts, **more,
        )  # fmt: skip
