"""Coarse groups of classes, and the labels of a test split: what kept logits are read with.

CIFAR-100's twenty superclasses of five are official (Krizhevsky, 2009, and `coarse_label_names` of its
`meta` file, whose spelling is used here). Those of Glyphs-100 are this project's own.

A run keeps its test logits in canonical order, which sorts by class, and each class has as many test images
as any other. So their labels follow from the name of the data set alone, and the images need not be at hand.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ikdlib.data import cifar100, glyphs, names
from ikdlib.errors import IkdError
from ikdlib.spec import known

_CIFAR100 = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
# Sorted by eye: what looks alike as drawn, so 5 and S, Ч and 4, whatever alphabet they are of. Where a
# character resembles none closely (&, %, Ы) it stands with those that share most of its strokes.
_GLYPHS = {
    "rings": "0 O Q Θ D",
    "open_rings": "C G e Э ε",
    "bars": "1 I l i !",
    "hooks": "J j f t r",
    "double_bowls": "8 B 3 β &",
    "zigzags": "2 5 S Z $",
    "stacked_lines": "E Σ Ξ ξ =",
    "corners": "F Γ T 7 L",
    "stems_with_a_bowl": "P R p ρ b",
    "cups": "U V u μ Ц",
    "forks": "Y y γ Ч 4",
    "tents": "A Λ Δ Л Д",
    "crosses": "K k X Ж λ",
    "signs": "* + # % ?",
    "combs": "W ω Ш Щ m",
    "arches": "n h η Π π",
    "uprights": "H M N Ы Ю",
    "crossed_rings": "Φ φ Ψ ψ θ",
    "loops_with_a_tail": "9 g a α @",
    "loops_with_a_top": "6 Б δ σ Ω",
}


def _by_class(members: Mapping[str, str], classes: tuple[str, ...]) -> dict[str, str]:
    group = {name: title for title, names in members.items() for name in names.split()}
    return {name: group[name] for name in classes}


_NAME_OF = dict(zip(glyphs.CHARACTERS, glyphs.CLASSES, strict=True))
_GROUPS = {
    "cifar100": _by_class(_CIFAR100, cifar100.CLASSES),
    "glyphs100": _by_class(
        {title: " ".join(_NAME_OF[c] for c in names.split()) for title, names in _GLYPHS.items()},
        glyphs.CLASSES,
    ),
}
# Classes and test images a class, of the sets whose classes all have as many.
_TEST = {"cifar100": (cifar100.CLASSES, 100), "glyphs100": (glyphs.CLASSES, glyphs.TEST_PER_CLASS)}


def groups(name: str) -> dict[str, str] | None:
    """Class name -> coarse group, in the order of the classes; None for a data set without groups.

    Of `cifar100` the official superclasses. Of `glyphs100` twenty sets of five characters that look alike,
    chosen by eye for this project, by no measurement: a stand-in, so that the demo has what CIFAR-100 has.
    """
    found = _GROUPS.get(name)
    return None if found is None else dict(found)


def class_names(name: str) -> tuple[str, ...]:
    """The class names of a data set whose test labels are known; a class's number is its place here.

    Raises:
        IkdError: as `test_labels`.
    """
    return _known(name)[0]


def short_names(name: str) -> tuple[str, ...]:
    """`class_names` as a picture has room for them: of `glyphs100` the characters themselves."""
    if name == "glyphs100":
        return tuple(glyphs.CHARACTERS)
    return tuple(each.replace("_", " ") for each in class_names(name))


def test_labels(name: str) -> np.ndarray:
    """Labels of a test split in canonical order: int64 [N], rising, each class equally often.

    Raises:
        IkdError: an unknown data set, or one whose test labels are not written down here.
    """
    classes, per_class = _known(name)
    return np.repeat(np.arange(len(classes), dtype=np.int64), per_class)


def _known(name: str) -> tuple[tuple[str, ...], int]:
    known(name, names(), "data", "data set")
    if name not in _TEST:
        raise IkdError(
            f"data: the test labels of {name} are known only with its images; add them to groups.py"
        )
    return _TEST[name]
