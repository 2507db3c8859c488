"""The reproducibility card: answers against facts written by hand, and none where nothing was written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from ikdlib.errors import IkdError
from ikdlib.reporting.card import card
from ikdlib.reporting.recorded import NO_RUN, NOT_RECORDED

pytest.importorskip("yaml")

QUESTIONS = (
    "Research type", "Research question", "Affiliation of the code", "Pseudocode", "Open code", "Open data",
    "Splits", "Hardware", "Software versions", "Set-up", "Randomness", "Results",
)  # fmt: skip
OF_RUNS = ("Open data", "Splits", "Hardware", "Software versions", "Set-up", "Randomness", "Results")
PROVENANCE = {
    "git": {"commit": "a" * 40, "clean": True},
    "versions": {"python": "3.11.7", "torch": "2.14.1"},
    "machine": {
        "device": "cpu", "processor": "Some CPU", "cores": 2, "threads": 1, "system": "Linux x86_64",
    },
    "seconds": {"training": 3000.0, "teacher": 500.0, "evaluation": 100.0},
    "compiled": True,
    "own_kernels": True,
    "graphs": False,
    "resumed_at": [],
}  # fmt: skip
CITATION = """
title: code
authors:
  - name: the authors of the code
preferred-citation:
  title: A Method
  authors:
    - {given-names: Ada, family-names: First}
    - {given-names: Ben, family-names: Second}
  collection-title: Proceedings
  year: 2025
"""


@pytest.fixture
def project(tmp_path):
    """A project of its own, with no runs."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nlicense = "BSD-3-Clause"\n')
    (tmp_path / "CITATION.cff").write_text(CITATION)
    return tmp_path


def recording(folders, method="kd", seed=1, **changes):
    """A finished run with provenance; a changed part replaces the whole part, None takes it out."""
    content = {key: value for key, value in {**PROVENANCE, **changes}.items() if value is not None}
    folder = folders.run(method, seed).folder
    folder.mkdir(parents=True)
    (folder / "provenance.json").write_text(json.dumps(content))
    return folders.finished(method, seed, 70.0)


def answers(runs, root) -> dict[str, str]:
    return card(runs, root).set_index("question")["answer"].to_dict()


def test_it_asks_every_question_once_and_answers_in_words(folders, project):
    table = card([recording(folders)], project)
    assert list(table.columns) == ["question", "answer", "where"]
    assert tuple(table["question"]) == QUESTIONS
    for value in table.to_numpy().ravel():
        assert isinstance(value, str) and value and "\n" not in value


def test_one_run_by_hand(folders, project):
    said = answers([recording(folders)], project)
    assert said["Open code"] == "licence: BSD-3-Clause; commits: aaaaaaaaaa; 1 of 1 run from a clean checkout"
    assert said["Hardware"] == "Some CPU, 2 cores, Linux x86_64: 1 run, 1.00 hours; threads a run: 1"
    assert said["Software versions"] == "python 3.11.7; torch 2.14.1"
    assert said["Set-up"] == (
        "3 epochs in fp32, batch 64, learning rate 0.05; protocol: paper;"
        " compiled code: yes; ikdlib's own CPU kernels: yes; captured GPU graphs: no"
    )
    assert said["Randomness"] == "seeds: 1; in deterministic mode: 0 of 1 run; stopped and resumed: no"
    assert said["Results"].startswith("1 run finished; result.json has the sha256 of 3 files (3 are as")
    assert f"decoded sha256 {'0' * 64}" in said["Open data"] and "checksum" in said["Open data"]


def test_runs_that_differ_are_told_apart(folders, project):
    gpu = {"gpu": "Some GPU", "cuda": "13.0", "cores": 16, "threads": 4, "system": "Linux x86_64"}
    runs = [
        recording(folders, seed=1),
        recording(folders, seed=2, git={"commit": "b" * 40, "clean": False}, resumed_at=[[1, 5]]),
        recording(folders, seed=4, machine=gpu, seconds={"training": 1800.0}, graphs=True),
    ]
    said = answers(runs, project)
    assert "aaaaaaaaaa (2 runs), bbbbbbbbbb (1 run); 2 of 3 runs from a clean" in said["Open code"]
    assert said["Hardware"] == (
        "Some CPU, 2 cores, Linux x86_64: 2 runs, 2.00 hours;"
        " Some GPU, CUDA 13.0, 16 cores, Linux x86_64: 1 run, 0.50 hours;"
        " threads a run: 1 (2 runs), 4 (1 run)"
    )
    assert said["Set-up"].endswith("captured GPU graphs: no (2 runs), yes (1 run)")
    assert said["Randomness"].startswith("seeds: 1, 2, 4;")
    assert said["Randomness"].endswith("stopped and resumed: no (2 runs), yes (1 run)")


def test_runs_that_went_on_at_another_machine_are_counted_where_they_began_and_said(folders, project):
    gpu = {"gpu": "Some GPU", "cuda": "13.0", "cores": 16, "threads": 4, "system": "Linux x86_64"}
    cpu = {"processor": "Some CPU", "cores": 2, "threads": 2, "system": "Linux x86_64"}
    runs = [
        recording(folders, seed=1, machine=gpu, resumed_at=[{"epoch": 3, "step": 5, "machine": cpu}]),
        recording(folders, seed=2, machine=gpu, resumed_at=[{"epoch": 3, "step": 5}]),
        recording(folders, seed=4, resumed_at=[{"epoch": 3, "step": 5, "machine": cpu}]),  # other threads
    ]
    assert answers(runs, project)["Hardware"] == (
        "Some GPU, CUDA 13.0, 16 cores, Linux x86_64: 2 runs, 2.00 hours"
        " (1 went on elsewhere, with all their hours here);"
        " Some CPU, 2 cores, Linux x86_64: 1 run, 1.00 hours; threads a run: 4 (2 runs), 1 (1 run)"
    )


def test_a_run_that_went_on_at_another_commit_is_said(folders, project):
    same = {"epoch": 3, "step": 5}
    runs = [
        recording(folders, seed=1, resumed_at=[same]),
        recording(folders, seed=2, resumed_at=[same, {**same, "git": {"commit": "b" * 40, "clean": True}}]),
    ]
    words = (
        "stopped and resumed: yes (1 run), yes, at another commit, with other libraries or elsewhere (1 run)"
    )
    assert answers(runs, project)["Randomness"].endswith(words)


def test_versions_are_counted_each_by_itself(folders, project):
    other = {"python": "3.11.7", "torch": "2.15.0", "numpy": "2.4.6"}
    runs = [
        recording(folders, seed=1),
        recording(folders, seed=2),
        recording(folders, seed=3, versions=other),
    ]
    assert answers(runs, project)["Software versions"] == (
        "python 3.11.7; torch 2.14.1 (2 runs), 2.15.0 (1 run); numpy 2.4.6 (1 run), not recorded (2 runs)"
    )


@pytest.mark.parametrize(
    "part, question, said",
    [
        ("git", "Open code", "commits: not recorded; 0 of 1 run from"),
        ("machine", "Hardware", "not recorded: 1 run, 1.00 hours; threads a run: not recorded"),
        ("seconds", "Hardware", "1 run, hours not recorded"),
        ("versions", "Software versions", NOT_RECORDED),
        ("compiled", "Set-up", "compiled code: not recorded"),
        ("own_kernels", "Set-up", "ikdlib's own CPU kernels: not recorded"),
        ("graphs", "Set-up", "captured GPU graphs: not recorded"),
        ("resumed_at", "Randomness", "stopped and resumed: not recorded"),
    ],
)
def test_what_an_old_run_did_not_record_is_not_made_up(folders, project, part, question, said):
    whole = answers([recording(folders, seed=1)], project)[question]
    assert said not in whole
    assert said in answers([recording(folders, seed=2, **{part: None})], project)[question]


def test_a_run_without_provenance_is_counted_beside_one_with(folders, project):
    alone = answers([folders.finished("kd", 1, 70.0)], project)
    assert alone["Software versions"] == NOT_RECORDED
    assert alone["Hardware"].startswith("not recorded: 1 run, hours not recorded")
    both = answers([folders.run("kd", 1), recording(folders, seed=2)], project)
    assert "torch 2.14.1 (1 run), not recorded (1 run)" in both["Software versions"]


def test_provenance_that_cannot_be_read_is_said(folders, project):
    run = recording(folders)
    (run.folder / "provenance.json").write_text("{")
    with pytest.raises(IkdError, match="provenance.json: cannot be read"):
        card([run], project)


def test_splits_come_from_spec_and_stored_logits(folders, project):
    run = recording(folders)
    assert answers([run], project)["Splits"] == (
        "cifar100: training images 50,000, held out per class 0, test images not recorded, classes 100"
    )
    save_file({"logits": np.zeros((120, 100), np.float16)}, run.folder / "test_logits.safetensors")
    assert "test images 120," in answers([run], project)["Splits"]
    (run.folder / "test_logits.safetensors").write_bytes(b"no tensors")
    with pytest.raises(IkdError, match="test_logits.safetensors: cannot be read"):
        card([run], project)


def test_held_out_images_are_no_training_images(folders, project):
    run = folders.run("kd", 1)
    held = type(run)(run.root, run.spec.updated(holdout=50))
    held.begin()
    held.finish({"status": "finished"})
    said = answers([held], project)["Splits"]
    assert "training images 45,000, held out per class 50" in said


def test_another_data_set_is_named_with_its_own_source(folders, project):
    run = folders.run("kd", 1)
    drawn = type(run)(run.root, run.spec.updated(data="glyphs100", data_sha256="7" * 64))
    drawn.begin()
    drawn.finish({"status": "finished"})
    said = answers([recording(folders), drawn], project)
    assert "cifar100: " in said["Open data"] and "glyphs100: drawn by this package" in said["Open data"]
    assert "7" * 64 in said["Open data"] and "(1 run)" in said["Open data"]
    assert "glyphs100: training images 4,400" in said["Splits"]


def test_only_runs_that_differ_in_the_term_alone_are_compared(folders, project):
    def said(*runs) -> str:
        return answers(runs, project)["Research question"]

    base, treated = folders.finished("dkd", 1, 70.0), folders.finished("dkd+ikd", 1, 71.0)
    assert "1 run with the term, each with its partner without it: dkd+ikd" in said(base, treated)
    assert "no two finished runs" in said(base, folders.finished("dkd+ikd", 2, 71.0))
    assert "no two finished runs" in said(folders.finished("kd", 1, 70.0), treated)
    assert "no two finished runs" in said(folders.unfinished("dkd", 3), folders.finished("dkd+ikd", 3, 71.0))
    plain = folders.finished("ce", 1, 69.0), folders.finished("ce+ikd", 1, 70.0)
    assert "partner without it: ce+ikd" in said(*plain), "a base that asks no teacher is one, too"


def test_runs_that_are_not_finished_are_counted_and_say_nothing(folders, project):
    runs = [recording(folders), folders.diverged("kd", 2), folders.unfinished("kd", 3), folders.run("kd", 4)]
    said = answers(runs, project)
    assert said["Results"].startswith("1 run finished, 1 diverged, 1 unfinished, 1 missing;")
    assert said["Randomness"].startswith("seeds: 1;")


def test_a_changed_file_is_noticed(folders, project):
    run = recording(folders)
    with open(run.folder / "history.csv", "a") as file:
        file.write("\n")
    assert "3 files (2 are as they were)" in answers([run], project)["Results"]


def test_weights_count_where_their_sha256_is_written(folders, project):
    run = recording(folders)
    assert answers([run], project)["Results"].endswith("the weights of 0 runs")
    run.finish({**run.result, "weights_sha256": "5" * 64})
    assert answers([run], project)["Results"].endswith("the weights of 1 run")


@pytest.mark.parametrize("states", [(), ("unfinished",)])
def test_without_a_finished_run_there_is_still_a_table(folders, project, states):
    said = answers([getattr(folders, state)("kd", 1) for state in states], project)
    assert tuple(said) == QUESTIONS
    for question in OF_RUNS:
        assert said[question].startswith(NO_RUN), question
    assert said["Results"] == NO_RUN + (", 1 unfinished" if states else "")
    assert NO_RUN in said["Open code"] and "BSD-3-Clause" in said["Open code"]


# The project's own files


def test_authors_are_those_of_the_citation_file(project):
    said = answers([], project)
    assert said["Affiliation of the code"] == (
        "the authors of the code (affiliation: not recorded);"
        " none is named among the paper's authors: Ada First, Ben Second"
    )
    assert said["Research type"] == (
        "experimental: an independent reproduction of a published method, A Method (Proceedings, 2025)"
    )


def test_an_author_of_the_paper_makes_it_no_independent_reproduction(project):
    ada = "  - {given-names: Ada, family-names: First, affiliation: Some University}\n"
    text = CITATION.replace("  - name: the authors of the code\n", ada)
    (project / "CITATION.cff").write_text(text)
    said = answers([], project)
    assert "a reproduction" in said["Research type"] and "independent" not in said["Research type"]
    assert said["Affiliation of the code"] == (
        "Ada First (affiliation: Some University); also authors of the paper: Ada First"
    )


def test_a_project_without_its_files_has_nothing_recorded(tmp_path):
    table = card([], tmp_path).set_index("question")
    for question in ("Research type", "Affiliation of the code", "Pseudocode"):
        assert tuple(table.loc[question]) == (NOT_RECORDED, NOT_RECORDED)
    assert table.loc["Open code", "answer"].startswith("licence: not recorded")


@pytest.mark.parametrize("name, content", [("CITATION.cff", "a: [b"), ("pyproject.toml", "[project")])
def test_a_broken_file_is_named_in_one_line(project, name, content):
    (project / name).write_text(content)
    with pytest.raises(IkdError, match=f"{name}: cannot be read") as caught:
        card([], project)
    assert "\n" not in str(caught.value)


def test_pseudocode_is_where_the_algorithm_is_named(project):
    (project / "ikdlib/methods").mkdir(parents=True)
    module = project / "ikdlib/methods/ikd.py"
    module.write_text('"""The term."""')
    assert answers([], project)["Pseudocode"] == NOT_RECORDED
    module.write_text('"""The term: Algorithm 1."""')
    row = card([], project).set_index("question").loc["Pseudocode"]
    assert tuple(row) == ("the paper's Algorithm 1, in the docstring", "ikdlib/methods/ikd.py")


def test_where_names_what_exists_in_this_checkout():
    from ikdlib import runs
    from ikdlib.reporting.card import PROJECT

    table = card(list(runs.find(PROJECT / "results/short/runs")))
    assert NOT_RECORDED not in set(table["where"])
    for place in ", ".join(table["where"]).split(", "):
        assert place == NO_RUN or (PROJECT / place).exists(), place
    assert not table["where"].str.contains(r"(?:^|[ ,])/").any()


def test_run_folders_are_named_below_the_project_or_by_their_last_name(folders, project, tmp_path):
    table = card([recording(folders)], project).set_index("question")
    assert table.loc["Hardware", "where"] == "runs"
    elsewhere = card([folders.run("kd", 1)], project / "other").set_index("question")
    assert elsewhere.loc["Hardware", "where"] == "runs"
