"""settings.csv and published.csv against the tables of the reference, written out here a second time."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from ikdlib import methods, models
from ikdlib.data import cifar100
from ikdlib.errors import IkdError
from ikdlib.studies import protocol
from ikdlib.studies.profiles import LOGIT_METHODS

PAIRS = protocol.SAME_ARCHITECTURE + protocol.DIFFERENT_ARCHITECTURE
PROTOCOLS = ("paper", "released")
LIGHT = ("MobileNetV2", "ShuffleV1", "ShuffleV2")

# The protocol table of the reference, again by hand. beta of DKD, for each of the thirteen pairs:
BETA = {
    "wrn_40_2/wrn_16_2": 6,
    "wrn_40_2/wrn_40_1": 6,
    "resnet56/resnet20": 2,
    "resnet110/resnet20": 2,
    "resnet110/resnet32": 2,
    "resnet32x4/resnet8x4": 8,
    "vgg13/vgg8": 6,
    "vgg13/MobileNetV2": 6,
    "ResNet50/MobileNetV2": 8,
    "ResNet50/vgg8": 8,
    "resnet32x4/ShuffleV1": 8,
    "resnet32x4/ShuffleV2": 8,
    "wrn_40_2/ShuffleV1": 8,
}
RECIPE = {
    "epochs": 240, "batch_size": 64, "momentum": 0.9, "weight_decay": 5e-4, "milestones": (150, 180, 210),
    "decay": 0.1, "warmup": 20, "precision": "fp32",
}  # fmt: skip
PLATEAU = {"paper": 1.0, "released": 0.95}
SETTINGS = {
    "ce": {"ce": 1},
    "kd": {"ce": 0.1, "kd": 0.9, "temperature": 4},
    "dkd": {"ce": 1, "alpha": 1, "temperature": 4, "warmup": 0},
    "nkd": {"ce": 1, "temperature": 4},
    "wttm": {"ce": 1, "wttm": 4, "gamma": 0.2},
}
IKD_WEIGHT = {"dkd": 6.5, "nkd": 6.0, "kd": 6.5, "ce": 6.5, "wttm": 6.0}


def spec(pair: str, method: str, which: str = "paper"):
    return protocol.method_spec(which, *pair.split("/"), method)


def test_the_pairs_are_the_thirteen():
    assert set(PAIRS) == set(BETA) and len(PAIRS) == 13
    assert set(protocol.SAME_ARCHITECTURE).isdisjoint(protocol.DIFFERENT_ARCHITECTURE)


@pytest.mark.parametrize("which", PROTOCOLS)
@pytest.mark.parametrize("pair", PAIRS)
def test_recipe_of_each_pair(pair, which):
    teacher, student = pair.split("/")
    rate = 0.01 if student in LIGHT else 0.05
    found = protocol.recipe(which, teacher, student, 240, "fp32").model_dump()
    assert found == {**RECIPE, "learning_rate": rate, "plateau": PLATEAU[which]}


@pytest.mark.parametrize("which", PROTOCOLS)
def test_teachers_train_without_warm_up(which):
    for name in {pair.split("/")[0] for pair in PAIRS}:
        found = protocol.recipe(which, "-", name, 240, "fp32")
        assert (found.warmup, found.learning_rate, found.milestones) == (0, 0.05, (150, 180, 210))


def test_no_other_student_has_the_low_rate():
    low = {
        name for name in models.names()
        if protocol.recipe("paper", "resnet56", name, 240, "fp32").learning_rate == 0.01
    }  # fmt: skip
    assert low == set(LIGHT)


@pytest.mark.parametrize(
    "epochs, warmup, milestones",
    [(48, 4, (30, 36, 42)), (12, 1, (8, 9, 11)), (4, 1, (3, 3, 4)), (100, 8, (63, 75, 88))],
)
def test_another_length_is_in_proportion(epochs, warmup, milestones):
    """Times E/240, rounded half up, warm-up at least 1: by hand."""
    found = protocol.recipe("paper", "resnet56", "resnet20", epochs, "fp32")
    assert (found.epochs, found.warmup, found.milestones) == (epochs, warmup, milestones)
    assert protocol.recipe("released", "resnet56", "resnet20", epochs, "fp32").plateau == 0.95


@pytest.mark.parametrize("which", PROTOCOLS)
@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.parametrize("pair", PAIRS)
def test_settings_are_those_of_the_protocol(pair, method, which):
    expected = dict(SETTINGS[method])
    if method == "dkd":
        expected["beta"] = BETA[pair]
    if method == "nkd":
        expected["gamma"] = BETA[pair]
    assert spec(pair, method, which).settings == expected


@pytest.mark.parametrize("pair", PAIRS)
def test_beta_of_each_pair(pair):
    assert spec(pair, "dkd").settings["beta"] == BETA[pair]


@pytest.mark.parametrize("pair", [*PAIRS, "resnet14/resnet8", "vgg16/resnet20"])
def test_gamma_of_nkd_is_beta_of_dkd(pair):
    assert spec(pair, "nkd").settings["gamma"] == spec(pair, "dkd").settings["beta"]


@pytest.mark.parametrize(
    "pair, beta",
    [
        ("resnet14/resnet8", 2), ("resnet44/resnet110", 2), ("resnet110/resnet56", 2),
        ("resnet56/resnet8x4", 8), ("resnet32x4/resnet20", 8), ("vgg16/vgg11", 8), ("wrn_40_2/wrn_16_1", 8),
    ],
)  # fmt: skip
def test_beta_of_a_pair_outside_the_thirteen(pair, beta):
    assert spec(pair, "dkd").settings["beta"] == beta


@pytest.mark.parametrize("which", PROTOCOLS)
@pytest.mark.parametrize("method", IKD_WEIGHT)
def test_weight_of_the_ikd_term(method, which):
    for pair in PAIRS:
        term = spec(pair, f"{method}+ikd", which).ikd
        assert (term.weight, term.temperature) == (IKD_WEIGHT[method], 1.0)
        assert spec(pair, method, which).ikd is None


def test_every_method_of_the_package_is_in_the_table():
    assert set(methods.names()) == set(SETTINGS) == set(IKD_WEIGHT)


def test_every_row_has_a_source():
    table = protocol.table()
    assert set(table["protocol"]) <= {"*", *PROTOCOLS}
    for row in table.itertuples():
        repository = re.match(r"[\w.-]+/[\w.-]+(@[0-9a-f]{7})? ", row.source)
        figure = re.match(r"IKD paper, Fig\. \d", row.source)
        assert row.source.split(" ")[0] == "chosen" or repository or figure, row


def test_what_is_chosen_is_what_the_reference_calls_chosen():
    """Nobody may quietly turn a choice of ours into a fact, nor the other way round."""

    def chosen(pair, method, name, which="paper"):
        rows = protocol.rows(which, *pair.split("/"), method).set_index("setting")
        return "chosen" in rows.loc[name, "source"]

    assert chosen("ResNet50/vgg8", "dkd", "beta") and not chosen("vgg13/vgg8", "dkd", "beta")
    assert chosen("vgg16/vgg11", "dkd", "beta") and chosen("resnet14/resnet8", "dkd", "beta")
    assert chosen("vgg13/vgg8", "dkd", "warmup")
    assert all(chosen(pair, "nkd", "gamma") for pair in PAIRS)
    assert all(chosen(pair, "wttm", "wttm") for pair in PAIRS)
    is_chosen = {name: chosen("vgg13/vgg8", name, "ikd.weight") for name in IKD_WEIGHT}
    assert is_chosen == {"dkd": False, "nkd": False, "kd": True, "ce": True, "wttm": True}
    assert not chosen("vgg13/vgg8", "dkd", "ikd.temperature")
    assert chosen("vgg13/vgg8", "kd", "recipe.plateau")
    assert not chosen("vgg13/vgg8", "kd", "recipe.plateau", "released")


def test_every_row_names_what_exists():
    """A misspelt model or setting in the table would silently never apply."""
    known = set(models.names())
    for row in protocol.table().itertuples():
        for column in (row.teacher, row.student):
            assert set(column.split("|")) - {"*", "-"} <= known, row
        if not row.setting.startswith(("recipe.", "ikd.")):
            assert row.setting in methods.settings_class(row.method).model_fields, row


def test_primary_epoch():
    assert protocol.PRIMARY == {"paper": "last", "released": "best"}


def test_normalisation():
    assert cifar100.MEAN == (0.5071, 0.4867, 0.4408)
    assert cifar100.STD == (0.2675, 0.2565, 0.2761)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: protocol.split_pair("resnet56"), "teacher/student"),
        (lambda: protocol.split_pair("resnet56/resnet2O"), "resnet20"),
        (lambda: protocol.split_pair("resnet65/resnet20"), "resnet56"),
        (lambda: protocol.split_method("dkd+idk"), r"\+ikd"),
        (lambda: protocol.split_method("dkkd"), "dkd"),
        (lambda: protocol.rows("papr", "resnet56", "resnet20", "kd"), "paper"),
    ],
)
def test_a_misspelt_name_is_answered(call, said):
    with pytest.raises(IkdError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


# published.csv


def test_every_published_number_has_source_and_convention():
    table = protocol.published()
    repository, paper = r"[\w.-]+/[\w.-]+@[0-9a-f]{7} ", r"IKD paper \(AAAI 2025\), table \d+"
    ours = table["method"].str.endswith("+ikd")
    assert table[~ours]["source"].str.match(repository).all() and table[ours]["source"].str.match(paper).all()
    assert set(table["convention"]) <= {"last", "best", "unknown"}
    assert table["top1"].between(50, 90).all() and table["teacher_top1"].between(70, 85).all()
    assert not table.duplicated(["teacher", "student", "method"]).any()
    assert {f"{row.teacher}/{row.student}" for row in table.itertuples()} == set(PAIRS)
    assert "mdistiller" not in " ".join(table[table["convention"] == "last"]["source"])
    assert "RepDistiller" not in " ".join(table[table["convention"] != "last"]["source"])


def test_the_methods_of_published_numbers_are_those_of_the_tables():
    assert set(protocol.published()["method"]) <= {"teacher", *LOGIT_METHODS}


@pytest.mark.shared
def test_published_numbers_are_those_of_the_reference(shared):
    reference = pd.read_csv(shared / "reference" / "published_accuracies.csv")
    names = {"teacher": "Teacher", "ce": "Student", "kd": "KD", "dkd": "DKD", "wttm": "WTTM", "nkd": "NKD"}
    reference = reference[reference["dataset"] == "CIFAR-100"]
    for row in protocol.published().itertuples():
        if row.method.endswith("+ikd"):  # from the paper, which the reference does not have
            continue
        same = reference[
            (reference["teacher"] == row.teacher)
            & (reference["student"] == row.student)
            & (reference["method"] == names[row.method])
            & (reference["source"] == row.source)
        ]
        assert row.top1 in set(same["top1"]), row
        teacher = reference[
            (reference["teacher"] == row.teacher)
            & (reference["student"] == row.student)
            & (reference["method"] == "Teacher")
        ]
        assert row.teacher_top1 in set(teacher["top1"]), row
