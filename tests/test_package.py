"""The package as users get it: the wheel, its version and its public names."""

import importlib
import importlib.metadata
import inspect
import pkgutil
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
