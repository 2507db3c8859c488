"""A run that was stopped, or that borrowed another run's teacher logits, ends with the same bits."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import ikdlib
from ikdlib import files, provenance
from ikdlib.runs import Run
from ikdlib.training import checkpoint, teacher
from ikdlib.training.trainer import Interrupted

METHODS = ("ce", "kd", "dkd", "nkd", "wttm")
ALL = (*METHODS, *(f"{method}+ikd" for method in METHODS))
CONTROLS = ("one_hot", "permuted", "even_rest", "smoothed", "clean", "running", "all_views")
STOPS = {
    "during epoch 1": [(1, 2)],
    "after an epoch": [(2, 0)],
    "mid-epoch": [(2, 1)],
    "several times": [(1, 1), (1, 3), (2, 0), (3, 2)],
}


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    """Outcomes of runs without a stop, each trained once."""
    root = tmp_path_factory.mktemp("uninterrupted")
    known = {}

    def outcome(spec):
        if spec.run_id not in known:
            known[spec.run_id] = tiny.outcome(tiny.train(root, spec).run)
        return known[spec.run_id]

    return outcome


@pytest.mark.parametrize("stops", STOPS.values(), ids=STOPS)
@pytest.mark.parametrize("method", [*ALL, *(f"dkd+ikd:{control}" for control in CONTROLS)])
def test_a_resumed_run_equals_an_uninterrupted_one(tiny, uninterrupted, tmp_path, method, stops):
    spec = tiny.spec(method)
    for epoch, step in stops:
        stopped = tiny.train_until(tmp_path, spec, epoch, step)
        assert (stopped.epoch, stopped.step) == (epoch, step)
    last = tiny.train(tmp_path, spec)
    assert last.origin.resumed_at == [{"epoch": epoch, "step": step} for epoch, step in stops]
    assert tiny.outcome(last.run) == uninterrupted(spec)
    assert not last.run.checkpoint.exists()


def test_a_stop_is_heeded_wherever_it_is_asked_for(tiny, uninterrupted, tmp_path):
    """Every single question "stop?" of two epochs, those between the teacher's batches too."""
    spec = tiny.spec("dkd+ikd", epochs=2)
    places = []
    for number in range(14):  # an epoch asks 3 times in the teacher's pass, after 3 steps, and at its end
        answers = iter([False] * number + [True])
        trainer = tiny.interrupt(tiny.trainer(tmp_path / str(number), spec), lambda a=answers: next(a))
        places.append((trainer.epoch, trainer.step))
        if number not in (1, 8):  # the other places are resumed from above
            continue
        assert tiny.outcome(tiny.train(tmp_path / str(number), spec).run) == uninterrupted(spec)
    one = [(1, 0)] * 3 + [(1, 1), (1, 2), (1, 3), (2, 0)]
    two = [(2, 0)] * 3 + [(2, 1), (2, 2), (2, 3), (3, 0)]
    assert places == one + two


def test_a_second_stop_while_the_teacher_is_asked_loses_no_sums(tiny, uninterrupted, tmp_path):
    """Stopped inside an epoch, taken up, stopped again before its first step: a third goes on from both."""
    spec = tiny.spec("dkd+ikd")
    tiny.train_until(tmp_path, spec, 2, 2)
    again = tiny.trainer(tmp_path, spec)
    tiny.interrupt(again, lambda: True)
    assert (again.epoch, again.step) == (2, 2)
    assert tiny.outcome(tiny.train(tmp_path, spec).run) == uninterrupted(spec)


def test_a_resumed_run_has_the_threads_it_began_with(tiny, tmp_path, monkeypatch):
    """A pool gives the last run of a study all cores; sums over a batch would change their last bits."""
    monkeypatch.setattr(provenance, "usable_cores", lambda: 2)
    before, spec = torch.get_num_threads(), tiny.spec("kd")
    try:
        torch.set_num_threads(2)
        tiny.train_until(tmp_path, spec, 2, 1)
        torch.set_num_threads(1)
        tiny.train_until(tmp_path, spec, 2, 2)
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(provenance, "usable_cores", lambda: 1)  # the next machine has no more
        last = tiny.train(tmp_path, spec)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert last.run.provenance["machine"]["threads"] == 2
    first, second = last.run.provenance["resumed_at"]
    assert first == {"epoch": 2, "step": 1}
    assert second.keys() == {"epoch", "step", "machine"} and second["machine"]["threads"] == 1


def test_a_run_begun_on_a_gpu_goes_on_with_the_threads_it_is_given(tiny, tmp_path, monkeypatch):
    """What a GPU's process had of a CPU did not sum anything."""
    monkeypatch.setattr(provenance, "usable_cores", lambda: 2)
    began = {"device": "cuda", "gpu": "NVIDIA H200", "threads": 2}
    origin = provenance.Origin(torch.device("cpu"))
    origin.resume({"process": {**origin.process, "machine": began}}, 40, 380)
    assert torch.get_num_threads() == 1
    assert origin.process["machine"] == began, "the card of a run tells of the process that began it"
    (stop,) = origin.resumed_at
    assert (stop["epoch"], stop["step"]) == (40, 380)
    assert (stop["machine"]["device"], stop["machine"]["threads"]) == ("cpu", 1)


def test_provenance_is_that_of_the_start_and_names_what_changed_at_a_stop(tiny, tmp_path, monkeypatch):
    spec = tiny.spec("kd")
    monkeypatch.setattr(provenance, "started", cache(provenance.started.__wrapped__))  # a process of its own
    monkeypatch.setenv("IKDLIB_COMMIT", "a" * 40)
    provenance.started()
    monkeypatch.setenv("IKDLIB_COMMIT", "b" * 40)  # a pull, while it waits and trains
    trainer = tiny.trainer(tmp_path, spec)
    tiny.interrupt(trainer, lambda: trainer.epoch == 2)
    provenance.started.cache_clear()  # and another process
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "9.9"})
    found = tiny.train(tmp_path, spec).run.provenance
    assert found["git"]["commit"] == "a" * 40 and found["versions"]["torch"] == metadata.version("torch")
    (stop,) = found["resumed_at"]
    assert (
        stop["git"]["commit"] == "b" * 40 and stop["versions"] == {"torch": "9.9"} and "machine" not in stop
    )
    assert found["slabs"] == {"computed": tiny.epochs, "found": 0}, "of both processes"


def test_the_columns_of_a_resumed_history_stand_in_the_same_order(tiny, tmp_path):
    spec = tiny.spec("dkd+ikd")
    tiny.train_until(tmp_path / "stopped", spec, 2, 1)
    resumed = tiny.train(tmp_path / "stopped", spec).run.history
    assert list(resumed) == list(tiny.train(tmp_path / "whole", spec).run.history)


def test_a_stop_after_the_last_epoch_still_finishes(tiny, uninterrupted, tmp_path):
    """All epochs are done but `result.json` is missing: the logits that are kept are made again."""
    spec = tiny.spec("kd+ikd")
    tiny.train_until(tmp_path, spec, tiny.epochs + 1, 0)
    last = tiny.train(tmp_path, spec, keep_logits=True)
    assert tiny.outcome(last.run) == uninterrupted(spec)
    assert (last.run.folder / "test_logits.safetensors").exists()


def flip_a_bit(tensors):
    tensors["student.layer1.0.conv1.weight"].view(torch.int32).view(-1)[0] ^= 1


def forget_momentum(tensors):
    for name in [name for name in tensors if name.startswith("momentum.")]:
        del tensors[name]


def change_a_class_sum(tensors):
    tensors["method.ikd.sums"][0, 0] += 1


def change_a_count(tensors):
    tensors["method.ikd.counts"][0] += 1


def change_a_loss_sum(tensors):
    tensors["sums.tckd"] += 1


@pytest.mark.parametrize(
    "damage", [flip_a_bit, forget_momentum, change_a_class_sum, change_a_count, change_a_loss_sum]
)
def test_the_comparison_would_notice(tiny, uninterrupted, tmp_path, damage):
    """Negative control: one thing wrong in the checkpoint, and the outcomes differ."""
    spec = tiny.spec("dkd+ikd")
    run = tiny.train_until(tmp_path, spec, 1, 2).run
    tensors, facts = checkpoint.read(run.checkpoint)
    checkpoint.write(run.checkpoint, tensors, facts)
    undamaged = shutil.copy(run.checkpoint, tmp_path / "undamaged")
    damage(tensors)
    checkpoint.write(run.checkpoint, tensors, facts)
    assert tiny.outcome(tiny.train(tmp_path, spec).run) != uninterrupted(spec)

    again = Run(tmp_path / "again", spec)
    again.folder.mkdir(parents=True)
    shutil.copy(undamaged, again.checkpoint)
    assert tiny.outcome(tiny.train(again.root, spec).run) == uninterrupted(spec)


def change_a_mean(tensors):
    tensors["method.ikd.means"][0, 0] += 1


@pytest.mark.parametrize(
    "control, stop, damage, matters",
    [
        ("running", (2, 1), change_a_class_sum, True),  # they go on after epoch 1 ...
        ("views", (2, 1), change_a_class_sum, False),  # ... and the paper's do not
        ("clean", (1, 2), change_a_mean, True),  # surveyed before epoch 1 and never again
        ("views", (1, 2), change_a_mean, False),  # made when epoch 1 ends
        ("permuted", (2, 1), change_a_mean, True),
    ],
)
def test_what_a_source_takes_from_the_checkpoint(
    tiny, uninterrupted, tmp_path, control, stop, damage, matters
):
    """Negative control for each: the state that counts is in the checkpoint, and it is this one."""
    spec = tiny.spec(f"dkd+ikd:{control}")
    run = tiny.train_until(tmp_path, spec, *stop).run
    tensors, facts = checkpoint.read(run.checkpoint)
    damage(tensors)
    checkpoint.write(run.checkpoint, tensors, facts)
    assert (tiny.outcome(tiny.train(tmp_path, spec).run) != uninterrupted(spec)) == matters


def test_every_control_is_a_training_of_its_own(tiny, uninterrupted):
    """The same seed: epoch 1 alike, as no term is there yet, and other weights in the end."""
    specs = [tiny.spec("dkd+ikd"), *(tiny.spec(f"dkd+ikd:{control}") for control in CONTROLS)]
    outcomes = [uninterrupted(spec) for spec in specs]
    assert len(set(outcomes)) == len(specs)
    first = {history.split("{'")[1] for _, history in outcomes}
    assert len(first) == 1 and first.pop().startswith("epoch': 1,")


def test_another_process_makes_the_same_weights_and_another_seed_others(tiny, uninterrupted, tmp_path):
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path; import torch; from conftest import Tiny
torch.set_num_threads(1); tiny = Tiny()
for seed in (1, 2):
    run = tiny.train(Path({str(tmp_path)!r}), tiny.spec('dkd+ikd', seed=seed)).run
    print(run.result['weights_sha256'])
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(ikdlib.__file__).parent.parent)}
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    first, second = output.stdout.split()
    assert first in uninterrupted(tiny.spec("dkd+ikd"))[0]
    assert second in uninterrupted(tiny.spec("dkd+ikd", seed=2))[0]
    assert first != second


# Teacher logits that lie in files


@pytest.mark.parametrize("deterministic", [True, False], ids=["fp32 slabs", "fp16 slabs"])
def test_a_slab_from_another_run_is_as_good_as_ones_own(tiny, tmp_path, deterministic):
    first, second = tiny.spec("kd", deterministic=deterministic), tiny.spec(deterministic=deterministic)
    slabs = tmp_path / "slabs"
    one = tiny.train(tmp_path / "runs", first, slabs).teacher_logits
    assert (one.computed, one.found) == (tiny.epochs, 0)
    hit = tiny.train(tmp_path / "runs", second, slabs)
    assert (hit.teacher_logits.computed, hit.teacher_logits.found) == (0, tiny.epochs)
    miss = tiny.train(tmp_path / "alone", second, None)
    assert miss.teacher_logits.computed == tiny.epochs
    assert tiny.outcome(hit.run) == tiny.outcome(miss.run)
    other = tiny.train(tmp_path / "runs", first.updated(seed=2), slabs).teacher_logits
    assert (other.computed, other.found) == (tiny.epochs, 0), "another seed asks other questions"


@pytest.mark.parametrize("stopped", [False, True], ids=["", "stopped meanwhile"])
def test_while_another_run_computes_a_slab_the_next_are_computed(
    tiny, uninterrupted, tmp_path, monkeypatch, stopped
):
    """The other run is a lock on epoch 1's slab, let go when epochs 2 and 3 lie there."""
    monkeypatch.setattr(teacher, "LOCK_SECONDS", 0.01)
    spec = tiny.spec("dkd+ikd")
    trainer = tiny.trainer(tmp_path, spec, tmp_path / "slabs")
    logits, loader = trainer.teacher_logits, trainer.loader
    first, *later = (logits.path(loader.epoch(number)) for number in (1, 2, 3))
    first.parent.mkdir(parents=True)
    other = FileLock(first.with_suffix(".lock"), thread_local=False)
    other.acquire()
    asked = itertools.count()

    def let_go():
        assert next(asked) < 5000, "it only waits"
        if other.is_locked and all(path.exists() for path in later):
            assert not first.exists()
            other.release()
            return stopped
        return False

    trainer.stop = let_go
    if stopped:
        with pytest.raises(Interrupted):
            trainer.train()
        assert not first.exists()
        trainer = tiny.trainer(tmp_path, spec, tmp_path / "slabs")
    trainer.train()
    assert tiny.outcome(trainer.run) == uninterrupted(spec)
    found = 2 if stopped else 0
    assert (trainer.teacher_logits.computed, trainer.teacher_logits.found) == (3, found), "of both processes"
    assert len({path.read_bytes() for path in (first, *later)}) == 3


def test_the_next_slab_is_read_while_an_epoch_is_trained(tiny, uninterrupted, tmp_path, monkeypatch):
    """What is thrown away after it was read is not computed again; what is damaged is, and said."""
    slabs, readers = tmp_path / "slabs", []
    tiny.train(tmp_path / "theirs", tiny.spec("kd"), slabs)
    inner = teacher.checkpoint.read

    def read(path):
        if "float" in path.name:  # a slab
            readers.append(threading.current_thread() is threading.main_thread())
        return inner(path)

    monkeypatch.setattr(teacher.checkpoint, "read", read)
    trainer = tiny.trainer(tmp_path, tiny.spec("dkd+ikd"), slabs)
    logits, loader = trainer.teacher_logits, trainer.loader
    second, third = (logits.path(loader.epoch(number)) for number in (2, 3))
    third.write_bytes(third.read_bytes()[:-1])

    def thrown_away():
        if trainer.epoch == 1 and trainer.step == 2:
            concurrent.futures.wait([logits._reads[1]])
            second.unlink(missing_ok=True)
        return False

    trainer.stop = thrown_away
    with pytest.warns(UserWarning, match="teacher logits are computed again") as told:
        trainer.train()
    assert len([one for one in told if "computed again" in str(one.message)]) == 1
    assert readers == [True, False, False] and (logits.found, logits.computed) == (2, 1)
    assert tiny.outcome(trainer.run) == uninterrupted(tiny.spec("dkd+ikd"))


def test_slabs_are_those_of_one_teacher_and_one_precision(tiny, tmp_path):
    slabs = tmp_path / "slabs"
    tiny.train(tmp_path, tiny.spec("kd", epochs=1), slabs)
    half = tiny.train(tmp_path, tiny.spec("kd", epochs=1, deterministic=False), slabs)
    assert half.teacher_logits.found == 0
    bf16 = tiny.spec("kd", epochs=1).recipe.updated(precision="bf16")
    assert tiny.train(tmp_path, tiny.spec("kd", recipe=bf16), slabs).teacher_logits.found == 0
    changed = tiny.spec("kd", epochs=1, teacher_sha256="1" * 64)
    assert tiny.train(tmp_path, changed, slabs).teacher_logits.found == 0


def test_slabs_that_cannot_be_kept_only_cost_a_warning(tiny, uninterrupted, tmp_path):
    """A file lies where the folder should be."""
    (tmp_path / "slabs").write_text("in the way")
    spec = tiny.spec("dkd+ikd")
    with pytest.warns(UserWarning, match="cannot keep teacher logits"):
        trainer = tiny.train(tmp_path, spec, tmp_path / "slabs")
    assert tiny.outcome(trainer.run) == uninterrupted(spec)


def test_a_read_only_folder_of_slabs_only_costs_a_warning(tiny, uninterrupted, tmp_path, monkeypatch):
    """A colleague's folder that may be read but not written. (Simulated: a test may run as root.)"""
    slabs, spec = tmp_path / "slabs", tiny.spec("dkd+ikd")
    before = tiny.train(tmp_path / "theirs", tiny.spec("kd", seed=2), slabs).teacher_logits.folder
    assert before.is_dir()
    real_open = os.open

    def guarded(path, flags, *more, **named):
        if str(slabs) in str(path) and flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", guarded)
    with pytest.warns(UserWarning, match="teacher logits"):
        trainer = tiny.train(tmp_path, spec, slabs)
    assert tiny.outcome(trainer.run) == uninterrupted(spec)


def test_a_full_disk_only_costs_a_warning(tiny, uninterrupted, tmp_path, monkeypatch):
    usage = type(shutil.disk_usage(tmp_path))(total=1 << 40, used=1 << 40, free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    spec = tiny.spec("dkd+ikd")
    with pytest.warns(UserWarning, match="no room for teacher logits"):
        trainer = tiny.train(tmp_path, spec, tmp_path / "slabs")
    assert tiny.outcome(trainer.run) == uninterrupted(spec)
    assert len(list((tmp_path / "slabs").rglob("*.safetensors"))) <= 1, "only the accuracy is kept"


def test_a_cache_thrown_away_while_a_slab_is_computed_is_made_again(tiny, uninterrupted, tmp_path):
    """`rm -rf results/cache` in another terminal: it is a cache, and costs what lay in it."""
    slabs, spec = tmp_path / "slabs", tiny.spec("dkd+ikd")
    trainer = tiny.trainer(tmp_path, spec, slabs)
    compute = trainer.teacher_logits.teacher.logits

    def meanwhile(*arguments):
        shutil.rmtree(slabs)
        return compute(*arguments)

    trainer.teacher_logits.teacher.logits = meanwhile
    trainer.train()
    assert tiny.outcome(trainer.run) == uninterrupted(spec)
    assert len(list(slabs.rglob("*.safetensors"))) == 1, "the last epoch's"


def test_a_slab_that_a_killed_process_had_half_written_goes(tiny, tmp_path):
    trainer = tiny.trainer(tmp_path, tiny.spec("kd", epochs=1), tmp_path / "slabs")
    path = trainer.teacher_logits.path(trainer.loader.epoch(1))
    path.parent.mkdir(parents=True)
    mine, other = (path.parent / f".{name}.x7.tmp" for name in (path.name, "another.safetensors"))
    mine.write_bytes(b"half")
    other.write_bytes(b"of a process at work")
    trainer.train()
    assert not mine.exists() and other.exists() and path.exists()


@pytest.mark.parametrize("damage", ["cut off", "altered"])
def test_a_damaged_slab_is_computed_again(tiny, uninterrupted, tmp_path, damage):
    slabs, spec = tmp_path / "slabs", tiny.spec("dkd+ikd")
    folder = tiny.train(tmp_path / "one", tiny.spec("kd"), slabs).teacher_logits.folder
    path = max(folder.glob("*.safetensors"), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content[: len(content) // 2] if damage == "cut off" else content)
    with pytest.warns(UserWarning, match="computed again"):
        trainer = tiny.train(tmp_path / "two", spec, slabs)
    assert (trainer.teacher_logits.computed, trainer.teacher_logits.found) == (1, tiny.epochs - 1)
    assert tiny.outcome(trainer.run) == uninterrupted(spec)
    mended = tiny.train(tmp_path / "three", tiny.spec("nkd"), slabs).teacher_logits
    assert mended.computed == 0, "the new slab replaced the damaged one"


# One seed, one start


def test_start_order_and_views_follow_from_the_seed_alone(tiny, tmp_path):
    def start(method, seed=1, **changes):
        torch.manual_seed(hash(method))  # the state of the global generator has no say
        trainer = tiny.trainer(tmp_path, tiny.spec(method, seed=seed, **changes))
        epochs = [trainer.loader.epoch(number).fingerprint for number in (1, 2, 3)]
        return checkpoint.digest(trainer.student.state_dict()), *epochs

    first = start("ce")
    assert len(set(first)) == 4, "every epoch has an order of its own"
    for method in ALL[1:]:
        assert start(method) == first
    assert start("kd", deterministic=False) == first
    assert start("kd", protocol="released") == first
    assert not set(start("ce", seed=2)) & set(first)


def test_a_checkpoint_names_what_it_holds(tiny, tmp_path):
    run = tiny.train_until(tmp_path, tiny.spec("dkd+ikd"), 2, 1).run
    tensors, facts = checkpoint.read(run.checkpoint)
    assert (facts["epoch"], facts["step"], len(facts["history"])) == (2, 1, 1)
    assert facts["run_id"] == run.spec.run_id and facts["format_version"] == 1
    assert json.loads(json.dumps(facts)) == facts
    assert int(tensors["method.ikd.counts"].sum()) == 150
    assert files.sha256(run.checkpoint)
