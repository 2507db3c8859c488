"""The notebooks as programs: each passes through papermill and shows numbers of finished runs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from ikdlib import runs
from ikdlib.errors import IkdError
from ikdlib.reporting.report import write as report
from ikdlib.runs import Run
from ikdlib.studies import protocol
from ikdlib.studies.notebook import execute_here as execute
from ikdlib.studies.variants import variant_of

FAST = {"profile": "demo", "epochs": 1}


def text_of(notebook: Path) -> str:
    """All text a reader sees in the outputs."""
    found = []
    for cell in json.loads(notebook.read_text())["cells"]:
        for output in cell.get("outputs", []):
            found.append("".join(output.get("text", "")))
            found.append("".join(output.get("data", {}).get("text/markdown", "")))
            found.append("".join(output.get("data", {}).get("text/plain", "")))
    return "\n".join(found)


def pictures(notebook: Path) -> int:
    content = json.loads(notebook.read_text())
    outputs = [output for cell in content["cells"] for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """One results folder with blanks in its path, in which the notebooks follow one another."""
    return tmp_path_factory.mktemp("results with blanks")


def test_step_by_step(tmp_path):
    done = execute("00_ikd_step_by_step", tmp_path / "00.ipynb", {})
    assert pictures(done) >= 4


def test_train_teacher(results):
    parameters = {**FAST, "architecture": "resnet8", "results": str(results)}
    done = execute("10_train_teacher", results / "10.ipynb", parameters)
    (run,) = runs.find(results / "demo" / "runs")
    assert f"{run.result['last']['top1']:.2f} %" in text_of(done)
    assert len(list((results / "demo" / "teachers").glob("*.safetensors"))) == 1
    again = execute("10_train_teacher", results / "10 again.ipynb", parameters)
    for notebook in (done, again):
        assert text_of(notebook).count(f"run {run.spec.run_id}\n") == 1, "its settings, trained or found"
    assert str(results.parent) not in done.read_text()


def test_distil_one_student(results):
    parameters = {**FAST, "pair": "resnet8/resnet8", "method": "kd+ikd", "results": str(results)}
    done = execute("11_distill_student", results / "11.ipynb", parameters)
    run = next(run for run in runs.find(results / "demo" / "runs") if str(run.spec.method) == "kd+ikd")
    assert f"top-1 {run.result['last']['top1']:.2f} %" in text_of(done)
    assert text_of(done).count(f"run {run.spec.run_id}\n") == 1 and pictures(done) == 2


@pytest.mark.parametrize("number, name", [("20", "same"), ("21", "different")])
def test_table(results, number, name):
    """The run of notebook 11 is read, the others are made; then a second pass trains nothing."""
    notebook = f"{number}_cifar100_{name}_architecture"
    asked = {"pairs": "resnet8/resnet8", "methods": "ce,kd,kd+ikd", "seeds": "1"}
    parameters = {**FAST, **asked, "results": str(results)}
    done = execute(notebook, results / f"{number}.ipynb", parameters)
    table = pd.read_csv(
        results / "demo" / "tables" / f"cifar100_{name}_architecture-resnet8-resnet8-1epochs.csv"
    )
    assert list(table["method"]) == ["ce", "kd", "kd+ikd"] and (table["n"] == 1).all()
    by_id = {run.spec.run_id: run for run in runs.find(results / "demo" / "runs")}
    for row in table.itertuples():
        assert row.last_top1 == by_id[row.runs].result["last"]["top1"]
        assert f"{row.last_top1:.2f} (n=1)" in text_of(done)
    assert "undecided" in text_of(done) and pictures(done) == 3
    for row in protocol.rows("paper", "resnet8", "resnet8", "kd").itertuples():
        assert row.source in text_of(done), "a source is cut off"
    before = {path: path.stat().st_mtime_ns for path in results.rglob("result.json")}
    execute(notebook, results / f"{number}.ipynb", parameters)
    assert before == {path: path.stat().st_mtime_ns for path in results.rglob("result.json")}


def test_bad_parameters_stop_before_anything_trains(tmp_path):
    with pytest.raises(IkdError, match="unknown parameter 'sed'; did you mean seed"):
        execute("11_distill_student", tmp_path / "a.ipynb", {"sed": 3})
    with pytest.raises(IkdError, match="unknown method 'dkt'"):
        execute(
            "11_distill_student", tmp_path / "a.ipynb", {**FAST, "method": "dkt", "results": str(tmp_path)}
        )
    assert not list(tmp_path.rglob("runs"))


def test_what_ikd_changes(results):
    """It reads the finished runs of a table before it, trains none of them again, and shows their numbers."""
    before = {path: path.stat().st_mtime_ns for path in results.rglob("result.json")}
    asked = {"pair": "resnet8/resnet8", "base": "kd", "seeds": "1"}
    done = execute("40_what_ikd_changes", results / "40.ipynb", {**FAST, **asked, "results": str(results)})
    assert before.items() <= {path: path.stat().st_mtime_ns for path in results.rglob("result.json")}.items()
    name = "what_ikd_changes-resnet8-resnet8-kd-1epochs"
    table = pd.read_csv(results / "demo" / "tables" / f"{name}.csv").set_index("measure")
    by_method = {str(run.spec.method): run for run in runs.find(results / "demo" / "runs")}
    for column, method in (("base", "kd"), ("+ikd", "kd+ikd")):
        shown = table.loc["accuracy (top-1)", column]
        # fp16 makes ties of logits that one epoch hardly told apart: some images of 2000.
        assert abs(shown - by_method[method].result["last"]["top1"]) <= 0.3
        assert f"{shown:.2f}" in text_of(done)
    assert "KL of the teacher to the student" in table.index
    assert len(list((results / "demo" / "figures").glob(f"{name}-*.png"))) == pictures(done) == 6
    assert text_of(done).rstrip().endswith("one seed decides nothing: undecided")
    assert str(results.parent) not in done.read_text()


# 30 to 33

PAIR = "resnet8/resnet8"
ABLATIONS = {
    "30_temperature_of_the_term": (
        {"grid": "1,2"}, "temperature_of_the_term-resnet8-resnet8-1epochs-holdout4", 1,
        ["dkd", "dkd+ikd", "dkd+ikd, T 2"],
    ),
    "31_weight_of_the_term": (
        {"methods": "dkd+ikd", "grid": "0,6.5"}, "weight_of_the_term-resnet8-resnet8-1epochs-holdout4", 1,
        ["dkd", "dkd+ikd"],
    ),
    "32_what_the_term_is": (
        {"methods": "kd+ikd", "controls": "alone,one_hot,permuted"},
        "what_the_term_is-resnet8-resnet8-1epochs", 1,
        ["kd", "kd+ikd", "ce", "ce+ikd", "kd+ikd, towards one hot", "kd+ikd, towards permuted"],
    ),
    "33_batch_size_and_kd_temperature": (
        {"methods": "kd,kd+ikd", "batch_sizes": "64,128", "temperatures": "4,8"},
        "batch_size_and_kd_temperature-resnet8-resnet8-1epochs", 2,
        ["kd", "kd, batch 128", "kd+ikd", "kd+ikd, batch 128", "kd, KD T 8", "kd+ikd, KD T 8"],
    ),
}  # fmt: skip


def said_in_30(top1, held_out) -> list[str]:
    gain = held_out["dkd+ikd"] - held_out["dkd+ikd, T 2"]
    return [f"{PAIR} dkd+ikd: T = 1 minus T = 2, the best of the 1 others: {gain:+.2f} (n=1): undecided"]


def said_in_31(top1, held_out) -> list[str]:
    gain = held_out["dkd+ikd"] - held_out["dkd"]
    return [
        f"{PAIR} dkd+ikd: λ = 6.5 minus λ = 0, the best of the 1 others: {gain:+.2f} (n=1): undecided",
        f"{PAIR} nkd+ikd: nothing to compare λ = 6 with",
    ]


def said_in_32(top1, held_out) -> list[str]:
    others = ["kd", "kd+ikd, towards one hot", "kd+ikd, towards permuted"]
    both = [("kd+ikd", other) for other in others] + [("ce+ikd", "ce")]
    gains = {pair: f"{top1[pair[0]] - top1[pair[1]]:+.2f} (n=1, no interval" for pair in both}
    return [f"{PAIR}: {one} minus {other}: {gain}" for (one, other), gain in gains.items()]


def said_in_33(top1, held_out) -> list[str]:
    gains = [top1[f"kd+ikd{b}"] - top1[f"kd{b}"] for b in ("", ", batch 128")]
    return [*(f"{gain:+.2f} (n=1, no interval from one seed)" for gain in gains), "*not studied*"]


@pytest.mark.parametrize("notebook", ABLATIONS)
def test_ablation(results, notebook):
    """Its table, numbers and verdict are those of the finished runs."""
    chosen, name, drawn, labels = ABLATIONS[notebook]
    parameters = {**FAST, **chosen, "pairs": PAIR, "results": str(results)}
    done = execute(notebook, results / f"{notebook[:2]}.ipynb", parameters)
    by_id = {run.spec.run_id: run for run in runs.find(results / "demo" / "runs")}
    table = pd.read_csv(results / "demo" / "tables" / f"{name}.csv")
    assert list(table["method"]) == labels and (table["n"] == 1).all()
    cells = {row.method: by_id[row.runs] for row in table.itertuples()}
    top1 = {label: run.result["last"]["top1"] for label, run in cells.items()}
    assert list(table["last_top1"]) == list(top1.values())
    read = text_of(done)
    for label, run in cells.items():
        assert f"{top1[label]:.2f} (n=1)" in read and run.status == "finished"
    assert pictures(done) == drawn
    assert "method.ikd.weight" in read, "the settings shown are those of a run without the term"
    apart = {run.spec.holdout for run in cells.values()}
    assert apart == ({4} if notebook[:2] in ("30", "31") else {0})
    held_out = {label: run.history.iloc[-1].get("held_out_top1") for label, run in cells.items()}
    for sentence in globals()[f"said_in_{notebook[:2]}"](top1, held_out):
        assert sentence in read
    assert "nan" not in read.split()


def test_the_ablations_share_their_runs(results):
    """30 and 31 share those with images held apart; 32 and 33 have those of 11, 20 and 21."""
    found = [run.spec for run in runs.find(results / "demo" / "runs") if run.spec.seed]
    counted = Counter((str(spec.method), spec.holdout) for spec in found)
    assert counted == {
        ("ce", 0): 1, ("kd", 0): 3, ("kd+ikd", 0): 5, ("ce+ikd", 0): 1, ("dkd", 4): 1, ("dkd+ikd", 4): 2,
    }  # fmt: skip


# 90


def rows_of(page: Path) -> dict[str, str]:
    """The page's rows that lead to run folders: run id to the row's text."""
    links = BeautifulSoup(page.read_text(), "html.parser").select("td a[href^='runs/']")
    found = {}
    for link in links:
        folder = page.parent / unquote(link["href"])
        assert folder.is_dir(), f"{link['href']} leads nowhere"
        found[folder.name] = link.find_parent("tr").get_text(" ", strip=True)
    return found


def text_on(page: Path, after: str) -> str:
    """What stands on the page behind a heading, in one line."""
    heading = BeautifulSoup(page.read_text(), "html.parser").find(
        "h2", string=lambda text: after in str(text)
    )
    return " ".join(" ".join(part.get_text(" ") for part in heading.find_all_next()).split())


def test_report_shows_the_numbers_of_finished_runs_and_links_them(results):
    page = report(results / "demo")
    assert page == results / "demo" / "report.html"
    students = {run.spec.run_id: run for run in runs.find(results / "demo" / "runs") if run.spec.seed}
    rows = rows_of(page)
    assert rows.keys() == students.keys()
    for run_id, row in rows.items():
        assert f"{students[run_id].result['last']['top1']:.2f} (n=1)" in row and "not run" not in row
    sentence = f"kd+ikd minus kd, {PAIR}; glyphs100, 1 epoch, fp32, paper protocol: +"
    assert sentence in text_on(page, "Headline")
    assert "proves nothing about the paper" in text_on(page, "What was measured")
    assert text_on(page, "What was left out").count("Nothing.") >= 1
    assert str(results.parent) not in page.read_text()
    # Whoever has the folder has the page: it says the same from another place.
    moved = shutil.copytree(results / "demo", results / "moved" / "demo")
    assert rows_of(moved / "report.html") == rows


def again(run: Run, seed: int, top1: float) -> None:
    """A folder like a finished run's, whole, with a seed and an accuracy made by hand."""
    other = Run(run.root, run.spec.updated(seed=seed))
    other.begin()
    if other != run:
        shutil.copy(run.folder / "provenance.json", other.folder)
    other.write_history(run.history.assign(test_top1=top1).to_dict("records"))
    last, best = ({**run.result[which], "top1": top1} for which in ("last", "best"))
    other.finish({**run.result, "last": last, "best": best})


def test_report_follows_what_lies_in_the_run_folders(results, tmp_path):
    """A run deleted is `not run`, an edited one is left out by name, and verdicts turn with the numbers."""
    folder = shutil.copytree(results / "demo", tmp_path / "demo")
    found = {variant_of(run.spec).label: run for run in runs.find(folder / "runs") if not run.spec.holdout}
    ids = {label: run.spec.run_id for label, run in found.items()}
    shutil.rmtree(found["ce"].folder)
    history = found["kd, batch 128"].folder / "history.csv"
    history.write_text(history.read_text() + "\n")  # the same to pandas, not to its sha256
    result = found["kd, KD T 8"].folder / "result.json"
    result.write_text(
        json.dumps(found["kd, KD T 8"].result | {"last": {"epoch": 1, "top1": 99.0, "top5": 100}})
    )
    for seed, gain in ((2, 2.1), (3, 1.9), (1, 2.0)):
        again(found["kd"], seed, 10.0 * seed)
        again(found["kd+ikd"], seed, 10.0 * seed + gain)
    sentence = f"kd+ikd minus kd, {PAIR}; glyphs100, 1 epoch, fp32, paper protocol: "

    page = report(folder)
    rows = rows_of(page)
    assert not {ids["ce"], ids["kd, batch 128"], ids["kd, KD T 8"]} & rows.keys()
    cells = [row.get_text(" ", strip=True) for row in BeautifulSoup(page.read_text(), "html.parser")("tr")]
    assert f"{PAIR} ce not run not run" in cells
    left_out = text_on(page, "What was left out")
    assert f"{ids['kd, batch 128']}: history.csv missing or edited" in left_out
    assert f"{ids['kd, KD T 8']}: its result.json states 99.0 %" in left_out
    # Mean and sample deviation of 10, 20, 30 and of 12, 22.1, 31.9; t(0.975, 2) = 4.303 times 0.1 / sqrt(3).
    assert "20.00 ± 10.00 (n=3)" in rows[ids["kd"]]
    assert "22.00 ± 9.95 (n=3)" in rows[ids["kd+ikd"]]
    assert sentence + "+2.00 [+1.75, +2.25] points, n=3: supported" in text_on(page, "Headline")

    for seed, gain in ((2, -2.1), (3, -1.9), (1, -2.0)):
        again(found["kd+ikd"], seed, 10.0 * seed + gain)
    assert sentence + "-2.00 [-2.25, -1.75] points, n=3: contradicted" in text_on(report(folder), "Headline")


def test_a_report_on_no_folder_is_refused(tmp_path):
    with pytest.raises(IkdError, match="no run in"):
        report(tmp_path / "demo")
