"""Every kind of module: each quantity is right, or refused with the expected sentence.

A kind that fails here is mended, or refused with a sentence: then ``refused=`` of the
kind quotes a part of it, and ``python -m tests.zoo.table`` writes the page anew.
"""

import gc
import inspect

import pytest
import torch
from torch import nn

from . import _harness
from ._registry import FAMILIES
from .table import PAGE, read_rows, row

NAMES = [(family, name) for family, kinds in FAMILIES.items() for name in kinds]

# What cannot stand in a network, or is another layer once it has its shapes.
LEFT_OUT = {
    "Module": "the base of all",
    "Container": "an old name of Module",
    "RNNBase": "a base",
    "RNNCellBase": "a base",
    "NLLLoss2d": "an old name of NLLLoss",
    "DataParallel": "of several GPUs",
}


@pytest.fixture(scope="module")
def page():
    if not PAGE.is_file():
        pytest.skip("docs/zoo.md is not beside the tests, as in a source distribution")
    return read_rows(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def _quick_collections():
    """Spare the garbage collector what was there before: a third of the time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(("family", "name"), NAMES)
def test_kind(family, name, page):
    check_kind(family, name, page, brief=True)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), NAMES)
def test_kind_as_the_page_says(family, name, page):
    check_kind(family, name, page)


def check_kind(family, name, page, **options):
    kind = _harness.build(FAMILIES[family][name])
    cells = _harness.examine(kind, name, **options)
    bad = _harness.failures(kind, cells)
    assert not bad, "\n".join(bad)
    assert row(family, name, cells) == page[family, name], "write the page anew"


def test_page_lists_every_kind(page):
    assert list(page) == NAMES


def test_every_layer_of_torch_has_a_kind():
    built = [_harness.build(FAMILIES[family][name]) for family, name in NAMES]
    seen = {type(part).__name__ for kind in built for part in kind.module.modules()}
    seen |= {type(kind.loss).__name__ for kind in built}
    names = {name for _, name in NAMES}
    missing = [
        name
        for name, layer in vars(nn).items()
        if inspect.isclass(layer)
        and issubclass(layer, nn.Module)
        and name not in seen
        and name not in LEFT_OUT
        and not name.startswith("Lazy")
        # A loss within a loss is named after it.
        and not any(title.split(",")[0] == name for title in names)
    ]
    assert not missing


def test_oracle_by_hand():
    """A linear model: H = G = (2/N) XᵀX, and nothing differs from autograd."""
    X, y = torch.randn(4, 2), torch.randn(4, 1)
    module = nn.Linear(2, 1, bias=False)
    right = _harness.compute(_harness.Kind(module, X, y, loss="squared_error"))
    v, X = _harness.direction(2), X.double()
    torch.testing.assert_close(right["H v"], X.T @ X @ v / 2)
    torch.testing.assert_close(right["G v"], right["H v"])
    torch.testing.assert_close(right["J v"], (X @ v)[:, None])
    torch.testing.assert_close(right["Tr Gᵢ"], 2 * X.square().sum(1))
