"""The package as users get it: the wheel, its version and its public names."""

import ast
import importlib
import importlib.metadata
import inspect
import pkgutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

import flatmin

ROOT = Path(__file__).parents[1]

SUBPACKAGES = sorted(
    f"flatmin.{module.name}"
    for module in pkgutil.iter_modules(flatmin.__path__)
    if module.ispkg and not module.name.startswith("_")
)


def test_wheel_holds_flatmin_alone(tmp_path):
    builder = WheelBuilder(str(ROOT))
    (wheel,) = builder.build(directory=str(tmp_path), versions=["standard"])
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"flatmin", f"flatmin-{flatmin.__version__}.dist-info"}
    assert "flatmin/py.typed" in names
    source = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("flatmin/**/*.py")}
    assert source == {name for name in names if name.endswith(".py")}


def test_version_is_that_of_the_installed_distribution():
    assert flatmin.__version__ == importlib.metadata.version("flatmin")


@pytest.mark.parametrize("name", ["flatmin", *SUBPACKAGES])
def test_public_names_exist_and_have_docstrings(name):
    module = importlib.import_module(name)
    assert module.__doc__
    members = {public: getattr(module, public) for public in module.__all__}
    bare = [
        public
        for public, member in members.items()
        if inspect.isroutine(member) or inspect.isclass(member)
        if not member.__doc__
    ]
    assert bare == []


def _run(code):
    """Run code in a process of its own, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


HEAVY = {"matplotlib", "pandas", "scipy", "seaborn", "skorch", "sklearn", "torch"}


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import flatmin", []),
        ("from flatmin import EmpiricalRisk", ["torch"]),
        ("from flatmin.curvature import hessian_eigenpairs", ["torch"]),
    ],
)
def test_what_is_loaded_before_it_is_used(statement, loaded):
    code = f"import sys\n{statement}\nprint(*({HEAVY} & sys.modules.keys()))"
    assert set(_run(code)) <= set(loaded)


def test_type_checkers_see_what_getattr_gives():
    source = (ROOT / "flatmin" / "__init__.py").read_text(encoding="utf-8")
    (block,) = (node for node in ast.parse(source).body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    homes = {name: f"flatmin.{home}" for name, home in flatmin._HOMES.items()}
    assert seen == homes | dict.fromkeys(flatmin._FLOORS, "flatmin")
    assert set(flatmin.__all__) == set(homes)
    assert set(flatmin._FLOORS) <= {name.partition(".")[2] for name in SUBPACKAGES}
    assert {*homes, *flatmin._FLOORS} <= set(dir(flatmin))
    for name in (*homes, *flatmin._FLOORS):
        assert getattr(flatmin, name) is flatmin.__getattr__(name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        flatmin.nonsense  # noqa: B018


def test_a_density_loads_what_draws_it():
    code = """if True:
        import sys, torch
        from flatmin.analysis import SpectralDensity
        from flatmin.linalg import DiagonalOperator, spectral_density
        density = spectral_density(DiagonalOperator(torch.arange(1.0, 4.0)))
        before = "flatmin.plotting" in sys.modules
        import matplotlib; matplotlib.use("agg")
        print(before, type(SpectralDensity.wrap("H", density).plot()).__name__)
    """
    assert _run(code) == ["False", "SpectrumDisplay"]
