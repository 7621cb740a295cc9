"""The mathematics of certified robustness by additive noise: counts in, radii out. NumPy, SciPy and PyTorch only."""

from stn_core.certificates import CERTIFICATES
from stn_core.certify import Certified, certify
from stn_core.confidence import PROTOCOLS
from stn_core.curves import certified_correct
from stn_core.dataset import population_interval, truly_certified
from stn_core.intervals import lower_bound, upper_bound
from stn_core.noise import DiscreteGaussian, Gaussian, Laplace, Splitting, Uniform, interval_variates
from stn_core.paired import difference_interval, holm, mcnemar
from stn_core.votes import Tally, count_votes

__all__ = [
    "CERTIFICATES",
    "PROTOCOLS",
    "Certified",
    "DiscreteGaussian",
    "Gaussian",
    "Laplace",
    "Splitting",
    "Tally",
    "Uniform",
    "certified_correct",
    "certify",
    "count_votes",
    "difference_interval",
    "holm",
    "interval_variates",
    "lower_bound",
    "mcnemar",
    "population_interval",
    "truly_certified",
    "upper_bound",
]
