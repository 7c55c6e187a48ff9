"""A sample of all wrong arguments; all of them: python -m tests.arguments.run."""

import collections

import pytest

from ._calls import LEFT_OUT, calls, public
from ._trial import try_argument

# Quick ones of every floor; a full run takes all.
_SAMPLE = [
    *("expected_sharpness", "eigsh", "HessianOperator", "non_uniformity_bound"),
    *("DenseOperator.matvec", "QuadraticRisk.batch_gradient", "corrupt_labels"),
    *("EmpiricalRisk.batch_gradient", "EmpiricalRisk.weighted_gradient"),
    *("MLP", "simulate", "paired_difference", "cosines", "LowRankOperator"),
]
_VALUES = [
    *("None", "nan", "1e39", "10**30", "'x'", "surrogate", "[]", "object"),
    *("lambda no argument", "not fitted", "masked", "object array", "text array"),
    *("complex tensor", "mask", "meta tensor", "sparse tensor"),
]


def test_every_public_name_is_called_or_left_out_for_a_reason():
    left_out = {name for names in LEFT_OUT.values() for name in names}
    called = {name.partition(".")[0] for name in calls()}
    assert not public().keys() - left_out - called
    assert not left_out - public().keys()


@pytest.mark.parametrize("name", _SAMPLE)
def test_valid_arguments_are(name):
    call = calls()[name]
    call.function(**call.arguments())


@pytest.mark.parametrize("name", _SAMPLE)
def test_a_wrong_argument_is_refused_by_name_before_work(name):
    call = calls()[name]
    outcomes = [
        try_argument(call, parameter, value)
        for parameter in call.arguments()
        if parameter != "verbose"
        for value in _VALUES
    ]
    counts = collections.Counter(outcome.kind for outcome in outcomes)
    assert counts["refused"] > len(outcomes) / 2
    bad = ("unclear", "late", "crashed", "hung", "nan")
    assert not [outcome for outcome in outcomes if outcome.kind in bad]
