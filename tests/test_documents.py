"""What the documents at the top say must be true: tests named exist, numbers are those of run folders."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy import stats

from ikdlib import __version__, runs
from ikdlib.studies.variants import variant_of

ROOT = Path(__file__).parent.parent


def read(name: str) -> str:
    path = ROOT / name
    assert path.is_file(), f"{name} is missing"
    return path.read_text()


# DIFFERENCES.md


def rows_of_differences() -> list[list[str]]:
    lines = [line for line in read("DIFFERENCES.md").splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in rows if row[0] != "point" and set(row[0]) != {"-"}]


def named_tests() -> list[str]:
    return sorted(set(re.findall(r"`(tests/[^`]+)`", read("DIFFERENCES.md"))))


def test_differences_name_only_tests_that_exist():
    named = named_tests()
    assert len(named) > 10
    missing = []
    for name in named:
        file, _, function = name.partition("::")
        path = ROOT / file
        if not path.is_file():
            missing.append(file)
        elif function and not re.search(rf"^def {function}\(", path.read_text(), re.MULTILINE):
            missing.append(name)
    assert not missing, f"DIFFERENCES.md names tests that do not exist: {missing}"


def test_every_difference_fills_every_column():
    rows = rows_of_differences()
    assert len(rows) >= 20
    for row in rows:
        assert len(row) == 5 and all(row), f"a cell is missing or empty: {row}"
        assert row[4] == "none" or "`tests/" in row[4], f"names neither a test nor `none`: {row}"


@pytest.mark.parametrize(
    "words",
    [
        "warm-up", "plateau", "class means", "from epoch 2", "T^2", "seed", "determinism", "NKD", "WTTM",
        "kd_T", "feature methods", "best", "beta", "lambda", "holdout", "fp16", "bf16", "stored weights",
        "did not show", "64 x 64", "0.5071", "1000", "BSD-2", "BSD-3", "yema-web/IKD", "unknown",
    ],
)  # fmt: skip
def test_differences_speak_of_each_known_point(words):
    assert words in read("DIFFERENCES.md")


# CITATION.cff


def test_citation_has_what_the_format_demands():
    cited = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["title"] == "ikdlib"
    assert cited["version"] == __version__
    assert cited["license"] == "BSD-3-Clause"
    paper = cited["preferred-citation"]
    assert paper["title"] == "Debiased Distillation for Consistency Regularization"
    assert paper["year"] == 2025 and "AAAI" in paper["collection-title"]
    for author in cited["authors"] + paper["authors"]:
        assert set(author) in ({"name"}, {"family-names", "given-names"}), author


# pyproject.toml, environment.yml, CHANGELOG.md


def test_conda_users_get_the_requirements_of_pip_users():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    environment = yaml.safe_load(read("environment.yml"))
    assert environment["channels"] == ["conda-forge"]
    plain = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert f"python{project['requires-python']}" in plain
    assert sorted(pip) == sorted(
        [
            *project["dependencies"],
            *project["optional-dependencies"]["notebooks"],
            *project["optional-dependencies"]["cluster"],
            "-e .",
        ]
    )


def test_environment_names_no_place_on_this_machine():
    text = read("environment.yml")
    assert "prefix:" not in text
    assert not re.search(r"(^|[\s'\"])/\w|https?://", text)


def test_changelog_has_this_version():
    assert f"## {__version__}" in read("CHANGELOG.md")


# README.md


def test_every_file_the_documents_link_is_there():
    for document in ("README.md", "results/README.md", "benchmarks/README.md", "DIFFERENCES.md"):
        links = re.findall(r"\]\(([^)#]+)\)", read(document))
        for link in links:
            assert link.startswith("http") or (ROOT / document).parent.joinpath(link).exists(), (
                document,
                link,
            )


def tables_of_results() -> list[tuple[int, str, list[list[str]]]]:
    """Epochs, precision and rows of each table; a comment before it says the first two."""
    shown = read("README.md").split("<!-- results -->")[1].split("<!-- /results -->")[0]
    _, *parts = re.split(r"<!-- (\d+) epochs, (fp32|bf16) -->", shown)
    found = []
    for epochs, precision, text in zip(parts[0::3], parts[1::3], parts[2::3], strict=True):
        lines = [line for line in text.splitlines() if line.startswith("|") and "(n=" in line]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        found.append((int(epochs), precision, rows))
    assert found and all(rows for *_, rows in found) and shown.count("|:--") == len(found) * 5
    return found


def scores(pair: str, method: str, epochs: int, precision: str) -> dict[str, dict[int, float]]:
    """`last` and `best`: a seed's top-1 % in result.json of its run, whole and of a clean checkout."""
    teacher, student = pair.split("/")
    chosen: dict[str, dict[int, float]] = {"last": {}, "best": {}}
    for run in runs.find(ROOT / "results/short/runs"):
        spec, recipe = run.spec, run.spec.recipe
        if (spec.student, variant_of(spec).label, recipe.epochs, recipe.precision, spec.holdout) != (
            student, method, epochs, precision, 0
        ) or spec.teacher not in (None, teacher):  # fmt: skip
            continue
        assert run.status == "finished" and not runs.damaged_files(run) and run.provenance["git"]["clean"]
        last = run.history.iloc[-1]
        assert (last["epoch"], last["test_top1"]) == (epochs, run.result["last"]["top1"])
        for which, by_seed in chosen.items():
            assert spec.seed not in by_seed, "two runs of one seed: say which"
            by_seed[spec.seed] = run.result[which]["top1"]
    return chosen


def spread(values: list[float]) -> str:
    error = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{error} (n={len(values)})"


def test_the_readmes_numbers_are_those_of_the_run_folders():
    """Every row shown is computed anew from all runs of its cell; and the links lead somewhere."""
    for epochs, precision, rows in tables_of_results():
        for pair, method, last, best, gain in rows:
            own = scores(pair, method, epochs, precision)
            assert last == spread(list(own["last"].values()))
            assert best == spread(list(own["best"].values()))
            assert bool(gain) == method.endswith("+ikd")
            if gain:
                base = scores(pair, method.removesuffix("+ikd"), epochs, precision)["last"]
                pairs = [value - base[seed] for seed, value in own["last"].items() if seed in base]
                words = gain_in_words(own["last"], base) if len(pairs) > 1 else f"{pairs[0]:+.2f} (n=1"
                assert gain.startswith(words)
    shown = read("README.md").split("<!-- results -->")[1].split("<!-- /results -->")[0]
    for link in re.findall(r"\]\((results/[^)]*)\)", shown):
        assert (ROOT / link).exists(), link


def gain_in_words(treated: dict[int, float], base: dict[int, float]) -> str:
    """The mean of paired differences, its 95 % interval by scipy's t test, and n."""
    pairs = [value - base[seed] for seed, value in treated.items() if seed in base]
    interval = stats.ttest_1samp(pairs, 0.0).confidence_interval(0.95)
    return f"{np.mean(pairs):+.2f} [{interval.low:+.2f}, {interval.high:+.2f}] (n={len(pairs)})"


def test_the_readmes_controls_are_those_of_the_run_folders():
    """Each target of the term: its accuracy, its gain over the method without it, the means' gain over it."""
    shown = read("README.md").split("<!-- controls -->")[1].split("<!-- /controls -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines()
            if line.startswith("| dkd")]  # fmt: skip
    found = {label: scores("resnet56/resnet8", label, 48, "bf16")["last"] for label, *_ in rows}
    assert list(found)[:2] == ["dkd", "dkd+ikd"] and len(found) > 2
    common = set.intersection(*map(set, found.values()))
    assert len(common) >= 3
    found = {label: {seed: by_seed[seed] for seed in common} for label, by_seed in found.items()}
    for label, accuracy, over_base, under_means in rows:
        assert accuracy == spread(list(found[label].values()))
        assert over_base == ("" if label == "dkd" else gain_in_words(found[label], found["dkd"]))
        controls = label not in ("dkd", "dkd+ikd")
        assert under_means.split(": ")[0] == (
            gain_in_words(found["dkd+ikd"], found[label]) if controls else ""
        )


def test_the_readmes_words_on_its_students_are_those_of_their_runs():
    """Training accuracy in the last of 48 epochs, over the seeds; the class means, from the picture's CSV."""
    text = re.sub(r"\s+", " ", read("README.md"))
    said = re.findall(
        r"(resnet\d+)[^(]*\(from (\S+) to (\S+) % with KD, from (\S+) to (\S+) % with DKD\)", text
    )
    assert [student for student, *_ in said] == ["resnet8", "resnet20"]
    for student, *numbers in said:
        found = {name: [] for name in ("kd", "kd+ikd", "dkd", "dkd+ikd")}
        for run in runs.find(ROOT / "results/short/runs"):
            label, pair = variant_of(run.spec).label, (run.spec.teacher, run.spec.student)
            whole = run.spec.recipe.epochs == 48 and run.spec.holdout == 0
            if pair == ("resnet56", student) and label in found and whole:
                found[label].append(run.history.iloc[-1]["train_top1"])
        assert numbers == [f"{np.mean(values):.1f}" for values in found.values()]
    picture = "results/short/figures/cifar100_same_architecture-resnet56-resnet8-bf16-class-means"
    means = pd.read_csv(ROOT / f"{picture}.csv", index_col=0)
    assert f"{np.diag(means).mean():.3f} of their probability on the class itself" in text
    assert f"{picture}.png" in text


def rows_below(mark: str) -> list[list[str]]:
    """The cells of the README's table behind a mark, without its head."""
    shown = re.search(rf"<!-- {mark} -->\n+((?:\|.*\n)+)", read("README.md"))[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines()[2:]]


def test_what_changes_besides_accuracy_is_as_the_run_folders_have_it():
    """Target's probability and likelihood of the last epoch, paired by seed, by scipy's t test."""
    rows = rows_below("besides")
    assert len(rows) == 6
    for pair, method, *shown in rows:
        for column, words in zip(("test_confidence", "test_loss"), shown, strict=True):
            sides = [{}, {}]
            for run in runs.find(ROOT / "results/short/runs"):
                label, own = variant_of(run.spec).label, f"{run.spec.teacher}/{run.spec.student}"
                if own == pair and run.spec.recipe.epochs == 48 and label in (method, method[:-4]):
                    sides[label == method][run.spec.seed] = run.history.iloc[-1][column]
            assert words == gain_in_words(sides[1], sides[0])


def test_the_readmes_table_of_sureness_is_that_of_notebook_40():
    tables = [
        pd.read_csv(
            ROOT / f"results/short/tables/what_ikd_changes-resnet56-{student}-dkd-bf16.csv", index_col=0
        )
        for student in ("resnet8", "resnet20")
    ]
    for measure, *shown in rows_below("sureness"):
        digits = 4 if tables[0].loc[measure, "unit"] == "nats" else 2
        assert shown == [f"{t.loc[measure, side]:.{digits}f}" for t in tables for side in ("base", "+ikd")]


@pytest.mark.parametrize("folder", ["short", "own-kernels/short"])
def test_the_readme_quotes_the_verdict_on_bf16(folder):
    """And the verdict is that of the sixteen differences, by Student's t; accuracies are the run folders'."""
    rows = pd.read_csv(ROOT / f"results/{folder}/tables/equivalence-bf16.csv")
    for row in rows.itertuples():
        exact, rounded = row.runs.split()
        for where, run, shown in (("short", exact, row.fp32), (folder, rounded, row.bf16)):
            assert json.loads(read(f"results/{where}/runs/{run}/result.json"))["last"]["top1"] == shown, run
    pairs = (rows["bf16"] - rows["fp32"]).to_numpy()
    interval = stats.ttest_1samp(pairs, 0.0).confidence_interval(0.90)
    words = f"bf16 minus fp32: {pairs.mean():+.2f} points, "
    words += f"90 % interval [{interval.low:+.2f}, {interval.high:+.2f}]"
    assert len(pairs) == 16 and -0.5 < interval.low and interval.high < 0.5
    assert words in read("README.md") and words in read(f"results/{folder}/tables/equivalence-bf16.md")


def test_the_readmes_speeds_are_those_of_the_benchmark():
    """Every number of each table against the file of `results/benchmarks` it names, from a clean checkout."""
    shown = read("README.md").split("<!-- speed -->")[1].split("<!-- /speed -->")[0]
    tables = re.findall(r"<!-- (step-\S+) -->\n+((?:\|.*\n)+)", shown)
    found = {path.stem for path in (ROOT / "results/benchmarks").glob("step-*.csv")}
    assert {name for name, _ in tables} == found, "no machine is left out"
    for name, table in tables:
        measured = pd.read_csv(ROOT / f"results/benchmarks/{name}.csv", keep_default_na=False)
        assert measured["clean"].astype(str).eq("True").all()
        assert measured.groupby("pair")["commit"].nunique().eq(1).all(), "side by side"
        assert measured["rounds"].eq(5).all()
        assert f"torch {'2.11.0' if 'cuda' in name else '2.14.1'}" in measured["machine"][0]
        cells = measured.set_index(["pair", "program", "precision", "slabs"])
        (_, plain, *ours), _, *lines = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
        ]
        exact = "tf32" if "cuda" in name else "fp32"
        assert plain == f"plain loop, {exact}" and len(ours) >= 2
        assert [line[0] for line in lines] == list(measured["pair"].unique())
        for pair, reference, *texts in lines:
            assert float(reference) == cells.loc[(pair, "reference", exact, ""), "images_per_second"]
            for text, words in zip(texts, ours, strict=True):
                program, precision, slabs = words.split()
                row = cells.loc[(pair, {"ours": "ikdlib"}[program], precision, slabs)]
                assert text == f"{row['images_per_second']} ({row['ratio']:.2f} x)", (name, pair, words)
        if name == "step-cpu-amd-epyc-2":
            for pair in ("resnet32x4/resnet8x4", "resnet56/resnet20"):
                row = cells.loc[(pair, "ikdlib", "bf16", "warm")]
                assert f"between {row['ratio_least']:.2f} and {row['ratio_most']:.2f} x" in shown, pair
    rows = rows_below("whole")
    whole = [pd.read_csv(path) for path in (ROOT / "results/benchmarks").glob("whole-*.csv")]
    assert all(one["clean"].all() and one["compiled"].all() for one in whole)
    expected = {
        (one.runs_at_once, one.epochs, one.seconds, f"{one.runs_an_hour:.1f}", f"{one.epoch_seconds:.2f}",
         one.epochs_an_hour)
        for one in pd.concat(whole).itertuples()
    }  # fmt: skip
    numbers = {(int(a), int(b), float(c), d, e, int(f)) for a, b, c, d, e, f in rows}
    assert numbers == expected and len(rows) == len(expected)
    for link in re.findall(r"\]\((results/[^)]*)\)", shown):
        assert (ROOT / link).exists(), link


def test_the_loop_in_the_readme_distils():
    """It runs as it stands; its class means are the teacher's logits averaged over each class (numpy)."""
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", read("README.md"), re.S) if "IKD(" in block
    ]
    torch.manual_seed(0)
    teacher, student = torch.nn.Linear(6, 100), torch.nn.Linear(6, 100)
    loader = [(torch.randn(100, 6), torch.randperm(100)) for _ in range(3)]
    asked: list[float] = []

    def your_loss(logits, teacher_logits, target):
        asked.append(torch.nn.functional.cross_entropy(logits, target).item())
        return 0.0 * logits.sum()  # what is learnt comes from the term alone

    names = {
        "device": torch.device("cpu"), "teacher": teacher, "student": student, "loader": loader,
        "your_loss": your_loss,
        "optimizer": torch.optim.SGD(student.parameters(), lr=0.1), "epochs": 3,
    }  # fmt: skip
    exec(code, names)
    images, target = (torch.cat(part) for part in zip(*loader, strict=True))
    answers = teacher(images).detach().double().numpy()
    means = np.stack([answers[target.numpy() == name].mean(0) for name in range(100)])
    np.testing.assert_allclose(names["ikd"].means.numpy(), means, rtol=1e-5, atol=1e-6)

    def distance():
        logits = torch.log_softmax(student(images), 1).detach().double().numpy()
        wanted = np.exp(means - means.max(1, keepdims=True))
        wanted = (wanted / wanted.sum(1, keepdims=True))[target.numpy()]
        return (wanted * (np.log(wanted) - logits)).sum(1).mean()

    after = distance()
    torch.manual_seed(0)
    torch.nn.Linear(6, 100), student.reset_parameters()
    assert after < distance() and len(asked) == 9
