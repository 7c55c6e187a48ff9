"""Many chains of a dynamic at once, on a risk given by formulas or of a network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flatmin._utils.arrays import check_floating, to_array
from flatmin._utils.callables import check_callable
from flatmin._utils.messages import naming
from flatmin._utils.numbers import check_count, check_held_by, check_positive
from flatmin._utils.progress import progress_bar
from flatmin._utils.random import make_generator
from flatmin.curvature import hessian_eigenpairs
from flatmin.dynamics._divergence import DivergenceError
from flatmin.dynamics._simulation import Simulation
from flatmin.noise import NoiseLaw, Step, make_noise_law, step_for
from flatmin.noise._registry import check_law_class
from flatmin.risk import AnalyticRisk, EmpiricalRisk

__all__ = ["simulate"]

ChainsRisk: TypeAlias = AnalyticRisk | EmpiricalRisk
Method: TypeAlias = str | NoiseLaw | type[NoiseLaw]


def simulate(
    risk: ChainsRisk,
    methods: Method | Iterable[Method] | Mapping[str, Method],
    start: Any,
    *,
    lr: float,
    n_iter: int,
    n_chains: int = 100,
    reached: Callable[[Tensor], Tensor] | None = None,
    record_every: int | None = None,
    rng: torch.Generator | int | None = 0,
    verbose: bool | int = False,
) -> dict[str, Simulation]:
    """Run θ ← θ - η (g₀ + ε) from one start, many chains of each method at once.

    Memory grows with ``n_chains``, and with ``n_iter`` only through the trajectories.
    The chains of a small network go through it together (see
    :class:`flatmin.EmpiricalRisk`); where they cannot, or where the law needs
    eigenpairs, one after the other does: ``risk.paths`` tells.

    All chains draw from one generator: each call fills a tensor whose first dimension
    is the chains, and chain c takes its c-th part. So the chains are independent, and a
    run with another number of chains is another sample. Given the numbers that it
    drew, a chain is what it would be alone, to rounding.

    Parameters
    ----------
    risk : AnalyticRisk or EmpiricalRisk
    methods : str, NoiseLaw, its class, iterable or mapping of these
        Names, or laws for other settings than a law's own; a mapping gives labels.
    start : array-like or Tensor of shape (D,) or (n_chains, D)
        θ before the first step.
    lr : float
        η.
    n_iter : int
        Steps.
    n_chains : int, default=100
        Independent chains of each method.
    reached : callable, default=None
        The target: takes θ of shape (n_chains, D), returns a boolean Tensor of shape
        (n_chains,). None leaves successes and exit times out.
    record_every : int, default=None
        Keeps the iterates 0, r, 2r, … of every chain; None keeps none.
    rng : torch.Generator, int or None, default=0
        A seed gives every method the same random numbers, so that its result does not
        depend on which others run; a generator, on the risk's device, is used by one
        after the other; None is random.
    verbose : bool or int, default=False
        Shows a progress bar.

    Returns
    -------
    dict of str to Simulation
        By label, else by the law's name. A chain that is not finite any more is not in
        the target.

    Raises
    ------
    TypeError
        If θ of the risk cannot be many chains, or ``reached`` returns no boolean
        Tensor.
    ValueError
        If an argument, or a law's setting, does not fit, or ``reached`` does not return
        one truth value for each chain.
    DivergenceError
        If a law that needs eigenpairs, or Tr(G), meets a θ that is not finite.

    Warns
    -----
    UserWarning
        If η λ_max(H) > 2 at the start: gradient descent leaves it without noise, so
        that escaping says nothing about the noise.

    Examples
    --------
    >>> from flatmin.risk import TwoBasinsRisk
    >>> risk = TwoBasinsRisk.from_paper("matched")
    >>> laws = {"sgd": make_noise_law("sgd", batch_size=1), "gd": "gd"}
    >>> result = simulate(
    ...     risk, laws, risk.sharp_minimum, lr=0.006, n_iter=600,
    ...     reached=risk.in_flat_basin,
    ... )
    >>> result["gd"].success_rate()
    Proportion(value=0.0, low=0.0, high=0.0369..., count=0, n=100)
    >>> result["sgd"].success_rate().low > 0.0369
    True

    Copies of a network:

    >>> net = torch.nn.Linear(1, 1, bias=False)
    >>> risk = EmpiricalRisk(net, "squared_error", [[1.0], [3.0]], [[1.0], [2.0]])
    >>> run = simulate(risk, "gd", [[0.0], [1.0]], lr=0.1, n_iter=100, n_chains=2)
    >>> run["gd"].theta  # least squares: 7/10
    tensor([[0.7000],
            [0.7000]])
    """
    if not isinstance(risk, ChainsRisk):
        raise TypeError(
            "risk must be an AnalyticRisk or an EmpiricalRisk, whose θ may be many "
            f"chains. Got {type(risk).__name__}; make one of a network: "
            "EmpiricalRisk(module, loss, X, y)."
        )
    lr = check_positive("lr", lr)
    check_held_by("lr", lr, risk.dtype)
    n_iter = check_count("n_iter", n_iter)
    n_chains = check_count("n_chains", n_chains)
    if record_every is not None:
        record_every = check_count("record_every", record_every)
    if reached is not None:
        check_callable("reached", reached, "theta")
    laws = _laws(methods, risk)
    theta = _start(risk, start, n_chains)
    _warn_if_unstable(risk, theta, lr)
    results = {}
    for label, law in laws.items():
        generator = make_generator(rng, risk.device)
        with progress_bar(n_iter, label, verbose=verbose) as bar:
            results[label] = _run(
                risk,
                law,
                theta,
                generator,
                lr=lr,
                n_iter=n_iter,
                reached=reached,
                record_every=record_every,
                bar=bar,
            )
    return results


def _run(
    risk, law, theta, rng, *, lr, n_iter, reached, record_every, bar
) -> Simulation:
    kept = []
    exits = None if reached is None else _Exits(reached, theta)
    state = None
    for t in range(n_iter + 1):
        if record_every is not None and t % record_every == 0:
            kept.append(theta)
        if t == n_iter:
            break
        step = Step(t, lr / int(law.n_substeps))
        is_due = t % int(law.refresh_every) == 0
        told = step_for(law.noisy_gradient, step)
        for _ in range(int(law.n_substeps)):
            if is_due:
                state, gradient = _refreshed(
                    risk, law, theta, rng, previous=state, step=step
                )
                is_due = False
            else:
                _, gradient = law.noisy_gradient(risk, theta, state, rng, **told)
            theta = theta - step.lr * gradient
        if exits is not None:
            exits.update(theta, t + 1)
        bar.update(1)
    return Simulation(
        law,
        theta,
        n_iter,
        None if exits is None else exits.inside,
        None if exits is None else exits.times,
        None if exits is None else exits.censored,
        None if record_every is None else torch.arange(0, n_iter + 1, record_every),
        torch.stack(kept) if kept else None,
    )


class _Exits:
    """When each chain was in the target for the first time."""

    def __init__(self, reached, theta: Tensor) -> None:
        self.reached = reached
        self.inside = self._look(theta)
        self.censored = ~self.inside
        self.times = torch.zeros_like(self.inside, dtype=torch.long)

    def update(self, theta: Tensor, t: int) -> None:
        # -∞ lies below everything.
        finite = theta.isfinite().all(-1)
        self.inside = self._look(theta) & finite
        self.times = torch.where(self.censored & finite, t, self.times)
        self.censored = self.censored & ~self.inside

    def _look(self, theta: Tensor) -> Tensor:
        """Return which chains are in the target; what is no answer is refused."""
        inside = self.reached(theta)
        # What broadcasts, and the ~ of integers, would count chains wrongly.
        if not isinstance(inside, Tensor) or inside.dtype != torch.bool:
            got = inside.dtype if isinstance(inside, Tensor) else type(inside).__name__
            raise TypeError(
                f"reached must return a boolean Tensor. Got {got}; return a "
                "comparison, such as theta[:, 0] > 1."
            )
        if inside.shape != theta.shape[:1]:
            raise ValueError(
                "reached must return one truth value for each chain, shape "
                f"{tuple(theta.shape[:1])}. Got shape {tuple(inside.shape)}; compare a "
                "column, theta[:, 0] > 1, or take .all(-1) of a comparison of all."
            )
        if inside.device != theta.device:
            raise ValueError(
                f"reached must return a Tensor on the device of θ, {theta.device}. Got "
                f"one on {inside.device}; make it of theta alone."
            )
        return inside


def _refreshed(risk, law, theta, rng, *, previous, step) -> tuple[Any, Tensor]:
    """Return the law's state at θ and the noisy gradient there, which share a sweep."""
    refreshed = law.refreshed_gradient
    try:
        told = step_for(refreshed, step)
        state, _, gradient = refreshed(risk, theta, rng, previous, **told)
        return state, gradient
    # An eigensolver raises the first at a θ that is not finite, Tr(G) the second.
    except (RuntimeError, FloatingPointError) as error:
        n_lost = int((~theta.isfinite().all(-1)).sum())
        if not n_lost:
            raise
        raise DivergenceError(
            f"{n_lost} chains of {law.name} are not finite at iteration "
            f"{step.iteration}. Try a smaller lr or a smaller noise_scale."
        ) from error


def _laws(methods, risk: ChainsRisk) -> dict[str, NoiseLaw]:
    if isinstance(methods, str | type | NoiseLaw):
        methods = [methods]
    if not isinstance(methods, Iterable):
        raise TypeError(
            "methods must be a name, a NoiseLaw, its class, or several of them. Got "
            f"{type(methods).__name__}."
        )
    with naming("methods"):
        given = list(methods.values() if isinstance(methods, Mapping) else methods)
    for method in given:
        if isinstance(method, type):
            check_law_class("a method", method)
        elif not isinstance(method, str | NoiseLaw):
            raise TypeError(
                "methods must hold names, NoiseLaws and their classes. Got "
                f"{type(method).__name__}."
            )
    if not isinstance(methods, Mapping):
        named = [(m if isinstance(m, str) else m.name, m) for m in given]
        methods = dict(named)
        if len(methods) < len(named):
            raise ValueError(
                "Each method must have a label of its own. Got "
                f"{[label for label, _ in named]}; give a mapping of labels to laws."
            )
    laws = {
        label: method if isinstance(method, NoiseLaw) else make_noise_law(method)
        for label, method in methods.items()
    }
    if not laws:
        raise ValueError("simulate needs at least one method. Got none.")
    for law in laws.values():
        law.check(risk)
        law.check_chains(risk)
    return laws


def _start(risk: ChainsRisk, start: Any, n_chains: int) -> Tensor:
    if not isinstance(start, Tensor):
        start = torch.as_tensor(to_array("start", start))
    check_floating("start", start, 1)
    if not bool(start.isfinite().all()):
        raise ValueError("start must be finite. Got NaN or infinity in it.")
    shapes = [(risk.n_params,), (n_chains, risk.n_params)]
    if tuple(start.shape) not in shapes:
        raise ValueError(
            f"start must have shape {shapes[0]} or {shapes[1]}. Got "
            f"{tuple(start.shape)}."
        )
    theta = start.to(risk.device, risk.dtype).expand(n_chains, -1)
    if isinstance(risk, EmpiricalRisk):  # whose data are those of every chain
        return theta
    try:
        shape = risk.value(theta).shape
    except RuntimeError as error:
        raise ValueError(
            f"The risk must take n_chains={n_chains} chains. Got one whose data are of "
            f"another number of chains: {error}"
        ) from error
    if shape != (n_chains,):
        raise ValueError(
            f"The risk must give n_chains={n_chains} values. Got {tuple(shape)}."
        )
    return theta


def _warn_if_unstable(risk: ChainsRisk, theta: Tensor, lr: float) -> None:
    try:
        sharpest = _sharpest(risk, theta)
    except ValueError:  # PyTorch has no second derivative of this network
        return
    if lr * sharpest > 2:
        warnings.warn(
            f"η λ_max = {lr * sharpest:.3g} > 2 at the start: gradient descent is "
            "unstable there and leaves it without any noise. Escapes at this lr say "
            f"nothing about the noise; a stable one is below {2 / sharpest:.3g}.",
            stacklevel=3,
        )


def _sharpest(risk: ChainsRisk, theta: Tensor) -> float:
    """Return the largest eigenvalue of H in all chains."""
    if isinstance(risk, AnalyticRisk):
        return float(torch.linalg.eigvalsh(risk.hessian(theta)).max())
    starts = theta.unique(dim=0)  # most often one
    return float(hessian_eigenpairs(risk, starts, 1, tol=1e-2, rng=0).eigenvalues.max())
