"""Any ``nn.Module`` as a task and back, looked at first: what it computes must be a function."""

from .norm import without_batch_norm
from .tasks import from_module, to_module

__all__ = ["from_module", "to_module", "without_batch_norm"]
