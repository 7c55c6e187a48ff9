"""The two estimators have one documentation of what they share."""

import inspect
import re

import pytest

from flatmin import NoisyDiffusionClassifier, NoisyDiffusionRegressor

KINDS = (NoisyDiffusionClassifier, NoisyDiffusionRegressor)


def entries(kind, title):
    """Return name -> text of a section of a docstring."""
    section = kind.__doc__.split(f"{title}\n{'-' * len(title)}\n")[1].split("\n\n")[0]
    parts = re.split(r"(?m)^(?=\w+ : )", section)[1:]
    return {part.partition(" : ")[0]: part.strip() for part in parts}


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_documented_with_its_default(kind):
    parameters = inspect.signature(kind).parameters
    documented = entries(kind, "Parameters")
    assert list(documented) == list(parameters)
    for name, parameter in parameters.items():
        default = repr(parameter.default).replace("'", '"')
        assert documented[name].splitlines()[0].endswith(f"default={default}"), name


@pytest.mark.parametrize(
    ("title", "own"),
    [("Parameters", {"loss", "lr", "class_weight"}), ("Attributes", {"classes_"})],
)
def test_what_is_shared_is_documented_alike(title, own):
    one, two = (entries(kind, title) for kind in KINDS)
    assert {name for name in one if one[name] != two.get(name)} == own
    assert two.keys() <= one.keys()
    assert len(one) > 10
