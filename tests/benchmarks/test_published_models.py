"""Published models whole, against autograd; the page is that of the stored numbers."""

import importlib
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"

pytestmark = [
    pytest.mark.skipif(not FOLDER.exists(), reason="a release has no benchmarks"),
    pytest.mark.filterwarnings("ignore"),  # theirs, of what they deprecate
]

# Fewer than are stored: those that the extra `integrations` brings.
SOME = (
    *("GPT-2, padded, labels of -100", "BERT with a mask", "DistilBERT with a mask"),
    *("ViT", "Llama, padded, labels of -100", "T5, encoder and decoder"),
    *('ResNet, batch_norm="frozen"', "LXMERT, text and pictures"),
    "Transformer, two sequences",
)


@pytest.fixture(scope="module")
def command():
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("published_models")
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and FOLDER in Path(file).parents:
            del sys.modules[name]


def measure(command, name):
    try:
        version(command.PUBLISHED[name][0])
    except PackageNotFoundError as error:
        pytest.skip(str(error))
    return command.measure(name)


@pytest.mark.parametrize("name", SOME)
def test_a_model_as_it_is(name, command):
    row = measure(command, name)
    assert row["refused"] == {}
    assert set(row["errors"]) >= {*command.QUANTITIES, command.DIFFERENCES}
    assert command.wrong(row) == []
    assert row["errors"][command.DIFFERENCES] < 1e-6
    in_single = name.startswith(("Llama", "T5"))
    assert row["precision"] == ("float32" if in_single else "float64")
    if name.startswith(("GPT-2", "BERT", "DistilBERT", "ViT")):
        assert row["paths"]["per-example sums"] == "by layer"
    if name.startswith(("GPT-2", "Llama", "T5")):
        assert command.OWN in row["errors"]


def test_what_compares_the_examples_is_refused(command):
    row = measure(command, "CLIP, text against pictures")
    assert row["errors"] == {}
    assert "compares each example with every other" in row["refused"]["L"]


def test_a_wrong_number_is_told(command, monkeypatch):
    right = command.EmpiricalRisk.squared_norms
    monkeypatch.setattr(
        command.EmpiricalRisk, "squared_norms", lambda r, t: 1.0001 * right(r, t)
    )
    row = measure(command, "BERT with a mask")
    assert command.wrong(row) == ["‖gᵢ‖²"]


def test_the_page_is_that_of_what_is_stored(command):
    stored = json.loads((FOLDER / "results" / "published_models.json").read_text())
    page = (ROOT / "docs" / "published_models.md").read_text(encoding="utf-8")
    assert page == command.page(stored)
    assert [row["model"] for row in stored["rows"]] == list(command.PUBLISHED)
    assert not any(map(command.wrong, stored["rows"]))
    refused = {row["model"]: set(row["refused"]) for row in stored["rows"]}
    assert {model: names for model, names in refused.items() if names} == REFUSED


ALL = {"L", "g₀", "H v", "G v", "diag Σ", "‖gᵢ‖²"}
REFUSED = {
    'ResNet, batch_norm="batch"': {"diag Σ", "‖gᵢ‖²"},
    "CLIP, text against pictures": ALL,
    "physics-informed FNN": {"G v"},
    "masked autoregressive flow": {"G v"},
    "Mamba": {"H v"},
    "FNO": ALL,
}
