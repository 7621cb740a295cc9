"""Training losses, one per method."""

from stn_core.training.losses import LOSSES

__all__ = ["LOSSES"]
