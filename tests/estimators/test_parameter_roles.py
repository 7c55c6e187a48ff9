"""Every parameter stands once in the table that says what it decides."""

import pytest

from flatmin import NoisyDiffusionClassifier, NoisyDiffusionRegressor
from flatmin.estimators._parameter_roles import _BY_ROLE, PARAMETERS, parameters_for


def test_the_table_holds_every_parameter_once():
    kinds = (NoisyDiffusionClassifier, NoisyDiffusionRegressor)
    names = {name for kind in kinds for name in kind().get_params(deep=False)}
    assert set(PARAMETERS) == names
    assert len(PARAMETERS) == sum(map(len, _BY_ROLE.values()))


def test_roles():
    assert PARAMETERS["lr"] == "run"
    assert parameters_for("folder") == {"checkpoint_dir"}
    with pytest.raises(KeyError):
        parameters_for("other")
