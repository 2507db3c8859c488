"""Which cell of which table a run belongs to, from its spec alone."""

from __future__ import annotations

import random

import pytest

from ikdlib.reporting import collect
from ikdlib.reporting.collect import TEACHER
from ikdlib.studies import ablations, protocol
from ikdlib.studies.study import StudySettings
from ikdlib.studies.variants import RATE, Variant, variant_of

PAIR, SAME_STUDENT = "resnet56/resnet20", "resnet110/resnet20"


def cells_of(found) -> dict:
    """Table's title -> (pair, method) -> seeds, of runs that all may stand in tables."""
    made, left_out = collect.tables(found)
    assert left_out == []
    return {
        table.title: {(c.pair, c.method): [run.spec.seed for run in c.runs] for c in table.cells}
        for table in made
    }


def test_a_table_has_one_data_set_length_precision_protocol_and_split(folders):
    others = [{"epochs": 6}, {"precision": "bf16"}, {"protocol": "released"}, {"holdout": 50}]
    others += [{"data": "glyphs100", "data_sha256": "5" * 64}, {}]
    found = [folders.finished("kd", 1, 70.0, **more) for more in others]
    made, left_out = collect.tables(found)
    assert len(made) == len(others) and left_out == []
    assert len({table.title for table in made}) == len({table.name for table in made}) == len(others)
    assert "cifar100, 3 epochs, fp32, paper protocol, 50 images a class held apart" in {t.title for t in made}
    assert {t.protocol: t.primary for t in made} == {"paper": "last", "released": "best"}
    assert not any(table.comparable for table in made)


def test_published_numbers_stand_beside_cifar100_at_its_full_length_alone(folders):
    changes = [{}, {"holdout": 50}, {"data": "glyphs100", "data_sha256": "5" * 64}]
    made, _ = collect.tables([folders.run("kd", 1, epochs=240, **more) for more in changes])
    assert [table.name for table in made if table.comparable] == ["cifar100-240epochs-fp32-paper"]


def test_the_order_of_runs_changes_nothing(folders):
    found = [folders.finished(name, s, 70.0) for name in ("ce", "kd", "kd+ikd", "dkd") for s in (1, 2, 10)]
    found += [folders.finished("kd", 1, 70.0, teacher_sha256="2" * 64, pair=SAME_STUDENT)]
    found += [folders.finished("kd", 4, 70.0, teacher_sha256="3" * 64, pair=SAME_STUDENT)]
    expected, left_out = collect.tables(found)
    assert [c.method for c in expected[0].cells if c.pair == PAIR] == ["ce", "kd", "kd+ikd", "dkd"]
    for seed in range(5):
        turned = random.Random(seed).sample(found, len(found))
        again, lines = collect.tables(turned)
        assert [(t, t.cells) for t in again] == [(t, t.cells) for t in expected]
        assert lines == left_out and len(left_out) == 1


def test_cross_entropy_stands_beside_every_pair_of_its_student(folders):
    found = [folders.finished("kd", 1, 70.0), folders.finished("ce", 1, 69.0)]
    found += [folders.finished("kd", 1, 70.0, pair=SAME_STUDENT, teacher_sha256="2" * 64)]
    (cells,) = cells_of(found).values()
    assert cells == {(p, m): [1] for p in (PAIR, SAME_STUDENT) for m in ("ce", "kd")}
    (alone,) = cells_of(found[1:2]).values()
    assert alone == {("resnet20", "ce"): [1]}


def test_a_teachers_training_is_no_students_cross_entropy(folders):
    """resnet20 as a teacher of resnet8: without warm-up, and so another spec."""
    found = [folders.finished("kd", 0, 70.0), folders.finished("ce", 0, 69.0)]
    found += [folders.finished("ce", 0, 72.0, pair="-/resnet20")]
    (cells,) = cells_of(found).values()
    assert cells == {(PAIR, "ce"): [0], (PAIR, "kd"): [0], ("resnet20", TEACHER): [0]}
    assert found[1].spec.run_id != found[2].spec.run_id


def test_no_table_borrows_cross_entropy_from_another_protocol(folders):
    ours = [folders.finished("ce", seed, 69.0) for seed in (1, 2)]
    student = folders.finished("kd", 1, 70.0, protocol="released")
    paper, released = (f"cifar100, 3 epochs, fp32, {name} protocol" for name in ("paper", "released"))
    assert cells_of([*ours, student]) == {
        paper: {("resnet20", "ce"): [1, 2]}, released: {(PAIR, "kd"): [1]},
    }  # fmt: skip
    own = folders.finished("ce", 3, 68.0, protocol="released")
    assert cells_of([*ours, student, own])[released] == {(PAIR, "ce"): [3], (PAIR, "kd"): [1]}


@pytest.mark.parametrize(
    "what, name", [("teacher_sha256", "teacher resnet56"), ("data_sha256", "data cifar100")]
)
def test_runs_of_another_teacher_or_other_data_are_named_and_left_out(folders, what, name):
    most = [folders.finished(method, 1, 70.0) for method in ("kd", "kd+ikd")]
    other = [folders.finished("kd", 2, 90.0, **{what: "a" * 64})]
    other += [folders.unfinished("kd", seed, **{what: "a" * 64}) for seed in (3, 4)]
    made, left_out = collect.tables([*other, *most])
    assert [run for cell in made[0].cells for run in cell.runs] == most, "finished runs outweigh others"
    assert len(left_out) == 3 and all(f": {name} of sha256 aaaaaaaaaaaa..., where" in x for x in left_out)
    assert all(line.startswith(made[0].title) for line in left_out)


def test_a_rate_that_does_not_follow_the_batch_size_makes_another_cell(folders):
    both = {"recipe.batch_size": 128, RATE: 2.0}
    found = [
        folders.finished("kd", 1, 70.0, changes=c) for c in (both, {"recipe.batch_size": 128}, {RATE: 2.0})
    ]
    (cells,) = cells_of(found).values()
    assert set(cells) == {(PAIR, f"kd, {x}") for x in ("batch 128", "rate x 1, batch 128", "rate x 2")}


def test_a_run_in_deterministic_mode_is_another_spec_and_another_cell(folders):
    found = [folders.finished("kd+ikd", 1, 70.0, deterministic=yes) for yes in (False, True)]
    (cells,) = cells_of(found).values()
    assert cells == {(PAIR, "kd+ikd"): [1], (PAIR, "kd+ikd, deterministic"): [1]}


STUDIES = {
    "term temperatures": ablations.term_temperatures("kd+ikd,dkd+ikd,nkd+ikd,wttm+ikd", "0.25,1,1.5,4"),
    "weights": ablations.weights(),
    "weights of all": ablations.weights("kd+ikd,wttm+ikd,ce+ikd", "0,6,6.5,0.1"),
    "controls": [v for name in ("kd+ikd", "dkd+ikd") for v in ablations.what_the_term_is(name)],
    "batch sizes": ablations.batch_sizes("ce,kd,dkd+ikd", "16,48,64,96,512"),
    "KD temperatures": ablations.kd_temperatures("kd,kd+ikd,dkd,nkd+ikd", "0.5,4,20"),
}  # fmt: skip


@pytest.mark.parametrize("protocols", protocol.PROTOCOLS)
@pytest.mark.parametrize("pair", ["resnet32x4/resnet8x4", PAIR, "wrn_40_2/ShuffleV1", "vgg13/MobileNetV2"])
@pytest.mark.parametrize("study", STUDIES)
def test_a_run_has_the_label_of_its_studys_variant(folders, study, pair, protocols):
    for variant in STUDIES[study]:
        run = folders.run(variant.method, 1, pair, variant.changes, protocol=protocols, epochs=48)
        assert variant_of(run.spec).label == collect.label_of(run) == variant.label


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_makes_specs_that_have_the_labels_of_its_cells(study, tmp_path):
    made = ablations.study(
        StudySettings(profile="short", results=str(tmp_path), device="cpu"), STUDIES[study]
    )
    for label in made.methods:
        assert variant_of(made.synthetic_spec(ablations.PAIR[0], label)).label == label


def test_labels_differ_where_variants_do():
    every = [variant for variants in STUDIES.values() for variant in variants]
    by_label = {variant.label: variant for variant in every}
    assert all(by_label[v.label].named == v.named and by_label[v.label].method == v.method for v in every)
    assert Variant("kd", {"recipe.batch_size": 64, RATE: 1.0}).named == {"recipe.batch_size": 64}
