"""The page in a real browser: everything is there, nothing is asked for, and it fits a telephone."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("nbconvert")

import browser
import sample_notebook

from ikdlib.reporting.page import write_page
from ikdlib.reporting.report import write as write_report

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(browser.EXECUTABLE is None, reason="no chromium here (Debian: apt install chromium)"),
]

RESULTS = Path(__file__).parents[2] / "results"
WIDTHS = (1280, 400)
TEXT_WIDTH = """
    document.body.innerHTML = "<span>text</span>";
    document.body.firstChild.getBoundingClientRect().width"""
FACTS = """({
    tables: document.querySelectorAll("table").length,
    rows: [...document.querySelectorAll("table")].map(table => table.getBoundingClientRect().height),
    pictures: [...document.images].map(image => [image.naturalWidth, image.naturalHeight]),
    width: document.documentElement.scrollWidth,
    hidden: [...document.querySelectorAll(".scroll")].map(box => box.scrollWidth - box.clientWidth),
    paper: getComputedStyle(document.body).backgroundColor,
    behind: getComputedStyle(document.images[0]).backgroundColor,
    beside: document.querySelector("nav").getBoundingClientRect().right
        < document.querySelector("main").getBoundingClientRect().left,
})"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return write_page(sample_notebook.write(folder / "executed.ipynb"), folder / "report.html", "Report")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of the runs that this repository keeps."""
    results = tmp_path_factory.mktemp("project") / "results"
    shutil.copytree(RESULTS / "short" / "runs", results / "short" / "runs")
    return write_report(results)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser.Browser(tmp_path_factory.mktemp("profile")) as opened:
        # Debian's package comes without fonts, and text without width fits everywhere.
        if not opened.evaluate(TEXT_WIDTH):
            pytest.skip("no font here (Debian: apt install fonts-dejavu-core)")
        yield opened


@pytest.fixture
def control(page):
    """The page with three things that it must not have, as whoever edits it might add them."""
    asks = (
        '<img src="https://picture.invalid/x.png"><script src="http://script.invalid/x.js"></script>'
        '<img src="beside.png"><p style="width: 700px">wide</p>'
    )
    path = page.with_name("control.html")
    path.write_text(page.read_text().replace("</main>", f"{asks}</main>"))
    return path


def asked_for(chromium) -> list[str]:
    """What the page asked for beyond itself and what it carries."""
    own, *others = chromium.requests
    assert own.startswith("file:///") and own.endswith(".html")
    return [url for url in others if not url.startswith("data:")]


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_and_pictures_are_there_and_nothing_is_asked_for(chromium, page, width):
    chromium.open(page, width, policy=False)  # the policy would hide what is asked for
    facts = chromium.evaluate(FACTS)
    assert facts["tables"] == sample_notebook.TABLES and min(facts["rows"]) > 20
    assert facts["pictures"] == [[400, 250], [900, 300]]
    assert asked_for(chromium) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_has_its_tables_and_pictures_and_fits(chromium, report, width):
    """Tables: overview, methods, behaviour, teachers, card, at least. Pictures: headline and dots."""
    chromium.open(report, width, policy=False)
    facts = chromium.evaluate(FACTS)
    assert facts["tables"] >= 5 and min(facts["rows"]) > 20 and facts["width"] <= width
    assert len(facts["pictures"]) >= 2 and min(min(size) for size in facts["pictures"]) > 100
    assert asked_for(chromium) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_does_not_scroll_sideways_but_the_wide_table_does(chromium, page, width):
    chromium.open(page, width)
    facts = chromium.evaluate(FACTS)
    assert facts["width"] <= width
    assert max(facts["hidden"]) > 0, "the sample's table is meant to be too wide"
    assert facts["beside"] == (width == 1280), "contents: beside the text where there is room, else above it"


@pytest.mark.parametrize("scheme, dark", [("light", False), ("dark", True)])
def test_pictures_stay_on_white_in_both_schemes(chromium, page, scheme, dark):
    chromium.open(page, 1280, scheme)
    facts = chromium.evaluate(FACTS)
    assert facts["behind"] == "rgb(255, 255, 255)"
    assert (facts["paper"] != "rgb(255, 255, 255)") == dark


def test_the_checks_can_fail(chromium, control):
    chromium.open(control, 400, policy=False)
    facts = chromium.evaluate(FACTS)
    names = sorted(url.rpartition("/")[2] for url in asked_for(chromium))
    assert names == ["beside.png", "x.js", "x.png"]
    assert facts["pictures"][2:] == [[0, 0], [0, 0]]
    assert facts["width"] > 400


def test_the_policy_keeps_the_browser_from_asking(chromium, control, tmp_path):
    chromium.open(control, 400)
    assert chromium.evaluate("document.images[2].naturalWidth") == 0
    assert asked_by_network_log(control, tmp_path / "with-policy") == []


def asked_by_network_log(page, folder) -> list[str]:
    """URLs that the browser's network itself was asked for by a file, from its own log."""
    folder.mkdir()
    command = [
        browser.EXECUTABLE, *browser.OPTIONS, "--no-sandbox", f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={folder / 'log.json'}", "--dump-dom", page.resolve().as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=browser.SECONDS)
    assert "</html>" in done.stdout, done.stderr
    log = json.loads((folder / "log.json").read_text())
    start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    jobs = [event["params"] for event in log["events"] if event["type"] == start and "params" in event]
    # Chromium has business of its own, which no page began.
    return sorted({job["url"] for job in jobs if "file:" in job.get("network_isolation_key", "")})


def test_the_network_log_agrees(page, control, tmp_path):
    assert asked_by_network_log(page, tmp_path / "page") == []
    bare = control.with_name("bare.html")
    text = control.read_text()
    head, _, rest = text.partition('<meta http-equiv="Content-Security-Policy"')
    bare.write_text(head + rest.partition(">")[2])
    assert asked_by_network_log(bare, tmp_path / "bare") == [
        "http://script.invalid/x.js", "https://picture.invalid/x.png",
    ]  # fmt: skip
