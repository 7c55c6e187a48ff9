"""The same work by other libraries, each used as its own documentation says.

Weights and images are channels-last where that makes a library faster. Derivatives
of a transformer need PyTorch's plain attention kernels: the fused ones have none in
forward mode, nor second ones.
"""

from __future__ import annotations

import copy
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from _cases import Call, Case, Work, bare_loop
from _problems import Problem, flat, split_like
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["LIBRARIES", "PEERS"]

LIBRARIES = (
    "curvlinops",
    "hessian_eigenthings",
    "pyhessian.utils",
    "backpack.extensions",
    "opacus",
    "skorch",
)


def _plain_attention(call: Call) -> Call:
    def with_kernel() -> Any:
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with sdpa_kernel(SDPBackend.MATH):
                return call()
        finally:
            torch.backends.mha.set_fastpath_enabled(before)

    return with_kernel


def _loss(problem: Problem) -> Tensor:
    loss: Tensor = problem.criterion(problem.module(problem.X), problem.y)
    return loss


# Plain PyTorch.


def _default_layout(problem: Problem, v: Tensor, setting: Any) -> Work:
    def call() -> Any:
        return torch.autograd.grad(_loss(problem), problem.params)

    return Work(call, answer=flat)


def _double_backward(problem: Problem, v: Tensor, setting: Any) -> Work:
    problem = problem.channels_last()
    params = problem.params

    @_plain_attention
    def call() -> Any:
        slopes = torch.autograd.grad(_loss(problem), params, create_graph=True)
        return torch.autograd.grad(slopes, params, split_like(v, params))

    return Work(call, answer=flat)


def _kept_product(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Return v -> H v by a second backward pass through a graph that is kept."""
    problem = problem.channels_last()
    params = problem.params
    with sdpa_kernel(SDPBackend.MATH):
        slopes = torch.autograd.grad(_loss(problem), params, create_graph=True)

    def product(v: Tensor) -> Tensor:
        return flat(
            torch.autograd.grad(
                slopes, params, split_like(v, params), retain_graph=True
            )
        )

    return product


def _keep_graph(problem: Problem, v: Tensor, setting: Any) -> Work:
    problem = problem.channels_last()

    @_plain_attention
    def call() -> Any:
        return torch.autograd.grad(_loss(problem), problem.params, create_graph=True)

    return Work(call)


def _graph_kept(problem: Problem, v: Tensor, setting: Any) -> Work:
    call = functools.partial(_kept_product(problem), v)
    return Work(call)


def _vmap_rows(problem: Problem) -> Callable[[], Iterator[Tensor]]:
    """Return what yields per-example gradients, 300 at a time."""
    params = {name: p.detach() for name, p in problem.module.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(problem.module, values, (x[None],))
        found: Tensor = problem.criterion(outputs, y[None])
        return found

    example_gradients = vmap(grad(loss), in_dims=(None, 0, 0))

    def rows() -> Iterator[Tensor]:
        for x, y in zip(problem.X.split(300), problem.y.split(300), strict=True):
            parts = example_gradients(params, x, y).values()
            yield torch.cat([part.flatten(1) for part in parts], dim=1)

    return rows


def _vmap_variances(problem: Problem, v: Tensor, setting: Any) -> Work:
    rows, n = _vmap_rows(problem), len(problem.X)

    def call() -> Tensor:
        total, squares = 0, 0
        for part in rows():
            total = total + part.double().sum(0)
            squares = squares + part.square().double().sum(0)
        return squares / n - (total / n) ** 2

    return Work(call)


def _vmap_norms(problem: Problem, v: Tensor, setting: Any) -> Work:
    rows = _vmap_rows(problem)

    def call() -> Tensor:
        return torch.cat([part.square().sum(1) for part in rows()])

    return Work(call)


# Eigenpairs by ARPACK from anybody's products.


def _arpack(
    product: Callable[[np.ndarray], np.ndarray], problem: Problem, tol: float
) -> Work:
    size = len(problem.theta())
    counts = [0]

    def counted(v: np.ndarray) -> np.ndarray:
        counts[-1] += 1
        return product(v.ravel())

    def call() -> Any:
        counts.append(0)
        operator = LinearOperator((size, size), matvec=counted, dtype=np.float32)
        start = np.random.default_rng(0).standard_normal(size).astype(np.float32)
        return eigsh(operator, problem.n_components, which="LA", tol=tol, v0=start)

    def prime() -> Any:
        return product(np.ones(size, np.float32))

    def note() -> str:
        return f"tol={tol:g}, {counts[-1]} products"

    return Work(call, prime=prime, note=note)


def _torch_eigenpairs(problem: Problem, v: Tensor, setting: Any) -> Work:
    product = _kept_product(problem)
    return _arpack(lambda u: product(torch.as_tensor(u)).numpy(), problem, setting)


ARPACK_TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)


# curvlinops.


def _curvlinops(name: str, problem: Problem) -> Any:
    problem = problem.channels_last()
    operator = getattr(importlib.import_module("curvlinops"), name)
    data = [(problem.X, problem.y)]
    return _plain_attention(
        lambda: operator(problem.module, problem.criterion, problem.params, data)
    )()


def _curvlinops_product(name: str) -> Callable[..., Work]:
    def make(problem: Problem, v: Tensor, setting: Any) -> Work:
        operator = _curvlinops(name, problem)
        call = _plain_attention(lambda: operator @ v)
        return Work(call)

    return make


def _curvlinops_eigenpairs(problem: Problem, v: Tensor, setting: Any) -> Work:
    operator = _curvlinops("HessianLinearOperator", problem).to_scipy()

    def product(u: np.ndarray) -> np.ndarray:
        found: np.ndarray = _plain_attention(lambda: operator @ u)()
        return found

    return _arpack(product, problem, setting)


# hessian-eigenthings.


def _eigenthings_hessian(problem: Problem) -> Any:
    library = importlib.import_module("hessian_eigenthings")
    problem = problem.channels_last()
    loss = library.supervised_loss(problem.criterion)
    return library.HessianOperator(problem.module, [(problem.X, problem.y)], loss)


def _eigenthings_hvp(problem: Problem, v: Tensor, setting: Any) -> Work:
    operator = _eigenthings_hessian(problem)
    call = _plain_attention(lambda: operator.matvec(v))
    return Work(call)


def _eigenthings_ggn(problem: Problem, v: Tensor, setting: Any) -> Work:
    library = importlib.import_module("hessian_eigenthings")
    problem = problem.channels_last()
    operator = library.GGNOperator(
        problem.module,
        [(problem.X, problem.y)],
        library.supervised_forward,
        library.supervised_loss_of_output(problem.criterion),
    )
    call = _plain_attention(lambda: operator.matvec(v))
    return Work(call)


def _eigenthings_eigenpairs(problem: Problem, v: Tensor, setting: Any) -> Work:
    library = importlib.import_module("hessian_eigenthings")
    operator = _eigenthings_hessian(problem)
    factor, reorthogonalize = setting
    k = problem.n_components
    steps = round(factor * k)

    @_plain_attention
    def call() -> Any:
        pairs = library.lanczos(
            operator,
            k=k,
            max_iter=steps,
            reorthogonalize=reorthogonalize,
            which="LA",
            seed=0,
        )
        return pairs.eigenvalues, pairs.eigenvectors.T

    note = f"{steps} steps" + (", reorthogonalize=True" if reorthogonalize else "")
    prime = _plain_attention(lambda: operator.matvec(v))
    return Work(call, prime=prime, note=lambda: note)


# The library's default of 2 k steps, and more; the last ones with the option that it
# switches off beyond 50 steps.
LANCZOS_STEPS = ((2, None), (2.75, None), (2.75, True), (4, True), (6, True))


# PyHessian.


def _pyhessian(problem: Problem) -> Any:
    problem = problem.channels_last()
    library = importlib.import_module("pyhessian")
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", "Using backward.. with create_graph=True")
        return library.hessian(
            problem.module, problem.criterion, data=(problem.X, problem.y), cuda=False
        )


def _pyhessian_hvp(problem: Problem, v: Tensor, setting: Any) -> Work:
    utils = importlib.import_module("pyhessian.utils")
    found = _pyhessian(problem)
    parts = split_like(v, found.params)

    def call() -> Any:
        return utils.hessian_vector_product(found.gradsH, found.params, parts)

    return Work(call, answer=flat)


def _pyhessian_eigenpairs(problem: Problem, v: Tensor, setting: Any) -> Work:
    found = _pyhessian(problem)

    def call() -> Any:
        torch.manual_seed(0)
        return found.eigenvalues(top_n=problem.n_components)

    def answer(pairs: Any) -> Any:
        values, vectors = pairs
        return values, torch.stack([flat(vector) for vector in vectors], dim=1)

    def prime() -> None:
        found.eigenvalues(maxIter=1)

    return Work(call, answer=answer, prime=prime, note=lambda: "defaults")


# BackPACK and Opacus.


def _backpack(extension: str, problem: Problem) -> Call:
    library = importlib.import_module("backpack")
    extensions = importlib.import_module("backpack.extensions")
    problem = problem.channels_last()
    module = library.extend(problem.module)
    criterion = library.extend(copy.deepcopy(problem.criterion))

    def call() -> list[Tensor]:
        with library.backpack(getattr(extensions, extension)()):
            criterion(module(problem.X), problem.y).backward()
        name = {"Variance": "variance", "BatchL2Grad": "batch_l2"}[extension]
        missing = [n for n, p in module.named_parameters() if not hasattr(p, name)]
        if missing:
            raise NotImplementedError(f"nothing for {', '.join(missing[:3])}")
        return [getattr(p, name) for p in module.parameters()]

    return call


def _backpack_variances(problem: Problem, v: Tensor, setting: Any) -> Work:
    # Of gᵢ / N, since the loss is a mean.
    call, n = _backpack("Variance", problem), len(problem.X)
    return Work(call, answer=lambda parts: flat(parts) * n**2)


def _backpack_norms(problem: Problem, v: Tensor, setting: Any) -> Work:
    call, n = _backpack("BatchL2Grad", problem), len(problem.X)
    return Work(call, answer=lambda parts: torch.stack(parts).sum(0) * n**2)


def _opacus_norms(problem: Problem, v: Tensor, setting: Any) -> Work:
    # Not channels-last, where its norms are silently wrong: it reads strided patches
    # as if they were of the default layout. Its hooks do nothing in eval mode.
    library = importlib.import_module("opacus")
    module = library.GradSampleModule(problem.module.train(), loss_reduction="mean")

    def call() -> Tensor:
        module.zero_grad()
        problem.criterion(module(problem.X), problem.y).backward()
        parts = [p.grad_sample.flatten(1).square().sum(1) for p in problem.params]
        return torch.stack(parts).sum(0)

    return Work(call)


# skorch.


def _skorch(*, callbacks: bool) -> Callable[..., Work]:
    def make(problem: Problem, v: Tensor, setting: Any) -> Work:
        skorch = importlib.import_module("skorch")
        net = skorch.NeuralNetRegressor(
            problem.module,
            optimizer=torch.optim.SGD,
            lr=problem.lr,
            batch_size=-1,
            train_split=None,
            max_epochs=100,
            callbacks=None if callbacks else "disable",
            verbose=0,
        ).initialize()
        X, y = problem.X.numpy(), problem.y.numpy()
        return Work(
            lambda: net.partial_fit(X, y), steps=100, unit=bare_loop(problem, steps=1)
        )

    return make


PEERS = [
    Case("gradient", "PyTorch, default layout", _default_layout, "gradient"),
    Case("H v", "PyTorch, graph kept", _graph_kept, "hvp"),
    Case("prepare H v", "PyTorch, graph kept", _keep_graph),
    Case("H v", "PyTorch, double backward", _double_backward, "hvp"),
    Case("H v", "curvlinops", _curvlinops_product("HessianLinearOperator"), "hvp"),
    Case("H v", "hessian-eigenthings", _eigenthings_hvp, "hvp"),
    Case("H v", "PyHessian", _pyhessian_hvp, "hvp"),
    Case("G v", "curvlinops", _curvlinops_product("GGNLinearOperator"), "ggn"),
    Case("G v", "hessian-eigenthings", _eigenthings_ggn, "ggn"),
    Case("diag Σ", "PyTorch, vmap", _vmap_variances, "variances"),
    Case("diag Σ", "BackPACK", _backpack_variances, "variances"),
    Case("‖gᵢ‖²", "PyTorch, vmap", _vmap_norms, "squared norms"),
    Case("‖gᵢ‖²", "BackPACK", _backpack_norms, "squared norms"),
    Case("‖gᵢ‖²", "Opacus", _opacus_norms, "squared norms"),
    Case(
        "eigenpairs of H",
        "PyTorch + SciPy",
        _torch_eigenpairs,
        "eigenpairs",
        settings=ARPACK_TOLERANCES,
    ),
    Case(
        "eigenpairs of H",
        "curvlinops + SciPy",
        _curvlinops_eigenpairs,
        "eigenpairs",
        settings=ARPACK_TOLERANCES,
    ),
    Case(
        "eigenpairs of H",
        "hessian-eigenthings",
        _eigenthings_eigenpairs,
        "eigenpairs",
        settings=LANCZOS_STEPS,
    ),
    Case("eigenpairs of H", "PyHessian", _pyhessian_eigenpairs, "eigenpairs"),
    Case("iteration of gd", "skorch", _skorch(callbacks=False), problems=("cubic",)),
    Case(
        "iteration of gd",
        "skorch, its callbacks",
        _skorch(callbacks=True),
        problems=("cubic",),
    ),
]
