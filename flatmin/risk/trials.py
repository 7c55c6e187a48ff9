"""Try a fast way, compare it with a slow one, take it or say why not.

The one place that decides between implementations of a quantity. What is compared, and
with what, belongs to the quantity; how large a difference may be, what is done about an
exception, and how the choice is told, stand here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from flatmin.risk.failures import explain

__all__ = [
    "Choice",
    "asymmetry",
    "attempt",
    "difference",
    "difference_and_size",
    "joined",
    "random_like",
    "tells",
    "tolerance",
    "worst",
    "worst_difference",
]


# Numbers that are compared at a time: they stay within the caches of a CPU.
_AT_A_TIME = 1 << 18


def tolerance(dtype: torch.dtype, order: int) -> float:
    """Return how much two ways of one quantity may differ, relative to its size.

    Some hundred to a thousand roundings for outputs and losses, ten times as much for
    each derivative: published networks lose a digit or two on their way, a wrong
    derivative is off by a per cent or more.

    Parameters
    ----------
    dtype : torch.dtype
        Of the parameters: inputs may be integers.
    order : int
        Of the derivative, 0 for outputs and losses.

    Returns
    -------
    float

    Examples
    --------
    >>> tolerance(torch.float32, 0), tolerance(torch.float64, 2)
    (1e-05, 1e-08)
    """
    base = 1e-10 if dtype == torch.float64 else 1e-5
    return float(f"{base * 10**order:.1e}")


def difference(
    found: Tensor, reference: Tensor, sizes: Sequence[int] | None = None
) -> float:
    """Return ‖found - reference‖ / ‖reference‖, or that of the worst parameter.

    Parameters
    ----------
    found : Tensor
    reference : Tensor
        Of the same shape.
    sizes : sequence of int, default=None
        Lengths of the parameters that lie one after the other in the last dimension.
        The difference of a parameter counts a tenth, relative to its own part of the
        reference: a small parameter that is missing altogether would not show in the
        whole. Below 3e-4 of the whole it is rounding.

    Returns
    -------
    float
        0 where both are 0 or where both have the same NaN and infinities; infinite
        where only one is not finite.

    Examples
    --------
    >>> found, right = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])
    >>> f"{difference(found, found):g} {difference(found, right):.3f}"
    '0 0.171'
    """
    if sizes is None:
        return worst_difference([difference_and_size(found, reference)])[0]
    parts = zip(
        found.split(list(sizes), -1), reference.split(list(sizes), -1), strict=True
    )
    return max(worst_difference([difference_and_size(*part) for part in parts]))


def difference_and_size(found: Tensor, reference: Tensor) -> tuple[float, float]:
    """Return ‖found - reference‖ and ‖reference‖, a few numbers at a time.

    Parameters
    ----------
    found : Tensor
    reference : Tensor
        Of the same shape.

    Returns
    -------
    difference : float
        Infinite where only one is not finite; where both have the same NaN and
        infinities these do not count.
    size : float

    Raises
    ------
    ValueError
        If the shapes are not the same.
    """
    if found.shape != reference.shape:
        raise ValueError(
            f"Shapes must agree. Got {tuple(found.shape)}, {tuple(reference.shape)}."
        )
    rest = size = 0.0
    pairs = zip(
        found.flatten().split(_AT_A_TIME),
        reference.flatten().split(_AT_A_TIME),
        strict=True,
    )
    for ours, right in pairs:
        ours, right = ours.double(), right.double()
        wild = ~(ours.isfinite() & right.isfinite())
        if bool(wild.any()):
            if not torch.equal(_wild(ours[wild]), _wild(right[wild])):
                return float("inf"), size
            ours, right = (t.masked_fill(wild, 0) for t in (ours, right))
        rest = math.hypot(rest, float((ours - right).norm()))
        size = math.hypot(size, float(right.norm()))
    return rest, size


def worst_difference(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the relative difference of a whole, and a tenth of its worst part's.

    Parameters
    ----------
    parts : sequence of (float, float)
        ‖found - reference‖ and ‖reference‖ of each parameter.

    Returns
    -------
    whole : float
    part : float
        See :func:`difference`.
    """
    rest, size = joined(parts)
    part = max(_ratio(r, p + 3e-4 * size) for r, p in parts)
    return _ratio(rest, size), part / 10


def worst(differences: Iterable[float]) -> float:
    """Return the largest difference; NaN is larger than any.

    Parameters
    ----------
    differences : iterable of float

    Returns
    -------
    float

    Examples
    --------
    >>> worst([1.0, float("nan"), 2.0])
    nan
    """
    return max(differences, key=lambda off: (off != off, off))


def joined(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return ‖found - reference‖ and ‖reference‖ of parts together.

    Parameters
    ----------
    parts : sequence of (float, float)
        ‖found - reference‖ and ‖reference‖ of each part.

    Returns
    -------
    difference : float
    size : float
    """
    rest, size = (math.hypot(*numbers) for numbers in zip(*parts, strict=True))
    return rest, size


def _wild(values: Tensor) -> Tensor:
    return values.nan_to_num(nan=0.0, posinf=1.0, neginf=-1.0)


def _ratio(difference: float, size: float) -> float:
    # Zero as the right value has no scale: then the difference itself is returned.
    return difference / size if size else difference


def asymmetry(a: Tensor, Aa: Tensor, b: Tensor, aAb: float, size_Ab: float) -> float:
    """Return |aᵀAb - bᵀAa|, relative to the products.

    Parameters
    ----------
    a : Tensor of shape (D,)
    Aa : Tensor of shape (D,)
    b : Tensor of shape (D,)
    aAb : float
        aᵀAb.
    size_Ab : float
        ‖Ab‖: of a large network Ab itself need not be held beside Aa.

    Returns
    -------
    float
    """
    a, Aa, b = (t.double() for t in (a, Aa, b))
    scale = float(b.norm() * Aa.norm() + a.norm() * size_Ab)
    return abs(float(b @ Aa) - aAb) / scale if scale else 0.0


def random_like(tensor: Tensor, seed: int) -> Tensor:
    """Return normal numbers of a tensor's shape, dtype and device.

    Parameters
    ----------
    tensor : Tensor
    seed : int

    Returns
    -------
    Tensor
    """
    rng = torch.Generator(device=tensor.device).manual_seed(seed)
    return torch.randn(
        tensor.shape, generator=rng, dtype=tensor.dtype, device=tensor.device
    )


def tells(expected: Tensor) -> bool:
    """Say whether a way can be told by what is right: numbers that are not all 0.

    Zeros, and what is not finite, are the same for ways that differ elsewhere.

    Parameters
    ----------
    expected : Tensor

    Returns
    -------
    bool
    """
    blocks = expected.flatten().split(_AT_A_TIME)
    return any(bool((part.isfinite() & (part != 0)).any()) for part in blocks)


def attempt(name: str, trial: Callable[[], float], limit: float) -> str | None:
    """Run a trial; return why a way cannot be taken, or None if it can.

    Parameters
    ----------
    name : str
        Of the way.
    trial : callable
        Returns the difference from what is right. Out of memory is raised as it comes:
        another way would only hide it.
    limit : float
        The largest difference.

    Returns
    -------
    str or None

    Raises
    ------
    OutOfMemoryError
        As it comes.
    """
    try:
        off = trial()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return explain(error)
    return None if off <= limit else f"{name} is off by {off:.1e}"


class Choice:
    """Which of several ways to compute one quantity is taken, and why not another.

    Attributes
    ----------
    taken : str or None
        The way; None before the first trial.
    reasons : dict of str to str
        Why faster ways are not taken.
    """

    def __init__(self) -> None:
        self.taken: str | None = None
        self.reasons: dict[str, str] = {}
        self._not_finite: set[str] = set()  # ways whose trial told nothing else

    def settle(
        self, trials: Mapping[str, Callable[[], float] | None], limit: float
    ) -> str | None:
        """Take the first way whose trial does not differ.

        Parameters
        ----------
        trials : mapping of str to callable
            The fastest first, see :func:`attempt`; None for a way that needs no trial.
        limit : float

        Returns
        -------
        str or None
            The way; None if all of them failed.
        """
        for name, trial in trials.items():
            if name in self.reasons:
                continue
            reason = None if trial is None else self._attempt(name, trial, limit)
            if reason is None:
                self.taken = name
                return name
            self.reasons[name] = reason
        self.taken = None
        return None

    def _attempt(
        self, name: str, trial: Callable[[], float], limit: float
    ) -> str | None:
        def off() -> float:
            found = trial()
            if not math.isfinite(found):
                self._not_finite.add(name)
            return found

        return attempt(name, off, limit)

    def forget_not_finite(self) -> bool:
        """Try those anew whose trial was not finite, as at a θ with no derivative.

        Returns
        -------
        bool
            Whether there were any.
        """
        were = bool(self._not_finite)
        for name in self._not_finite:
            self.reasons.pop(name, None)
        self._not_finite.clear()
        return were

    def give_up(self, name: str, reason: str) -> None:
        """Never take a way again, for what it did on other examples than the trial's.

        Parameters
        ----------
        name : str
        reason : str
        """
        self.reasons[name] = reason
        if self.taken == name:
            self.taken = None

    # A copy of the risk has a model of its own, which is tried anew.
    def __getstate__(self) -> dict[str, object]:
        return {"taken": None, "reasons": {}, "_not_finite": set()}
