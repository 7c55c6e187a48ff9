"""The README as a package index shows it, where no path of the repository exists."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*")
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:)([^)#]*)[^)]*\)")


def name(link: re.Match) -> str:
    """Return the text of a link, and the path that it led to."""
    text, path = link.groups()
    return text if path.endswith(text) else f"{text} ({path})"


class Readme(MetadataHookInterface):
    """Names files in the place of links to them, and leaves pictures out."""

    def update(self, metadata: dict) -> None:
        """Set the description of the package."""
        text = (Path(self.root) / "README.md").read_text("utf-8")
        text = LINK.sub(name, PICTURE.sub("", text))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
