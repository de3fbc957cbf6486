"""Panels answer 20 to 40 ms sooner: what the kernel says reaches the browser at once.

A move of a slider is answered by several short messages. TCP holds the second back until the first
is acknowledged, for which the browser's system takes up to 40 ms (Nagle's algorithm beside delayed
acknowledgements). Tornado can switch that off, Jupyter Server doesn't. `python run.py lab` names
this folder in JUPYTER_CONFIG_PATH; with another JupyterLab do the same, before it starts.
"""

from typing import Any

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection


class AtOnce(ZMQChannelsWebsocketConnection):
    """A kernel's connection to the browser that waits for no acknowledgement."""

    def connect(self) -> Any:
        """As the server does, once the socket's delay is off."""
        self.websocket_handler.set_nodelay(True)
        return super().connect()


c = get_config()  # type: ignore[name-defined] # noqa: F821 (Jupyter gives it to this file)
c.ServerApp.kernel_websocket_connection_class = AtOnce
