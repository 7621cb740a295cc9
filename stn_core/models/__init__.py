"""Networks: the paper's, torchvision's, or the user's own."""

from stn_core.models.loading import build_network, load_weights, weights_sha256
from stn_core.models.normalize import Normalized

__all__ = ["Normalized", "build_network", "load_weights", "weights_sha256"]
