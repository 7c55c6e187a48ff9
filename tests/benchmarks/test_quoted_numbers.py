"""The README and the pages quote what is stored beside them."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"

pytestmark = pytest.mark.skipif(
    not RESULTS.exists(), reason="a release has no benchmarks"
)


def words(path):
    """Return those of a page, whatever the line breaks are."""
    return " ".join((ROOT / path).read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def readme():
    return words("README.md")


def test_the_kinds_of_the_zoo(readme):
    page = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    (n_kinds,) = re.findall(r"^(\d+) kinds,", page, re.MULTILINE)
    assert f"what {n_kinds} kinds of modules" in readme


def test_the_models_of_other_packages(readme):
    stored = json.loads((RESULTS / "published_models.json").read_text())
    models = {re.split(", (batch_norm|hvp)=", r["model"])[0] for r in stored["rows"]}
    assert f"the numbers of {len(models)} models of other packages" in readme


def test_many_copies_of_a_network():
    page = words("docs/howto/many_copies.md")
    stored = json.loads((RESULTS / "chains.json").read_text())
    few, more, most = (round(row["ratio"][1]) for row in stored["time"])
    assert (
        f"in the time of {few} steps of one on 20 points, of {more} on 100 and of "
        f"{most} on 1,000"
    ) in page
    exits = stored["exits"]
    first, both, lr_alone = (
        f"{run['mean_lr_t']:.2f} ± {run['lr'] * run['stderr']:.2f}"
        for run in exits["simulate"]
    )
    assert (
        f"after ηt = {first} at η = 0.01 and m = 2, after {both} with both halved, "
        f"and after {lr_alone} with η alone halved"
    ) in page
    assert exits["agrees"]
    assert f"p = {exits['ks']['p']:.2f})" in page
