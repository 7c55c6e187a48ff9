"""The costs on paper follow from what is stored, and the page quotes both results."""

import json
import sys
from pathlib import Path

import pytest
import torch

from flatmin.modules import VGG11

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"

pytestmark = pytest.mark.skipif(
    not RESULTS.exists(), reason="a release has no benchmarks"
)


@pytest.fixture
def module(monkeypatch):
    """Return a function that imports a benchmark."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return __import__(name)

    return load


def stored(name):
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs" / "what_it_costs.md").read_text(encoding="utf-8")


def test_the_table_follows_from_the_constants(module, page):
    plan, result = module("plan"), stored("plan.json")
    assert plan.machines() == result["constants"]["machines"]
    assert plan.table(result["constants"]) == result["table"]
    assert plan.as_markdown(result["table"]) in page
    for line in plan.ASSUMPTIONS:
        assert line in " ".join(page.split())


def test_a_cell_by_hand(module):
    """λ₁ of VGG11 on one GPU: its gradients, and what Lanczos does beside them."""
    plan, result = module("plan"), stored("plan.json")
    gpu = stored("vgg11_gpu.json")
    b = sorted(gpu["b_seconds"])[5:7]
    gradient = sum(b) / 2 * 50_000 / 500
    rows = gpu["rows"]
    products = rows["prepare"]["b"] + plan.N_PRODUCTS * rows["hvp"]["b"]
    largest = stored("scaling_gpu.json")["parameters"][-1]
    pairs = largest["eigenpairs"]
    beside = pairs["seconds"] - pairs["products"] * largest["seconds"]["H v"]
    beside *= 9_750_922 / largest["D"] / pairs["products"]
    (row,) = (
        row
        for row in result["table"]
        if (row["job"], row["machine"]) == ("VGG11, CIFAR-10", "one H100")
        and row["n_processes"] == 1
    )
    wanted = gradient * products + plan.N_PRODUCTS * beside
    assert row["λ₁"]["seconds"] == pytest.approx(wanted)
    assert row["gradient"]["seconds"] == pytest.approx(gradient)


def test_processes_share_the_examples_and_not_the_sums(module):
    plan, constants = module("plan"), stored("plan.json")["constants"]
    machine, network = constants["machines"]["one H100"], constants["all_reduce"]
    free = {"seconds_a_round": 0.0, "seconds_a_byte": 0.0}
    job = plan.JOBS[1]
    alone, shared, with_sums = (
        plan.predict(job, machine, sums, p)["gld_full"]["seconds"]
        for sums, p in ((free, 1), (free, 64), (network, 64))
    )
    assert shared == pytest.approx(alone / 64)
    moved = 2 * 63 / 64 * 4 * job.n_params * network["seconds_a_byte"]
    rounds = 2 * 63 * network["seconds_a_round"]
    assert with_sums - shared == pytest.approx(moved + rounds)


def test_the_operations_of_a_network_are_counted(module):
    plan = module("plan")
    image = torch.rand(3, 32, 32)
    assert plan.count_operations(VGG11(), image) == plan.VGG11_OPERATIONS
    assert plan.JOBS[0].n_params == sum(p.numel() for p in VGG11().parameters())
    linear = torch.nn.Linear(7, 3)
    assert plan.count_operations(linear, torch.rand(5, 7)) == 5 * 7 * 3


def test_it_was_checked_at_two_sizes_of_its_own(page):
    result = stored("plan.json")
    sizes = [result["fitted_to"], *(one["measured"] for one in result["checks"])]
    assert len({one["job"]["name"] for one in sizes}) == 3
    for one in result["checks"]:
        for name, found in one["quantities"].items():
            ratio = found["predicted"] / found["measured"]
            assert found["ratio"] == pytest.approx(ratio)
            assert f"{ratio:.2f}" in page, name


def test_the_coverage_of_subsets(module, page):
    """The page has the rows of the sizes that are not refused."""
    table = module("subsets").as_markdown(stored("subsets.json")["problems"])
    head, line, *rows = table.splitlines()
    taken = [row for row in rows if int(row.split("|")[2].split()[0]) >= 400]
    assert len(taken) == 14
    assert "\n".join([head, line, *taken]) in page
