"""The mathematics of certified robustness by additive noise: counts in, radii out. NumPy, SciPy and PyTorch only.

On a batch of images in memory, without a store or a cluster: ``count_votes`` of a network under noise (``Gaussian`` and
the others), ``certify`` and ``certified_correct``; ``predict`` for the smoothed classifier's answer; a ``Target`` to be
attacked by ``ProjectedGradient``, ``CarliniWagner`` or ``Square``. Training losses are in ``stn_core.training``,
networks in ``stn_core.models``. Sizes and radii are in [0, 1] pixel units throughout. See docs/python.md.
"""

from stn_core.attacks import Attack, CarliniWagner, ProjectedGradient, Square, Target
from stn_core.certificates import CERTIFICATES
from stn_core.certify import Certified, certify
from stn_core.confidence import PROTOCOLS
from stn_core.curves import certified_correct
from stn_core.dataset import population_interval, truly_certified
from stn_core.intervals import lower_bound, upper_bound
from stn_core.models import Normalized
from stn_core.noise import DiscreteGaussian, Gaussian, Laplace, NoNoise, Splitting, Uniform, interval_variates
from stn_core.paired import difference_interval, holm, mcnemar
from stn_core.prediction import Predicted, predict
from stn_core.votes import Tally, count_votes

__all__ = [
    "CERTIFICATES",
    "PROTOCOLS",
    "Attack",
    "CarliniWagner",
    "Certified",
    "DiscreteGaussian",
    "Gaussian",
    "Laplace",
    "NoNoise",
    "Normalized",
    "Predicted",
    "ProjectedGradient",
    "Splitting",
    "Square",
    "Tally",
    "Target",
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
    "predict",
    "truly_certified",
    "upper_bound",
]
