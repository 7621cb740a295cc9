"""Training losses, one per method."""

from stn_core.training.losses import (
    Batch,
    Clean,
    Consistency,
    Dual,
    Gaussian,
    LogitPairing,
    Loss,
    Madry,
    Outcome,
    SmoothAdversarial,
    Stability,
    Trades,
)

__all__ = [
    "Batch",
    "Clean",
    "Consistency",
    "Dual",
    "Gaussian",
    "LogitPairing",
    "Loss",
    "Madry",
    "Outcome",
    "SmoothAdversarial",
    "Stability",
    "Trades",
]
