"""The public names are those that the API pages list, and each has an example."""

import re
from importlib import import_module
from pathlib import Path

import pytest

API = Path(__file__).parent.parent / "docs" / "api"
FLOORS = (
    *("analysis", "comparison", "curvature", "datasets", "dynamics", "estimators"),
    *("linalg", "measures", "modules", "noise", "plotting", "risk"),
)
# What floors share with those above them, and do not promise to users.
SHARED = {
    "linalg": {"Which"},
    "dynamics": {
        *("Checkpoints", "EarlyStopping", "FlatBinding", "GradientBatches"),
        *("KeptParams", "MeanLoss", "NoisyDescent", "NoisyNetClassifier"),
        *("NoisyNetRegressor", "Recorder", "Schedule", "StopTraining"),
        *("WarmupResult", "callback_settings", "check_callbacks", "check_metrics"),
        *("check_monitors", "check_plain_steps", "check_room", "check_rows"),
        *("count_kept", "make_schedule", "measure_metrics", "record_warmup"),
        *("resolve_optimizer", "run_warmup", "store_callbacks"),
    },
}


def listed(floor):
    """Return the names on the page of a floor."""
    text = (API / f"{floor}.rst").read_text("utf-8")
    return set(re.findall(r"^   (\w+)$", text, re.M))


def public(floor):
    """Return the names of a floor that are classes or functions."""
    module = import_module(f"flatmin.{floor}")
    names = set(module.__all__) - SHARED.get(floor, set())
    return {name for name in names if callable(getattr(module, name))}


@pytest.mark.parametrize("floor", FLOORS)
def test_a_page_lists_what_is_public(floor):
    assert listed(floor) == public(floor)


@pytest.mark.parametrize(
    ("floor", "name"),
    [(floor, name) for floor in FLOORS for name in sorted(listed(floor))],
)
def test_each_public_name_has_an_example(floor, name):
    doc = getattr(import_module(f"flatmin.{floor}"), name).__doc__
    assert ">>>" in doc, f"flatmin.{floor}.{name}"


def test_names_at_the_top_live_on_a_floor():
    import flatmin

    homes = {"show_versions", *(name for floor in FLOORS for name in public(floor))}
    assert {n for n in flatmin.__all__ if callable(getattr(flatmin, n))} <= homes
