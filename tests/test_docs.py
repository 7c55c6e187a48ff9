"""The code on the pages of the site runs and prints what it says."""

import doctest
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if ">>>" in page.read_text("utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_page(page):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testfile(
        str(page), module_relative=False, optionflags=flags, encoding="utf-8"
    )
    assert result.attempted
    assert result.failed == 0


def test_there_are_pages():
    assert len(PAGES) > 10


def test_dead_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#there">1</a> <p id="up">2</p>')
    links = ("a.html#up", "#there", "a.html#down", "c.html", "https://example.org/c")
    text = "".join(f'<a href="{link}">link</a>' for link in links)
    (tmp_path / "b.html").write_text(f'{text}<p id="there">3</p>')
    found = runpy.run_path(str(DOCS / "check_links.py"))["dead"](tmp_path)
    assert found == ["b.html: a.html#down", "b.html: c.html"]
