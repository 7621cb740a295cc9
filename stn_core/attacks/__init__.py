"""Looking for perturbations that change the answer."""

from stn_core.attacks.pgd import PGD

__all__ = ["PGD"]
