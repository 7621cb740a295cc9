"""Training losses, one per method."""

from stn_core.training.losses import Batch, Clean, Gaussian, LogitPairing, Loss, Madry, Outcome, Stability, Trades

__all__ = ["Batch", "Clean", "Gaussian", "LogitPairing", "Loss", "Madry", "Outcome", "Stability", "Trades"]
