"""A page of a run as its reader has it: tags, text and the rows of a table."""

from __future__ import annotations

import shutil
from html.parser import HTMLParser

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Page(HTMLParser):
    """Tags with their attributes, and the text of each cell of the table of that id."""

    def __init__(self, html: str, table: str = "standings") -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text, self._table, self._inside = "", table, False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._inside = dict(attrs).get("id") == self._table
        if self._inside and tag == "tr":
            self.rows.append([])
        if self._inside and tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "table"

    def handle_data(self, data):
        self.text += data
        if self._inside and self.rows and self.rows[-1]:
            self.rows[-1][-1] += " " + data

    def count(self, tag):
        return sum(1 for name, _ in self.tags if name == tag)


def words(rows):
    return [[" ".join(cell.split()) for cell in row] for row in rows]
