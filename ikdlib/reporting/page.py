"""An executed notebook as one self-contained HTML page: text, tables and pictures, without code.

nbconvert turns the notebook into HTML with a template of our own, because its ready ones load require.js,
MathJax and mermaid from a network; then `standalone` sees to it that nothing in the page is fetched or run.
Formulas stay as they are written.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

from ikdlib import files
from ikdlib.errors import IkdError
from ikdlib.reporting import standalone

NO_REPORT = "no-report"
"""Tag of a cell that the page leaves out: its text, or what it put out."""

STYLE = Path(__file__).with_name("page.css")
SHOWN = ("text/html", "text/markdown", "image/png", "image/jpeg", "text/plain")  # the first one there is

# It has no block for the code of a cell, nor for standard error: so there is none on the page.
TEMPLATE = """
{%- extends 'base/display_priority.j2' -%}
{%- block markdowncell %}{{ cell.source | markdown2html }}{% endblock -%}
{%- block stream_stdout %}<pre>{{ output.text | e }}</pre>{% endblock -%}
{%- block execute_result %}{% block data_priority %}{{ super() }}{% endblock %}{% endblock -%}
{%- block data_html %}{{ output.data['text/html'] }}{% endblock -%}
{%- block data_markdown %}{{ output.data['text/markdown'] | markdown2html }}{% endblock -%}
{%- block data_text %}<pre>{{ output.data['text/plain'] | e }}</pre>{% endblock -%}
{%- macro picture(kind, output, cell) %}
{%- set own = output.metadata.get(kind, {}) %}
<figure><img src="data:{{ kind }};base64,{{ output.data[kind] | replace('\\n', '') }}"
 alt="{{ (own.get('alt') or cell.metadata.get('alt') or '') | e }}"
 {%- if own.get('width') and own.get('height') %}
 width="{{ own.width | e }}" height="{{ own.height | e }}"
 {%- endif %}></figure>
{% endmacro -%}
{%- block data_png %}{{ picture('image/png', output, cell) }}{% endblock -%}
{%- block data_jpg %}{{ picture('image/jpeg', output, cell) }}{% endblock -%}
"""

# The policy is for what slips through, or is added by hand later; with `icon`, browsers ask for none.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#text">To the text</a>
<div class="page">
{contents}
<main id="text">
{text}
</main>
</div>
</body>
</html>
"""


def write_page(executed: Path, page: Path, title: str) -> Path:
    """Write ``page``, one HTML file that needs nothing else, from an executed notebook; returns ``page``.

    Left out: code, standard error, progress bars, widgets, what a cell tagged `no-report` holds, metadata
    of the execution, and of absolute paths all but the last name. Links stay as they are, so they are read
    from the page's folder; so are pictures that a Markdown cell names, and these are embedded. The same
    notebook (and pictures) gives the same bytes.

    Args:
        executed: a notebook with its outputs, nbformat 4.
        title: plain text for the browser's tab, and the heading of a notebook without a first-level one.

    Raises:
        IkdError: no such notebook, a cell in it failed, or a picture is not on this machine.
    """
    from bs4 import BeautifulSoup
    from nbconvert import HTMLExporter

    notebook = _prepared(_read(executed), executed)
    exporter = HTMLExporter(raw_template=TEMPLATE, exclude_anchor_links=True, exclude_raw=True)
    body, _ = exporter.from_notebook_node(notebook)
    soup = BeautifulSoup(body, "html.parser")
    standalone.disarm(soup)
    standalone.hide_paths(soup)
    if soup.find("h1") is None:
        soup.insert(0, BeautifulSoup(f"<h1>{escape(title)}</h1>\n", "html.parser"))
    contents = standalone.contents(soup)
    standalone.lay_out_tables(soup)
    standalone.embed_pictures(soup, page.parent)
    text = PAGE.format(
        title=escape(title), style=STYLE.read_text(), contents=contents, text=str(soup).strip()
    )
    files.write_text(page, text)
    return page


def _read(executed: Path) -> Any:
    import nbformat

    try:
        return nbformat.read(executed, as_version=4)
    except FileNotFoundError:
        raise IkdError(f"{executed}: there is no such notebook; execute it first") from None
    except Exception as error:  # nbformat raises what it likes at a file that is no notebook
        reason = str(error).partition("\n")[0][:100]
        raise IkdError(f"{executed}: is no readable notebook ({reason}); execute it again") from None


def _prepared(notebook: Any, executed: Path) -> Any:
    """The notebook with no more than the cells and outputs that belong on the page."""
    cells = []
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                raise IkdError(f"{executed}: cell {number} failed ({output.ename}); execute it again")
        if NO_REPORT in cell.metadata.get("tags", []):
            continue
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _belongs(output)]
        cells.append(cell)
    notebook.cells = cells
    return notebook


def _belongs(output: Any) -> bool:
    """Whether an output has something to show; on the way it loses all forms but the one that is shown."""
    if output.output_type == "stream":
        output.text = plain(output.text)
        return output.name == "stdout" and bool(output.text)
    if any("widget" in kind for kind in output.data):
        return False  # a progress bar, and its plain text is one too
    kind = next((kind for kind in SHOWN if output.data.get(kind)), None)
    if kind is None:
        return False
    content = output.data[kind]
    output.data = {kind: plain(content) if kind == "text/plain" else content}
    return bool(output.data[kind])


_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-Z\\^-~])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_BAR = re.compile(r"\d+%\|.*\|.*\[.*\]")  # as tqdm draws it


def plain(text: str) -> str:
    """What a terminal would show in the end: no colours, no overwritten lines, no progress bars."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in _ESCAPES.sub("", text).split("\n")]
    return "\n".join(_CONTROL.sub("", line).rstrip() for line in lines if not _BAR.search(line)).strip("\n")
