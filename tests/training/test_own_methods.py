"""A user's own method: one file, and what is said where something in it is wrong or was changed."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ikdlib
from ikdlib import methods
from ikdlib.errors import IkdError
from ikdlib.methods import base, fingerprint
from ikdlib.methods.base import Method
from ikdlib.spec import MethodSpec, Settings, setting

OWN = '''
"""A loss of one's own."""

from ikdlib.methods.base import Method
from ikdlib.spec import Settings, setting


class Squares(Method):
    name = "squares"
    needs = frozenset({"logits"})

    class Settings(Settings):
        weight: float = setting(0.1, ge=0)

    def forward(self, student, teacher, batch):
        # half the squared distance
        return {"squares": self.settings.weight * (student.logits - teacher.logits).square().mean()}
'''


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    monkeypatch.setattr(base, "REGISTRY", registry := dict(base.REGISTRY))
    monkeypatch.setattr(methods, "REGISTRY", registry)
    fingerprint._code.cache_clear()
    yield
    sys.modules.pop("own_squares", None)
    fingerprint._code.cache_clear()


def loaded(path: Path, text: str | None = OWN):
    """A file as a process that starts now would import it."""
    if text is not None:
        path.write_text(text)
    fingerprint._code.cache_clear()
    sys.dont_write_bytecode = True
    spec = importlib.util.spec_from_file_location("own_squares", path)
    sys.modules["own_squares"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(**members):
    return type("Own", (Method,), {"name": "own", "needs": frozenset({"logits"}), **members})


# One file


def test_a_file_among_the_methods_is_a_method(tmp_path):
    package = tmp_path / "ikdlib"
    shutil.copytree(Path(ikdlib.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "methods" / "squares.py").write_text(OWN)
    said = subprocess.run(
        [sys.executable, "-m", "ikdlib", "methods"], cwd=tmp_path, text=True, capture_output=True, check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    ).stdout  # fmt: skip
    assert "squares" in said and "weight" in said


def test_it_trains_with_and_without_the_term(tiny, tmp_path):
    loaded(tmp_path / "squares.py")
    for name, parts in (("squares", ["squares"]), ("squares+ikd", ["squares", "ikd"])):
        history = tiny.train(tmp_path, tiny.spec(name)).run.history
        assert [column for column in history if column.startswith("part_")] == [f"part_{p}" for p in parts]
        assert history["part_squares"].gt(0).all()


def test_the_name_of_another_method_is_refused():
    with pytest.raises(
        IkdError, match=r'^Own: the name "kd" is that of ikdlib.methods.kd.KD; choose another'
    ):
        made(name="kd")
    assert methods.method_class("kd").__module__ == "ikdlib.methods.kd"


def test_a_cell_may_be_executed_again(tmp_path):
    first = loaded(tmp_path / "squares.py").Squares
    second = loaded(tmp_path / "squares.py").Squares
    assert first is not second is methods.method_class("squares")


# Settings


def test_settings_may_be_whole_numbers_words_and_yes_or_no(tiny, tmp_path):
    class Own(Settings):
        k: int = setting(5, ge=1)
        centred: bool = setting(False)
        way: str = setting("mean")
        weight: float = setting(1.0)

    made(Settings=Own)
    spec = MethodSpec(name="own", settings={"k": 7, "weight": 2})
    assert spec.settings == {"k": 7, "centred": False, "way": "mean", "weight": 2.0}
    assert [type(value) for value in spec.settings.values()] == [int, bool, str, float]
    again = MethodSpec.from_json(spec.model_dump_json())
    assert again == spec and [*map(type, again.settings.values())] == [*map(type, spec.settings.values())]
    assert methods.build(spec, 10).settings == Own(k=7, weight=2.0)
    for wrong in ({"k": 0}, {"k": 1.5}, {"centred": 1}, {"weight": "2"}):
        with pytest.raises(IkdError, match=next(iter(wrong))):
            MethodSpec(name="own", settings=wrong)


# What forward returns


@pytest.mark.parametrize("returned, told", [
    (lambda s, t: s.sum(), "Own: forward returned no dict of named parts"),
    (lambda s, t: {}, "Own: forward returned no dict of named parts"),
    (lambda s, t: {"own": (s - t).square()}, r'Own: part "own" is .64, 10., not a scalar; average it'),
    (lambda s, t: {"own": 0.0}, 'Own: part "own" is float, not a scalar'),
    (lambda s, t: {"ikd": s.mean()}, "Own: \"ikd\" is a name of the trainer's; call that part something"),
    (lambda s, t: {"loss": s.mean()}, '"loss" is a name'),
    (lambda s, t: {"hits": s.mean()}, '"hits" is a name'),
], ids=["a tensor", "nothing", "not averaged", "a number", "ikd", "loss", "hits"])  # fmt: skip
@pytest.mark.parametrize("term", ["", "+ikd"])
def test_what_is_no_named_scalar_is_refused_before_anything_is_trained(tiny, tmp_path, returned, told, term):
    made(forward=lambda self, student, teacher, batch: returned(student.logits, teacher.logits))
    trainer = tiny.trainer(tmp_path, tiny.spec(f"own{term}"))
    with pytest.raises(IkdError, match=told):
        trainer.train()
    assert trainer.step == 0 and trainer.epoch == 1


def test_a_method_that_forgot_to_ask_for_a_teacher_is_told_how(tiny, tmp_path):
    def forward(self, student, teacher, batch):
        return {"own": (student.logits - teacher.logits.mean()).square().mean()}

    made(forward=forward, needs=frozenset())
    with pytest.raises(IkdError, match=r'Own: .*it was given no teacher: .* needs = frozenset\({"logits"}\)'):
        tiny.train(tmp_path, tiny.spec("own"))
    made(forward=lambda self, student, teacher, batch: None.mean())
    with pytest.raises(AttributeError):  # that is another mistake
        tiny.train(tmp_path, tiny.spec("own"))


# Code that was changed under the same name


EDITED = OWN.replace("square()", "abs()")


def test_words_and_layout_are_not_code(tmp_path):
    path, spec = tmp_path / "squares.py", None
    found = []
    for text in (OWN, OWN.replace("# half the", "# the"), OWN.replace("of one's own", "of mine"), EDITED):
        loaded(path, text)
        spec = MethodSpec(name="squares", settings={"weight": 0.5})
        found.append(fingerprint.of(spec))
    assert len(set(found[:3])) == 1 and found[3] != found[0] and all(len(one) == 16 for one in found)


def test_the_terms_own_code_counts_where_the_term_is(tmp_path, monkeypatch):
    both = [MethodSpec(name="kd"), MethodSpec(name="kd", ikd={"weight": 6.5})]
    before = [fingerprint.of(spec) for spec in both]
    assert before[0] != before[1]
    for module, changes in (("ikd", [False, True]), ("controls", [False, True]), ("base", [True, True])):
        own = getattr(fingerprint, module)
        other = tmp_path / f"{module}.py"
        other.write_text(Path(own.__file__).read_text() + "\nMORE = 1\n")
        with monkeypatch.context() as patch:
            patch.setattr(own, "__file__", str(other))
            assert [fingerprint.of(s) != b for s, b in zip(both, before, strict=True)] == changes


def test_code_in_another_encoding_is_read_as_python_reads_it(tmp_path):
    path = tmp_path / "squares.py"
    path.write_bytes(f"# -*- coding: latin-1 -*-\n# L\xe4nge\n{OWN}".encode("latin-1"))
    loaded(path, None)
    assert fingerprint.of(MethodSpec(name="squares")) is not None


def test_a_class_without_a_file_has_none():
    namespace = {"Method": Method, "__name__": "a notebook's"}
    exec("class Own(Method):\n    name = 'own'", namespace)
    assert fingerprint.of(MethodSpec(name="own")) is None


def test_a_finished_run_knows_that_its_loss_was_edited(tiny, tmp_path):
    loaded(tmp_path / "squares.py")
    run = tiny.train(tmp_path, tiny.spec("squares")).run
    assert run.provenance["method"] == fingerprint.of(run.spec.method) and not fingerprint.changed(run)
    loaded(tmp_path / "squares.py", EDITED)
    assert fingerprint.changed(run)
    path = run.folder / "provenance.json"
    path.write_text(path.read_text().replace(f'"python": "{platform.python_version()}"', '"python": "2.7.1"'))
    assert not fingerprint.changed(run), "another Python writes the same code in another way"
    (run.folder / "provenance.json").unlink()  # of a run that recorded none, nothing is said
    assert not fingerprint.changed(run)


def test_a_run_that_goes_on_with_an_edited_loss_says_so(tiny, tmp_path):
    loaded(tmp_path / "squares.py")
    spec = tiny.spec("squares")
    tiny.train_until(tmp_path, spec, 2, 1)
    loaded(tmp_path / "squares.py", EDITED)
    with pytest.warns(UserWarning, match="the method's code is not what this run began with"):
        run = tiny.train(tmp_path, spec).run
    (resumed,) = run.provenance["resumed_at"]
    assert resumed["method"] == fingerprint.of(spec.method) != run.provenance["method"]
    assert torch.isfinite(torch.tensor(run.history["train_loss"].to_numpy())).all()
