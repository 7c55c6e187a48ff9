"""Pages that are made from the code in each build, so that they cannot go stale."""

import ast
import inspect
import re
from pathlib import Path

import stored_tables

DOCS = Path(__file__).parents[1]
OUT = DOCS / "_generated"
PACKAGE = DOCS.parent / "flatmin"
OBJECTS = (
    *("NoisyDiffusionClassifier", "NoisyDiffusionRegressor", "CurvatureAnalyzer"),
    *("NoiseCovarianceAnalyzer", "SharpnessScorer", "FlatnessMonitor", "EmpiricalRisk"),
)
_STORED = (
    stored_tables.peers,
    stored_tables.scaling,
    stored_tables.iterations,
    stored_tables.large_decoder,
    stored_tables.kinds,
)
_ARROW = {
    "arrowstyle": "->",
    "color": "0.65",
    "shrinkA": 16,
    "shrinkB": 16,
    "connectionstyle": "arc3,rad=0.08",
}
# From the ground up, as the floors lie.
FLOORS = (
    ("_utils",),
    ("linalg", "risk", "_runs"),
    ("curvature",),
    ("noise", "measures", "datasets", "modules"),
    ("dynamics",),
    ("estimators", "analysis"),
    ("comparison", "integrations"),
    ("plotting",),
)


def defaults() -> str:
    """Return a table of all parameters of the main classes, and of all laws."""
    import flatmin

    tables = [(name, getattr(flatmin, name)) for name in OBJECTS]
    tables += [(f'"{name}"', law) for name, law in flatmin.METHODS.items()]
    lines = []
    for title, cls in tables:
        rows = [
            f"| `{name}` | `{parameter.default!r}` |"
            for name, parameter in inspect.signature(cls).parameters.items()
            if parameter.default is not parameter.empty
        ]
        if rows:
            lines += [f"## {title}", "", "| parameter | default |", "|---|---|", *rows]
            lines.append("")
    return "\n".join(lines)


def glossary() -> str:
    """Return the glossary of CONTRIBUTING.md."""
    text = (DOCS.parent / "CONTRIBUTING.md").read_text("utf-8")
    return re.search(r"## Glossary\n(.*?)\n## ", text, re.S).group(1).strip()


def chunk() -> str:
    """Return what the package of per-example sums says of a chunk's way."""
    text = (PACKAGE / "risk" / "example_sums" / "__init__.py").read_text("utf-8")
    steps = inspect.cleandoc(ast.get_docstring(ast.parse(text)))
    return steps.split("\n", 1)[1].strip().replace("``", "`")


def arrows() -> set[tuple[str, str]]:
    """Return which floor imports from which."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        floor = path.relative_to(PACKAGE).parts[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                parts = node.module.split(".")
                if parts[0] == "flatmin" and len(parts) > 1 and parts[1] != floor:
                    found.add((floor, parts[1]))
    return found


def draw_floors(path: Path) -> None:
    """Draw the floors, and an arrow for each import that is not of the ground."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    places = {
        name: ((i + 0.5) / len(row), height)
        for height, row in enumerate(FLOORS)
        for i, name in enumerate(row)
    }
    figure, axes = plt.subplots(figsize=(9, 7))
    for above, below in sorted(arrows()):
        if above in places and below in places and below != "_utils":
            axes.annotate("", places[below], places[above], arrowprops=_ARROW)
    for name, place in places.items():
        box = {"boxstyle": "round,pad=0.5", "fc": "#e8f0fa", "ec": "#4a6fa5"}
        axes.text(*place, name, ha="center", va="center", fontsize=11, bbox=box)
    axes.set(xlim=(0, 1), ylim=(-0.5, len(FLOORS) - 0.5))
    axes.axis("off")
    figure.savefig(path, bbox_inches="tight", transparent=False)
    plt.close(figure)


def write(app) -> None:
    OUT.mkdir(exist_ok=True)
    pages = (defaults, glossary, chunk, *_STORED)
    for make in pages:
        (OUT / f"{make.__name__}.md").write_text(make() + "\n", "utf-8")
    draw_floors(OUT / "floors.svg")


def setup(app):
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
