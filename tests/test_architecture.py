"""The layering rule: arrows point down only.

The rule is data, the tables below. The imports are read with ``ast``, so nothing is
executed, and an import behind ``if TYPE_CHECKING`` counts like any other.
"""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "flatmin"

_GROUND = {"_utils", "linalg", "risk"}
_MIDDLE = _GROUND | {"_runs", "curvature", "noise", "measures"}
_UPPER = _MIDDLE | {"dynamics", "estimators", "analysis"}

# Folder of flatmin/ -> the folders that it may import, besides itself.
FLOORS = {
    "_utils": set(),
    "_runs": {"_utils"},
    "datasets": {"_utils"},
    "modules": {"_utils"},
    "linalg": {"_utils"},
    "risk": {"_utils"},
    "curvature": _GROUND,
    "noise": _GROUND | {"_runs", "curvature"},
    "measures": _GROUND | {"curvature"},
    "dynamics": _MIDDLE,
    "estimators": _MIDDLE | {"dynamics", "modules"},
    "analysis": _MIDDLE | {"dynamics"},
    "comparison": _UPPER,
    "plotting": _UPPER | {"comparison"},
    "integrations": _UPPER,
}

# The rooms of risk/, a folder or a file each, from the ground up: one may import those
# before it and itself.
ROOMS = (
    "arguments",
    "interface",
    "failures",
    "trials",
    "write_guard",
    "ranks",
    "autodiff",
    "network",
    "losses",
    "data",
    "example_sums",
    "label_noise",
    "rounding",
    "hidden",
    "module_state",
    "independence",
    "padding",
    "probe",
    "products",
    "chains",
    "quantities",
    "analytic",
    "identities",
    "audit",
    "empirical",
)

# What lives in some floors alone: differentiation in risk/, skorch where the iteration
# and the estimators are, drawing in plotting/. It holds for imports and for attributes,
# since `torch.autograd.grad` needs no import but `import torch`.
HOMES = {
    "functorch": {"risk"},
    "torch._functorch": {"risk"},
    "torch.autograd": {"risk"},
    "torch.func": {"risk"},
    "torch.distributed": {"linalg", "risk"},
    "torch.fx": {"risk"},
    "dask": {"comparison"},
    "distributed": {"comparison"},
    "lightning": {"integrations"},
    "skorch": {"dynamics", "estimators", "integrations"},
    "transformers": {"integrations"},
    "matplotlib": {"plotting"},
    "seaborn": {"plotting"},
}

# Floors that use these and the standard library, and nothing else from outside.
THIRD_PARTY = {"linalg": {"numpy", "scipy", "sklearn.exceptions", "torch"}}

# The only imports allowed inside a function. A floor loads when a public name of it is
# asked for, by `__getattr__` in flatmin/__init__.py; tests/test_package.py knows what
# must not come with it.
LAZY = {
    "comparison": {"dask", "distributed"},
    "linalg": {"scipy.sparse.linalg", "sklearn.exceptions"},
    "plotting": {"matplotlib", "seaborn"},
}


class Import(NamedTuple):
    """One imported name and what the file calls it."""

    line: int
    name: str  # absolute: "torch.func.vmap", "flatmin.risk.network.layout"
    local: str  # the variable that the import makes
    bound: str  # the absolute name of what that variable holds
    in_function: bool


def _imports(tree, package):
    """Yield every import of a file that lies in package, a tuple of names."""

    def visit(node, in_function):
        if isinstance(node, ast.Import):
            for alias in node.names:
                # `import a.b` makes the variable a, `import a.b as c` the variable c.
                bound = alias.name if alias.asname else alias.name.partition(".")[0]
                local = alias.asname or bound
                yield Import(node.lineno, alias.name, local, bound, in_function)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                name, local = f"{module}.{alias.name}", alias.asname or alias.name
                yield Import(node.lineno, name, local, name, in_function)
        in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, in_function)

    yield from visit(tree, in_function=False)


def _attributes(tree, variables):
    """Yield line and absolute name of every attribute of an imported variable."""
    for node in ast.walk(tree):
        line, tail = getattr(node, "lineno", 0), ()
        while isinstance(node, ast.Attribute):
            node, tail = node.value, (node.attr, *tail)
        if tail and isinstance(node, ast.Name) and node.id in variables:
            yield line, ".".join([variables[node.id], *tail])


def _covering(name, prefixes):
    """Return those of prefixes that the dotted name equals or lies under."""
    return [p for p in prefixes if name == p or name.startswith(f"{p}.")]


def _faults(floor, entry):
    """Yield what is wrong with one import in a file of floor (None: __init__.py)."""
    top, target = (*entry.name.split("."), "")[:2]
    if top == "flatmin":
        if floor is not None and target not in {floor, *FLOORS[floor]}:
            yield f"{floor} may not import {target if target in FLOORS else entry.name}"
    elif floor in THIRD_PARTY:
        allowed = sys.stdlib_module_names | THIRD_PARTY[floor]
        if not _covering(entry.name, allowed):
            yield f"{floor} may not import {entry.name}"
    if entry.in_function and not _covering(entry.name, LAZY.get(floor, ())):
        yield f"{entry.name} is imported inside a function"


def violations(package):
    """Return every breach of the rule in the folder package, as ``file:line: what``."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).parts
        where = "/".join(parts)
        floor = parts[1] if len(parts) > 2 else None
        if floor not in FLOORS and parts[1:] != ("__init__.py",):
            found.append(f"{where}:1: belongs to no floor")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        imports = list(_imports(tree, parts[:-1]))
        faults = {(i.line, fault) for i in imports for fault in _faults(floor, i)}
        used = [(i.line, i.name) for i in imports]
        used += _attributes(tree, {i.local: i.bound for i in imports})
        for line, name in used:
            for home in _covering(name, HOMES):
                if floor not in HOMES[home]:
                    allowed = " and ".join(sorted(HOMES[home]))
                    faults.add((line, f"{home} is for {allowed} alone"))
        found += [f"{where}:{line}: {fault}" for line, fault in sorted(faults)]
    return found


def test_flatmin_keeps_the_rule():
    assert list(PACKAGE.rglob("*.py")), f"no source under {PACKAGE}"
    found = violations(PACKAGE)
    assert not found, "\n".join(["", *found])


def test_no_floor_lies_above_itself():
    assert set(TopologicalSorter(FLOORS).static_order()) == set(FLOORS)


def room_violations(folder):
    """Return every arrow that runs up between rooms, as ``file:line: what``."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent.parent).parts
        room = parts[2].removesuffix(".py")
        if room == "__init__":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        for entry in _imports(tree, parts[:-1]):
            package, floor, target = (*entry.name.split("."), "", "")[:3]
            if (package, floor) != ("flatmin", "risk"):
                continue
            if target not in ROOMS[: ROOMS.index(room) + 1]:
                where = "/".join(parts)
                found.append(f"{where}:{entry.line}: {room} may not import {target}")
    return found


def test_the_rooms_of_risk_keep_their_order():
    assert {path.stem for path in (PACKAGE / "risk").iterdir()} >= set(ROOMS)
    found = room_violations(PACKAGE / "risk")
    assert not found, "\n".join(["", *found])


def test_an_arrow_up_between_rooms_is_found(write):
    package = write("risk/losses/a.py", "from flatmin.risk.products.graphs import x")
    (found,) = room_violations(package / "risk")
    assert found == "flatmin/risk/losses/a.py:1: losses may not import products"


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a file into a small package named flatmin."""

    def write_file(path, source):
        file = tmp_path / "flatmin" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
        return file.parents[len(Path(path).parts) - 1]

    return write_file


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        # Upwards, in every spelling of an import.
        (
            "linalg/a.py",
            "import flatmin.risk.network.layout",
            "linalg may not import risk",
        ),
        ("risk/a.py", "from flatmin.linalg import eigsh", "risk may not import linalg"),
        ("risk/a.py", "from flatmin import noise", "risk may not import noise"),
        ("risk/a.py", "from flatmin import _runs", "risk may not import _runs"),
        ("noise/a.py", "from ..measures import x", "noise may not import measures"),
        ("measures/a.py", "from .. import noise", "measures may not import noise"),
        ("noise/b/a.py", "from ...dynamics import x", "noise may not import dynamics"),
        ("modules/__init__.py", "from ..risk import x", "modules may not import risk"),
        ("estimators/a.py", "import flatmin.analysis", "may not import analysis"),
        ("analysis/a.py", "import flatmin.estimators", "may not import estimators"),
        ("comparison/a.py", "import flatmin.plotting", "may not import plotting"),
        (
            "curvature/a.py",
            "import typing\nif typing.TYPE_CHECKING:\n    from flatmin.noise import x",
            "a.py:3: curvature may not import noise",
        ),
        # The top of the package, which pulls in every floor.
        ("risk/a.py", "import flatmin", "risk may not import flatmin"),
        ("risk/a.py", "from flatmin import clone", "may not import flatmin.clone"),
        # Things that have a home.
        ("noise/a.py", "from torch.func import vmap", "torch.func is for risk alone"),
        ("noise/a.py", "from torch import autograd", "torch.autograd is for risk"),
        (
            "noise/a.py",
            "import torch\ndef f(x):\n    return torch.autograd.grad(x, x)",
            "a.py:3: torch.autograd is for risk alone",
        ),
        (
            "noise/a.py",
            "import torch.nn, torch as t\nt.fx.Graph",
            "a.py:2: torch.fx is",
        ),
        ("analysis/a.py", "import skorch", "skorch is for dynamics and estimators"),
        ("measures/a.py", "import matplotlib.pyplot as plt", "for plotting alone"),
        # Outside libraries of linalg.
        ("linalg/a.py", "import pandas as pd", "linalg may not import pandas"),
        ("linalg/a.py", "from sklearn import base", "may not import sklearn.base"),
        # Hidden in a function.
        ("risk/a.py", "def f():\n    import math", "math is imported inside a func"),
        (
            "plotting/a.py",
            "class A:\n    def f(self):\n        from flatmin import risk",
            "flatmin.risk is imported inside a function",
        ),
        # Files outside the house.
        ("helpers/a.py", "", "helpers/a.py:1: belongs to no floor"),
        ("helpers.py", "", "helpers.py:1: belongs to no floor"),
    ],
)
def test_a_breach_is_found(write, path, source, fault):
    (found,) = violations(write(path, source))
    assert found.startswith(f"flatmin/{path}:")
    assert fault in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("__init__.py", "from flatmin.estimators import NoisyDiffusionClassifier"),
        ("linalg/a.py", "import math\nfrom sklearn.exceptions import NotFittedError"),
        ("linalg/a.py", "import torch\ntorch.linalg.eigh\ntorch.no_grad"),
        ("risk/a.py", "import torch\nfrom torch.func import vmap\ntorch.autograd.grad"),
        (
            "risk/a.py",
            "from . import layout\nfrom .chunks import x\nfrom .._utils import y",
        ),
        ("dynamics/a.py", "from skorch import NeuralNet\nfrom flatmin.noise import x"),
        ("estimators/a.py", "from flatmin.modules import MLP"),
        ("plotting/a.py", "def plot():\n    import matplotlib.pyplot as plt"),
        ("linalg/a.py", "def f():\n    import scipy.sparse.linalg"),
        ("noise/a.py", "def f(skorch, torch):\n    return skorch.net, torch.fx"),
    ],
)
def test_what_the_rule_allows(write, path, source):
    assert violations(write(path, source)) == []
