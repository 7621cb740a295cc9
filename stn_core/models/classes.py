"""Whether a model and a data set mean the same classes by the same numbers."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from importlib import resources


@functools.cache
def imagenet_wnids() -> tuple[str, ...]:
    """WordNet ids of the 1000 classes of ILSVRC 2012, in the order of labels."""
    return tuple(resources.files(__package__).joinpath("imagenet_wnids.txt").read_text().split())


def disagreement(names: Sequence[str] | None, outputs: int, classes: Sequence[str] | None) -> str:
    """Where a data set's classes are not the model's; empty where they agree, or where nobody says.

    Args:
        names: the data set's classes by label: words, or WordNet ids; None where it has no names.
        outputs: of the model, classes.
        classes: the model's by output, words; None where it has no names. A model of 1000 outputs is taken for one of
            ImageNet's where the data set has WordNet ids.
    """
    if names is None:
        return ""
    if all(re.fullmatch(r"n\d{8}", name) for name in names):
        return _by_wnid(names) if outputs == len(imagenet_wnids()) else ""
    return "" if classes is None or outputs != len(classes) else _by_word(names, classes)


def _by_wnid(names: Sequence[str]) -> str:
    wnids = imagenet_wnids()
    if tuple(names) == wnids:
        return ""
    foreign = sorted(set(names) - set(wnids))
    if foreign:
        return f"the data set's class {foreign[0]} is none of the ImageNet classes that the model tells apart"
    label = next((label for label, pair in enumerate(zip(names, wnids, strict=False)) if pair[0] != pair[1]), None)
    what = "" if label is None else f": label {label} is {names[label]} there, {wnids[label]} to the model"
    return (
        f"the data set has {len(names)} of ImageNet's {len(wnids)} classes and counts them its own way{what}; "
        "set dataset.class_index: imagenet"
    )


def _by_word(names: Sequence[str], classes: Sequence[str]) -> str:
    """Spellings differ between lists, and some words name two classes: what counts is that a word is at another class's
    place, or most at none."""
    place = {_word(word): output for output, word in enumerate(classes)}
    own = [_word(word) for word in classes]
    words = [{_word(name.replace(",", " ")), *map(_word, name.split(","))} for name in names]
    agreed = [label < len(own) and own[label] in said for label, said in enumerate(words)]
    for label, said in enumerate(words):
        others = [place[word] for word in said if word in place]
        displaced = not agreed[label] and any(other >= len(agreed) or not agreed[other] for other in others)
        if displaced or (not agreed[label] and 2 * sum(agreed) < len(names)):
            there = repr(classes[label]) if label < len(classes) else "nothing"
            return f"label {label} is {names[label]!r} in the data set, {there} to the model"
    return ""


def _word(text: str) -> str:
    return " ".join(text.replace("_", " ").casefold().split())
