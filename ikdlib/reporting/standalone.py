"""What makes rendered HTML a page of its own: nothing to run, nothing to fetch, no path of this machine.

And what makes it pleasant to read: anchors and a list of contents, tables in boxes that scroll, pictures
with words and a size. Every function changes a BeautifulSoup document in place.
"""

from __future__ import annotations

import base64
import mimetypes
import re
import struct
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ikdlib.errors import IkdError

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
ACTIVE = (
    "script", "style", "link", "meta", "base", "iframe", "frame", "object", "embed", "applet",
    "form", "audio", "video", "source", "track", "noscript", "template",
)  # fmt: skip
FETCHING = ("src", "href", "xlink:href", "srcset", "data", "poster", "background", "action", "ping")
LOOKS = ("style", "border", "bgcolor", "target")
LONG = 32  # characters; a longer cell of a table may be wrapped
NO_WORDS = ("", "No description has been provided for this image")  # the second is nbconvert's


def disarm(soup: BeautifulSoup) -> None:
    """Take out all that runs, loads, or brings a look of its own; the alignment of cells stays."""
    from bs4 import Comment

    for comment in soup.find_all(string=lambda text: isinstance(text, Comment)):
        comment.extract()
    for tag in soup.find_all(ACTIVE):
        tag.decompose()
    for tag in soup.find_all(True):
        align = re.fullmatch(r"\s*text-align:\s*(left|right|center);?\s*", str(tag.get("style", "")))
        if align and tag.name in ("td", "th"):
            tag["class"] = [align[1]]
        for name in list(tag.attrs):
            if name.lower().startswith("on") or name in LOOKS or _fetches(tag, name):
                del tag[name]


def _fetches(tag: Tag, name: str) -> bool:
    """Whether an attribute makes a browser load or run something; links are followed only when clicked."""
    if name not in FETCHING or (tag.name, name) == ("img", "src"):
        return False
    value = str(tag[name]).strip().lower()
    if (tag.name, name) == ("a", "href"):
        return value.startswith(("javascript:", "vbscript:", "data:"))
    return not value.startswith("#")


# Two slashes at least, after a space, a bracket, a quote or the like: `and/or` and `resnet56/resnet20` stay.
_PATH = re.compile(
    r"(?:(?<=[\s\"'`(\[{<>=,;|:])|^)(?:file://)?/(?!/)(?:[\w.+@~-]+/)+([\w.+@~-]*)", re.MULTILINE
)


def hide_paths(soup: BeautifulSoup) -> None:
    """Leave of every absolute path its last name, in texts, links and titles."""

    def last_name(found: re.Match[str]) -> str:
        return found[1] or found[0].rstrip("/").rpartition("/")[2]

    for node in soup.find_all(string=True):
        changed = _PATH.sub(last_name, node)
        if changed != node:
            node.replace_with(changed)
    for tag in soup.find_all(True):
        for name in ("href", "title", "alt", "id", "name"):
            if name in tag.attrs:
                tag[name] = _PATH.sub(last_name, tag[name])


def contents(soup: BeautifulSoup) -> str:
    """Give each heading the anchor that JupyterLab gives it, a repeated one with a number.

    Returns the headings of the second and third level as a `nav` of links; an empty text if there is none.
    """
    taken = {"text"}
    for tag in soup.find_all(HEADINGS):
        wanted = anchor = re.sub(r"\s+", "-", tag.get_text().strip()) or "section"
        number = 1
        while anchor in taken:
            number += 1
            anchor = f"{wanted}-{number}"
        taken.add(anchor)
        tag["id"] = anchor
    items = [
        f'<li class="level{tag.name[1]}"><a href="#{escape(tag["id"])}">{escape(tag.get_text())}</a></li>'
        for tag in soup.find_all(("h2", "h3"))
    ]
    if not items:
        return ""
    lines = ['<nav aria-label="Contents">', "<p>Contents</p>", "<ul>", *items, "</ul>", "</nav>"]
    return "\n".join(lines)


def heading_above(tag: Tag) -> str:
    """The text of the heading that a tag stands below, or an empty one."""
    heading = tag.find_previous(HEADINGS)
    return heading.get_text().strip() if heading else ""


_NUMBER = re.compile(r"[-+\u2212\u00b1]?[\d.,]+(e[-+]?\d+)?\s?%?")


def lay_out_tables(soup: BeautifulSoup) -> None:
    """Put each table into a box that scrolls; numbers to the right; no index that only counts the rows."""
    for table in soup.find_all("table"):
        for name in ("class", "width"):
            del table[name]
        rows = [row.find_all(("th", "td"), recursive=False) for row in table.find_all("tr")]
        spans = table.find(("th", "td"), rowspan=True) or table.find(("th", "td"), colspan=True)
        if rows and not spans:
            _drop_counting_index(rows)
            for column in zip(*rows, strict=False):
                texts = [cell.get_text().strip() for cell in column if cell.name == "td"]
                filled = [text for text in texts if text not in ("", "NaN", "None")]
                if filled and all(_NUMBER.fullmatch(text) for text in filled):
                    for cell in column:
                        cell["class"] = ["number"]
        for cell in table.find_all(("th", "td")):
            if len(cell.get_text().strip()) > LONG:
                cell["class"] = [*cell.get("class", []), "long"]
                _let_break(cell, soup)
        # Whoever has no mouse scrolls with the arrow keys: so the box takes the focus, and has a name.
        label = ": ".join(filter(None, ("Table", heading_above(table))))
        box = {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": label}
        table.wrap(soup.new_tag("div", attrs=box))


def _let_break(cell: Tag, soup: BeautifulSoup) -> None:
    """Let long names of files break behind a slash or an underscore, and not anywhere."""
    for node in cell.find_all(string=re.compile(r"\S{20,}")):
        first, *parts = re.split(r"(?<=[/_])(?=\w)", node)
        if parts:
            pieces = [piece for part in parts for piece in (soup.new_tag("wbr"), part)]
            node.replace_with(first, *pieces)


def _drop_counting_index(rows: list[list[Tag]]) -> None:
    """Take out a nameless first column of headers 0, 1, 2, ...: pandas' default index."""
    if not all(row and row[0].name == "th" for row in rows):
        return
    first = [row[0].get_text().strip() for row in rows]
    if len(rows) > 1 and first == ["", *(str(number) for number in range(len(rows) - 1))]:
        for row in rows:
            row.pop(0).decompose()


def embed_pictures(soup: BeautifulSoup, folder: Path) -> None:
    """Put every picture into the page, with words and its size, so that the text does not jump.

    Args:
        folder: where the paths of pictures start.

    Raises:
        IkdError: a picture from elsewhere, or none.
    """
    counted: dict[str, int] = {}
    for image in soup.find_all("img"):
        source = image["src"] = _embedded(str(image.get("src", "")), folder)
        heading = heading_above(image)
        counted[heading] = counted.get(heading, 0) + 1
        if str(image.get("alt", "")).strip() in NO_WORDS:
            image["alt"] = f"Picture {counted[heading]}: {heading}" if heading else "Picture"
        if source.startswith("data:image/png;base64,") and "width" not in image.attrs:
            head = base64.b64decode(source.partition(",")[2][:64])
            if head.startswith(b"\x89PNG\r\n\x1a\n"):
                image["width"], image["height"] = map(str, struct.unpack(">II", head[16:24]))


def _embedded(source: str, folder: Path) -> str:
    if source.startswith("data:image/"):
        return source
    kind = mimetypes.guess_type(source)[0] or ""
    if re.match(r"[a-z][a-z0-9+.-]*:|/", source, re.IGNORECASE) or not kind.startswith("image/"):
        raise IkdError(f"picture {source[:80]!r}: cannot be embedded; give a file, relative to the page")
    path = folder / source
    if not path.is_file():
        raise IkdError(f"picture {source[:80]!r}: there is no such file in the page's folder")
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
