"""The rows of convolutions by patches and by groups, beside autograd."""

import pytest
import torch

from flatmin.risk.example_sums import convolution_rules as rules

N = 6
# Channels, outputs, kernel, stride, padding, dilation, groups.
CASES = {
    "padded": (2, 3, (3, 3), 1, 1, 1, 1),
    "strided": (4, 6, (3, 2), (2, 3), (0, 1), (1, 2), 2),
    "depthwise": (4, 8, (3,), 2, (1,), 1, 4),
    "depthwise, dilated": (4, 4, (3, 3), 1, (2, 1), 2, 4),
    "same": (4, 8, (4, 3), 1, "same", (1, 2), 4),
    "valid": (3, 5, (3, 3), 2, "valid", 1, 1),
    "of one position": (2, 3, (1,), 3, 0, 1, 1),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("by_groups", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_rows_and_their_sums(case, by_groups, channels_last, monkeypatch):
    c, o, kernel, *settings = CASES[case]
    monkeypatch.setattr(rules, "_takes_groups", lambda *_: by_groups)
    rng = torch.Generator().manual_seed(0)
    X, weight = (
        torch.randn(*shape, generator=rng, dtype=torch.float64)
        for shape in [
            (N, c, *(11 for _ in kernel)),
            (o, c // settings[-1], *kernel),
        ]
    )
    convolve = torch.conv2d if len(kernel) == 2 else torch.conv1d
    outputs = convolve(X, weight.requires_grad_(), None, *settings)
    slope = torch.randn(outputs.shape, generator=rng, dtype=torch.float64)
    rows = torch.stack(
        [
            torch.autograd.grad(scalar, weight, retain_graph=True)[0].flatten()
            for scalar in (outputs * slope).flatten(1).sum(1)
        ]
    )
    if channels_last and X.ndim == 4:
        X, slope = (t.contiguous(memory_format=torch.channels_last) for t in (X, slope))
    _, [(_, rule), _] = rules.convolution_rules(X, weight, None, *settings)
    for m in (1, 2, 3, N):
        right = rows.view(N // m, m, -1).sum(1)
        torch.testing.assert_close(rule.restore(rule.sums(X, slope, m)), right)


@pytest.mark.parametrize(
    ("shape", "o", "groups", "expected"),
    [
        ((N, 4, 16, 16), 16, 1, True),
        ((N, 4, 16, 16), 17, 1, False),
        ((N, 4, 15, 17), 16, 1, False),
        ((N, 4, 3, 3), 64, 2, True),
        ((N, 4, 256), 4, 1, True),
    ],
)
def test_which_way_is_taken(shape, o, groups, expected):
    kernel = (o, 4 // groups, *(3 for _ in shape[2:]))
    X, weight = torch.ones(shape), torch.ones(kernel)
    _, [(_, rule), _] = rules.convolution_rules(X, weight, groups=groups)
    assert (rule.patch_size == 0) == expected
