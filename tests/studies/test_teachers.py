"""Where teachers are looked for, and how one that was trained here is kept."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from ikdlib import files, models
from ikdlib.errors import IkdError
from ikdlib.studies import teachers
from ikdlib.studies.study import Study
from ikdlib.training.checkpoint import digest
from ikdlib.training.job import load_teacher


def weights(name: str, seed: int, classes: int = 10):
    torch.manual_seed(seed)
    return models.build(name, classes).state_dict()


def located(studies, folder) -> teachers.TeacherFile | None:
    return studies.study(teachers=str(folder)).teacher("resnet14")


@pytest.mark.parametrize(
    "place",
    ["resnet14.pth", "resnet14.pt", "resnet14.safetensors", "resnet14_vanilla/ckpt_epoch_240.pth"],
)
def test_a_given_teacher_is_found(studies, tmp_path, place):
    state = weights("resnet14", 5)
    path = tmp_path / "given" / place
    path.parent.mkdir(parents=True)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state, "epoch": 240}, path)
    found = located(studies, tmp_path / "given")
    assert found == teachers.TeacherFile(path, digest(state))


def test_a_folder_without_the_teacher_leaves_it_to_be_trained(studies, tmp_path):
    """And says so: a misspelt file would be replaced by hours of training without a word."""
    torch.save(weights("resnet20", 0), tmp_path / "resnet20.pth")
    with pytest.warns(UserWarning, match="TEACHERS has no resnet14.pth .* holds resnet20.pth") as said:
        assert [located(studies, tmp_path) for _ in range(3)] == [None] * 3
    assert len(said) == 1


@pytest.mark.parametrize(
    "name", ["resnet14_glyphs_best.pth", "ResNet14.pth", "resnet14.pth.tar", "resnet14.bin", "resnet-14.pt"]
)
def test_a_misnamed_teacher_is_refused_not_replaced_by_another(studies, tmp_path, name):
    """Neither is it trained anew, nor does one that was trained here teach in its place."""
    (tmp_path / "given").mkdir()
    torch.save(weights("resnet14", 0), tmp_path / "given" / name)
    said = f"has no resnet14.pth, but {name}; if it is meant, rename it to resnet14.pth, else move it away"
    for own in (False, True):
        if own:
            trained(studies)
        with pytest.raises(IkdError, match=re.escape(said)):
            located(studies, tmp_path / "given")
    (tmp_path / "given" / name).rename(tmp_path / "given" / "resnet14.pth")
    assert located(studies, tmp_path / "given").sha256 == digest(weights("resnet14", 0))


@pytest.mark.parametrize("name", ["resnet14x2.pth", "resnet140.pth", "resnet14.json", "my_resnet14.pth"])
def test_what_is_named_otherwise_is_no_misnamed_teacher(studies, tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.warns(UserWarning, match=f"TEACHERS has no resnet14.pth .* holds {name}"):
        assert located(studies, tmp_path) is None


def test_the_folder_of_teachers_trained_here_may_be_given_as_well(studies):
    """There they are named by their runs, `resnet14-ce-seed0-...`."""
    _, _, path = trained(studies)
    with pytest.warns(UserWarning, match="one trained here is used"):
        assert located(studies, path.parent).path == path


def test_two_files_of_one_name_are_refused_unless_they_are_one_teacher(studies, tmp_path):
    torch.save(weights("resnet14", 1), tmp_path / "resnet14.pth")
    torch.save({"model": weights("resnet14", 1)}, tmp_path / "resnet14.pt")
    assert located(studies, tmp_path).sha256 == digest(weights("resnet14", 1))
    torch.save(weights("resnet14", 2), tmp_path / "resnet14.pt")
    two = tmp_path / "two" / "resnet14_vanilla"
    two.mkdir(parents=True)
    torch.save(weights("resnet14", 1), two.parent / "resnet14.pth")
    torch.save({"model": weights("resnet14", 2)}, two / "ckpt_epoch_240.pth")
    both = "has resnet14.pth and resnet14_vanilla/ckpt_epoch_240.pth, of different weights"
    with pytest.raises(IkdError, match=both):
        located(studies, two.parent)
    with pytest.raises(IkdError, match="has resnet14.pth and resnet14.pt, of different weights; keep"):
        located(studies, tmp_path)


def test_of_the_epochs_that_repdistiller_saves_the_last_teaches(studies, tmp_path):
    """By name 40 comes after 240, and 120 before both."""
    folder = tmp_path / "resnet14_vanilla"
    folder.mkdir()
    for epoch in (40, 120, 200, 240):
        torch.save({"model": weights("resnet14", epoch)}, folder / f"ckpt_epoch_{epoch}.pth")
    assert located(studies, tmp_path).sha256 == digest(weights("resnet14", 240))
    (folder / "ckpt_epoch_240.pth").unlink()
    with pytest.raises(IkdError, match="has ckpt_epoch_120.pth, .*and not ckpt_epoch_240.pth; keep the one"):
        located(studies, tmp_path)
    for epoch in (120, 40):
        (folder / f"ckpt_epoch_{epoch}.pth").unlink()
    assert located(studies, tmp_path).sha256 == digest(weights("resnet14", 200)), "it is alone there"


def test_a_folder_that_is_not_there_is_named(studies, tmp_path):
    with pytest.raises(IkdError, match="nowhere is not a folder.*resnet14.pth"):
        located(studies, tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name, classes, said", [("resnet20", 10, "resnet20"), ("resnet14", 100, "100 classes")]
)
def test_another_architecture_or_class_count_is_refused(studies, tmp_path, name, classes, said):
    torch.save(weights(name, 0, classes), tmp_path / "resnet14.pth")
    with pytest.raises(IkdError, match=said) as error:
        located(studies, tmp_path)
    assert "\n" not in str(error.value)


def test_a_replaced_file_is_another_teacher(studies, tmp_path):
    """The digest is remembered by path and time of change; new weights must not meet the old digest."""
    path = tmp_path / "resnet14.pth"
    torch.save(weights("resnet14", 1), path)
    first = located(studies, tmp_path)
    torch.save(weights("resnet14", 2), path)
    assert located(studies, tmp_path).sha256 == digest(weights("resnet14", 2)) != first.sha256


def trained(studies):
    study = studies.study(methods="kd")
    job = study.teacher_job("resnet14")
    assert studies.train(job) == 0
    return study, job, study.keep_teacher(job)


def test_a_kept_teacher_is_rounded_to_fp16_and_is_what_students_name(studies):
    study, job, path = trained(studies)
    kept, full = load_file(path), load_file(job.run.weights)
    assert kept.keys() == full.keys()
    for name, value in full.items():
        if value.is_floating_point():
            assert kept[name].dtype == torch.float16 and torch.equal(kept[name], value.half())
        else:
            assert torch.equal(kept[name], value)
    assert any(not torch.equal(kept[name].to(value.dtype), value) for name, value in full.items())

    (student,) = studies.study(methods="kd").student_jobs()
    rounded = {k: v.float() if v.is_floating_point() else v for k, v in kept.items()}
    assert student.spec.teacher_sha256 == digest(rounded) != job.run.result["weights_sha256"]
    assert student.teacher == str(path)
    taught = load_teacher(student.spec, path, 10).state_dict()
    assert all(torch.equal(taught[name], rounded[name]) for name in rounded)


def test_the_card_of_a_kept_teacher(studies):
    study, job, path = trained(studies)
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["architecture"] == "resnet14" and card["run_id"] == job.spec.run_id == path.stem
    assert card["sha256"] == study.teacher("resnet14").sha256
    assert card["spec"] == json.loads(job.spec.model_dump_json())
    (accuracy,) = [value for key, value in card.items() if "before rounding" in key]
    assert accuracy == {key: job.run.result[key] for key in ("last", "best")}
    assert str(studies.root) not in path.with_suffix(".json").read_text()


def test_a_teacher_whose_weights_are_gone_says_how_to_train_it_again(studies):
    """As in a clone: a teacher's run is in git, its weights are not."""
    job = studies.study(methods="kd").teacher_job("resnet14")
    job.run.folder.mkdir(parents=True)
    (job.run.folder / "result.json").write_text('{"status": "finished"}')
    with pytest.raises(IkdError, match=f"is gone; delete {re.escape(str(job.run.folder))} to train"):
        studies.study(methods="kd").keep_teacher(job)


def test_a_teacher_that_diverged_is_not_kept(studies):
    study = studies.study(methods="kd")
    run = study.teacher_job("resnet14").run
    run.folder.mkdir(parents=True)
    (run.folder / "result.json").write_text('{"status": "diverged"}')
    with pytest.raises(IkdError, match="diverged, so there is no teacher to keep"):
        study.keep_teacher(study.teacher_job("resnet14"))


def test_a_crash_between_the_two_files_of_a_teacher_leaves_no_teacher_without_card(studies, monkeypatch):
    """Weights that lie there are taken as kept: a card that was to follow would never be written."""
    write, written = files.write_bytes, []

    def killed(path, content):
        if len(written) == 1 and path.parent.name == "teachers":
            raise KeyboardInterrupt
        write(path, content)
        if path.parent.name == "teachers":
            written.append(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "write_bytes", killed)
        trained(studies)
    study = studies.study(methods="kd")
    path = study.keep_teacher(study.teacher_job("resnet14"))
    assert path.exists() and path.with_suffix(".json").exists()


def test_what_is_given_wins_over_ones_own(studies):
    study, _, own = trained(studies)
    assert study.teacher("resnet14").path == own
    given = studies.teachers("resnet14")
    assert studies.study(methods="kd", teachers=given).teacher("resnet14").path.parent.name == "teachers"
    assert str(studies.study(methods="kd", teachers=given).teacher("resnet14").path).startswith(given)


def test_ones_own_is_used_where_nothing_fitting_is_given(studies, tmp_path):
    _, _, own = trained(studies)
    (tmp_path / "empty").mkdir()
    assert located(studies, tmp_path / "empty").path == own


def test_keeping_twice_changes_nothing(studies):
    study, job, path = trained(studies)
    before = path.stat().st_mtime_ns
    assert study.keep_teacher(job) == path and path.stat().st_mtime_ns == before


@pytest.mark.parametrize("epochs", [48, 24, 10, 7, 1])
def test_a_teacher_of_the_full_length_serves_any_length(studies, epochs):
    """On CIFAR-100 the teacher of 240 epochs goes before one of the student's own length."""
    paper = studies.study(profile="paper", epochs=0)
    own = studies.results / "teachers"
    own.mkdir(parents=True)
    full = own / f"{paper.teacher_job('resnet14').spec.run_id}.safetensors"
    save_file(weights("resnet14", 3), full)
    short: Study = studies.study(profile="short", epochs=epochs)
    assert short.teacher("resnet14") is not None and short.teacher("resnet14").path == full
