"""The ablations' grids and cells: what they hold, which runs they share with the tables, what they refuse."""

from __future__ import annotations

import pytest

from ikdlib.errors import IkdError
from ikdlib.studies import ablations
from ikdlib.studies.grids import questions
from ikdlib.studies.profiles import LOGIT_METHODS
from ikdlib.studies.study import Study, StudySettings
from ikdlib.studies.teachers import TeacherFile
from ikdlib.studies.variants import Variant


@pytest.fixture(autouse=True)
def _teachers_by_name(monkeypatch):
    """Every teacher is there, and its digest made of its name."""
    monkeypatch.setattr(Study, "teacher", lambda self, name: TeacherFile(self.results / name, digest(name)))


def digest(name: str) -> str:
    return name.encode().hex().ljust(64, "0")


def specs(study: Study) -> dict[str, object]:
    """Label to the spec of the study's first pair and seed."""
    return {label: study.jobs(study.pairs[0], label)[0].spec for label in study.methods}


def refused(said: str, *call) -> None:
    function, *arguments = call
    with pytest.raises(IkdError, match=said) as error:
        function(*arguments)
    assert "\n" not in str(error.value)


# What stands on the axes


def test_the_grid_of_the_terms_temperature(studies):
    found = specs(ablations.study(studies.settings(), ablations.term_temperatures()))
    assert found.pop("dkd").method.ikd is None
    assert [spec.method.ikd.temperature for spec in found.values()] == [0.5, 1, 2, 3, 4]
    assert {(str(spec.method), spec.method.ikd.weight) for spec in found.values()} == {("dkd+ikd", 6.5)}


def test_the_grid_of_the_terms_weight(studies):
    found = specs(ablations.study(studies.settings(), ablations.weights()))
    for method in ("dkd", "nkd"):
        own = [spec.method for spec in found.values() if spec.method.name == method]
        assert own[0].ikd is None, "at lambda 0 there is a term"
        assert [m.ikd.weight for m in own[1:]] == [0.5, 1, 2, 4, 6, 6.5, 7, 8]
        assert {m.ikd.temperature for m in own[1:]} == {1}
    assert len(found) == 18


def test_the_grid_of_batch_sizes_and_its_rates(studies):
    """Goyal et al. 2017: the rate grows with the batch, from the pair's own at 64; nothing else moves."""
    settings = studies.settings(pairs="vgg13/MobileNetV2", epochs=240)
    found = list(specs(ablations.study(settings, ablations.batch_sizes())).values())
    for method in ("kd", "kd+ikd"):
        recipes = [spec.recipe for spec in found if str(spec.method) == method]
        assert [(r.batch_size, r.learning_rate) for r in recipes] == [
            (32, pytest.approx(0.005)), (64, 0.01), (128, pytest.approx(0.02)),
            (256, pytest.approx(0.04)), (512, pytest.approx(0.08)),
        ]  # fmt: skip
        assert {(r.epochs, r.warmup, r.milestones) for r in recipes} == {(240, 20, (150, 180, 210))}


def test_the_grid_of_the_temperature_of_kd(studies):
    found = list(specs(ablations.study(studies.settings(), ablations.kd_temperatures())).values())
    for method in ("kd", "kd+ikd"):
        own = [spec.method for spec in found if str(spec.method) == method]
        assert [m.settings["temperature"] for m in own] == [1, 2, 4, 8]
        assert {m.ikd.temperature for m in own if m.ikd} <= {1}, "the term's own T moved with KD's"


def test_the_controls_are_the_term_with_one_thing_changed(studies):
    found = specs(ablations.study(studies.settings(), ablations.what_the_term_is()))
    terms = {label: spec.method.ikd for label, spec in found.items() if spec.method.ikd}
    changed = {
        (str(found[label].method), term.target, term.source): (term.weight, term.temperature)
        for label, term in terms.items()
    }
    dkd = ("dkd+ikd",)
    assert set(changed) == {
        ("ce+ikd", "means", "views"), (*dkd, "means", "views"), (*dkd, "one_hot", "views"),
        (*dkd, "permuted", "views"), (*dkd, "even_rest", "views"), (*dkd, "smoothed", "views"),
        (*dkd, "means", "clean"), (*dkd, "means", "running"), (*dkd, "means", "all_views"),
    }  # fmt: skip
    assert set(changed.values()) == {(6.5, 1.0)}
    assert set(found) - set(terms) == {"ce", "dkd"}


def test_named_controls_bring_the_method_and_its_base_and_nothing_else():
    labels = [v.label for v in ablations.what_the_term_is("dkd", "even_rest, clean")]
    assert labels == ["dkd", "dkd+ikd", "dkd+ikd, towards even rest", "dkd+ikd, means from clean"]
    assert [v.label for v in ablations.what_the_term_is("dkd", "alone")] == ["dkd", "dkd+ikd", "ce", "ce+ikd"]


def test_the_term_alone_has_the_weight_it_has_beside_the_method():
    """6.0 on nkd (the paper), 6.5 on ce itself (chosen): against nkd+ikd only the method may differ."""
    (alone,) = [v for v in ablations.what_the_term_is("nkd+ikd") if v.method == "ce+ikd"]
    assert alone.changes == {"ikd.weight": 6.0}
    assert Variant("ce+ikd") in ablations.what_the_term_is("dkd+ikd")


def test_every_question_is_about_two_cells_of_its_notebook():
    for method in ("kd+ikd", "dkd+ikd", "nkd+ikd", "wttm+ikd"):
        labels = {variant.label for variant in ablations.what_the_term_is(method)}
        assert {label for both in questions(method) for label in both} == labels


def test_a_grid_is_sorted_and_counts_each_value_once():
    assert ablations.numbers(" 2, 0.5,2.0 ,1,") == (0.5, 1, 2)
    once, twice = ablations.term_temperatures("", "1,2"), ablations.term_temperatures("", "2.0,1,2,1e0")
    assert [variant.label for variant in once] == [variant.label for variant in twice]


@pytest.mark.parametrize("blank", ["", " ", " , "])
def test_a_blank_list_is_the_notebooks_own(blank):
    labels = {v.label for v in ablations.weights(blank, blank)}
    assert labels == {v.label for v in ablations.weights()} and len(labels) == 18
    assert ablations.term_temperatures(blank, blank) == ablations.term_temperatures()
    assert ablations.batch_sizes(blank, blank) == ablations.batch_sizes()
    assert ablations.kd_temperatures(blank, blank) == ablations.kd_temperatures()
    assert ablations.what_the_term_is("dkd+ikd", blank) == ablations.what_the_term_is()


def test_the_pair_is_resnet32x4_and_resnet8x4_where_nobody_names_others():
    for profile in ("short", "paper"):
        study = ablations.study(StudySettings(profile=profile), ablations.weights())
        assert study.pairs == ("resnet32x4/resnet8x4",)
    named = StudySettings(profile="short", pairs="vgg13/vgg8,resnet56/resnet20")
    assert ablations.study(named, ablations.weights()).pairs == ("vgg13/vgg8", "resnet56/resnet20")
    demo = ablations.study(StudySettings(), ablations.weights())
    assert demo.pairs == ("resnet20/resnet8",), "the demo has a pair of its own"


# Whose runs they are


@pytest.mark.parametrize("under", ["paper", "released"])
@pytest.mark.parametrize(
    "variants, shared",
    [
        (ablations.term_temperatures, {"dkd", "dkd+ikd"}),
        (ablations.weights, {"dkd", "dkd+ikd", "nkd", "nkd+ikd"}),
        (ablations.what_the_term_is, {"dkd", "dkd+ikd", "ce", "ce+ikd"}),
        (ablations.batch_sizes, {"kd", "kd+ikd"}),
        (ablations.kd_temperatures, {"kd", "kd+ikd"}),
    ],
)
def test_where_nothing_differs_the_run_is_the_tables_own(studies, variants, shared, under):
    """Same id, so it is trained once; every other cell is a run that the tables do not have."""
    settings = studies.settings(pairs="resnet32x4/resnet8x4", protocol=under, seeds="2")
    tables = specs(Study(settings.updated(methods=",".join((*LOGIT_METHODS, "ce+ikd")))))
    known = {spec.run_id for spec in tables.values()}
    found = specs(ablations.study(settings, variants()))
    assert {label for label, spec in found.items() if spec.run_id in known} == shared
    assert all(found[label].run_id == tables[label].run_id for label in shared)


def test_lambda_0_is_the_base_methods_own_run(studies):
    """With and without images held apart, and for each spelling of nought."""
    for grid in ("0,1", "0.0,1", "-0,1"):
        for apart in (False, True):
            study = ablations.study(studies.settings(), ablations.weights("kd+ikd", grid), apart)
            base = Study(study.settings.updated(methods="kd"))
            assert study.methods == ("kd", "kd+ikd, λ 1")
            (job,) = study.jobs(study.pairs[0], "kd")
            (own,) = base.jobs(base.pairs[0], "kd")
            assert job == own and job.spec.method.ikd is None


def test_a_default_that_is_named_in_the_grid_is_no_second_run(studies):
    """KD's T of 4, the term's T of 1, lambda 6 of nkd and 6.5 of dkd, batch 64: the methods' plain names."""
    for variants, plain in (
        (ablations.kd_temperatures("kd", "4"), ["kd", "kd+ikd"]),
        (ablations.kd_temperatures("dkd+ikd,nkd", "4.0"), ["dkd", "dkd+ikd", "nkd", "nkd+ikd"]),
        (ablations.term_temperatures("kd+ikd", "1.0"), ["kd", "kd+ikd"]),
        (ablations.weights("nkd+ikd,wttm+ikd", "6"), ["nkd+ikd", "wttm+ikd"]),
        (ablations.weights("dkd+ikd,kd+ikd,ce+ikd", "6.5"), ["dkd+ikd", "kd+ikd", "ce+ikd"]),
        (ablations.batch_sizes("kd", "64"), ["kd", "kd+ikd"]),
    ):
        assert [variant.label for variant in variants] == plain


# Images held apart


@pytest.mark.parametrize("profile, count", [("demo", 4), ("short", 50), ("paper", 50)])
def test_images_are_held_apart_where_a_hyper_parameter_is_chosen_and_nowhere_else(profile, count):
    settings = StudySettings(profile=profile)
    assert ablations.study(settings, ablations.weights(), apart=True).settings.holdout == count
    assert ablations.study(settings, ablations.batch_sizes()).settings.holdout == 0
    asked = settings.updated(holdout=7)
    for apart in (False, True):
        assert ablations.study(asked, ablations.weights(), apart).settings.holdout == 7


def test_students_name_the_images_held_apart_and_teachers_do_not(studies):
    made = [
        ablations.study(studies.settings(holdout=n), ablations.weights("kd+ikd"), apart) for n, apart in
        ((0, False), (0, True), (2, True))
    ]  # fmt: skip
    assert [study.settings.holdout for study in made] == [0, 4, 2]
    students = [{job.spec.run_id for job in study.student_jobs()} for study in made]
    assert len(set.union(*students)) == sum(map(len, students))
    assert [{job.spec.holdout for job in study.student_jobs()} for study in made] == [{0}, {4}, {2}]
    teachers = [study.teacher_job("resnet14").spec for study in made]
    assert len({spec.run_id for spec in teachers}) == 1 and teachers[0].holdout == 0
    assert len({job.spec.teacher_sha256 for study in made for job in study.student_jobs()} - {None}) == 1


# What a user can get wrong


@pytest.mark.parametrize("variants, parameter", [
    (ablations.term_temperatures, "grid"), (ablations.weights, "grid"),
    (ablations.batch_sizes, "batch_sizes"), (ablations.kd_temperatures, "temperatures"),
])  # fmt: skip
@pytest.mark.parametrize("grid", ["0.5,x", "nan", "1,nan", "-1", "inf", "1e999", "0.5;1", "1 2", "[1, 2]", 2])
def test_a_grid_that_is_none_is_refused_by_the_name_of_its_notebooks_parameter(variants, parameter, grid):
    refused(f"^{parameter}: ", variants, "", grid)


@pytest.mark.parametrize("grid", ["0.5", "64.5", "0", "32,0.1"])
def test_a_batch_size_is_a_whole_number_from_1_on(grid):
    refused("^batch_sizes: a batch size of .* not a whole number from 1 on", ablations.batch_sizes, "", grid)


@pytest.mark.parametrize(
    "variants, parameter",
    [(ablations.term_temperatures, "grid"), (ablations.kd_temperatures, "temperatures")],
)
@pytest.mark.parametrize("grid", ["0", "0,1", "-0.0,1"])
def test_a_temperature_of_0_is_refused_with_what_is_allowed(variants, parameter, grid):
    refused(f"^{parameter}: .*greater than 0", variants, "", grid)


@pytest.mark.parametrize(
    "variants", [ablations.term_temperatures, ablations.weights, ablations.what_the_term_is]
)
def test_a_method_stands_for_itself_with_the_term_and_a_misspelt_one_is_refused(variants):
    assert variants("dkd") == variants("dkd+ikd") == variants("dkd,dkd+ikd")
    refused("did you mean dkd", variants, "dkdd+ikd")
    refused(r"only addition is \+ikd", variants, "dkd+idk")


@pytest.mark.parametrize("variants", [ablations.batch_sizes, ablations.kd_temperatures])
def test_with_and_without_the_term_go_together(variants):
    assert variants("dkd") == variants("dkd+ikd") == variants("dkd,dkd+ikd")
    assert {variant.method for variant in variants("dkd")} == {"dkd", "dkd+ikd"}


def test_a_method_without_a_temperature_does_not_spoil_the_others():
    assert ablations.kd_temperatures("wttm,kd") == ablations.kd_temperatures("kd")


def test_an_unknown_control_is_refused_with_those_there_are():
    known = "alone, one_hot, permuted, even_rest, smoothed, clean"
    refused(known, ablations.what_the_term_is, "dkd+ikd", "one_hot,shuffled")


@pytest.mark.parametrize("method", ["ce", "ce+ikd", "wttm"])
def test_a_method_without_a_temperature_has_no_curve_over_it(method):
    refused("no temperature of its own", ablations.kd_temperatures, method)


@pytest.mark.parametrize("method", ["kdd", "kd+idk"])
def test_an_unknown_method_of_a_batch_curve_is_refused(method):
    refused("methods", ablations.kd_temperatures, method)
    refused("methods", ablations.batch_sizes, method)
