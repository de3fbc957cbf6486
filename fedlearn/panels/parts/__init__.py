"""The pictures of a panel, one a file: how it is sent, and how it is drawn without a browser."""
