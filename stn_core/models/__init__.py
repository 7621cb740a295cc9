"""Networks: the paper's, torchvision's, exported programs, or the user's own."""

from stn_core.models.checkpoint import load_weights, read_checkpoint
from stn_core.models.classes import disagreement, imagenet_wnids
from stn_core.models.exported_file import read_program
from stn_core.models.faster import Compiled, folded
from stn_core.models.loading import EXPORTED, build_network, check_name, weights_sha256
from stn_core.models.normalize import UNCHANGED, Constants, Normalized, constants_of
from stn_core.models.pretrained import build_pretrained, declared

__all__ = [
    "EXPORTED",
    "UNCHANGED",
    "Compiled",
    "Constants",
    "Normalized",
    "build_network",
    "build_pretrained",
    "check_name",
    "constants_of",
    "declared",
    "disagreement",
    "folded",
    "imagenet_wnids",
    "load_weights",
    "read_checkpoint",
    "read_program",
    "weights_sha256",
]
