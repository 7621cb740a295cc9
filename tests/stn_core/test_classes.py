"""Class orders that agree, and those that do not."""

from __future__ import annotations

import re

import pytest
import torchvision

from stn_core.models import disagreement, imagenet_wnids

CLASSES = tuple(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])

#: What hub data sets write of some classes: several words for one, and one word for several classes.
WORDS = {
    0: "tench, Tinca tinca",
    1: "goldfish, Carassius auratus",
    134: "crane",
    264: "Cardigan, Cardigan Welsh corgi",
    474: "cardigan",
    517: "crane",
    638: "maillot",
    639: "maillot, tank suit",
    836: "sunglass",
    837: "sunglasses, dark glasses, shades",
}


def hub() -> list[str]:
    return [WORDS.get(label, name) for label, name in enumerate(CLASSES)]


def test_imagenets_ids_are_the_thousand_in_the_order_of_their_names() -> None:
    wnids = imagenet_wnids()
    assert len(wnids) == len(set(wnids)) == 1000
    assert wnids == tuple(sorted(wnids))
    # Facts known from elsewhere: the first, the cranes, and the last.
    assert (wnids[0], wnids[134], wnids[517], wnids[999]) == ("n01440764", "n02012849", "n03126707", "n15075141")


@pytest.mark.parametrize(
    "names", [None, imagenet_wnids(), CLASSES, hub(), [name.upper().replace(" ", "_") for name in CLASSES], CLASSES[:9]]
)
def test_equal_orders_agree(names: list[str] | None) -> None:
    assert disagreement(names, 1000, CLASSES) == ""


def test_where_the_model_names_nothing_nothing_is_compared() -> None:
    assert disagreement(["cat", "dog"], 2, None) == ""
    assert disagreement(imagenet_wnids()[5:15], 10, None) == ""


@pytest.mark.parametrize("classes", [CLASSES, None])
def test_a_folder_of_some_of_imagenets_classes_is_told_how_to_count_them(classes: tuple[str, ...] | None) -> None:
    for names in (imagenet_wnids()[:10], imagenet_wnids()[5:15], imagenet_wnids()[::-1]):
        assert "set dataset.class_index: imagenet" in disagreement(names, 1000, classes)
    assert "label 0 is n01514668 there, n01440764 to the model" in disagreement(imagenet_wnids()[7:9], 1000, classes)
    assert "n00000001 is none of the ImageNet classes" in disagreement(
        ["n00000001", *imagenet_wnids()[1:]], 1000, classes
    )


def swapped(first: int, second: int) -> list[str]:
    names = hub()
    names[first], names[second] = names[second], names[first]
    return names


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (swapped(3, 700), f"label 3 is {CLASSES[700]!r} in the data set, {CLASSES[3]!r} to the model"),
        (sorted(CLASSES), "label 0 is "),
        (["background", *hub()], "label 0 is 'background' in the data set, 'tench' to the model"),
        (hub()[1:], "label 0 is 'goldfish, Carassius auratus'"),
        (["tench", "English springer", "cassette player"], "label 1 is 'English springer' in the data set, 'goldfish'"),
        (["airplane", "automobile", "bird"], "label 0 is 'airplane' in the data set, 'tench' to the model"),
    ],
    ids=["two swapped", "by the alphabet", "one more before", "one less", "some", "others"],
)
def test_other_orders_are_told_by_the_first_label_that_differs(names: list[str], says: str) -> None:
    found = disagreement(names, 1000, CLASSES)
    assert re.search(re.escape(says), found)
    assert len(found.splitlines()) == 1
