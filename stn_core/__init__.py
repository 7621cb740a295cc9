"""The mathematics of certified robustness by additive noise: counts in, radii out. NumPy, SciPy and PyTorch only."""

from stn_core.certificates import CERTIFICATES
from stn_core.certify import Certified, certify
from stn_core.confidence import PROTOCOLS, lower_bound, upper_bound
from stn_core.curves import certified_correct
from stn_core.noise import Gaussian
from stn_core.votes import count_votes

__all__ = [
    "CERTIFICATES",
    "PROTOCOLS",
    "Certified",
    "Gaussian",
    "certified_correct",
    "certify",
    "count_votes",
    "lower_bound",
    "upper_bound",
]
