"""The page: what is on it, what is not, and that it needs nothing else."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

pytest.importorskip("nbconvert")

import sample_notebook
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from ikdlib.errors import IkdError
from ikdlib.reporting import standalone
from ikdlib.reporting.page import plain, write_page


def page_of(tmp_path: Path, *more, title: str = "IKD & more") -> BeautifulSoup:
    executed = sample_notebook.write(tmp_path / "executed.ipynb", *more)
    return BeautifulSoup(write_page(executed, tmp_path / "report.html", title).read_text(), "html.parser")


def html_output(text: str):
    return new_code_cell("0", outputs=[new_output("display_data", data={"text/html": text})])


def soup(text: str) -> BeautifulSoup:
    return BeautifulSoup(text, "html.parser")


def test_it_has_what_the_notebook_shows(tmp_path):
    page = page_of(tmp_path)
    assert page.html["lang"] == "en" and page.title.string == "IKD & more"
    assert "width=device-width" in page.find("meta", attrs={"name": "viewport"})["content"]
    assert [tag.get_text() for tag in page.find_all("h1")] == ["The report"]
    assert len(page.find_all("table")) == sample_notebook.TABLES
    assert len(page.find_all("img")) == sample_notebook.PICTURES
    assert [tag.get_text() for tag in page.find_all("pre")] == ["red at weights.bin", "done & <well>", "42"]
    assert page.find("p", string="A caption.")


def test_it_has_nothing_else(tmp_path):
    page = page_of(tmp_path)
    text = re.sub(r"base64,[^\"]*", "", (tmp_path / "report.html").read_text())
    notebook = (tmp_path / "executed.ipynb").read_text()
    for words in sample_notebook.HIDDEN:
        assert words not in text, words
        assert words.replace("\x1b", "\\u001b") in notebook, "the notebook does not try it"
    assert str(tmp_path) not in text
    assert not page.find_all(["script", "iframe", "object"])
    assert [link["href"] for link in page.find_all("link")] == ["data:,"]


def test_links_stay_relative(tmp_path):
    links = [tag["href"] for tag in page_of(tmp_path).main.find_all("a")]
    assert links[:2] == ["../README.md", "#The-table"]
    assert links[2:] == ["short/runs/resnet56-resnet20-dkd+ikd-seed1-a792957ac2"] * 2


def test_contents_lead_to_the_headings(tmp_path):
    page = page_of(tmp_path)
    links = [tag["href"] for tag in page.nav.find_all("a")]
    assert links == ["#The-table", "#Twice", "#Twice-2", "#Pictures"]
    for link in links:
        assert page.find(id=link[1:]).name in ("h2", "h3")
    assert len({tag["id"] for tag in page.find_all(id=True)}) == len(page.find_all(id=True))


def test_a_notebook_without_a_title_gets_one(tmp_path):
    executed = sample_notebook.write(tmp_path / "executed.ipynb")
    executed.write_text(executed.read_text().replace("# The report", "The report"))
    page = soup(write_page(executed, tmp_path / "report.html", "Its <title>").read_text())
    assert page.h1.get_text() == "Its <title>" and page.main.find(True) == page.h1


def test_the_same_notebook_gives_the_same_bytes(tmp_path):
    page_of(tmp_path)
    first = (tmp_path / "report.html").read_bytes()
    page_of(tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "report.html").read_bytes() == first
    page_of(tmp_path, title="Other")
    assert (tmp_path / "report.html").read_bytes() != first


def test_tables_lie_in_boxes_that_scroll(tmp_path):
    page = page_of(tmp_path)
    for table in page.find_all("table"):
        assert table.parent["class"] == ["scroll"] and table.parent["tabindex"] == "0"
        assert not table.has_attr("border") and not table.find_all(style=True)
    first = page.find("table")
    assert first.parent["aria-label"] == "Table: Twice"
    headers = [cell.get_text() for cell in first.thead.find_all("th")]
    assert headers[:3] == ["pair", "top-1", "run folder"], "the index of row numbers is left out"
    cells = first.tbody.tr.find_all("td")
    assert [cell.get("class") for cell in cells[:3]] == [None, ["number"], ["long"]]


@pytest.mark.parametrize(
    "index, shown", [(["0", "1"], False), (["1", "0"], True), (["0", "2"], True), (["kd", "ce"], True)]
)
def test_only_an_index_that_counts_rows_is_left_out(index, shown):
    rows = "".join(f"<tr><th>{name}</th><td>x</td></tr>" for name in index)
    document = soup(f"<table><tr><th></th><th>a</th></tr>{rows}</table>")
    standalone.lay_out_tables(document)
    assert len(document.find_all("tr")[1].find_all(True)) == 1 + shown


def test_long_names_of_files_break_where_they_have_parts():
    name = "notebooks/20_cifar100_same_architecture.ipynb, README.md"
    document = soup(f"<table><tr><th>where</th></tr><tr><td>{name}</td></tr></table>")
    standalone.lay_out_tables(document)
    assert document.td.get_text() == name
    assert "notebooks/<wbr/>20_<wbr/>cifar100_" in str(document.td)


def test_pictures_have_words_and_their_size(tmp_path):
    first, second = page_of(tmp_path).find_all("img")
    assert (first["alt"], first["width"], first["height"]) == ("Picture 1: Pictures", "400", "250")
    assert (second["alt"], second["width"], second["height"]) == ("Own words", "900", "300")
    for image in (first, second):
        content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
        assert content.startswith(b"\x89PNG")


def test_a_picture_beside_the_page_is_embedded(tmp_path):
    (tmp_path / "short").mkdir()
    (tmp_path / "short/x.png").write_bytes(base64.b64decode(sample_notebook.png(100, 100)))
    image = page_of(tmp_path, new_markdown_cell("## More\n\n![](short/x.png)")).find_all("img")[-1]
    assert image["src"].startswith("data:image/png;base64,") and image["width"] == "100"
    assert image["alt"] == "Picture 1: More"


@pytest.mark.parametrize(
    "place, words",
    [
        ("https://example.org/x.png", "cannot be embedded"),
        ("//example.org/x.png", "cannot be embedded"),
        ("file:///etc/x.png", "cannot be embedded"),
        ("report.html", "cannot be embedded"),
        ("gone.png", "no such file"),
    ],
)
def test_a_picture_that_cannot_be_embedded_is_refused(tmp_path, place, words):
    with pytest.raises(IkdError, match=words) as caught:
        page_of(tmp_path, html_output(f'<img src="{place}">'))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


HARMS = (
    '<script src="https://example.org/a.js"></script>',
    '<link rel="stylesheet" href="https://example.org/a.css">',
    '<style>@import url("https://example.org/a.css");</style>',
    '<iframe src="https://example.org"></iframe>',
    '<p style="background: url(https://example.org/a.png)">x</p>',
    '<p onclick="fetch(1)">x</p>',
    '<svg><image href="https://example.org/a.png"/></svg>',
    '<input type="image" src="https://example.org/a.png">',
    '<video poster="https://example.org/a.png"></video>',
    '<img src="data:image/gif;base64,AA" srcset="https://example.org/a.png 2x">',
    '<a href="javascript:fetch(1)">x</a>',
    "<!-- https://example.org -->",
)


@pytest.mark.parametrize("harm", HARMS)
def test_what_runs_or_loads_is_taken_out(harm):
    document = soup(f"<p>before</p>{harm}<p>after</p>")
    standalone.disarm(document)
    assert "before" in str(document) and "after" in str(document)
    assert not re.search("example.org|fetch|import", str(document))


def test_a_page_is_disarmed(tmp_path):
    text = str(page_of(tmp_path, html_output("".join(HARMS))).main)
    assert not re.search("example.org|fetch|import", text)


def test_a_link_to_elsewhere_stays_a_link(tmp_path):
    page = page_of(tmp_path, new_markdown_cell("[paper](https://example.org/paper)"))
    assert page.find("a", string="paper")["href"] == "https://example.org/paper"


@pytest.mark.parametrize(
    "text, clean",
    [
        ("/home/someone/project/a.txt", "a.txt"),
        ("in /home/someone/results/ it is", "in results it is"),
        ("'/usr/lib/python3.11/x.py'", "'x.py'"),
        ("file:///tmp/a/b.png", "b.png"),
        ("at:/srv/a/b", "at:b"),
        ("resnet56/resnet20 and/or ~/.cache/x ./a/b ../a/b/c", None),
        ("https://example.org/a/b 1/2/3 10 /s", None),
    ],
)
def test_absolute_paths_lose_all_but_the_last_name(text, clean):
    document = soup(f"<p>{text}</p>")
    standalone.hide_paths(document)
    assert document.get_text() == (text if clean is None else clean)


def test_a_link_to_an_absolute_path_too():
    document = soup('<a href="/home/someone/project/results/x.csv">x</a>')
    standalone.hide_paths(document)
    assert document.a["href"] == "x.csv"


@pytest.mark.parametrize(
    "text, shown",
    [
        ("\x1b[1;32mgreen\x1b[0m\x1b]8;;https://x.org\x1b\\ link\x1b]8;;\x07", "green link"),
        ("old\rnew\nkept\r\n", "new\nkept"),
        ("a\n 50%|##  | 1/2 [00:01<00:01, 1.2s/epoch]\nb", "a\nb"),
        ("50 % of [them] | others", "50 % of [them] | others"),
        ("bell\x07 and\x08 tab\there", "bell and tab\there"),
    ],
)
def test_plain_text_is_what_a_terminal_shows_in_the_end(text, shown):
    assert plain(text) == shown


def test_a_failed_notebook_is_refused_and_the_old_page_stays(tmp_path):
    page_of(tmp_path)
    before = (tmp_path / "report.html").read_bytes()
    error = new_output("error", ename="ValueError", evalue="no", traceback=["\x1b[31mValueError\x1b[0m"])
    with pytest.raises(IkdError, match=r"executed.ipynb: cell 12 failed \(ValueError\)"):
        page_of(tmp_path, new_code_cell("1 / 0", outputs=[error]))
    assert (tmp_path / "report.html").read_bytes() == before


@pytest.mark.parametrize("content", [None, "", "no JSON", "[]", "{}", '{"cells": 3, "nbformat": 4}'])
def test_what_is_no_notebook_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "executed.ipynb"
    if content is not None:
        path.write_text(content)
    with pytest.raises(IkdError, match="notebook") as caught:
        write_page(path, tmp_path / "report.html", "x")
    assert "\n" not in str(caught.value)
