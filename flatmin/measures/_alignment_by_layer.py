"""How Σ lies to H in every layer, from one sweep of the examples' gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd
import torch

from flatmin._utils.numbers import check_accuracy, check_count, check_positive
from flatmin._utils.random import check_seed, make_generator
from flatmin._utils.results import HtmlTable
from flatmin.curvature._eigenpairs import GRAM_LIMIT
from flatmin.curvature._point import Point, as_one_point
from flatmin.measures._alignment import align, alignment_moments
from flatmin.measures._alignment_result import Alignment
from flatmin.measures._layers import check_layers
from flatmin.risk import EmpiricalRisk

__all__ = ["LayerAlignments", "alignment_by_layer"]


@dataclass(frozen=True)
class LayerAlignments(HtmlTable):
    """The alignment of each layer's blocks of Σ and H.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from flatmin import EmpiricalRisk
    >>> X, y = load_iris(return_X_y=True)
    >>> _ = torch.manual_seed(0)
    >>> layers = torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
    >>> net = torch.nn.Sequential(*layers)
    >>> risk = EmpiricalRisk(net, "cross_entropy", X, y)
    >>> from flatmin.measures import alignment_by_layer
    >>> found = alignment_by_layer(risk, risk.params(), 2)
    >>> found.layers["0"].n_params, found.layers["2"].n_params
    (25, 18)
    """

    layers: dict[str, Alignment]
    left_out: dict[str, str]  # why a layer has none

    def to_frame(self) -> pd.DataFrame:
        """Return the single numbers of all layers.

        Returns
        -------
        pandas.DataFrame
            Indexed by layer and quantity; columns value and stderr.
        """
        frames = {name: found.to_frame() for name, found in self.layers.items()}
        return pd.concat(frames, names=["layer"])


def alignment_by_layer(
    risk: EmpiricalRisk,
    theta: Point,
    k: int = 20,
    *,
    tol: float = 1e-4,
    rtol: float = 0.02,
    max_matvecs: int = 200,
    rng: torch.Generator | int | None = 0,
    verbose: bool = False,
) -> LayerAlignments:
    """Return :func:`alignment` of each layer.

    A layer's parameters are those that one module holds; what several share belongs to
    the first. One sweep gives all that is asked of Σ. Products with H are taken layer
    by layer, since one with the whole H mixes them; one with a layer's block computes
    nothing that lies below the layer.

    Parameters
    ----------
    risk : EmpiricalRisk
    theta : Tensor or ndarray of shape (D,)
    k : int, default=20
        Eigenpairs of either matrix, or all that a layer has.
    tol, rtol, max_matvecs : float, float, int, default=1e-4, 0.02, 200
        As in :func:`alignment`.
    rng : torch.Generator, int or None, default=0
        A seed, a generator on the risk's device, or None for random draws.
    verbose : bool, default=False
        Show progress bars of the solvers.

    Returns
    -------
    LayerAlignments

    Raises
    ------
    TypeError
        If the risk is none of a module.
    ValueError
        If θ is not one vector, an argument does not fit, or no layer has both H and Σ.
    FloatingPointError
        If the loss or a derivative is not finite; the message names the parameters.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from flatmin import EmpiricalRisk
    >>> X, y = load_iris(return_X_y=True)
    >>> _ = torch.manual_seed(0)
    >>> layers = torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
    >>> net = torch.nn.Sequential(*layers)
    >>> risk = EmpiricalRisk(net, "cross_entropy", X, y)
    >>> from flatmin.measures import alignment_by_layer
    >>> list(alignment_by_layer(risk, risk.params(), 2).layers)
    ['0', '2']
    """
    k = check_count("k", k)
    tol = check_positive("tol", tol)
    rtol, max_matvecs = check_accuracy(rtol, max_matvecs)
    check_seed(rng)
    check_layers(risk)
    theta = as_one_point(risk, theta, "alignment")
    generator = make_generator(rng, risk.device)
    moments = alignment_moments(risk, theta, None, None)
    rows = None
    if risk.n_examples * risk.n_params <= GRAM_LIMIT:
        rows = torch.cat(list(risk.per_example_gradients(theta)))
        rows = rows - rows.mean(0)
    found, left_out = {}, {}
    for name, part in risk.layout.layers().items():
        size = part.stop - part.start
        of_layer = {
            field: value[part]
            for field, value in vars(moments).items()
            if isinstance(value, torch.Tensor) and value.ndim
        }
        names = [p for p in risk.layout.names if p.rpartition(".")[0] == name]
        try:
            found[name] = align(
                risk,
                theta,
                min(k, size, max(1, risk.n_examples - 1)),
                select=names,
                preconditioner=None,
                tol=tol,
                rtol=rtol,
                max_matvecs=max_matvecs,
                rng=generator,
                verbose=bool(verbose),
                moments=replace(moments, **of_layer),
                rows=None if rows is None else rows[:, part],
            )
        except ValueError as error:  # H = 0, or Σ is rounding
            left_out[name] = str(error)
    if not found:
        reasons = "; ".join(f"{name!r}: {why}" for name, why in left_out.items())
        raise ValueError(f"No layer has an alignment. Got {reasons}")
    return LayerAlignments(found, left_out)
