"""Class means of every source against torchvision and fp64; the survey's file, its stops and its damages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torchvision.transforms import Normalize, ToTensor
from torchvision.transforms import functional as tv

import ikdlib
from ikdlib.data.base import hold_out
from ikdlib.data.loader import Loader, generator
from ikdlib.data.views import Views
from ikdlib.training import survey
from ikdlib.training import teacher as teachers
from ikdlib.training.teacher import Teacher, TeacherLogits

CPU = torch.device("cpu")
EVERY = [(dy, dx, flip) for dy in range(9) for dx in range(9) for flip in (0, 1)]


@pytest.fixture(scope="module")
def few(tiny):
    """30 pictures, 3 of each class: 4860 views of them."""
    return replace(tiny.data, train=tiny.data.train.take(torch.arange(30)))


class Stopped(Exception):
    pass


class Asked:
    """A teacher's logits below a folder, and what was asked of the teacher."""

    def __init__(
        self, tiny, data, folder, dtype=torch.float32, precision="fp32", seed=1, padding=4, std=None
    ):
        views = Views(padding, 8, 8, data.mean, std or data.std, CPU)
        self.loader = Loader(data.train, views, 16, seed, CPU)
        self.teacher = Teacher(tiny.teacher(), tiny.teacher_sha256, precision, CPU)
        self.logits = TeacherLogits(self.teacher, data, dtype, folder)
        self.views: list[int] = []
        answer = self.teacher.logits

        def counting(loader, epoch, check):
            self.views.append(int(epoch.views[0]))
            return answer(loader, epoch, check)

        self.teacher.logits = counting

    def take(self, kind="all_views", check=lambda: None) -> survey.Survey:
        return survey.take(self.logits, self.loader, kind, check)

    def stopped_after(self, questions: int, kind="all_views") -> int:
        """Stop between the teacher's batches (one a view here); how many views were done."""
        left = iter(range(questions))

        def check():
            if next(left, None) is None:
                raise Stopped

        with pytest.raises(Stopped):
            self.take(kind, check)
        return len(self.views) - 1


@pytest.fixture(scope="module")
def whole(tiny, few) -> survey.Survey:
    """All views at once, kept nowhere."""
    return Asked(tiny, few, None).take()


def equal(one: survey.Survey, other: survey.Survey) -> bool:
    return torch.equal(one.sums, other.sums) and torch.equal(one.counts, other.counts)


# Against torchvision's transforms and a teacher in fp64


def shown(data, number: int, view: int) -> torch.Tensor:
    dy, dx, flip = EVERY[view]
    picture = tv.pad(Image.fromarray(data.train.images[number].numpy()), 4, fill=0)
    picture = tv.crop(picture, dy, dx, 8, 8)
    return Normalize(data.mean, data.std)(ToTensor()(tv.hflip(picture) if flip else picture))


def as_it_is(data, number: int) -> torch.Tensor:
    return Normalize(data.mean, data.std)(ToTensor()(Image.fromarray(data.train.images[number].numpy())))


def means_of(tiny, images: list[torch.Tensor], labels: list[int]) -> np.ndarray:
    """[C, C]: numpy's mean over each class of what a teacher in fp64 says."""
    with torch.no_grad():
        logits = tiny.teacher().eval().double()(torch.stack(images).double()).numpy()
    return np.stack([logits[np.array(labels) == label].mean(0) for label in range(10)])


def independent(tiny, data, source: str, seed: int = 1) -> np.ndarray:
    """The means after two epochs, from what each source says it is."""
    label, count = data.train.targets.tolist(), len(data.train)
    if source == "clean":
        return means_of(tiny, [as_it_is(data, n) for n in range(count)], label)
    if source == "all_views":
        images = [shown(data, n, view) for n in range(count) for view in range(162)]
        return means_of(tiny, images, [name for name in label for _ in range(162)])
    images, labels = [], []
    for epoch in (1,) if source == "views" else (1, 2):
        order = torch.randperm(count, generator=generator("order", seed, epoch)).tolist()
        views = torch.randint(0, 162, (count,), generator=generator("views", seed, epoch)).tolist()
        images += [shown(data, n, view) for n, view in zip(order, views, strict=True)]
        labels += [label[n] for n in order]
    return means_of(tiny, images, labels)


@pytest.mark.parametrize("source", ["views", "running", "clean", "all_views"])
def test_the_means_of_a_run_are_those_of_their_source(tiny, few, tmp_path, source):
    spec = tiny.spec(f"dkd+ikd:{source}", epochs=2)
    ikd = tiny.train(tmp_path, spec, tmp_path / "slabs", data=few).train_step.method.ikd
    np.testing.assert_allclose(ikd.means, independent(tiny, few, source), rtol=1e-3, atol=1e-4)
    factor = {"views": 1, "running": 2, "clean": 1, "all_views": 162}[source]
    assert ikd.counts.tolist() == [3 * factor] * 10


def test_the_sources_differ(tiny, few):
    """So that the test above can tell them apart."""
    found = [independent(tiny, few, source) for source in ("views", "running", "clean", "all_views")]
    apart = [np.abs(a - b).max() for n, a in enumerate(found) for b in found[:n]]
    assert min(apart) > 0.02


def test_half_precision_is_rounded_as_slabs_are(tiny, few):
    """fp16, added up in fp64: each answer is off by half of its last bit at most."""
    full, half = (Asked(tiny, few, None, dtype) for dtype in (torch.float32, torch.float16))
    with torch.no_grad():
        images = torch.stack([as_it_is(few, n) for n in range(30)])
        exact = full.teacher.answer(images).half().double().numpy()
    expected = np.stack([exact[np.arange(30) % 10 == label].sum(0) for label in range(10)])
    np.testing.assert_allclose(half.take("clean").sums, expected, rtol=1e-3, atol=5e-3)
    assert not torch.equal(half.take("clean").sums, full.take("clean").sums)


# Computed once, wherever it is stopped


def test_a_survey_is_computed_once_for_all_seeds(tiny, few, tmp_path, whole):
    one, other = Asked(tiny, few, tmp_path), Asked(tiny, few, tmp_path, seed=2)
    assert equal(one.take(), whole) and one.views == list(range(162))
    assert equal(other.take(), whole) and other.views == []
    assert other.take("clean").counts.tolist() == [3] * 10 and other.views == [4 * 18 + 4 * 2]


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["saved each view", "saved at a stop alone"])
def test_stopped_anywhere_it_ends_with_the_same_bits(tiny, few, tmp_path, whole, monkeypatch, seconds):
    monkeypatch.setattr(survey, "SAVE_SECONDS", seconds)
    done = 0
    for questions in (0, 1, 5, 90):
        asked = Asked(tiny, few, tmp_path)
        done += asked.stopped_after(questions)
        assert asked.views[0] == done - questions and asked.views[-1] == done, "on from where it was"
    last = Asked(tiny, few, tmp_path)
    assert equal(last.take(), whole)
    assert last.views == list(range(done, 162)) and done == 96


def test_a_changed_sum_in_a_half_done_survey_would_show(tiny, few, tmp_path, whole):
    """Negative control of the test above."""
    Asked(tiny, few, tmp_path).stopped_after(5)
    (path,) = tmp_path.rglob("all_views-*.safetensors")
    tensors, facts = survey.checkpoint.read(path)
    tensors["sums"][3, 4] += 1e-6
    survey.checkpoint.write(path, tensors, facts)
    assert not equal(Asked(tiny, few, tmp_path).take(), whole)


def test_kill_9_in_the_middle_loses_one_view(tiny, few, tmp_path, whole):
    """A process that is gone without a word, in its 8th view; what it saved is taken up."""
    program = f"""
import os, signal, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from dataclasses import replace; from pathlib import Path
import torch; from conftest import Tiny; from test_survey import Asked, survey
torch.set_num_threads(1); survey.SAVE_SECONDS = 0.0; tiny = Tiny()
few = replace(tiny.data, train=tiny.data.train.take(torch.arange(30)))
asked = Asked(tiny, few, Path({str(tmp_path)!r}))
asked.take(check=lambda: len(asked.views) == 8 and os.kill(os.getpid(), signal.SIGKILL))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(ikdlib.__file__).parent.parent)}
    dead = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    on = Asked(tiny, few, tmp_path)
    assert equal(on.take(), whole) and on.views == list(range(7, 162))


@pytest.mark.parametrize("damage", ["cut off", "altered"])
def test_a_damaged_survey_is_computed_again(tiny, few, tmp_path, whole, damage):
    Asked(tiny, few, tmp_path).take()
    (path,) = tmp_path.rglob("all_views-*.safetensors")
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content[: len(content) // 2] if damage == "cut off" else content)
    again = Asked(tiny, few, tmp_path)
    with pytest.warns(UserWarning, match="computed again"):
        assert equal(again.take(), whole)
    assert len(again.views) == 162
    mended = Asked(tiny, few, tmp_path)
    assert equal(mended.take(), whole) and mended.views == []


def test_a_survey_that_cannot_be_kept_only_costs_a_warning(tiny, few, tmp_path, whole):
    """A file lies where the folder should be."""
    (tmp_path / "slabs").write_text("in the way")
    asked = Asked(tiny, few, tmp_path / "slabs")
    with pytest.warns(UserWarning, match="cannot keep teacher logits") as caught:
        assert equal(asked.take(), whole)
    assert len(caught) == 1 and (tmp_path / "slabs").read_text() == "in the way"


def test_a_folder_that_may_only_be_read_is_read(tiny, few, tmp_path, whole, monkeypatch):
    """A colleague's. (Simulated: a test may run as root.)"""
    Asked(tiny, few, tmp_path).take()
    real_open = os.open

    def guarded(path, flags, *more, **named):
        if str(tmp_path) in str(path) and flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", guarded)
    reader = Asked(tiny, few, tmp_path)
    with pytest.warns(UserWarning, match="cannot keep teacher logits"):
        assert equal(reader.take(), whole)
    assert reader.views == []


def test_a_survey_is_that_of_one_teacher_its_data_and_its_precision(tiny, few, tmp_path):
    """Whatever the sums depend on has a file of its own."""
    Asked(tiny, few, tmp_path).take("clean")
    train, held_out = hold_out(few.train, few.classes, 1)
    others = {
        "holdout": Asked(tiny, replace(few, train=train, held_out=held_out), tmp_path),
        "stored": Asked(tiny, few, tmp_path, torch.float16),
        "precision": Asked(tiny, few, tmp_path, precision="bf16"),
        "normalisation": Asked(tiny, few, tmp_path, std=(0.3, 0.3, 0.3)),
        "padding": Asked(tiny, few, tmp_path, padding=2),
        "data": Asked(tiny, replace(few, sha256="1" * 64), tmp_path),
    }
    for name, other in others.items():
        counts = other.take("clean").counts.tolist()
        assert len(other.views) == 1, name
        assert counts == [2 if name == "holdout" else 3] * 10, name
    changed = Asked(tiny, few, tmp_path)
    changed.teacher.sha256 = "1" * 64
    changed.logits = TeacherLogits(changed.teacher, few, torch.float32, tmp_path)
    changed.take("clean")
    assert len(changed.views) == 1
    assert len(list(tmp_path.rglob("clean-*.safetensors"))) == len(others) + 2
    again = Asked(tiny, few, tmp_path)
    again.take("clean")
    assert again.views == []


def test_who_waits_for_another_process_can_be_stopped(tiny, few, tmp_path, whole, monkeypatch):
    """All views may take an hour: a run that waits for them must not be deaf so long."""
    monkeypatch.setattr(teachers, "LOCK_SECONDS", 0.01)
    asked = Asked(tiny, few, tmp_path)
    asked.stopped_after(1)
    (path,) = tmp_path.rglob("all_views-*.safetensors")
    held, over = threading.Event(), threading.Event()

    def other():
        with FileLock(path.with_suffix(".lock")):
            held.set()
            over.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    try:
        assert held.wait(60)
        waiting = Asked(tiny, few, tmp_path)
        assert waiting.stopped_after(3) == -1 and waiting.views == [], "it asked nothing, and it stopped"
    finally:
        over.set()
        thread.join()
    assert equal(Asked(tiny, few, tmp_path).take(), whole)


# In a run


@pytest.mark.parametrize("kept", [True, False], ids=["with slabs", "without"])
def test_a_run_that_is_stopped_in_its_survey_goes_on(tiny, few, tmp_path, kept):
    """`Interrupted` at epoch 1, step 0; the same command ends as a run that was never stopped."""
    spec, slabs = tiny.spec("dkd+ikd:all_views"), tmp_path / "slabs" if kept else None
    whole = tiny.train(tmp_path / "whole", spec, None, data=few)
    for number in (3, 40):
        answers = iter([False] * number + [True])
        trainer = tiny.trainer(tmp_path / "stopped", spec, slabs, data=few)
        tiny.interrupt(trainer, lambda answers=answers: next(answers))
        assert (trainer.epoch, trainer.step) == (1, 0) and trainer.run.checkpoint.exists()
        assert int(trainer.train_step.method.ikd.counts.sum()) == 0
    last = tiny.train(tmp_path / "stopped", spec, slabs, data=few)
    assert tiny.outcome(last.run) == tiny.outcome(whole.run)
    if kept:
        (path,) = slabs.rglob("all_views-*.safetensors")
        assert survey.checkpoint.read(path)[1]["done"] == 162


def test_a_run_takes_its_survey_once(tiny, few, tmp_path, monkeypatch):
    """A run that goes on inside epoch 1 has it in its checkpoint; one without such a source takes none."""
    taken = []
    take = survey.take
    monkeypatch.setattr(survey, "take", lambda *given: taken.append(given[2]) or take(*given))
    trainer = tiny.trainer(tmp_path, tiny.spec("dkd+ikd:clean"), data=few)
    tiny.interrupt(trainer, lambda: (trainer.epoch, trainer.step) == (1, 1))
    assert taken == ["clean"]
    tiny.train(tmp_path, tiny.spec("dkd+ikd:clean"), data=few)
    for method in ("ce", "dkd", "dkd+ikd", "dkd+ikd:running", "dkd+ikd:one_hot"):
        tiny.train(tmp_path, tiny.spec(method), data=few)
    assert taken == ["clean"]
