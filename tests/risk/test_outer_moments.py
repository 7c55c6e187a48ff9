"""Moments of rows that are outer products, beside the rows themselves in float64."""

import pytest
import torch

import flatmin.risk.example_sums.outer_moments as module
from flatmin.risk.example_sums.moments import squared_row_norms
from flatmin.risk.example_sums.outer_moments import outer_moments

N, N_OUT, N_IN = 300, 5, 7


def reference(slopes, inputs):
    rows = slopes.double()[:, :, None] * inputs.double()[:, None]
    rows = rows.flatten(1)
    mean = rows.mean(0)
    return mean, (rows - mean).square().sum(0)


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(N, N_OUT, generator=generator),
        torch.randn(N, N_IN, generator=generator).relu(),
    )


@pytest.mark.parametrize("slope_scale", [1e-20, 1e-8, 1.0, 1e20])
@pytest.mark.parametrize("input_scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("n_numbers", [64, 1 << 20])
def test_every_scale_keeps_its_digits(slope_scale, input_scale, n_numbers):
    slopes, inputs = draws()
    slopes, inputs = slopes * slope_scale, inputs * input_scale
    mean, squares = outer_moments(slopes, inputs, n_numbers)
    right_mean, right_squares = reference(slopes, inputs)
    spread = (right_squares / N).sqrt()
    assert ((mean - right_mean).abs() <= 1e-6 * spread).all()
    torch.testing.assert_close(squares, right_squares, rtol=2e-6, atol=0)


def test_columns_of_unequal_scales_keep_theirs():
    slopes, inputs = draws(1)
    slopes = slopes * torch.logspace(-18, 18, N_OUT)
    inputs = inputs * torch.logspace(18, -18, N_IN)
    mean, squares = outer_moments(slopes, inputs, 1 << 20)
    right_mean, right_squares = reference(slopes, inputs)
    torch.testing.assert_close(squares, right_squares, rtol=2e-6, atol=0)
    spread = (right_squares / N).sqrt()
    assert ((mean - right_mean).abs() <= 1e-6 * spread).all()


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e-37])
def test_examples_of_unequal_scales_keep_theirs(scale):
    # A column's large numbers meet only zeros of the other's: what is left is small.
    slopes, inputs = draws(2)
    slopes[::2, 0] *= scale
    inputs[1::2, 0] = 0.0
    _, squares = outer_moments(slopes, inputs, 1 << 20)
    _, right = reference(slopes, inputs)
    assert right[0] > 0
    torch.testing.assert_close(squares, right, rtol=2e-6, atol=0)


@pytest.mark.parametrize("ratio", [3.0, 30.0, 1e4])
def test_a_mean_beyond_the_spread_takes_no_digits(ratio):
    slopes, _ = draws(3)
    inputs = torch.ones(N, N_IN)
    slopes = slopes + ratio
    mean, squares = outer_moments(slopes, inputs, 1 << 20)
    right_mean, right_squares = reference(slopes, inputs)
    torch.testing.assert_close(mean, right_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(squares, right_squares, rtol=3e-6, atol=0)


def test_zeros_and_equal_rows_have_no_spread():
    mean, squares = outer_moments(torch.zeros(N, N_OUT), torch.ones(N, N_IN), 1 << 20)
    assert not mean.any()
    assert not squares.any()
    mean, squares = outer_moments(
        torch.full((N, N_OUT), 3.0), torch.ones(N, N_IN), 1 << 20
    )
    assert (mean == 3.0).all()
    assert not squares.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(bad):
    slopes, inputs = draws(4)
    slopes[3, 1] = bad
    _, squares = outer_moments(slopes, inputs + 1, 1 << 20)
    assert not squares.view(N_OUT, N_IN)[1].isfinite().any()
    assert squares.view(N_OUT, N_IN)[0].isfinite().all()


def test_float32_is_left_where_it_loses_digits(monkeypatch):
    taken = []
    true = module._in_float32

    def watched(*given):
        taken.append(true(*given))
        return taken[-1]

    monkeypatch.setattr(module, "_in_float32", watched)
    slopes, inputs = draws(5)
    outer_moments(slopes, inputs, 1 << 20)
    outer_moments(slopes + 30, inputs + 30, 1 << 20)
    assert taken[0] is not None
    assert taken[1] is None


@pytest.mark.parametrize("p", [1, 3, 70_000])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_row_norms_are_summed_in_float64(p, scale):
    rows = torch.randn(9, p, generator=torch.Generator().manual_seed(6)) * scale
    right = rows.double().square().sum(1)
    torch.testing.assert_close(squared_row_norms(rows), right, rtol=1e-13, atol=0)
