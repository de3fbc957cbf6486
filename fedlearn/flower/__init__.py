"""The same run over Flower: clients in their own process or machine, reached through a Grid.

The loop, the method and the pipeline stay as they are: :class:`GridClients` takes the place of
``Simulated``, and :func:`client_app` is what runs beside the data. A message holds what its
receiver needs and no more: no seed, no cohort. What comes from outside is checked before use.
"""

try:
    import flwr.app
    import flwr.clientapp  # noqa: F401
except ImportError as e:
    raise ImportError(f"fedlearn.flower needs flwr ({e}): pip install 'fedlearn[flower]'") from e

from .grid import GridClients
from .node import client_app

__all__ = ["GridClients", "client_app"]
