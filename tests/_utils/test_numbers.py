"""What is a number, and what is not."""

import numpy as np
import pytest

from flatmin._utils.numbers import check_positive, is_count, is_number


def test_numbers():
    assert all(map(is_number, (0, -1.5, np.float32(2), np.int64(3))))
    assert not any(map(is_number, (True, "1", None, 1j, np.nan, -np.inf, 10**400)))


def test_counts():
    assert all(map(is_count, (1, np.int64(3), 2**63 - 1)))
    assert not any(map(is_count, (0, 1.0, True, np.True_, "1", None, 2**63)))


def test_a_number_that_no_float_holds_is_named():
    with pytest.raises(ValueError, match=r"sigma must be a finite .*Got 1000"):
        check_positive("sigma", 10**400)
