"""What is stored of the long examples, which are not run in the build."""

import re
import shutil
from os.path import relpath
from pathlib import Path

from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1]
EXAMPLES = DOCS.parent / "examples"
GALLERY = DOCS / "gallery"
RESULTS = DOCS.parent / "benchmarks" / "results"
# Pictures that lie elsewhere than in a folder or a file of the script's name.
ELSEWHERE = {
    "plot_comparison_on_fashion_mnist": "fashion_mnist/figure5.png",
    "plot_langevin_samples": "langevin/langevin.png",
    "plot_monitor_a_training": "monitor/edge_of_stability.png",
    "plot_quickstart": "../../docs/images/quickstart.png",
}


def pictures(script: Path) -> list[Path]:
    """Return what ``--full`` has drawn, as far as it is stored."""
    name = script.stem.removeprefix("plot_")
    found = sorted(RESULTS.glob(f"{script.parent.name}/{name}*.png"))
    found += sorted(RESULTS.glob(f"{name}/*.png"))
    if script.stem in ELSEWHERE:
        found.append(RESULTS / ELSEWHERE[script.stem])
    return found


def is_run(app, script: Path) -> bool:
    """Tell whether the build runs a script, and so draws its pictures anew."""
    pattern = app.config.sphinx_gallery_conf["filename_pattern"]
    return re.search(pattern, str(script)) is not None


def copy(app) -> None:
    """Put a first picture where sphinx-gallery looks for what makes a thumbnail."""
    for script in EXAMPLES.rglob("plot_*.py"):
        if is_run(app, script):
            continue
        images = GALLERY / script.parent.relative_to(EXAMPLES) / "images"
        images.mkdir(parents=True, exist_ok=True)
        thumbnail = images / f"sphx_glr_{script.stem}_001.png"
        if found := pictures(script):
            shutil.copy(found[0], thumbnail)
        else:
            draw_text(printed(script), thumbnail)


def printed(script: Path) -> str:
    """Return what a script without a picture has printed, below the lines on how."""
    stored = text_of(script)
    if not stored.exists():
        return "\n\n\n  not run\n  to its end yet"
    return stored.read_text().partition("\n\n")[2]


def text_of(script: Path) -> Path:
    """Return where what a script has printed lies, if it is stored."""
    return RESULTS / f"{script.stem.removeprefix('plot_')}.txt"


def draw_text(text: str, path: Path, width: int = 47) -> None:
    """Draw the upper left corner of a text, as large as it can be read small."""
    figure = Figure(figsize=(4, 2.8), dpi=100)
    corner = "\n".join(line[:width] for line in text.splitlines()[:15])
    figure.text(0.04, 0.94, corner, family="monospace", size=9, va="top")
    figure.savefig(path)


def show(app, docname: str, source: list[str]) -> None:
    """Show all that is stored of a script between its text and its code."""
    page = DOCS / docname
    if GALLERY not in page.parents or not page.name.startswith("plot_"):
        return
    script = EXAMPLES / page.relative_to(GALLERY).with_suffix(".py")
    if not is_run(app, script):
        shown = [
            f".. image:: {relpath(path, page.parent)}\n   :alt: {path.stem}\n\n"
            for path in pictures(script)
        ]
        stored = text_of(script)
        if stored.exists():
            path = relpath(stored, page.parent)
            shown.append(f".. literalinclude:: {path}\n   :language: text\n\n")
        text, code, rest = source[0].partition(".. GENERATED FROM PYTHON SOURCE")
        source[0] = "".join((text, *shown, code, rest))


def setup(app):
    app.connect("builder-inited", copy, priority=1)  # before sphinx-gallery
    app.connect("source-read", show)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
