"""Matrices of an example's numbers, distances, Fourier transforms."""

import torch

from ._nets import between

KINDS = {}


def _matrix(h):
    """A regular matrix of each example."""
    return h.view(len(h), 2, 2) + 3 * torch.eye(2, dtype=h.dtype)


def _symmetric(h):
    A = h.view(len(h), 2, 2)
    return A @ A.mT + torch.tensor([[1.0, 0], [0, 2]], dtype=h.dtype)


_OF_MATRICES = {
    "linalg.inv": lambda h: torch.linalg.inv(_matrix(h)),
    "linalg.pinv": lambda h: torch.linalg.pinv(_matrix(h)),
    "linalg.det": lambda h: torch.linalg.det(_matrix(h))[:, None],
    "linalg.slogdet": lambda h: torch.linalg.slogdet(_matrix(h))[1][:, None],
    "logdet": lambda h: torch.logdet(_symmetric(h))[:, None],
    "linalg.solve": lambda h: torch.linalg.solve(_matrix(h), h[:, :2]),
    "linalg.lstsq": lambda h: torch.linalg.lstsq(_matrix(h), h[:, :2, None])[0],
    "linalg.solve_triangular": lambda h: torch.linalg.solve_triangular(
        _matrix(h).tril(), h[:, :2, None], upper=False
    ),
    "linalg.cholesky": lambda h: torch.linalg.cholesky(_symmetric(h)),
    "cholesky_solve": lambda h: torch.cholesky_solve(
        h[:, :2, None], torch.linalg.cholesky(_symmetric(h))
    ),
    "linalg.eigh": lambda h: torch.linalg.eigh(_symmetric(h))[0],
    "linalg.eigh's projections": lambda h: (
        torch.linalg.eigh(_symmetric(h))[1][:, :, :1]
        @ torch.linalg.eigh(_symmetric(h))[1][:, :, :1].mT
    ),
    "linalg.eigvals": lambda h: (
        torch.view_as_real(torch.linalg.eigvals(_matrix(h)))
        .square()
        .sum((1, 2))[:, None]
    ),
    "linalg.svdvals": lambda h: torch.linalg.svdvals(_matrix(h)),
    "linalg.svd": lambda h: (
        torch.linalg.svd(_matrix(h))[0] @ torch.linalg.svd(_matrix(h))[2]
    ),
    "linalg.qr": lambda h: torch.linalg.qr(_matrix(h))[0],
    "linalg.lu": lambda h: torch.linalg.lu(_matrix(h))[2],
    "linalg.matrix_norm, nuclear": lambda h: torch.linalg.matrix_norm(
        _matrix(h), "nuc"
    )[:, None],
    "linalg.matrix_power": lambda h: torch.linalg.matrix_power(_matrix(h), 3).sin(),
    "linalg.householder_product": lambda h: torch.linalg.householder_product(
        _matrix(h), h[:, :2]
    ),
    "matrix_exp": lambda h: torch.matrix_exp(h.view(len(h), 2, 2)),
    "linalg.cross": lambda h: torch.linalg.cross(h[:, :3], h[:, 1:]),
    "einsum": lambda h: torch.einsum(
        "ni,nj,ij->ni", h, h.sin(), torch.ones(4, 4).to(h)
    ),
    "einsum with the examples last": lambda h: torch.einsum(
        "in,jn->nij", h.T, h.T.sin()
    ),
    "tensordot": lambda h: torch.tensordot(
        h, torch.eye(4).to(h), dims=([1], [0])
    ).sin(),
    "bmm": lambda h: torch.bmm(h[:, :2, None], h[:, None, 2:]).sin(),
    "baddbmm": lambda h: torch.baddbmm(
        h.view(-1, 2, 2), h[:, :2, None], h[:, None, 2:]
    ),
    "addcmul and addcdiv": lambda h: torch.addcdiv(
        torch.addcmul(h, h, h.sin()), h, h.exp()
    ),
    "lerp": lambda h: torch.lerp(h, h.sin(), h.sigmoid()),
    "kron of each": lambda h: torch.stack([torch.kron(x[:2], x[2:]) for x in h]),
    "block_diag of each": lambda h: torch.stack(
        [torch.block_diag(x[:2].sin(), x[2:]) for x in h]
    ),
    "vander": lambda h: torch.linalg.vander(h[:, :2], N=3),
}
_OF_FREQUENCIES = {
    "fft.fft": lambda h: torch.view_as_real(torch.fft.fft(h)).sin(),
    "fft.rfft, its modulus": lambda h: torch.fft.rfft(h).abs(),
    "fft.irfft of rfft": lambda h: torch.fft.irfft(torch.fft.rfft(h) * 1.5j, n=4).sin(),
    "fft.fft2": lambda h: torch.fft.fft2(h.view(-1, 2, 2)).real.sin(),
    "stft": lambda h: torch.stft(
        h.repeat(1, 2), 4, window=torch.ones(4).to(h), return_complex=True
    ).abs(),
    "angle": lambda h: torch.fft.fft(h).angle()[:, 1:2],
}
_OF_DISTANCES = {
    "cosine_similarity": lambda h: torch.cosine_similarity(h[:, :2], h[:, 2:])[:, None],
    "dist of each": lambda h: torch.stack([torch.dist(x[:2], x[2:]) for x in h])[
        :, None
    ],
}
for functions in (_OF_MATRICES, _OF_FREQUENCIES, _OF_DISTANCES):
    for name, function in functions.items():
        KINDS[name] = lambda function=function: between(function)


def _many_rows():
    """From 26 rows on it is another formula, whose second derivative is missing."""
    centres = torch.randn(30, 4)
    return between(
        lambda h: torch.cdist(h[:, None], centres.to(h))[:, 0], second="difference"
    )


KINDS["cdist, many rows"] = _many_rows
for p in (1, 2, 3):
    KINDS[f"cdist, few rows, p = {p}"] = lambda p=p: between(
        lambda h: torch.cdist(h[:, :, None], h[:, :2, None] + 5, p=p),
        second="difference",
    )
KINDS["cdist to one's own rows"] = lambda: between(
    lambda h: torch.cdist(h.view(-1, 2, 2), h.view(-1, 2, 2)), second="difference"
)
KINDS["pdist of each"] = lambda: between(
    lambda h: torch.stack([torch.nn.functional.pdist(x.view(2, 2)) for x in h]),
    second="difference",
)
