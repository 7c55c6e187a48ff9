"""Code and values that a function reaches on other ways than by its name."""

import dataclasses
import functools
import importlib
import random
import sys

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from scipy import stats

from flatmin._runs.fingerprint import hashes

IMPORTS = """
import collections, dataclasses, enum, functools, typing
import numpy as np
import torch
"""
# Each with what stands for "@@" before and after an edit that changes `target`.
EDITS = {
    "a dict's method": (
        """
class Table(dict):
    def look(self):
        return self["a"] * @@
TABLE = Table(a=1.0)
def target(x): return TABLE.look() * x
""",
        "1",
        "3",
    ),
    "an enum's method": (
        """
class Kind(str, enum.Enum):
    A = "a"
    def scale(self): return @@
KIND = Kind.A
def target(x): return KIND.scale() * x
""",
        "1",
        "3",
    ),
    "a number's method": (
        """
class Rate(float):
    def scale(self): return self * @@
RATE = Rate(2)
def target(x): return RATE.scale() * x
""",
        "1",
        "3",
    ),
    "a named tuple's method": (
        """
class Settings(typing.NamedTuple):
    a: float = 1.0
    def scale(self): return self.a * @@
SETTINGS = Settings()
def target(x): return SETTINGS.scale() * x
""",
        "1",
        "3",
    ),
    "a tensor's attribute": (
        """
W = torch.ones(2)
W.scale = @@
def target(x): return W.scale * x
""",
        "1",
        "3",
    ),
    "a slot of a dict": (
        """
class Table(dict):
    __slots__ = ("k",)
TABLE = Table()
TABLE.k = @@
def target(x): return TABLE.k * x
""",
        "1",
        "3",
    ),
    "a default factory": (
        """
D = collections.defaultdict(lambda: @@)
def target(x): return D["a"] * x
""",
        "1",
        "3",
    ),
    "a mask": (
        """
A = np.ma.array([1.0, 2.0], mask=[False, @@])
def target(x): return A.sum() * x
""",
        "False",
        "True",
    ),
    "a decorator's state": (
        """
class scaled:
    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.factor = @@
    def __call__(self, x): return self.factor * self.__wrapped__(x)
@scaled
def target(x): return x
""",
        "1",
        "3",
    ),
    "an argument of a package's decorator": (
        """
def loss(a, b): return a * b * b
gradient = torch.func.grad(loss, argnums=@@)
def target(x): return gradient(x, x)
""",
        "0",
        "1",
    ),
    "an object called as a method": (
        """
class Scale:
    def __init__(self): self.k = @@
    def __call__(self, x): return x * self.k
class Metric:
    __call__ = Scale()
target = Metric()
""",
        "1",
        "3",
    ),
    "a function of a scripted one": (
        """
@torch.jit.script
def helper(x): return x * @@
@torch.jit.script
def target(x): return helper(x)
""",
        "1",
        "3",
    ),
    "a traced constant": (
        """
K = torch.tensor([1.0, @@])
def function(x): return x * K
target = torch.jit.trace(function, torch.ones(2))
""",
        "1.0",
        "3.0",
    ),
    "keywords": (
        """
def function(a, @@b): return a - b
def target(x): return function(x, b=1)
""",
        "",
        "*, ",
    ),
    "another name of a module that two functions read": (
        """
import written.more.values
def first(x): return x * written.more.values.a
def second(x): return x * written.more.values.b
def target(x): return first(second(x))
""",
        "b = 1",
        "b = 3",
    ),
    "a module that is handed on": (
        """
from written import scales
def helper(module, x): return x * module.b
def target(x): return helper(scales, x)
""",
        "b = 1",
        "b = 3",
    ),
    "a module in a dict": (
        """
from written import scales
MODULES = {"a": scales}
def target(x): return MODULES["a"].b * x
""",
        "b = 1",
        "b = 3",
    ),
    "a module with a name of Python's": (
        """
import sys
sys.modules.pop("this", None)
import this
target = this.Net
""",
        "return x * 1",
        "return x * 3",
    ),
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Write a module and what it may import, import it anew, and return a hash."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = ("written", "written.main", "written.scales", "written.more")
    names += ("written.more.values", "this")

    def forget():
        for name in names:
            sys.modules.pop(name, None)

    def load(text, edit):
        forget()
        importlib.invalidate_caches()
        values = f"a = 2\n{edit if edit.startswith('b =') else 'b = 0'}\n"
        net = f"class Net:\n    def f(self, x): {edit if 'x *' in edit else 'pass'}\n"
        (tmp_path / "written" / "more").mkdir(parents=True, exist_ok=True)
        for name, content in {
            "written/__init__": "",
            "written/main": IMPORTS + text.replace("@@", edit),
            "written/scales": values,
            "written/more/__init__": "",
            "written/more/values": values,
            "this": net,
        }.items():
            (tmp_path / f"{name}.py").write_text(content)
        return hashes({"x": importlib.import_module("written.main").target})

    yield load
    forget()


# PyTorch finds TorchScript out of date.
@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_counts(load, name):
    text, before, after = EDITS[name]
    assert load(text, before) == load(text, before)
    assert load(text, before) != load(text, after)


@functools.singledispatch
def dispatched(x):
    return x


@dispatched.register
def _(x: float):
    return 2 * x


class Settings:
    @functools.cached_property
    def factor(self):
        return 2.0


SETTINGS = Settings()
NORMAL = stats.norm(0, 1)  # which holds NumPy's generator


def use(x):
    random.random()
    return dispatched(x) * SETTINGS.factor * NORMAL.rvs()


def test_use_changes_nothing():
    before = hashes({"x": use, "draw": random.random})
    use(2.0)
    assert hashes({"x": use, "draw": random.random}) == before


def test_what_pickle_refuses_or_numpy_cannot_view():
    rows = np.array([(1.0, "a")], dtype=[("k", float), ("o", object)])
    other = np.array([(2.0, "a")], dtype=rows.dtype)
    assert hashes({"a": rows}) == hashes({"a": rows.copy()}) != hashes({"a": other})
    none = np.array(None, dtype=object)
    assert hashes({"a": none}) == hashes({"a": none.copy()})
    mul, add = torch.ops.aten.mul.Tensor, torch.ops.aten.add.Tensor
    assert hashes({"a": mul}) == hashes({"a": mul}) != hashes({"a": add})


def test_operators_of_ones_own():
    def make(factor):
        def double(x: torch.Tensor) -> torch.Tensor:
            return x * factor

        return torch.library.custom_op("flatmin::double", double, mutates_args=())

    assert hashes({"a": make(2)}) == hashes({"a": make(2)}) != hashes({"a": make(3)})


def test_a_chain_of_calls_may_be_long():
    def chain(last):
        space = {}
        for i in range(500):
            call = f"f{i + 1}(x)" if i < 499 else last
            exec(f"def f{i}(x): return {call}", space)
        return space["f0"]

    assert hashes({"x": chain("x")}) == hashes({"x": chain("x")})
    assert hashes({"x": chain("x")}) != hashes({"x": chain("-x")})


def test_a_worker_finds_the_same():
    # What is made in a function, as what is made in a script, is sent by its code.
    @dataclasses.dataclass
    class Metric:
        factor: float = 1.0

        def __call__(self, risk, theta):
            return self.factor

    class Slotted:
        __slots__ = ("k",)

        def __init__(self):
            self.k = 1

    class Net(torch.nn.Module):
        class Inner:
            pass

        def forward(self, x):
            return self.Inner, torch.func.vmap(lambda x: x)(x)

    # What a module of the tests defines is sent by its name, which no worker finds.
    def loss(x):
        return x**2

    @functools.wraps(loss)
    def wrapped(x):
        return loss(x)

    things = [Metric(2.0), Slotted(), Net, Net.Inner, wrapped, torch.func.grad(loss)]
    calls = [delayed(hashes)({"x": thing}) for thing in things]
    assert Parallel(n_jobs=2)(calls) == [hashes({"x": thing}) for thing in things]
