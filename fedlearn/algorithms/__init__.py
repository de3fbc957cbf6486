"""Federated methods, one file each: what a client does, what the server does."""

from .base import Algorithm, Message, Reply
from .fedavg import fedavg
from .fedsgd import fedsgd

__all__ = ["Algorithm", "Message", "Reply", "fedavg", "fedsgd"]
