"""Looking for perturbations that change the answer: in training, and of finished classifiers."""

from stn_core.attacks.attack import Attack
from stn_core.attacks.carlini_wagner import CarliniWagner
from stn_core.attacks.pgd import PGD, Norm
from stn_core.attacks.projected import LOSSES, Loss, ProjectedGradient
from stn_core.attacks.square import Square
from stn_core.attacks.target import Target

__all__ = ["LOSSES", "PGD", "Attack", "CarliniWagner", "Loss", "Norm", "ProjectedGradient", "Square", "Target"]
