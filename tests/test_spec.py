"""What a spec refuses, in which words, and the names that runs get and keep."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikdlib.errors import IkdError
from ikdlib.methods import controls
from ikdlib.spec import IKDSettings, MethodSpec, Recipe, RunSpec, Settings, setting

DATA, TEACHER = "a" * 64, "b" * 64
PLAIN = {
    "data": "cifar100", "data_sha256": DATA, "student": "resnet8x4",
    "method": MethodSpec(name="ce"), "seed": 0,
}  # fmt: skip
TAUGHT = {
    "teacher": "resnet32x4", "teacher_sha256": TEACHER, "method": MethodSpec(name="dkd", ikd=IKDSettings()),
}  # fmt: skip


def spec(**changes) -> RunSpec:
    return RunSpec(**{**PLAIN, **TAUGHT, **changes})


def plain(**changes) -> RunSpec:
    return RunSpec(**{**PLAIN, **changes})


KD = MethodSpec(name="kd")
REFUSED = {
    "misspelt name": (lambda: Recipe(learing_rate=0.1), "such setting; did you mean learning_rate"),
    "misspelt method setting": (lambda: MethodSpec(name="dkd", settings={"betta": 1.0}), "did you mean beta"),
    "misspelt ikd setting": (lambda: IKDSettings(wieght=1.0), "did you mean weight"),
    "name of nothing": (lambda: Recipe(qqqq=1), "qqqq: no such setting"),
    "number as a string": (lambda: Recipe(learning_rate="1e-3"), "learning_rate: .*number.*'1e-3'"),
    "string in a method": (lambda: MethodSpec(name="dkd", settings={"beta": "8"}), "beta: .*number.*'8'"),
    "string in json": (
        lambda: RunSpec.from_json(spec().model_dump_json().replace('"epochs":240', '"epochs":"240"')),
        "epochs: .*'240'",
    ),
    "milestone as a string": (lambda: Recipe(milestones=("150",)), "milestones.0: .*'150'"),
    "half an epoch": (lambda: Recipe(epochs=1.5), "epochs: .*1.5"),
    "a truth for a number": (lambda: Recipe(epochs=True), "epochs: .*True"),
    "NaN": (lambda: Recipe(learning_rate=math.nan), "learning_rate: .*finite.*nan"),
    "inf": (lambda: Recipe(weight_decay=math.inf), "weight_decay: .*finite.*inf"),
    "NaN in a method": (lambda: MethodSpec(name="kd", settings={"kd": math.nan}), "kd: .*finite"),
    "NaN in ikd": (lambda: IKDSettings(temperature=math.nan), "temperature: .*finite"),
    "unknown target": (lambda: IKDSettings(target="onehot"), "target: .*'one_hot'.*'onehot'"),
    "unknown source": (lambda: IKDSettings(source="all"), "source: .*'all_views'.*'all'"),
    "no temperature": (lambda: IKDSettings(temperature=0.0), "temperature: .*greater than 0"),
    "unknown student": (lambda: plain(student="resnet8x5"), "student: unknown model .*resnet8x4"),
    "unknown teacher": (lambda: spec(teacher="resnet32_x4"), "teacher: unknown model .*resnet32x4"),
    "unknown method": (lambda: MethodSpec(name="dkdd"), "unknown method 'dkdd'; did you mean dkd"),
    "unlike any method": (lambda: MethodSpec(name="qqqq"), "known: ce, dkd, kd, nkd, wttm"),
    "unknown data": (lambda: plain(data="cifar10"), "data: unknown data set .*did you mean cifar100"),
    "negative seed": (lambda: plain(seed=-1), "seed: .*-1"),
    "no epoch": (lambda: Recipe(epochs=0), "epochs: .*0"),
    "negative holdout": (lambda: plain(holdout=-1), "holdout: .*-1"),
    "teacher without sha": (lambda: spec(teacher_sha256=None), "teacher and teacher_sha256 go together"),
    "sha without teacher": (lambda: plain(teacher_sha256=TEACHER), "teacher and teacher_sha256 go together"),
    "ce with a teacher": (lambda: spec(method=PLAIN["method"]), "method ce asks no teacher, leave it out"),
    "kd without a teacher": (lambda: plain(method=KD), "the method kd needs a teacher"),
    "not a sha": (lambda: plain(data_sha256="xyz"), "data_sha256: .*'xyz'"),
    "settings in a list": (lambda: MethodSpec(name="kd", settings=[1]), r"method.settings: \[1\]"),
    "a spec cut off": (lambda: RunSpec.from_json('{"data": '), "RunSpec: invalid JSON"),
    "an empty spec": (lambda: RunSpec.from_json("{}"), "data: is missing; .*seed: is missing"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(make, words):
    with pytest.raises(IkdError, match=words) as caught:
        make()
    text = str(caught.value)
    assert "\n" not in text and "pydantic" not in text and len(text) < 300


def test_a_changed_copy_is_checked_too():
    with pytest.raises(IkdError, match="learning_rate"):
        Recipe().updated(learning_rate=math.nan)
    with pytest.raises(IkdError, match="did you mean epochs"):
        Recipe().updated(epoch=3)
    with pytest.raises(ValueError, match="frozen"):
        Recipe().epochs = 3
    assert Recipe().updated(epochs=3) == Recipe(epochs=3)


def test_ikd_on_ce_needs_a_teacher():
    assert spec(method=MethodSpec(name="ce", ikd=IKDSettings())).method.needs_teacher
    with pytest.raises(IkdError, match="ce[+]ikd needs a teacher"):
        plain(method=MethodSpec(name="ce", ikd=IKDSettings()))


def test_a_method_knows_its_settings():
    """Values from the reference table of protocols, whatever the code says."""
    settings = {name: MethodSpec(name=name).settings for name in ("ce", "kd", "dkd", "nkd", "wttm")}
    assert settings["ce"] == {"ce": 1.0}
    assert settings["kd"] == {"ce": 0.1, "kd": 0.9, "temperature": 4.0}
    assert settings["dkd"] == {"ce": 1.0, "alpha": 1.0, "beta": 8.0, "temperature": 4.0, "warmup": 0.0}
    assert settings["nkd"] == {"ce": 1.0, "gamma": 8.0, "temperature": 4.0}
    assert settings["wttm"] == {"ce": 1.0, "wttm": 4.0, "gamma": 0.2}
    paper = {"weight": 6.5, "temperature": 1.0, "target": "means", "source": "views"}
    assert dict(IKDSettings()) == paper


# Run ids

GOLDEN = {
    "resnet8x4-ce-seed0-f06728daa9": plain(),
    "resnet32x4-resnet8x4-dkd+ikd-seed3-735a8a6954": spec(seed=3),
    "vgg13-vgg8-nkd+ikd-seed1-358194607b": spec(
        student="vgg8", teacher="vgg13", seed=1, protocol="released", holdout=50,
        method=MethodSpec(
            name="nkd", settings={"gamma": 6.0}, ikd=IKDSettings(weight=6.0, temperature=2.0)
        ),
        recipe=Recipe(learning_rate=0.01, plateau=0.95, precision="bf16").scaled(48),
    ),
    "resnet56-resnet20-wttm-seed2147483648-75cc92acd4": spec(
        data="glyphs100", student="resnet20", teacher="resnet56", seed=2**31, deterministic=True,
        method=MethodSpec(name="wttm"), recipe=Recipe(warmup=0),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("run_id", "made"), GOLDEN.items(), ids=GOLDEN)
def test_run_ids_never_change(run_id, made):
    """Folders in results/ have these names. If this fails, do not change the literals: mend the code."""
    assert made.run_id == run_id


KEPT = sorted((Path(__file__).parent.parent / "results").glob("*/runs/*/spec.json"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.parent.name)
def test_the_ids_of_the_runs_that_are_kept(path):
    """Specs written by earlier versions, which lack the settings that came later."""
    content = json.loads(path.read_text())
    del content["format_version"]
    assert RunSpec.from_json(json.dumps(content)).run_id == path.parent.name


def test_a_spec_from_before_the_controls_is_among_those_that_are_kept():
    """So that the test above has something to hold."""
    (path,) = [p for p in KEPT if p.parent.name == "resnet56-resnet20-dkd+ikd-seed1-a792957ac2"]
    assert json.loads(path.read_text())["method"]["ikd"] == {"weight": 6.5, "temperature": 1.0}


def test_every_target_of_the_term_has_its_function():
    assert set(get_args(IKDSettings.model_fields["target"].annotation)) == set(controls.TARGETS)


OTHERS = {
    "seed": {"seed": 1},
    "data": {"data": "glyphs100"},
    "data sha": {"data_sha256": "c" * 64},
    "student": {"student": "resnet8"},
    "teacher sha": {"teacher_sha256": "c" * 64},
    "method": {"method": MethodSpec(name="nkd", ikd=IKDSettings())},
    "method setting": {"method": MethodSpec(name="dkd", settings={"beta": 6.0}, ikd=IKDSettings())},
    "no ikd": {"method": MethodSpec(name="dkd")},
    "ikd weight": {"method": MethodSpec(name="dkd", ikd=IKDSettings(weight=6.0))},
    **{
        f"ikd {name} {value}": {"method": MethodSpec(name="dkd", ikd=IKDSettings(**{name: value}))}
        for name, values in (
            ("target", ("one_hot", "permuted", "even_rest", "smoothed")),
            ("source", ("clean", "running", "all_views")),
        )
        for value in values
    },
    "ikd temperature": {"method": MethodSpec(name="dkd", ikd=IKDSettings(temperature=2.0))},
    "protocol": {"protocol": "released"},
    "holdout": {"holdout": 5},
    "deterministic": {"deterministic": True},
    "numerics": {"numerics_version": 2},
    "epochs": {"recipe": Recipe(epochs=48)},
    "batch": {"recipe": Recipe(batch_size=128)},
    "rate": {"recipe": Recipe(learning_rate=0.01)},
    "milestones": {"recipe": Recipe(milestones=(150, 180))},
    "plateau": {"recipe": Recipe(plateau=0.95)},
    "precision": {"recipe": Recipe(precision="bf16")},
}


def test_whatever_changes_a_run_changes_its_id():
    ids = {name: spec(**changes).run_id for name, changes in OTHERS.items()} | {"": spec().run_id}
    assert len({run_id.rsplit("-", 1)[1] for run_id in ids.values()}) == len(OTHERS) + 1


def test_every_setting_of_the_recipe_has_a_say():
    """So that a setting added later is not forgotten in the hash."""
    values = {
        "epochs": 9, "batch_size": 9, "learning_rate": 0.9, "momentum": 0.5, "weight_decay": 0.1,
        "milestones": (9,), "decay": 0.5, "warmup": 9, "plateau": 0.5, "precision": "bf16",
    }  # fmt: skip
    missing = set(Recipe.model_fields) - set(values)
    assert not missing, f"add {missing} here"
    assert len({spec(recipe=Recipe(**{k: v})).run_id for k, v in values.items()}) == len(values)


def test_ways_of_writing_the_same_are_one_run():
    assert plain(recipe=Recipe(learning_rate=0.05, epochs=240)).run_id == plain().run_id
    explicit = MethodSpec(name="dkd", settings={"beta": 8, "alpha": 1.0}, ikd=IKDSettings(weight=6.5))
    assert spec(method=explicit).run_id == spec().run_id
    assert plain(recipe=Recipe(learning_rate=1)).run_id == plain(recipe=Recipe(learning_rate=1.0)).run_id
    assert spec().model_copy(update={"teacher": "wrn_40_2"}).run_id.split("-")[-1] == spec().run_id[-10:]


class Born(Settings):
    rate: float = setting(0.1)
    part: IKDSettings | None = setting(None)


class Older(Settings):
    """`Born` after a default was changed and a setting was added."""

    rate: float = setting(0.5, born=0.1)
    part: IKDSettings | None = setting(None)
    smoothing: float = setting(0.0)


def test_a_new_setting_at_its_default_changes_no_id():
    assert Older(rate=0.1).changed_since_birth() == Born().changed_since_birth() == {}
    assert Older(rate=0.1, smoothing=0.1).changed_since_birth() == {"smoothing": 0.1}


def test_a_changed_default_leaves_old_ids_alone():
    """The hash compares with the default a setting was born with, not with today's."""
    assert Older().changed_since_birth() == {"rate": 0.5} == Born(rate=0.5).changed_since_birth()
    assert Older(rate=0.1).changed_since_birth() == Born(rate=0.1).changed_since_birth()


def test_an_optional_part_counts_by_being_there():
    assert Born(part=IKDSettings()).changed_since_birth() == {"part": True}
    changed = Born(part=IKDSettings(weight=1.0)).changed_since_birth()
    assert changed == {"part": True, "part.weight": 1.0}


@pytest.mark.parametrize("made", GOLDEN.values(), ids=GOLDEN)
def test_round_trip_through_json(made):
    again = RunSpec.from_json(made.model_dump_json())
    assert again == made and again.run_id == made.run_id
    assert json.loads(made.model_dump_json())["recipe"]["epochs"] == made.recipe.epochs


finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)


@given(
    rate=positive,
    decay=st.floats(0, 1, exclude_min=True),
    weight=st.floats(0, 1e300),
    T=positive,
    beta=positive,
)
def test_every_float_comes_back_to_the_bit(rate, decay, weight, T, beta):
    method = MethodSpec(name="dkd", settings={"beta": beta}, ikd=IKDSettings(weight=weight, temperature=T))
    made = spec(recipe=Recipe(learning_rate=rate, decay=decay), method=method)
    again = RunSpec.from_json(made.model_dump_json())
    assert again.run_id == made.run_id
    assert again.recipe.learning_rate.hex() == rate.hex() and again.recipe.decay.hex() == decay.hex()
    assert again.method.settings["beta"].hex() == beta.hex() and again.method.ikd.weight == weight


@given(value=finite)
def test_a_rate_is_positive_or_refused(value):
    if value > 0:
        assert Recipe(learning_rate=value).learning_rate == value
    else:
        with pytest.raises(IkdError, match="learning_rate: .*greater than 0"):
            Recipe(learning_rate=value)


def test_a_run_prints_every_setting():
    text = spec().describe()
    assert text.startswith(f"run {spec().run_id}\n")
    for name in (
        "recipe.learning_rate",
        "method.ikd.weight",
        "method.settings.beta",
        "teacher_sha256",
        "seed",
    ):
        assert any(line.split()[:1] == [name] for line in text.splitlines()), name
