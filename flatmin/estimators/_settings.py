"""The parameters that hold several settings: ``warmup`` and ``checkpoint_dir``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch

from flatmin._utils.names import check_known, check_text
from flatmin._utils.numbers import check_count, check_held_by, check_positive
from flatmin._utils.paths import check_path
from flatmin.dynamics import resolve_optimizer
from flatmin.estimators._laws import resolve_law
from flatmin.noise import NoiseLaw

__all__ = ["FolderSettings", "WarmupSettings", "read_folder", "read_warmup"]


@dataclass(frozen=True)
class WarmupSettings:
    """How the iterations before the noise are done."""

    max_iter: int
    law: NoiseLaw
    optimizer: type[torch.optim.Optimizer]
    lr: float  # η


@dataclass(frozen=True)
class FolderSettings:
    """Where a run is saved, and when."""

    path: str | PathLike[str]
    every: int | None  # iterations; None is after every block


def read_warmup(estimator: Any, dtype: torch.dtype) -> WarmupSettings | None:
    """Check the ``warmup`` of an estimator, and fill in what it leaves out.

    Parameters
    ----------
    estimator : estimator
    dtype : torch.dtype
        Of θ.

    Returns
    -------
    WarmupSettings or None
        None where there is no warm-up, also of 0 iterations.

    Raises
    ------
    TypeError
        If a value is of a kind that does not fit.
    ValueError
        If a setting does not exist, or its value does not fit.
    """
    given = estimator.warmup
    if given is None:
        return None
    _check_keys("warmup", given, ("max_iter", "method", "optimizer", "lr"))
    if "max_iter" not in given:
        raise ValueError(
            "warmup must say how many iterations it has, such as "
            f"warmup={{'max_iter': 200}}. Got {given!r}."
        )
    max_iter = check_count("warmup['max_iter']", given["max_iter"], 0)
    optimizer = resolve_optimizer(
        given.get("optimizer", "sgd"), {}, "warmup['optimizer']"
    )
    lr = float(estimator.lr)
    if given.get("lr") is not None:
        lr = check_positive("warmup['lr']", given["lr"])
        check_held_by("warmup['lr']", lr, dtype)
    method = given.get("method", "gd")
    if not isinstance(method, str | type | NoiseLaw):
        raise TypeError(
            "warmup['method'] must be a name, a NoiseLaw or a subclass of NoiseLaw. "
            f"Got {method!r}."
        )
    shared = {"batch_size": estimator.batch_size}
    law = resolve_law(method, None, shared, title="warmup['method']")
    return WarmupSettings(max_iter, law, optimizer, lr) if max_iter else None


def read_folder(checkpoint_dir: Any) -> FolderSettings | None:
    """Check the ``checkpoint_dir`` of an estimator.

    Parameters
    ----------
    checkpoint_dir : path-like, dict or None

    Returns
    -------
    FolderSettings or None
        None where nothing is saved.

    Raises
    ------
    TypeError
        If it names no folder.
    ValueError
        If a setting does not exist, or its value does not fit.
    """
    if checkpoint_dir is None:
        return None
    if not isinstance(checkpoint_dir, Mapping):
        check_path("checkpoint_dir", checkpoint_dir)
        return FolderSettings(checkpoint_dir, None)
    _check_keys("checkpoint_dir", checkpoint_dir, ("path", "every"))
    path, every = checkpoint_dir.get("path"), checkpoint_dir.get("every")
    if not isinstance(path, str | PathLike):
        raise TypeError(
            "checkpoint_dir['path'] must name a folder. Got "
            f"checkpoint_dir={checkpoint_dir!r}."
        )
    check_path("checkpoint_dir['path']", path)
    if every is not None:
        every = check_count("checkpoint_dir['every']", every)
    return FolderSettings(path, every)


def _check_keys(title: str, given: Iterable[Any], known: Iterable[str]) -> None:
    for key in given:
        check_text(f"a name in {title}", key)
        check_known(f"setting of {title}", key, known)
