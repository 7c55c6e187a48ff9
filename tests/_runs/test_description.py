"""An edit of the code that a run reaches is another run; nothing else is."""

import importlib.util
import random
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch
from torch import nn

from flatmin._runs.code import find_package, package_version
from flatmin._runs.fingerprint import check_identity, hashes

# What a user may write: everything that `measure` and `Net` reach stands in one line
# that an edit below changes.
HELPERS = """
from .deep import power

def halve(x):
    return x / 2

def in_steps(x):
    from . import late
    return late.shift(x)
"""
LATE = """
def shift(x):
    return x + 1
"""
DEEP = """
def power(x):
    return x ** 2
"""
MAIN = '''
import functools
import numpy
from dataclasses import dataclass
from torch import nn
import project.helpers as helpers
from project.helpers import in_steps

SCALE = 3.0
TABLE = {"a": [1, 2]}
UNUSED = 1

@dataclass
class Settings:
    depth: int = 2
    def offset(self):
        return self.depth + 1

SETTINGS = Settings()

def logged(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)
    return wrapper

def sign(x):
    return x

class Base(nn.Module):
    def finish(self, x):
        return x.sigmoid()

class Net(Base):
    width = 4
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
    @property
    def factor(self):
        return 1.5
    @staticmethod
    def squash(x):
        return x.tanh()
    def forward(self, x):
        return self.finish(self.squash(self.layer(x))) * self.factor

@logged
def scaled(x):
    return SCALE * helpers.halve(x)

def measure(risk, theta, power=2):
    """Count."""
    first = in_steps(scaled(theta))  # a comment
    inner = [sign(x) for x in first]
    return helpers.power(sum(inner)) + TABLE["a"][0] + SETTINGS.offset()

def unused():
    return 1
'''
FILES = {"main": MAIN, "helpers": HELPERS, "late": LATE, "deep": DEEP}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write a package, import it anew, and return it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(**edits):
        for name in ("project", *(f"project.{file}" for file in FILES)):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        (folder / "__init__.py").touch()
        for file, text in FILES.items():
            old, new = edits.get(file, ("", ""))
            assert old in text
            (folder / f"{file}.py").write_text(text.replace(old, new, 1))
        return importlib.import_module("project.main")

    yield load
    for name in ("project", *(f"project.{file}" for file in FILES)):
        sys.modules.pop(name, None)


def _identity(main):
    torch.manual_seed(0)
    return hashes({"metric": main.measure, "module": main.Net(), "class": main.Net})


EDITS = {
    "its own line": ("main", "first = in", "first = -in", "project.main.measure"),
    "its default": ("main", "power=2", "power=3", "project.main.measure"),
    "forward": ("main", "(self.squash", "(-self.squash", "project.main.Net.forward"),
    "a base class": ("main", "x.sigmoid()", "x.relu()", "project.main.Base"),
    "a static method": ("main", "x.tanh()", "x.relu()", "project.main.Net.squash"),
    "a property": ("main", "return 1.5", "return 1.25", "project.main.Net.factor"),
    "a class attribute": ("main", "width = 4", "width = 5", "project.main.Net"),
    "a global number": ("main", "SCALE = 3.0", "SCALE = 2.0", "project.main.SCALE"),
    "deep in a global": ("main", "[1, 2]", "[1, 3]", "project.main.TABLE"),
    "an object": ("main", "= Settings()", "= Settings(3)", "project.main.SETTINGS"),
    "its method": ("main", "self.depth + 1", "self.depth", "Settings.offset"),
    "a function": ("main", "return x\n", "return -x\n", "project.main.sign"),
    "what is wrapped": ("main", "SCALE *", "SCALE +", "project.main.scaled"),
    "the wrapper": (
        "main",
        "function(*args)",
        "-function(*args)",
        "project.main.scaled",
    ),
    "another file": ("helpers", "x / 2", "x / 3", "project.helpers.halve"),
    "a third file": ("deep", "x ** 2", "x ** 3", "project.deep.power"),
    "a late import": ("late", "x + 1", "x + 2", "project.late.shift"),
}
NO_EDITS = {
    "a comment": ("main", "# a comment", "# another"),
    "a line further down": ("main", "import functools", "\n\nimport functools"),
    "a global that nothing reads": ("main", "UNUSED = 1", "UNUSED = 2"),
    "a function that nothing calls": ("main", "return 1\n", "return 2\n"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_named(project, name):
    file, old, new, named = EDITS[name]
    before = _identity(project())
    after = _identity(project(**{file: (old, new)}))
    with pytest.raises(ValueError, match=rf"differs from this one in .*{named}"):
        check_identity("run", before, after)


@pytest.mark.parametrize("name", NO_EDITS)
def test_what_is_not_reached_does_not_count(project, name):
    file, *edit = NO_EDITS[name]
    assert _identity(project(**{file: edit})) == _identity(project())


def test_another_process_finds_the_same(project, tmp_path):
    here = _identity(project())
    script = textwrap.dedent(
        """
        import torch
        from flatmin._runs.fingerprint import hashes
        from project import main
        torch.manual_seed(0)
        found = {"metric": main.measure, "module": main.Net(), "class": main.Net}
        print(sorted(hashes(found).items()))
        """
    )
    # Strings have other hashes there.
    out = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == str(sorted(here.items()))


def test_packages_count_by_their_version(tmp_path, monkeypatch):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    text = "__version__ = '1'\ndef loss(x):\n    return x\n"
    (folder / "installed_here.py").write_text(text)
    module = importlib.import_module("installed_here")
    before = hashes({"loss": module.loss})
    assert "the package installed_here" in before
    (folder / "installed_here.py").write_text(text.replace("'1'", "'2'"))
    monkeypatch.setattr(module, "__version__", "2")
    package_version.cache_clear()
    with pytest.raises(ValueError, match="in the package installed_here"):
        check_identity("run", before, hashes({"loss": module.loss}))


def test_whose_code_it_is():
    assert find_package("torch.nn", None) == "torch"
    assert find_package("collections.abc", None) == "Python"
    assert find_package("flatmin.noise", None) == "flatmin"
    assert find_package("__main__", "<stdin>") is None
    assert find_package(__name__, __file__) is None


class Metric:
    def __init__(self, held):
        self.held = held

    def __call__(self, risk, theta):
        return 0.0


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda: np.random.default_rng(0), lambda: np.random.default_rng(1)),
        (lambda: np.random.RandomState(0), lambda: np.random.RandomState(1)),
        (lambda: random.Random(0), lambda: random.Random(1)),
        (lambda: torch.Generator().manual_seed(0), torch.Generator),
        (lambda: threading.Lock(), None),
        (lambda: threading.RLock(), None),
        (lambda: threading.Condition(), None),
        (lambda: [1].append, lambda: [2].append),
        (lambda: torch.ones(2).bfloat16(), lambda: torch.zeros(2).bfloat16()),
        (lambda: torch.eye(2).to_sparse(), lambda: torch.eye(3).to_sparse()),
        (lambda: {1: "a"}, lambda: {"1": "a"}),
        (lambda: {(1, 2), "a"}, lambda: {(1, 3), "a"}),
    ],
)
def test_a_metric_counts_by_the_value_of_what_it_holds(make, other):
    found = [hashes({"metric": Metric(make())}) for _ in range(2)]
    assert found[0] == found[1]
    if other is not None:
        assert hashes({"metric": Metric(other())}) != found[0]


def test_what_has_no_value_is_refused():
    with pytest.raises(TypeError, match=r"metrics: A builtins\.generator has no value"):
        hashes({"metrics": {"norm": Metric(i for i in range(3))}})
    nested = []
    for _ in range(10_000):
        nested = [nested]
    with pytest.raises(TypeError, match="metrics is nested too deeply"):
        hashes({"metrics": nested})


def test_hooks_and_frozen_parameters_count():
    torch.manual_seed(0)
    net = nn.Linear(2, 2)
    plain = hashes({"module": net})
    handle = net.register_forward_hook(lambda module, x, y: 2 * y)
    hooked = hashes({"module": net})
    handle.remove()
    assert hashes({"module": net}) == plain != hooked
    net.bias.requires_grad_(False)
    assert hashes({"module": net}) != plain


def test_equal_values_need_not_be_one_object():
    row = [1, 2]
    assert hashes({"a": [row, row]}) == hashes({"a": [[1, 2], [1, 2]]})


def test_two_lambdas_of_one_name_may_not_change_places():
    one, two = (lambda x: 1), (lambda x: 2)
    assert hashes({"a": one, "b": two}) != hashes({"a": two, "b": one})
