"""Check that every internal link and anchor of the built site resolves.

``python docs/check_links.py docs/site`` prints those that do not, and fails.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, and what can be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        self.links += [found[key] for key in ("href", "src") if found.get(key)]


def dead(site: Path) -> list[str]:
    """Return the links that lead nowhere, with the page that they are on."""
    site = site.resolve()
    pages = {
        path: Page(path)
        for path in site.rglob("*.html")
        if site / "_static" not in path.parents  # the theme's own templates
    }
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve()
            target = target if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchors = {"", *(pages[target].anchors if target in pages else ())}
            if not target.exists() or (
                target in pages and unquote(parts.fragment) not in anchors
            ):
                found.append(f"{path.relative_to(site)}: {link}")
    return found


if __name__ == "__main__":
    lines = dead(Path(sys.argv[1]))
    print(*lines, f"{len(lines)} dead links", sep="\n")
    sys.exit(bool(lines))
