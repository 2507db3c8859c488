"""Coarse groups, and labels of test splits, against the data sets themselves."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ikdlib import data
from ikdlib.data import cifar100, glyphs, groups
from ikdlib.errors import IkdError

# The coarse label of each fine one in the official files, as many public programs list them; the coarse names
# in the order of the alphabet are numbered from 0.
OFFICIAL = """
    4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 11 5
    5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9 13
    15 13 16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13
"""


def test_superclasses_of_cifar100_are_the_official_ones():
    found = groups.groups("cifar100")
    assert tuple(found) == cifar100.CLASSES
    names = sorted(set(found.values()))
    assert [names.index(group) for group in found.values()] == [int(n) for n in OFFICIAL.split()]
    assert {"large_man-made_outdoor_things", "non-insect_invertebrates", "vehicles_1"} < set(names)


@pytest.mark.parametrize("name", ["cifar100", "glyphs100"])
def test_every_class_is_in_one_of_twenty_groups_of_five(name):
    found = groups.groups(name)
    assert tuple(found) == groups.class_names(name) and len(found) == 100
    assert sorted(Counter(found.values()).values()) == [5] * 20


@pytest.mark.parametrize("alike", ["0O", "lI1", "5S", "2Z", "8B", "ΛAΔ", "Ч4", "ШЩW", "pρ", "ΞE"])
def test_look_alikes_are_together(alike):
    found, names = groups.groups("glyphs100"), dict(zip(glyphs.CHARACTERS, glyphs.CLASSES, strict=True))
    assert len({found[names[character]] for character in alike}) == 1


def test_a_data_set_without_groups_has_none():
    assert groups.groups("imagenet") is None


def test_groups_are_a_copy():
    groups.groups("cifar100").clear()
    assert len(groups.groups("cifar100")) == 100


def test_short_names_are_characters_or_words():
    assert "".join(groups.short_names("glyphs100")) == glyphs.CHARACTERS
    assert groups.short_names("cifar100")[1] == "aquarium fish"


def test_labels_of_glyphs_are_those_of_its_test_images(tmp_path):
    whole = data.load("glyphs100", cache=tmp_path)
    np.testing.assert_array_equal(groups.test_labels("glyphs100"), whole.test.targets.numpy())
    assert groups.class_names("glyphs100") == whole.classes


def test_labels_of_cifar100_are_those_of_its_test_images(cifar_folder):
    whole = data.load("cifar100", cifar_folder)
    labels = groups.test_labels("cifar100")
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, whole.test.targets.numpy())


def test_an_unknown_data_set_is_refused(monkeypatch):
    with pytest.raises(IkdError, match="unknown data set 'cifar10'.*did you mean cifar100"):
        groups.test_labels("cifar10")
    monkeypatch.delitem(groups._TEST, "glyphs100")
    with pytest.raises(IkdError, match="the test labels of glyphs100 are known only with its images"):
        groups.test_labels("glyphs100")
