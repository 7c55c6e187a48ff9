"""Complex numbers in between, in buffers and in parameters."""

import torch
from torch import nn

from ._nets import N, around, between

KINDS = {}


class _Rotary(nn.Module):
    """Rotary positions: a copy to a real dtype drops the imaginary part."""

    def __init__(self):
        super().__init__()
        angle = torch.arange(2)[:, None] * torch.tensor([1.0, 0.3])
        self.register_buffer("turn", torch.polar(torch.ones_like(angle), angle))

    def forward(self, h):
        z = torch.view_as_complex(h.unflatten(-1, (2, 2)).contiguous())
        wide = torch.complex128 if h.dtype == torch.float64 else torch.complex64
        return torch.view_as_real(z * self.turn.to(wide)).flatten(-2).sin()


class _Spectral(nn.Module):
    """A complex weight in the Fourier domain, as in FNO."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def forward(self, h):
        return torch.fft.irfft(torch.fft.rfft(h) * self.weight, n=4)


class _TwoReals(nn.Module):
    """A complex weight held as two real numbers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))

    def forward(self, h):
        return torch.fft.irfft(
            torch.fft.rfft(h) * torch.view_as_complex(self.weight), n=4
        )


KINDS["complex buffer"] = lambda: around(_Rotary(), torch.randn(N, 2, 4))
KINDS["complex weight"] = lambda: around(
    _Spectral(), torch.randn(N, 4), refused="θ is a real vector"
)
KINDS["complex weight as two reals"] = lambda: around(_TwoReals(), torch.randn(N, 4))
KINDS["complex layer"] = lambda: around(
    nn.Linear(2, 2, dtype=torch.complex64),
    torch.randn(N, 4),
    call=lambda layer, h: layer(torch.complex(h[:, :2], h[:, 2:])).abs(),
    refused="θ is a real vector",
)

_FUNCTIONS = {
    "view_as_complex": lambda h: torch.view_as_complex(h.view(-1, 2, 2)).exp().real,
    "torch.complex and abs": lambda h: torch.complex(h[:, :2], h[:, 2:]).abs(),
    "torch.polar": lambda h: torch.view_as_real(torch.polar(h[:, :2].exp(), h[:, 2:])),
    "conj and imag": lambda h: (
        (
            torch.complex(h[:, :2], h[:, 2:]).conj() * torch.complex(h[:, 2:], h[:, :2])
        ).imag
    ),
    "complex matmul": lambda h: torch.view_as_real(
        torch.complex(h[:, :2, None], h[:, 2:, None]) @ torch.complex(h, -h)[:, None]
    ),
}
for name, function in _FUNCTIONS.items():
    KINDS[name] = lambda function=function: between(function)
