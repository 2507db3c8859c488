"""A variant's name says what differs from the tables; nothing else does; a run's spec gives it back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ikdlib.errors import IkdError
from ikdlib.spec import RunSpec
from ikdlib.studies import ablations, plan, protocol
from ikdlib.studies.study import Study
from ikdlib.studies.teachers import TeacherFile
from ikdlib.studies.variants import RATE, Variant, base_of, variant_of

# Pairs whose settings differ: dkd's beta, and the student's rate (RepDistiller: 0.01 of MobileNetV2).
RATES = {"resnet32x4/resnet8x4": 0.05, "resnet20/resnet8": 0.05, "vgg13/MobileNetV2": 0.01}
NOTEBOOKS = {
    "temperature of the term": lambda: ablations.term_temperatures("dkd+ikd,wttm+ikd,ce+ikd"),
    "weight of the term": lambda: ablations.weights("nkd+ikd,wttm+ikd", "0,2,6,6.5"),
    "what the term is": lambda: ablations.what_the_term_is("nkd+ikd"),
    "batch size": lambda: ablations.batch_sizes("ce,kd,dkd+ikd", "16,64,96,512"),
    "temperature of KD": lambda: ablations.kd_temperatures("kd,dkd+ikd,nkd"),
}


@pytest.fixture
def make(studies, monkeypatch):
    """`make(variants, pairs, protocol)`: a study all of whose teachers are there, by name alone."""
    monkeypatch.setattr(
        Study,
        "teacher",
        lambda self, name: TeacherFile(self.results / name, name.encode().hex().ljust(64, "0")),
    )

    def study(variants, pairs=tuple(RATES), under="paper", seeds="1") -> Study:
        settings = studies.settings(pairs=",".join(pairs), protocol=under, seeds=seeds, epochs=48)
        return ablations.study(settings, variants)

    return study


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def differences(one: RunSpec, other: RunSpec) -> dict[str, Any]:
    """Settings of `one` that are not those of `other`."""
    theirs = dict(flat(other.model_dump()))
    ours = dict(flat(one.model_dump()))
    assert ours.keys() == theirs.keys()
    return {name: value for name, value in ours.items() if value != theirs[name]}


# Names


@pytest.mark.parametrize(
    "changes, label",
    [
        ({}, "dkd+ikd"),
        ({"ikd.temperature": 0.5}, "dkd+ikd, T 0.5"),
        ({"ikd.temperature": 3.0}, "dkd+ikd, T 3"),
        ({"ikd.weight": 0.5}, "dkd+ikd, λ 0.5"),
        ({"ikd.target": "one_hot"}, "dkd+ikd, towards one hot"),
        ({"ikd.source": "all_views"}, "dkd+ikd, means from all views"),
        ({"temperature": 8.0}, "dkd+ikd, KD T 8"),
        ({"recipe.batch_size": 128, RATE: 2.0}, "dkd+ikd, batch 128"),
        ({"recipe.batch_size": 96, RATE: 1.5}, "dkd+ikd, batch 96"),
        ({RATE: 3.0}, "dkd+ikd, rate x 3"),
        ({"beta": 2.0}, "dkd+ikd, beta 2"),
        ({"ikd.weight": 2.0, "ikd.temperature": 4.0}, "dkd+ikd, T 4, λ 2"),
    ],
)
def test_the_label_names_the_method_and_what_differs(changes, label):
    assert Variant("dkd+ikd", changes).label == label


def test_the_order_of_the_changes_does_not_change_the_label():
    changes = {"ikd.weight": 2.0, "ikd.temperature": 4.0, "recipe.batch_size": 32, RATE: 0.5}
    backwards = dict(reversed(changes.items()))
    assert Variant("kd+ikd", changes).label == Variant("kd+ikd", backwards).label


def test_only_a_rate_that_does_not_follow_the_batch_size_is_named():
    """Two recipes of one batch size must not share a label: cells would mix them."""
    follows = Variant("kd", {"recipe.batch_size": 128, RATE: 2.0})
    stays = Variant("kd", {"recipe.batch_size": 128})
    other = Variant("kd", {"recipe.batch_size": 128, RATE: 4.0})
    assert list(follows.named) == ["recipe.batch_size"]
    assert set(stays.named) == set(other.named) == {"recipe.batch_size", RATE}
    assert len({follows.label, stays.label, other.label}) == 3
    assert Variant("kd", {RATE: 1.0}).label == "kd"


@pytest.mark.parametrize(
    "label, base",
    [
        ("dkd+ikd", "dkd"), ("dkd", "dkd"), ("ce+ikd", "ce"),
        ("dkd+ikd, T 0.5", "dkd"), ("nkd+ikd, λ 8", "nkd"),
        ("dkd+ikd, towards one hot", "dkd"), ("dkd+ikd, means from all views", "dkd"),
        ("kd+ikd, KD T 8", "kd, KD T 8"), ("kd+ikd, batch 128", "kd, batch 128"),
        ("dkd+ikd, T 0.5, batch 128", "dkd, batch 128"), ("kd+ikd, KD T 8, T 2, λ 3", "kd, KD T 8"),
        ("kd, batch 32", "kd, batch 32"),
    ],
)  # fmt: skip
def test_the_base_of_a_label_is_the_same_cell_without_the_term(label, base):
    assert base_of(label) == base


# What is applied


def test_applied_changes_the_named_settings_and_leaves_the_pairs_own_alone():
    method = protocol.method_spec("paper", "vgg13", "MobileNetV2", "dkd+ikd")
    recipe = protocol.recipe("paper", "vgg13", "MobileNetV2", 240, "fp32")
    changes = {"temperature": 2.0, "ikd.temperature": 3.0, "recipe.batch_size": 32, RATE: 0.5}
    changed, rules = Variant("dkd+ikd", changes).applied(method, recipe)
    # The pair's own beta of mdistiller, 6, and the paper's lambda of dkd, 6.5, stay.
    assert changed.settings == {"ce": 1, "alpha": 1, "beta": 6, "temperature": 2, "warmup": 0}
    assert (changed.ikd.weight, changed.ikd.temperature) == (6.5, 3.0)
    assert rules.updated(batch_size=64, learning_rate=0.01) == recipe
    assert (rules.batch_size, rules.learning_rate) == (32, 0.005)
    assert method.settings["temperature"] == 4, "the given settings were changed in place"


@pytest.mark.parametrize(
    "method, changes, said",
    [
        ("kd", {"temprature": 2.0}, "temperature"),
        ("kd", {"beta": 2.0}, "beta"),
        ("kd+ikd", {"ikd.wieght": 2.0}, "weight"),
        ("kd+ikd", {"ikd.target": "one-hot"}, "target"),
        ("kd+ikd", {"ikd.source": "view"}, "source"),
        ("kd+ikd", {"ikd.temperature": 0.0}, "temperature"),
        ("kd+ikd", {"ikd.weight": float("nan")}, "weight"),
        ("kd", {"recipe.batchsize": 32}, "batch_size"),
        ("kd", {"recipe.batch_size": 0}, "batch_size"),
        ("kd", {RATE: float("nan")}, "learning_rate"),
        ("kd", {RATE: 0.0}, "learning_rate"),
        ("kd", {"ikd.temperature": 2.0}, r"kd\+ikd"),
    ],
)
def test_a_setting_that_does_not_exist_or_fit_is_one_line(studies, method, changes, said):
    given = (protocol.method_spec("paper", "resnet14", "resnet8", method),
             protocol.recipe("paper", "resnet14", "resnet8", 8, "fp32"))  # fmt: skip
    with pytest.raises(IkdError, match=said) as error:
        Variant(method, changes).applied(*given)
    assert "\n" not in str(error.value)
    with pytest.raises(IkdError, match=said):  # and no study is made of it, so nothing trains before
        Study(studies.settings(), variants=[Variant(method, changes)])


# There and back


@pytest.mark.parametrize("under", ["paper", "released"])
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_runs_spec_gives_back_the_label_of_its_variant(make, notebook, under):
    study = make(NOTEBOOKS[notebook](), under=under)
    count = 0
    for pair in study.pairs:
        for label in study.methods:
            for job in study.jobs(pair, label):
                again = RunSpec.from_json(job.spec.model_dump_json())  # as it lies in a run folder
                assert variant_of(again).label == label
                assert variant_of(again).method == str(job.spec.method)
                count += 1
    assert count == len(RATES) * len(study.methods)


@pytest.mark.parametrize("under", ["paper", "released"])
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_nothing_but_the_named_settings_differs_from_the_tables(make, notebook, under):
    variants = NOTEBOOKS[notebook]()
    study = make(variants, under=under)
    plain = make([Variant(name) for name in {v.method for v in variants}], under=under)
    usual = {(pair, name): plain.jobs(pair, name) for pair in plain.pairs for name in plain.methods}
    places = {RATE: "recipe.learning_rate", "temperature": "method.settings.temperature"}
    for pair, rate in RATES.items():
        for variant in variants:
            changes = dict(variant.changes)
            if RATE in changes:  # in proportion to the batch: of 64, the published size
                changes[RATE] = pytest.approx(rate * changes["recipe.batch_size"] / 64)
            terms = {name: f"method.{name}" for name in changes if name.startswith("ikd.")}
            wanted = {(places | terms).get(name, name): value for name, value in changes.items()}
            for ours, theirs in zip(
                study.jobs(pair, variant.label), usual[pair, variant.method], strict=True
            ):
                assert differences(ours.spec, theirs.spec) == wanted
                assert ours.updated(spec=theirs.spec) == theirs  # files and device are the same too


def test_every_label_of_a_study_is_a_run_of_its_own(make):
    """No two labels share a run, and no two variants a label, unless they are the same settings."""
    for variants in (build() for build in NOTEBOOKS.values()):
        study = make(variants, pairs=("resnet32x4/resnet8x4",), seeds="1")
        ids = [job.spec.run_id for job in study.student_jobs()]
        assert len(ids) == len(set(ids)) == len(study.methods)
        assert len({variant.label for variant in variants}) == len(
            {(variant.method, tuple(sorted(variant.changes.items()))) for variant in variants}
        )


# As text, for a notebook's parameter


@pytest.mark.parametrize(
    "text, changes",
    [
        ("", {}),
        ("ikd.weight=4", {"ikd.weight": 4}),
        (" ikd.temperature = 0.5 ,temperature=2,", {"ikd.temperature": 0.5, "temperature": 2}),
        ("ikd.target=one_hot", {"ikd.target": "one_hot"}),
        ("recipe.nesterov=False", {"recipe.nesterov": False}),
        ("rate_factor=1e-1", {"rate_factor": 0.1}),
    ],
)  # fmt: skip
def test_changes_are_read_from_text(text, changes):
    found = Variant.written("dkd+ikd", text)
    assert found == Variant("dkd+ikd", changes)
    assert [type(value) for value in found.changes.values()] == [type(value) for value in changes.values()]


@pytest.mark.parametrize("text", ["ikd.weight", "ikd.weight=", "=4", "ikd.weight=1, ikd.weight=2"])
def test_changes_that_say_nothing_are_refused(text):
    with pytest.raises(IkdError, match="is not NAME=VALUE") as error:
        Variant.written("dkd+ikd", text)
    assert "\n" not in str(error.value)


def test_every_variant_of_every_ablation_can_be_written_and_read(studies):
    """Notebook 11 gets them as text, and has to train the very same run."""
    settings = studies.settings(pairs="resnet14/resnet8", teachers=studies.teachers("resnet14"))
    seen = 0
    for found in plan.ablation_studies(settings).values():
        for study in found:
            for student in study.students():
                again = Variant.written(student.variant.method, student.variant.text)
                assert again == student.variant and again.label == student.variant.label
                alone = Study(study.settings, variants=[again])
                (job,) = alone.jobs(student.pair, again.label)
                assert job.spec == student.job.spec
                seen += bool(student.variant.changes)
    assert seen > 30
