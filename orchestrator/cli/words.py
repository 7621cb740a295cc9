"""Names that help and completion show, spelled once more: their registers import PyTorch, which takes seconds.
`tests/orchestrator/test_completion.py` holds them against the registers."""

from __future__ import annotations

CERTIFICATES = (
    *("renyi", "neyman_pearson_two_class", "neyman_pearson_one_class", "pixeldp"),
    *("renyi_laplace", "neyman_pearson_laplace_two_class", "neyman_pearson_laplace_one_class", "pixeldp_laplace"),
    *("neyman_pearson_uniform_two_class", "neyman_pearson_uniform_one_class", "splitting"),
    *("renyi_linf", "neyman_pearson_two_class_linf", "neyman_pearson_one_class_linf", "pixeldp_linf"),
)
PROTOCOLS = ("paper", "paper_two", "split", "label", "exact", "anytime", "anytime_label", "stages")
INTERVALS = ("clopper_pearson", "randomised")
METHODS = ("stn", "gaussian", "clean", "madry", "trades", "alp", "consistency", "smoothadv", "dual")
DATA = ("digits", "mnist", "cifar10", "imagenet", "folder")
