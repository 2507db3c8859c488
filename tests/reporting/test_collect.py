"""Which run folders may be counted: whatever is wrong with one, it is named, left out, and stops nothing."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from ikdlib import files
from ikdlib.reporting import collect, tables
from ikdlib.studies import protocol

PAIR, SAME_STUDENT = "resnet56/resnet20", "resnet110/resnet20"


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# Folders that cannot be trusted


def later_format(run):
    edit(run.folder / "spec.json", format_version=2)


def later_result(run):
    edit(run.folder / "result.json", format_version=2)


def no_format(run):
    edit(run.folder / "spec.json", format_version=None)


def edited_history(run):
    path = run.folder / "history.csv"
    path.write_text(path.read_text().replace("1.5", "1.6"))


def edited_spec(run):
    edit(run.folder / "spec.json", seed=8)


def edited_spec_that_changes_no_id(run):
    path = run.folder / "spec.json"
    path.write_text(path.read_text() + "\n")


def edited_accuracy(run):
    edit(run.folder / "result.json", last={**run.result["last"], "top1": 99.0})


def edited_best(run):
    edit(run.folder / "result.json", best={**run.result["best"], "top1": 99.0})


def edited_top5(run):
    edit(run.folder / "result.json", last={**run.result["last"], "top5": 99.0})


def last_of_another_epoch(run):
    edit(run.folder / "result.json", last={**run.result["last"], "epoch": 2})


def best_of_the_last_epoch(run):
    edit(run.folder / "result.json", best=run.result["last"])


def unknown_status(run):
    edit(run.folder / "result.json", status="paused")


def no_teacher(run):
    edit(run.folder / "result.json", teacher=None)


def _resealed(run, text):
    """Another history, with the digest that fits it."""
    (run.folder / "history.csv").write_text(text)
    digests = {**run.result["files_sha256"], "history.csv": files.sha256(run.folder / "history.csv")}
    edit(run.folder / "result.json", files_sha256=digests)


def history_of_another_run(run):
    _resealed(run, run.history.assign(test_top1=[40.0, 71.0, 69.0]).to_csv(index=False))


def history_without_its_last_row(run):
    _resealed(run, run.history.iloc[:-1].to_csv(index=False))


def history_without_rows(run):
    _resealed(run, run.history.iloc[:0].to_csv(index=False))


def history_without_accuracies(run):
    _resealed(run, run.history[["epoch", "seconds"]].to_csv(index=False))


def edited_logits(run):
    (run.folder / "test_logits.safetensors").write_bytes(b"other")


def renamed(run):
    run.folder.rename(run.folder.with_name("kd-of-monday"))


def half_a_result(run):
    path = run.folder / "result.json"
    path.write_bytes(path.read_bytes()[:40])


def result_without_scores(run):
    content = json.loads((run.folder / "result.json").read_text())
    (run.folder / "result.json").write_text(json.dumps({**content, "last": None}))


def unknown_setting(run):
    edit(run.folder / "spec.json", colour="red")


def unknown_model(run):
    edit(run.folder / "spec.json", student="resnet21")


def no_numbers_in_history(run):
    (run.folder / "history.csv").write_text("")


def writes(name, text):
    def damage(run):
        (run.folder / name).write_text(text)

    damage.__name__ = f"{name} is {text!r}"
    return damage


def loses(name):
    def damage(run):
        (run.folder / name).unlink()

    damage.__name__ = f"{name} is lost"
    return damage


DAMAGES = {
    later_format: "format version 2", later_result: "format version 2", no_format: "format version None",
    edited_history: "history.csv missing or edited", edited_spec: "a folder has the name of its run",
    edited_spec_that_changes_no_id: "spec.json missing or edited",
    edited_accuracy: "its result.json states 99.0 % for the last epoch 3, its history.csv 70.0 % for 3",
    edited_best: "states 99.0 % for the best epoch 2, its history.csv 71.0 % for 2",
    edited_top5: "for the last epoch 3", last_of_another_epoch: "for the last epoch 2",
    best_of_the_last_epoch: "states 70.0 % for the best epoch 3, its history.csv 71.0 % for 2",
    unknown_status: "its result.json has a status 'paused'",
    no_teacher: "does not fit its spec.json (teacher)",
    history_of_another_run: "states 70.0 % for the last epoch 3, its history.csv 69.0 % for 3",
    history_without_its_last_row: "states 70.0 % for the last epoch 3, its history.csv 71.0 % for 2",
    history_without_rows: "its result.json is not as a run writes it",
    history_without_accuracies: "its result.json is not as a run writes it",
    edited_logits: "test_logits.safetensors missing or edited", renamed: "has the name of its run",
    half_a_result: "result.json: cannot be read", result_without_scores: "result.json is not as a run writes",
    unknown_setting: "colour: no such setting", unknown_model: "unknown model 'resnet21'",
    no_numbers_in_history: "history.csv missing or edited",
    loses("history.csv"): "history.csv missing or edited",
    loses("test_logits.safetensors"): "test_logits.safetensors missing or edited",
    loses("spec.json"): "spec.json: there is no such file",
    writes("spec.json", "[]"): "spec.json: cannot be read", writes("spec.json", "{"): "cannot be read",
    writes("result.json", "[]"): "result.json: cannot be read",
    writes("result.json", "{}"): "result.json is not as a run writes it",
    writes("result.json", '{"status": "finished"}'): "result.json is not as a run writes it",
}  # fmt: skip


@pytest.mark.parametrize("damage, said", DAMAGES.items(), ids=[damage.__name__ for damage in DAMAGES])
def test_a_folder_that_cannot_be_trusted_is_named_and_left_out(folders, damage, said):
    whole = [folders.finished("kd", seed, 70.0) for seed in (2, 3)]
    run = folders.finished("kd", 1, 70.0, logits=np.eye(3))
    damage(run)
    found, (line,) = collect.collect([folders.root])
    assert found == sorted(whole, key=lambda run: run.spec.run_id)
    assert said in line and line.startswith((f"{run.spec.run_id}: ", "kd-of-monday: "))


def test_a_teacher_that_no_teacherless_run_has_leaves_it_out(folders):
    run = folders.finished("ce", 1, 70.0)
    edit(run.folder / "result.json", teacher={"top1": 77.5, "top5": 95.0})
    found, (line,) = collect.collect([folders.root])
    assert found == [] and "does not fit its spec.json (teacher)" in line


def test_of_epochs_that_are_equally_good_the_first_is_the_best(folders):
    """Epochs 2 and 3 have 70 %: a trainer keeps the first."""
    run = folders.finished("kd", 1, 70.0, best=70.0)
    assert collect.collect([folders.root]) == ([run], [])
    best_of_the_last_epoch(run)
    found, (line,) = collect.collect([folders.root])
    assert found == [] and "states 70.0 % for the best epoch 3, its history.csv 70.0 % for 2" in line


def test_another_numerics_version_is_never_averaged_with_this_one(folders):
    run = folders.finished("kd", 1, 70.0)
    other = folders.finished("kd", 1, 90.0, numerics_version=2)
    found, (line,) = collect.collect([folders.root])
    assert found == [run] and line.startswith(other.spec.run_id)
    assert "numerics version 2, and this ikdlib has 1" in line


def test_half_finished_and_diverged_runs_are_kept_as_what_they_are(folders):
    made = [folders.unfinished("kd", 1), folders.diverged("kd", 2), folders.finished("kd", 3, 70.0)]
    (folders.root / "a lock's folder").mkdir()
    found, left_out = collect.collect([folders.root, folders.root / "nowhere"])
    assert {r.spec.seed: r.status for r in found} == {1: "unfinished", 2: "diverged", 3: "finished"}
    assert left_out == [] and len(made) == 3
    edit(made[1].folder / "result.json", format_version=2)
    assert len(collect.collect([folders.root])[0]) == 2


def test_two_folders_with_one_id_and_other_results_are_both_left_out(folders, tmp_path):
    run = folders.finished("kd", 1, 70.0)
    other = type(folders)(tmp_path / "paper" / "runs")
    other.finished("kd", 1, 71.0)
    kept = other.finished("kd", 2, 71.0)
    found, (line,) = collect.collect([folders.root, other.root])
    assert found == [kept] and line == f"{run.spec.run_id}: 2 folders have this id and other results"


def test_a_copy_counts_once_and_a_half_finished_twin_not_at_all(folders, tmp_path):
    run = folders.finished("kd", 1, 70.0)
    shutil.copytree(folders.root, tmp_path / "paper" / "runs")
    twin = type(folders)(tmp_path / "short" / "runs").unfinished("kd", 1)
    roots = [folders.root, tmp_path / "paper" / "runs", twin.root]
    found, (line,) = collect.collect(roots)
    assert found == [run] and line == f"{run.spec.run_id}: a copy in paper is not counted again"
    again, _ = collect.collect(reversed(roots))
    assert [(r.spec, r.status) for r in again] == [(run.spec, "finished")]


def test_the_demo_is_no_evidence_and_is_read_by_itself(folders, tmp_path):
    made = {}
    for seed, name in enumerate(("demo", "short", "paper"), start=1):
        made[name] = type(folders)(tmp_path / "results" / name / "runs").finished("kd", seed, 70.0)
    found, _ = collect.everything(tmp_path / "results")
    assert {run.spec.seed for run in found} == {2, 3}
    assert collect.everything(tmp_path / "results" / "demo")[0] == [made["demo"]]
    assert collect.everything(tmp_path / "nothing") == ([], [])


def test_one_profiles_folder_is_read_by_itself_whatever_lies_below_it(folders, tmp_path):
    own = type(folders)(tmp_path / "results" / "runs").finished("kd", 1, 70.0)
    type(folders)(tmp_path / "results" / "short" / "runs").finished("kd", 2, 70.0)
    assert collect.everything(tmp_path / "results") == ([own], [])
    shutil.rmtree(tmp_path / "results" / "runs")
    (tmp_path / "results" / "runs").write_text("a file is no folder")
    assert [run.spec.seed for run in collect.everything(tmp_path / "results")[0]] == [2]


def test_a_studys_cells_keep_what_may_be_counted(folders):
    bad, half = folders.finished("kd", 1, 70.0), folders.unfinished("kd", 2)
    good, missing = folders.finished("kd", 3, 70.0), folders.run("kd", 4)
    edited_accuracy(bad)
    cell = folders.cell("kd", bad, half, good, missing)
    (kept, again), left_out = collect.sound([cell, cell])
    assert kept == again and kept.runs == (half, good, missing)
    assert len(left_out) == 1 and left_out[0].startswith(f"{bad.spec.run_id}: its result.json states 99.0 %")
    shown = tables.readable(tables.study_table([kept], protocol.published().head(0), "last"), "last")
    assert shown["top-1 % (last epoch)"][0] == "70.00 (n=1, 2 to come)"
