"""The one loop against a slow one written step by step, and what it says when something is wrong."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from ikdlib import data as data_sets
from ikdlib import runs
from ikdlib.data.base import hold_out
from ikdlib.data.loader import Loader, generator
from ikdlib.data.views import Views
from ikdlib.errors import IkdError
from ikdlib.models import CifarModel, build
from ikdlib.runs import Run
from ikdlib.training import checkpoint, trainer
from ikdlib.training.evaluate import evaluate
from ikdlib.training.job import Job, execute
from ikdlib.training.teacher import Teacher

# The reference: plain torch, one thing after the other


def slow_images(tiny, order, views):
    """Pad by 4, crop, flip, normalise: picture by picture. View = (top * 9 + left) * 2 + flipped."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tiny.data.mean, tiny.data.std))
    images = []
    for number, view in zip(order.tolist(), views.tolist(), strict=True):
        picture = tiny.data.train.images[number].permute(2, 0, 1).float() / 255
        top, left, flipped = view // 18, view // 2 % 9, view % 2
        picture = F.pad(picture, (4, 4, 4, 4))[:, top : top + 8, left : left + 8]
        images.append(((picture.flip(2) if flipped else picture) - mean) / std)
    return torch.stack(images)


def slow_base(name, s, t, y):
    """The losses from their equations, at the default settings (beta = gamma = 8, T = 4)."""
    rows, classes = torch.arange(len(y)), s.shape[1]

    def kl(p, q):
        return (p * (p.log() - q.log())).sum(1).mean()

    ce = F.cross_entropy(s, y)
    p, q = F.softmax(t / 4, 1), F.softmax(s / 4, 1)
    others = torch.ones_like(s, dtype=torch.bool)
    others[rows, y] = False
    po, qo = p[others].view(-1, classes - 1), q[others].view(-1, classes - 1)
    po, qo = po / po.sum(1, keepdim=True), qo / qo.sum(1, keepdim=True)
    if name == "ce":
        return ce
    if name == "kd":
        return 0.1 * ce + 0.9 * 16 * kl(p, q)
    if name == "dkd":
        pt, qt = p[rows, y], q[rows, y]
        binary = kl(torch.stack([pt, 1 - pt], 1), torch.stack([qt, 1 - qt], 1))
        return ce + 16 * binary + 8 * 16 * kl(po, qo)
    if name == "nkd":
        own = -(F.softmax(t, 1)[rows, y] * F.softmax(s, 1)[rows, y].log()).mean()
        return ce + own - 8 * 16 * (po * qo.log()).sum(1).mean()
    power = F.softmax(t, 1) ** 0.2
    total = power.sum(1, keepdim=True)
    transformed = power / total
    divergence = (transformed * (transformed.log() - F.softmax(s, 1).log())).sum(1)
    return ce + 4 * (total[:, 0] * divergence).mean()


def slow_training(tiny, spec, memory=torch.contiguous_format, rate_error=1.0, shuffle_means=False):
    """Returns the student's weights and the mean loss of each epoch. IKD: Algorithm 1 with lists."""
    recipe = spec.recipe
    student = trainer.student_weights("resnet8", 10, spec.seed).to(memory_format=memory)
    teacher = tiny.teacher().eval().to(memory_format=memory)
    optimizer = torch.optim.SGD(
        student.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4, fused=False, foreach=False
    )
    of_class = {label: [] for label in range(10)}
    losses = []
    for epoch in range(1, recipe.epochs + 1):
        rate = recipe.learning_rate * (epoch / recipe.warmup if epoch < recipe.warmup else 1)
        rate *= 0.1 ** sum(epoch > m for m in recipe.milestones)
        optimizer.param_groups[0]["lr"] = rate * (rate_error if epoch > recipe.epochs // 2 else 1)
        order = torch.randperm(150, generator=generator("order", spec.seed, epoch))
        views = torch.randint(0, 162, (150,), generator=generator("views", spec.seed, epoch))
        if epoch == 2 and shuffle_means:
            of_class = {label: of_class[(label + 1) % 10] for label in range(10)}
        total = 0.0
        for first in range(0, 150, 64):
            rows = slice(first, min(first + 64, 150))
            images, y = slow_images(tiny, order[rows], views[rows]), tiny.data.train.targets[order[rows]]
            with torch.no_grad():
                t = teacher(images)
            s = student.train()(images)
            loss = slow_base(spec.method.name, s, t, y)
            if spec.method.ikd and epoch == 1:
                for logits, label in zip(t, y.tolist(), strict=True):
                    of_class[label].append(logits)
            elif spec.method.ikd:
                means = torch.stack([torch.stack(of_class[label]).mean(0) for label in y.tolist()])
                p, q = F.softmax(means, 1), F.softmax(s, 1)
                loss = loss + 6.5 * (p * (p.log() - q.log())).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(y)
        losses.append(total / 150)
    return student.state_dict(), losses


def distance(one, other):
    """Relative difference of all weights together."""
    names = [name for name in one if not name.endswith("num_batches_tracked")]
    a = torch.cat([one[name].double().flatten() for name in names])
    b = torch.cat([other[name].double().flatten() for name in names])
    return float((a - b).norm() / b.norm())


TOLERANCE = 1e-4
METHODS = ("ce", "kd", "dkd", "nkd", "wttm", "ce+ikd", "dkd+ikd", "nkd+ikd", "wttm+ikd")


def short_recipe(tiny, learning_rate):
    """21 steps: warm-up, full rate, one decay."""
    return tiny.spec().recipe.updated(epochs=7, warmup=2, milestones=(5,), learning_rate=learning_rate)


@pytest.mark.parametrize("method", METHODS)
def test_the_loop_equals_a_slow_one(tiny, tmp_path, method):
    """Slabs, a folded teacher, fused SGD, padding by a table: nothing changes but rounding.

    Measured: 5e-7 apart at most; on an AMD processor up to 4e-5 (`wttm+ikd`; two slow loops, one in each
    memory format, are as far apart there). Both keep channels-last memory, so that the convolutions add in
    one order. The rate is low because a training enlarges rounding step by step: at 0.005 it is 2e-4 after
    21 steps.
    """
    spec = tiny.spec(method, recipe=short_recipe(tiny, 0.0005))
    fast = tiny.train(tmp_path, spec)
    weights, losses = slow_training(tiny, spec, torch.channels_last)
    assert distance(fast.student.state_dict(), weights) < TOLERANCE
    assert fast.run.history["train_loss"].tolist() == pytest.approx(losses, rel=5e-5)


@pytest.mark.parametrize("method", ["ce", "wttm", "dkd+ikd"])
def test_the_loop_equals_a_slow_one_in_contiguous_memory(tiny, tmp_path, method):
    """At a low rate: a training enlarges the rounding of other sums of a convolution step by step.

    (At 0.05 two slow loops, one in each memory format, are as far apart as the fast and the slow one.)
    """
    spec = tiny.spec(method, recipe=short_recipe(tiny, 0.0002))
    fast = tiny.train(tmp_path, spec)
    weights, losses = slow_training(tiny, spec)
    assert distance(fast.student.state_dict(), weights) < TOLERANCE
    assert fast.run.history["train_loss"].tolist() == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("error", [{"rate_error": 1.05}, {"shuffle_means": True}])
def test_the_comparison_would_notice_an_error(tiny, tmp_path, error):
    """Planted: a learning rate 5 % off for half of the run; class means that belong to other classes."""
    spec = tiny.spec("dkd+ikd", recipe=short_recipe(tiny, 0.0005))
    fast = tiny.train(tmp_path, spec)
    weights, _ = slow_training(tiny, spec, torch.channels_last, **error)
    assert distance(fast.student.state_dict(), weights) > TOLERANCE


# What a run writes


def test_the_parts_add_up_to_the_loss(tiny, tmp_path):
    history = tiny.train(tmp_path, tiny.spec("dkd+ikd")).run.history
    parts = history.filter(like="part_")
    assert set(parts) == {"part_ce", "part_tckd", "part_nckd", "part_ikd"}
    assert history["train_loss"].tolist() == pytest.approx(parts.sum(axis=1).tolist(), rel=1e-6)
    assert history["epoch"].tolist() == [1, 2, 3]
    assert math.isnan(history["part_ikd"][0]), "class means are not known in the first epoch"
    assert (history["part_ikd"][1:] > 0).all()


def test_accuracy_equals_numpy(tiny):
    """Rank of the right class by counting the classes with a larger logit; there are no ties."""
    net = trainer.student_weights("resnet8", 10, 4).train()
    views = Views(4, 8, 8, tiny.data.mean, tiny.data.std, torch.device("cpu"))
    loader = Loader(tiny.data.train, views, 64, 0, torch.device("cpu"))
    before = checkpoint.digest(net.state_dict())
    scores, logits = evaluate(net, loader, tiny.data.train)
    assert net.training and checkpoint.digest(net.state_dict()) == before

    x = tiny.data.train.images.numpy().astype(np.float64) / 255
    x = (x - np.array(tiny.data.mean)) / np.array(tiny.data.std)
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(x).permute(0, 3, 1, 2).float()).double().numpy()
    assert np.abs(logits.numpy() - expected).max() < 1e-4
    y = tiny.data.train.targets.numpy()
    own = logits.numpy()[np.arange(150), y]
    rank = (logits.numpy() > own[:, None]).sum(1)
    assert all(len(set(row)) == 10 for row in logits.numpy().tolist()), "no ties"
    assert scores["top1"] == pytest.approx(100 * np.mean(rank == 0), abs=1e-9)
    assert scores["top5"] == pytest.approx(100 * np.mean(rank < 5), abs=1e-9)
    loss = np.log(np.exp(expected).sum(1)) - expected[np.arange(150), y]
    assert scores["loss"] == pytest.approx(loss.mean(), rel=1e-4)
    assert scores["confidence"] == pytest.approx(100 * np.exp(-loss).mean(), rel=1e-4)


def test_the_result_agrees_with_the_history_and_the_weights(tiny, tmp_path):
    run = tiny.train(tmp_path, tiny.spec("kd+ikd"), keep_logits=True).run
    history, result = run.history, run.result
    assert result["last"] == {"epoch": 3, "top1": history["test_top1"][2], "top5": history["test_top5"][2]}
    assert result["best"]["top1"] == history["test_top1"].max()
    assert result["best"]["epoch"] == 1 + int(history["test_top1"].to_numpy().argmax())
    assert result["weights_sha256"] == checkpoint.digest(load_file(run.weights))
    logits = load_file(run.folder / "test_logits.safetensors")["logits"]
    assert logits.dtype == torch.float16 and tuple(logits.shape) == (50, 10)
    hits = (logits.float().argmax(1) == tiny.data.test.targets).float().mean()
    assert 100 * float(hits) == pytest.approx(result["last"]["top1"], abs=2.1)  # fp16 may tie one of 50


def test_held_out_images_have_columns_of_their_own(tiny, tmp_path):
    train, held_out = hold_out(tiny.data.train, tiny.data.classes, 3)
    data = replace(tiny.data, train=train, held_out=held_out)
    made = tiny.train(tmp_path, tiny.spec("ce", holdout=3), data=data)
    history = made.run.history
    assert {"held_out_top1", "held_out_top5", "held_out_loss"} <= set(history)
    scores, _ = evaluate(made.student, made.loader, held_out)
    assert history["held_out_top1"].tolist()[-1] == pytest.approx(scores["top1"])
    plain = tiny.train(tmp_path, tiny.spec("ce")).run.history
    assert not any(name.startswith("held_out") for name in plain)


def test_bf16_is_a_setting_that_shows(tiny, tmp_path):
    full = tiny.train(tmp_path, tiny.spec("dkd+ikd", deterministic=False)).run
    recipe = tiny.spec().recipe.updated(precision="bf16")
    half = tiny.train(tmp_path, tiny.spec("dkd+ikd", recipe=recipe, deterministic=False)).run
    assert half.spec.run_id != full.spec.run_id
    assert json.loads((half.folder / "spec.json").read_text())["recipe"]["precision"] == "bf16"
    assert half.result["weights_sha256"] != full.result["weights_sha256"]
    assert all(value.dtype == torch.float32 for value in load_file(half.weights).values() if value.ndim)
    assert np.isfinite(half.history["train_loss"]).all()
    assert half.history["train_loss"][0] == pytest.approx(full.history["train_loss"][0], rel=0.05)


def test_fp32_is_not_tf32(tiny, tmp_path, monkeypatch):
    """torch lets convolutions on a GPU round their inputs to 10 bits unless it is told not to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    tiny.trainer(tmp_path, tiny.spec("ce"))
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("who", ["a teacher", "an evaluation"])
def test_fp32_is_not_tf32_either_where_nothing_is_trained(tiny, monkeypatch, who):
    """Class means and test logits are made in kernels that train nothing, and are kept for those that do."""
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("high")
    try:
        if who == "a teacher":
            Teacher(tiny.teacher(), "0" * 64, "fp32", torch.device("cpu"))
        else:
            shown = Views(tiny.data.padding, 8, 8, tiny.data.mean, tiny.data.std)
            evaluate(tiny.teacher(), Loader(tiny.data.train, shown, 16, 0, "cpu"), tiny.data.test)
        assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_rounded_evaluation_rounds_for_itself_alone(tiny, monkeypatch):
    """TF32 is asked of torch, and no trying of algorithms; both are as before when it is over."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    shown = Views(tiny.data.padding, 8, 8, tiny.data.mean, tiny.data.std)
    loader, net, seen = Loader(tiny.data.train, shown, 16, 0, "cpu"), tiny.teacher(), []

    def look(*_):
        cudnn = torch.backends.cudnn
        seen.append((cudnn.allow_tf32, torch.get_float32_matmul_precision(), cudnn.benchmark))

    net.register_forward_hook(look)
    for rounded in (True, False):
        evaluate(net, loader, tiny.data.test, rounded)
        assert set(seen) == {(rounded, "high" if rounded else "highest", False)}
        look()
        assert seen[-1] == (False, "highest", True)
        seen.clear()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_a_bf16_run_rounds_all_evaluations_but_the_last(tiny, tmp_path, monkeypatch, precision):
    """The last one's numbers are those of the weights that stay."""
    recipe = tiny.spec().recipe.updated(precision=precision)
    asked, inner = {"cpu": [], "cuda": []}, trainer.evaluate

    class Elsewhere(trainer.Trainer):
        def _row(self, *arguments):
            self.device = SimpleNamespace(type=kind)
            try:
                return super()._row(*arguments)
            finally:
                self.device = torch.device("cpu")

    def noted(model, loader, images, rounded=False):
        asked[kind].append(rounded)
        return inner(model, loader, images, rounded)

    monkeypatch.setattr(trainer, "evaluate", noted)
    for kind in ("cpu", "cuda"):
        run = Run(tmp_path / kind, tiny.spec("ce", recipe=recipe, deterministic=False))
        run.begin()
        Elsewhere(run, tiny.data, None, torch.device("cpu")).train()
    assert asked == {"cpu": [False] * 3, "cuda": [precision == "bf16"] * 2 + [False]}


def test_provenance_names_neither_host_nor_folder(tiny, tmp_path):
    run = tiny.train(tmp_path, tiny.spec("dkd+ikd"), tmp_path / "slabs").run
    provenance = run.provenance
    assert provenance["machine"]["device"] == "cpu" and provenance["machine"]["threads"] == 1
    assert provenance["versions"]["torch"] == torch.__version__.split("+")[0]
    assert provenance["slabs"] == {"computed": 3, "found": 0}
    for name in ("provenance.json", "spec.json", "result.json", "history.csv"):
        text = (run.folder / name).read_text()
        assert str(tmp_path) not in text and os.getcwd() not in text and os.path.expanduser("~/") not in text
        host = socket.gethostname()
        words = text.replace('"', " ").replace(",", " ").split()
        assert host not in words


def test_an_edited_file_is_noticed(tiny, tmp_path):
    run = tiny.train(tmp_path, tiny.spec("kd"), keep_logits=True).run
    assert runs.damaged_files(run) == []
    expected = {"spec.json", "provenance.json", "history.csv", "test_logits.safetensors"}
    assert set(run.result["files_sha256"]) == expected
    path = run.folder / "history.csv"
    path.write_text(path.read_text().replace("1", "2", 1))
    (run.folder / "test_logits.safetensors").unlink()
    assert runs.damaged_files(run) == ["history.csv", "test_logits.safetensors"]


# What goes wrong


def poison(monkeypatch, tiny_trainer, epoch, step):
    """The student's logits turn to NaN at a step."""
    forward = type(tiny_trainer.student).forward

    def poisoned(self, images):
        output = forward(self, images)
        return output * math.nan if (tiny_trainer.epoch, tiny_trainer.step) == (epoch, step) else output

    monkeypatch.setattr(type(tiny_trainer.student), "forward", poisoned)


def test_a_loss_that_is_not_a_number_ends_the_run(tiny, tmp_path, monkeypatch):
    """`diverged` in result.json, valid JSON everywhere, and no NaN in what is kept."""
    made = tiny.trainer(tmp_path, tiny.spec("ce"))
    poison(monkeypatch, made, 2, 1)
    assert made.train()["status"] == "diverged"
    run = made.run
    assert run.status == "diverged" and run.result["diverged"] == {
        "epoch": 2,
        "step": 3,
        "no_number": "ce, loss, weights",
    }
    assert run.result["epochs"] == 1 and len(run.history) == 1
    assert "weights_sha256" not in run.result and not run.weights.exists()
    for path in run.folder.glob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("epoch", [2, 3])
def test_weights_that_the_last_step_of_an_epoch_breaks(tiny, tmp_path, monkeypatch, epoch):
    """Its loss was that of the weights before it. Such a run did not finish, and what is saved stays good."""
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    made = tiny.trainer(tmp_path, tiny.spec("ce"))
    do, steps = made._do_step, made.loader.steps

    def breaks(inputs):
        do(inputs)
        if (made.epoch, made.step) == (epoch, steps - 1):
            next(made.student.parameters()).data.fill_(math.nan)

    breaks.join = do.join
    made._do_step = breaks
    assert made.spec.recipe.epochs == 3 and made.train()["status"] == "diverged"
    lost = {"epoch": epoch, "step": steps, "no_number": "weights"}
    assert made.run.result["diverged"] == lost and not made.run.weights.exists()
    assert len(made.run.history) == epoch - 1
    kept = load_file(made.run.checkpoint)
    assert all(bool(value.isfinite().all()) for value in kept.values() if value.is_floating_point())


def test_the_last_good_checkpoint_outlives_a_divergence(tiny, tmp_path, monkeypatch):
    spec = tiny.spec("ce")
    good = tiny.train_until(tmp_path, spec, 2, 0).run.checkpoint.read_bytes()
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    made = tiny.trainer(tmp_path, spec)
    poison(monkeypatch, made, 2, 0)
    assert made.train()["status"] == "diverged"
    assert made.run.checkpoint.read_bytes() == good


def test_a_stop_does_not_save_a_state_that_is_not_a_number(tiny, tmp_path, monkeypatch):
    made = tiny.trainer(tmp_path, tiny.spec("ce"))
    poison(monkeypatch, made, 1, 1)
    made.stop = lambda: made.step == 2
    assert made.train()["status"] == "diverged"
    assert not made.run.checkpoint.exists()


@pytest.fixture
def job(tiny, tmp_path, monkeypatch):
    """A job whose data set is the tiny one; its teacher lies in a file."""
    monkeypatch.setattr(data_sets, "load", lambda *given, **named: tiny.data)
    teacher = {name: value.contiguous() for name, value in tiny.teacher().state_dict().items()}
    save_file(teacher, tmp_path / "teacher.safetensors")
    return Job(
        spec=tiny.spec("dkd+ikd"), runs=str(tmp_path / "runs"),
        teacher=str(tmp_path / "teacher.safetensors"), device="cpu", threads=1,
    )  # fmt: skip


class Never:
    signal = None
    nothing_to_lose = staticmethod(contextlib.nullcontext)

    def __call__(self):
        return False


def test_execute_says_3_when_a_run_diverges_and_0_when_it_ends(tiny, job, monkeypatch):
    said: list[str] = []
    with pytest.warns(UserWarning, match="near chance"):
        assert execute(job, Never(), said.append) == 0
    assert execute(job, Never(), said.append) == 0 and said[-1].endswith("finished before")
    other = job.updated(spec=tiny.spec("kd"))
    resnet = type(build("resnet8", 10))
    forward = resnet.forward if "forward" in vars(resnet) else CifarModel.forward
    monkeypatch.setattr(
        resnet, "forward", lambda self, x: forward(self, x) * (math.nan if self.training else 1)
    )
    with pytest.warns(UserWarning, match="near chance"):
        assert execute(other, Never(), said.append) == 3
    assert (
        "diverged in epoch 1 (no numbers any more: ce, kd, loss, weights); nothing had been saved" in said[-1]
    )
    assert said[-1].endswith(f"; delete {other.run.folder} to run it again") and "\n" not in said[-1]
    assert execute(other, Never(), said.append) == 3
    assert said[-1].endswith(f"diverged before; delete {other.run.folder} to run it again")


def test_a_method_that_needs_more_than_logits_is_refused(tiny, tmp_path, monkeypatch):
    """It would be given nothing of it, and train on a part of its loss, unnoticed."""
    monkeypatch.setattr("ikdlib.methods.kd.KD.needs", frozenset({"logits", "features"}))
    with pytest.raises(IkdError, match="needs features"):
        tiny.trainer(tmp_path, tiny.spec("kd+ikd"))


def test_a_stop_before_the_first_step_is_heeded_before_anything_is_compiled(job, monkeypatch):
    class Stopped(Never):
        signal = 15

        def __call__(self):
            return True

    said = []
    monkeypatch.setattr("ikdlib.training.job.Trainer.prepare", lambda self: said.append("prepared"))
    assert execute(job, Stopped(), said.append) == 143
    assert "prepared" not in said and "stopped before its first step" in said[-1]


def test_execute_refuses_what_the_spec_does_not_name(tiny, job, tmp_path):
    with pytest.raises(IkdError, match="but the spec names 1111"):
        execute(job.updated(spec=tiny.spec(data_sha256="1" * 64)), Never(), print)
    with pytest.raises(IkdError, match="but the spec names 1111"):
        execute(job.updated(spec=tiny.spec(teacher_sha256="1" * 64)), Never(), print)
    with pytest.raises(IkdError, match="no file of the teacher"):
        execute(job.updated(teacher=None), Never(), print)


def test_a_run_that_could_not_start_is_free_for_the_next_try(job):
    """In a notebook the error, and with it every local variable, stays: the lock must not."""
    bad = job.updated(teacher=None)
    try:
        execute(bad, Never(), print)
    except IkdError as error:
        kept = error
    assert kept.__traceback__ is not None
    bad.run.lock(wait=False).release()


def test_the_next_run_of_a_process_has_its_own_threads(job, tiny):
    before = torch.get_num_threads()
    with pytest.warns(UserWarning, match="near chance"):
        execute(job.updated(threads=before + 1, spec=tiny.spec("kd", epochs=1)), Never(), print)
    assert torch.get_num_threads() == before


def test_a_checkpoint_that_is_not_whole_or_not_ours_is_refused(tiny, tmp_path):
    """One line each, that names the file."""
    spec = tiny.spec("dkd+ikd")
    run = tiny.train_until(tmp_path, spec, 1, 2).run
    whole = run.checkpoint.read_bytes()
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 1
    for content, words in (
        (whole[:-100], "cut off"), (whole[:5], "cut off"), (b"", "cut off"), (bytes(altered), "changed"),
    ):  # fmt: skip
        run.checkpoint.write_bytes(content)
        with pytest.raises(IkdError, match=words) as caught:
            tiny.train(tmp_path, spec)
        assert str(run.checkpoint) in str(caught.value) and "\n" not in str(caught.value)
    other = tiny.trainer(tmp_path, tiny.spec("dkd+ikd", seed=2))
    other.run.checkpoint.write_bytes(whole)
    with pytest.raises(IkdError, match=re.escape(f"belongs to run {spec.run_id}")):
        other.train()
