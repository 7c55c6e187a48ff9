"""The package as users get it: the wheel, its version and its public names."""

import ast
import email
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import flatmin

ROOT = Path(__file__).parents[1]

SUBPACKAGES = sorted(
    f"flatmin.{module.name}"
    for module in pkgutil.iter_modules(flatmin.__path__)
    if module.ispkg and not module.name.startswith("_")
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    builder = WheelBuilder(str(ROOT))
    folder = str(tmp_path_factory.mktemp("wheel"))
    (path,) = builder.build(directory=folder, versions=["standard"])
    return zipfile.ZipFile(path)


def test_wheel_holds_flatmin_alone(wheel):
    names = wheel.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"flatmin", f"flatmin-{flatmin.__version__}.dist-info"}
    assert "flatmin/py.typed" in names
    source = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("flatmin/**/*.py")}
    assert source == {name for name in names if name.endswith(".py")}


def test_sdist_holds_docs_and_tests_and_nothing_that_was_built(tmp_path):
    builder = SdistBuilder(str(ROOT))
    (path,) = builder.build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders == {"docs", "examples", "flatmin", "tests"}
    files = {"README.md", "LICENSE", "SECURITY.md", "constraints-min.txt", "tox.ini"}
    assert {*files, "docs/conf.py", "tests/test_package.py", "hatch_build.py"} <= names
    pages = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/*/*.md")}
    assert {p for p in pages if not p.startswith("docs/_generated")} <= names
    built = ("docs/site", "docs/gallery", "docs/api/generated", "docs/_generated")
    assert not [name for name in names if name.startswith(built)]


def test_the_readme_of_an_index_leads_to_no_path(wheel):
    name = f"flatmin-{flatmin.__version__}.dist-info/METADATA"
    text = email.message_from_bytes(wheel.read(name)).get_payload()
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links
    assert all(link.startswith("https://") for link in links)
    assert "BatchNorm (docs/howto/batch_norm.md), which" in text
    readme = (ROOT / "README.md").read_text("utf-8")
    code = re.compile("```.*?```", re.DOTALL)
    assert code.findall(text) == code.findall(readme)


def test_the_oldest_versions_are_those_that_are_asked_for():
    def pins(text, sign):
        return dict(re.findall(rf"^\W*([a-z-]+){sign}([0-9.]+)", text, re.MULTILINE))

    bounds = pins((ROOT / "pyproject.toml").read_text("utf-8"), ">=")
    oldest = pins((ROOT / "constraints-min.txt").read_text("utf-8"), "==")
    others = {"torch", "hypothesis", "pyparsing"}
    assert {"numpy", "scikit-learn", "skorch"} < oldest.keys() - others
    for name in oldest.keys() - others:
        assert f"{oldest[name]}.0".startswith(f"{bounds[name]}."), name


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
