"""The empirical risk of a module on a data set, as a function of one flat θ."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatmin._utils.arrays import check_scalar, check_tensor
from flatmin._utils.callables import check_callable
from flatmin._utils.locks import Lock
from flatmin._utils.names import check_known
from flatmin._utils.numbers import check_count
from flatmin._utils.placement import resolve_device, resolve_dtype
from flatmin._utils.random import check_rng
from flatmin.risk import checks
from flatmin.risk.arguments import as_direction, as_indices, within
from flatmin.risk.audit import Audit, audit
from flatmin.risk.autodiff.precision import in_full_float32
from flatmin.risk.autodiff.surroundings import alone, undisturbed
from flatmin.risk.chunks import Chunk, choose_chunk_size, iterate_chunks
from flatmin.risk.data import ArrayData, ExampleData, StreamedData, find_source
from flatmin.risk.example_sums.moments import Moments, merge_moments
from flatmin.risk.example_sums.per_example import ROW_BUDGET
from flatmin.risk.example_sums.scalars import (
    ExampleScalars,
    evaluate_losses,
    inner_products,
    losses_and_gradient,
)
from flatmin.risk.example_sums.sums import ExampleSums
from flatmin.risk.label_noise import (
    LabelDraw,
    check_draw,
    check_label_noise,
    gradient_with_slopes,
    label_kernel_product,
    label_roots,
    label_slopes,
    label_uniforms,
    pulled_back_squares,
)
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.losses.resolve_loss import LossLike, resolve_loss
from flatmin.risk.module_state import check_state
from flatmin.risk.network.layout import ParameterLayout
from flatmin.risk.network.model import FlatModel
from flatmin.risk.network.module_checks import trainable
from flatmin.risk.network.module_copy import copy_module
from flatmin.risk.network.prepared_module import (
    evaluation_mode,
    prepare_module,
    settings,
    settle,
)
from flatmin.risk.probe import (
    check_dependence,
    check_independence,
    choose_strides,
    probe_example,
    trial_indices,
)
from flatmin.risk.products.example_hessians import ExampleHessians
from flatmin.risk.products.gauss_newton import (
    gauss_newton_draw,
    gauss_newton_example_traces,
)
from flatmin.risk.products.graphs import ProductGraphs
from flatmin.risk.products.linearize import Linearization
from flatmin.risk.products.reference_products import ProductWays
from flatmin.risk.trials import random_like

__all__ = ["EmpiricalRisk"]


class EmpiricalRisk:
    """L(θ) = Σ wᵢℓᵢ(θ) / Σ wᵢ of a network, with everything that laws ask of it.

    Written as (1/N) Σ ℓ̃ᵢ with ℓ̃ᵢ = N wᵢ ℓᵢ / Σw; per-example gradients are
    gᵢ = ∇ℓ̃ᵢ, always with the divisor N. θ lists the trainable parameters in
    ``module.named_parameters()`` order, a shared parameter once. The risk works on a
    deep copy in eval mode, in which an InstanceNorm that is handed over in train mode
    keeps to each example's own statistics. Every quantity is a sum over examples and
    does not depend on the chunk size, up to rounding. On a GPU, what is measured has
    all digits of float32, whatever PyTorch's setting for convolutions; the gradients
    that come with a loss, which train, follow the setting. One risk may be used from
    several threads; calls wait for each other.

    Parameters
    ----------
    module : torch.nn.Module
        Maps X of shape (n, ...) to outputs of shape (n, ...).
    loss : str, loss module or callable
        "cross_entropy", "squared_error", "binary_cross_entropy", or anything that
        gives one loss an example; see :func:`flatmin.risk.resolve_loss`.
    X : array-like or Tensor of shape (N, ...), or a data set
        Not copied if it is a tensor of the right dtype, device and strides. A
        map-style ``torch.utils.data.Dataset`` of pairs (x, y), or a ``DataLoader`` that
        keeps their order, is read a chunk at a time: for data larger than memory.
    y : array-like or Tensor of shape (N, ...), default=None
        Class indices or numbers, as the loss needs; None with a data set.
    sample_weight : array-like of shape (N,), default=None
        wᵢ ≥ 0.
    chunk_size : int, default=None
        Examples at a time; None chooses from shapes alone.
    output_transform : callable, default=None
        Applied to what ``forward`` returns, for modules that return tuples.
    batch_norm : {"error", "frozen"}, default="error"
        BatchNorm in train mode is an error; "frozen" uses its running statistics.
    hvp : {"exact", "finite_difference"}, default="exact"
        How H v is computed. "finite_difference" is for networks of which PyTorch has no
        second derivative: a central difference of the gradient in float64, at a step
        that agrees with a quarter of it; four gradients a product. ``paths`` tells by
        how much the two differ. In both, what the module detaches is held constant.
    device : torch.device or str, default=None
        None is the module's, "auto" CUDA where there is any.
    dtype : {"float32", "float64"} or torch.dtype, default=None
        Of θ; None is the module's. The losses that have names keep their digits where
        predictions are sure, in float32 too. A softmax within the module does not: with
        a log_softmax there, and NLLLoss, H v has an error of about 1 % at a loss of
        1e-6, and of 10 % at 1e-7. Leave the softmax to "cross_entropy" there.

    Attributes
    ----------
    layout : ParameterLayout
        Which part of θ is which parameter.
    n_params : int
        D.
    n_examples : int
        N.
    output_shape : tuple of int
        Of one example's output.
    chunk_size : int
        Examples at a time.

    Raises
    ------
    ValueError, TypeError
        If module, loss and data do not fit together.

    Warns
    -----
    UserWarning
        About parameters that the loss does not depend on, and about dropout.

    Examples
    --------
    A linear model has Hessian (2/N) XᵀX:

    >>> X, y = torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 0.0])
    >>> risk = EmpiricalRisk(nn.Linear(1, 1, bias=False), "squared_error", X, y)
    >>> theta = torch.tensor([2.0])
    >>> risk.value(theta), risk.gradient(theta)
    (tensor(20.), tensor([20.]))
    >>> risk.linearize(theta).hvp(torch.ones(1))
    tensor([10.])
    """

    @undisturbed
    def __init__(
        self,
        module: nn.Module,
        loss: LossLike,
        X: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        chunk_size: int | None = None,
        output_transform: Callable[[Any], Tensor] | None = None,
        batch_norm: Literal["error", "frozen"] = "error",
        hvp: Literal["exact", "finite_difference"] = "exact",
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> None:
        check_known("hvp", hvp, ("exact", "finite_difference"))
        if chunk_size is not None:
            chunk_size = check_count("chunk_size", chunk_size)
        if output_transform is not None:
            check_callable("output_transform", output_transform, "outputs")
        self._hvp = hvp
        original, module = module, prepare_module(module, batch_norm, device, dtype)
        first = trainable(module)[0]
        self.device, self.dtype = first.device, first.dtype

        source = find_source(X, y)
        if source is not None:  # some examples stand for the rest
            X, y = source.read(trial_indices(len(source)).tolist())
        X = checks.as_tensor(X, "X", self.device, real=False)
        y = checks.as_tensor(y, "y", self.device)
        if len(X) != len(y):
            raise ValueError(
                f"X and y must have as many examples. Got {len(X)} and {len(y)}."
            )
        n_examples = len(X) if source is None else len(source)
        given, X = X, checks.as_input(X, module, self.dtype)
        checks.check_held(X, given, "X")
        known = isinstance(sample_weight, checks.KnownWeights)
        if not known:  # before anything is tried
            sample_weight = checks.as_weights(sample_weight, n_examples, self.device)
        self._loss = resolve_loss(loss).to(self.device, self.dtype)
        self._model = FlatModel(module, output_transform)
        X, by_rows = choose_strides(self._model, X)
        probe = probe_example(self._model, X)
        self.output_shape = tuple(probe.output.shape[1:])
        targets = self._loss.prepare_targets(y, probe.output)
        checks.check_held(targets, y, "y")
        if chunk_size is None:
            chunk_size = choose_chunk_size(n_examples, probe.n_numbers)
        examples: ExampleData
        if source is None:
            examples = ArrayData(X, targets, None)
        else:
            examples = StreamedData(
                source, None, self._model, self._loss, probe.output, by_rows=by_rows
            )

        if known:
            weights = sample_weight.values
        else:
            counts = examples.target_weights(self._loss, chunk_size)
            weights = checks.normalised_weights(sample_weight, counts, self.dtype)
        if weights is not None:
            examples.weights = weights.to(self.device, self.dtype)
        self._few = examples.select(_trial_examples(examples).to(self.device))
        self._few = replace(self._few, weights=None)  # 0 would hide an example
        check_state(self._model, self._loss, self._few, original)
        check_independence(self._model, self._loss, self._few)
        self._work_per_example = probe.n_numbers + self.n_params
        self._all_graphs: dict[tuple[int, int], ProductGraphs] = {}
        rows = ROW_BUDGET // self._work_per_example
        self._row_chunk_size = max(1, min(chunk_size, n_examples, rows))
        # No method of the risk's own: it would be held by what it holds, and its memory
        # would wait for a collection.
        trial_scalars = partial(_trial_scalars, self._model, self._loss, self._few)
        self._sums = ExampleSums(self._model, self._row_chunk_size, trial_scalars)
        self._ways = ProductWays(
            self._model,
            self._loss,
            self._sums,
            self._few,
            finite_difference=hvp == "finite_difference",
        )
        self._hessians = ExampleHessians(self._ways)
        self._hold(examples, min(chunk_size, n_examples))
        check_dependence(
            self._model, self._loss, chain(islice(self._chunks(1), 1), self._chunks())
        )
        self._theta = self._model.values()

    @property
    def layout(self) -> ParameterLayout:
        """Order and shapes of the parameters in θ."""
        return self._model.layout

    @property
    def n_params(self) -> int:
        """D."""
        return self._model.layout.n_params

    @property
    def n_examples(self) -> int:
        """N."""
        return len(self._data)

    @property
    def keeps_graph(self) -> bool:
        """Whether the module computes something else where gradients are off.

        Then they are on for values and outputs, too.
        """
        return self._model.keeps_graph

    @property
    def paths(self) -> dict[str, str]:
        """Which kernels ran: for each quantity the fast one's name, or why not."""
        with self._lock:
            tried = {
                "per-example sums": self._sums.path,
                "per-example Hessians": self._hessians.path,
            }
            found = {name: path for name, path in tried.items() if path is not None}
            return {**self._graphs.told(), **found}

    @property
    def _lock(self) -> Lock:
        return self._model.lock

    @alone
    def audit(self, theta: Tensor | None = None) -> Audit:
        """Try the identities of the mathematics on this module, loss and data.

        Each compares two ways to the same numbers: on up to 16 examples, in float64
        where the module allows, also where a quantity takes a path of its own. Then
        the paths that this risk takes, and what a call of each quantity costs.

        Parameters
        ----------
        theta : Tensor of shape (D,), default=None
            Where; None is :meth:`params`.

        Returns
        -------
        Audit
            Its ``str`` is a table for a bug report; ``fails`` lists what does not hold.

        Examples
        --------
        >>> X, y = torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 0.0])
        >>> risk = EmpiricalRisk(nn.Linear(1, 1), "squared_error", X, y)
        >>> risk.audit().fails
        ()
        """
        theta = self._theta if theta is None else theta
        few = self.subset(trial_indices(self.n_examples))
        with contextlib.suppress(RuntimeError, ValueError):
            few = few.to(dtype=torch.float64)
        return audit(self, theta, few)

    def params(self) -> Tensor:
        """Return the θ that the risk was made with, or was last set to.

        The module's parameters at construction; where an estimator has trained, the
        ones that it ended with.

        Returns
        -------
        Tensor of shape (D,)
            A copy.
        """
        return self._theta.clone()

    @alone
    def set_params(self, theta: Tensor) -> None:
        """Make θ what :meth:`params` returns.

        Parameters
        ----------
        theta : Tensor of shape (D,)
            Copied.
        """
        self._model.bind(theta)
        self._theta = self._model.values()

    @alone
    def to(
        self,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        hvp: Literal["exact", "finite_difference"] | None = None,
    ) -> EmpiricalRisk:
        """Return the same risk elsewhere, in another precision, or with another H v.

        Parameters
        ----------
        device : torch.device or str, default=None
            None stays.
        dtype : {"float32", "float64"} or torch.dtype, default=None
            None stays. The data keep the digits that they have.
        hvp : {"exact", "finite_difference"}, default=None
            None stays.

        Returns
        -------
        EmpiricalRisk
            Itself where nothing changes, else a copy.
        """
        device = self.device if device is None else resolve_device(device)
        dtype = self.dtype if dtype is None else resolve_dtype(dtype)
        before = self._hvp
        hvp = before if hvp is None else hvp
        check_known("hvp", hvp, ("exact", "finite_difference"))
        if (device, dtype, hvp) == (self.device, self.dtype, before):
            return self
        self._model.bind(self._theta)
        return self._of(self._model.module, device, dtype, hvp)

    @alone
    def with_module(self, module: nn.Module) -> EmpiricalRisk:
        """Return the risk of another module, or of a changed one, on the same data.

        Parameters
        ----------
        module : torch.nn.Module
            Deep-copied, and taken in eval mode, with its device and dtype.

        Returns
        -------
        EmpiricalRisk
            Itself where ``params()``, the rest of the module's parameters and buffers,
            its attributes of plain values and its ``repr`` are those of ``module``,
            else another one.
        """
        module = evaluation_mode(copy_module(module))
        settle(module)
        self._model.bind(self._theta)
        if _alike(self._model.module, module):
            return self
        module = evaluation_mode(copy_module(module))
        first = trainable(module)[0]
        return self._of(module, first.device, first.dtype, self._hvp)

    def _of(
        self,
        module: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        hvp: Literal["exact", "finite_difference"],
    ) -> EmpiricalRisk:
        return EmpiricalRisk(
            module,
            self._loss,
            *self._data.arguments(),
            # As they are: a subset's mean is not one.
            sample_weight=checks.KnownWeights(self._data.weights),
            chunk_size=self.chunk_size,
            output_transform=self._model.output_transform,
            hvp=hvp,
            device=device,
            dtype=dtype,
        )

    @alone
    def subset(self, indices: Tensor) -> EmpiricalRisk:
        """Return the risk of some of the examples, L_B(θ) = (1/B) Σ ℓ̃ᵢ over them.

        Of the same module, at the price of reading B examples: what this risk has
        tried and traced is used again, also by the next subset of that size. Weights
        stay N wᵢ / Σw, so a random subset's L_B and ∇L_B have the means L and ∇L. It
        shares this risk's network: calls of the two wait for each other.

        Parameters
        ----------
        indices : Tensor of shape (B,)
            Which examples; one may come twice.

        Returns
        -------
        EmpiricalRisk
            Holds its examples in memory.

        Raises
        ------
        ValueError, TypeError
            If there are no indices, or they are no integers along one axis.
        """
        indices = as_indices(indices, "indices", 1, self.device)
        with within("indices", self.n_examples):
            chosen = self._data.select(indices)
        part = copy.copy(self)
        # Chunks of one size: a trace fills up the last one.
        n_chunks = math.ceil(len(indices) / self.chunk_size)
        part._hold(
            ArrayData(chosen.X, chosen.y, chosen.weights),
            math.ceil(len(indices) / n_chunks),
        )
        return part

    @in_full_float32
    def value(self, theta: Tensor) -> Tensor:
        """Return L(θ).

        Parameters
        ----------
        theta : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape ()
        """
        self._model.bind(theta)
        sums = [
            evaluate_losses(self._model, self._loss, chunk).sum(dtype=torch.float64)
            for chunk in self._chunks()
        ]
        return self._mean(sums)

    def values(self, thetas: Tensor) -> Tensor:
        """Return L at several points.

        Parameters
        ----------
        thetas : Tensor of shape (M, D)

        Returns
        -------
        Tensor of shape (M,)
        """
        check_tensor("thetas", thetas, 2)
        return torch.stack([self.value(theta) for theta in thetas])

    @in_full_float32
    def outputs(self, theta: Tensor) -> Tensor:
        """Return the network's outputs on X.

        Parameters
        ----------
        theta : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (N, \\*output_shape)
        """
        self._model.bind(theta)
        return torch.cat([self._model.evaluate(chunk.X) for chunk in self._chunks()])

    @in_full_float32
    def gradient(self, theta: Tensor) -> Tensor:
        """Return g₀ = ∇L(θ).

        Parameters
        ----------
        theta : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (D,)
        """
        return self.value_and_gradient(theta)[1]

    @alone
    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return L(θ) and ∇L(θ) by one pass.

        Parameters
        ----------
        theta : Tensor of shape (D,)

        Returns
        -------
        value : Tensor of shape ()
        gradient : Tensor of shape (D,)
        """
        return self._pull_back(theta, self._uniform)

    @in_full_float32
    def weighted_gradient(self, theta: Tensor, v: Tensor) -> Tensor:
        """Return Σ vᵢ gᵢ / N; v is never normalised.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        v : Tensor of shape (N,)
            Of any sign.

        Returns
        -------
        Tensor of shape (D,)
        """
        return self.value_and_weighted_gradient(theta, v)[1]

    @alone
    def value_and_weighted_gradient(
        self, theta: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the unweighted L(θ) and Σ vᵢ gᵢ / N by one backward pass.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        v : Tensor of shape (N,)

        Returns
        -------
        value : Tensor of shape ()
        gradient : Tensor of shape (D,)

        Raises
        ------
        ValueError, TypeError
            If v is no tensor of that shape.
        """
        v = as_direction(v, "v", (self.n_examples,), self._uniform)
        return self._pull_back(theta, v / self.n_examples)

    def batch_gradient(self, theta: Tensor, indices: Tensor) -> Tensor:
        """Return the plain mean of gᵢ over a minibatch.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        indices : Tensor of shape (m,)
            Which examples; one may come twice.

        Returns
        -------
        Tensor of shape (D,)
        """
        return self.value_and_batch_gradient(theta, indices)[1]

    @alone
    def value_and_batch_gradient(
        self, theta: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the plain means of ℓ̃ᵢ and gᵢ over a minibatch.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        indices : Tensor of shape (m,)

        Returns
        -------
        value : Tensor of shape ()
        gradient : Tensor of shape (D,)

        Raises
        ------
        ValueError, TypeError
            If there are no indices, or they are no integers along one axis.
        """
        indices = as_indices(indices, "indices", 1, self.device)
        m = len(indices)
        self._model.bind(theta)
        with within("indices", self.n_examples):
            chosen = self._data.select(indices)
        parts = iterate_chunks(chosen.X, chosen.y, chosen.weights, self.chunk_size)
        cotangents = torch.full((m,), 1 / m, dtype=self.dtype, device=self.device)
        value, gradient = self._add(
            losses_and_gradient(self._model, self._loss, chunk, cotangents[chunk.rows])
            for chunk in parts
        )
        return value * (self.n_examples / m), gradient

    @in_full_float32
    def batch_gradients(self, theta: Tensor, batches: Tensor) -> Tensor:
        """Return the mean gradient of each of b minibatches.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        batches : Tensor of shape (b, m)
            Indices of examples.

        Returns
        -------
        Tensor of shape (b, D)
        """
        batches = as_indices(batches, "batches", 2, self.device)
        self._model.bind(theta)
        m = batches.shape[1]
        per_chunk = max(1, self.chunk_size // m)
        parts = []
        for some in batches.split(per_chunk):
            with within("batches", self.n_examples):
                chunk = self._data.select(some.flatten())
            sums = self._sums.batch_sums(self._scalars(chunk), m)
            if sums is None:
                return torch.stack([self.batch_gradient(theta, b) for b in batches])
            parts.append(sums / m)
        return torch.cat(parts)

    def per_example_gradients(self, theta: Tensor) -> Iterator[Tensor]:
        """Yield gᵢ of all examples, in order, a chunk at a time.

        Parameters
        ----------
        theta : Tensor of shape (D,)

        Yields
        ------
        Tensor of shape (n, D)
        """
        with self._lock:
            self._model.bind(theta)
            theta = self._model.values()  # the caller may ask for another θ between
        chunks = self._chunks(self._row_chunk_size)
        while True:
            # Not held between: a caller may stop here, and never come back.
            with self._lock:
                chunk = next(chunks, None)
                if chunk is None:
                    return
                rows = self._rows(theta, chunk)
            yield rows

    @in_full_float32
    def squared_norms(self, theta: Tensor) -> Tensor:
        """Return ‖gᵢ‖² of each example.

        Parameters
        ----------
        theta : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (N,)
            In float64.
        """
        self._model.bind(theta)
        return torch.cat(
            [self._sums.squared_norms(self._scalars(chunk)) for chunk in self._chunks()]
        )

    @alone
    def squared_gradient_sum(self, theta: Tensor) -> Tensor:
        """Return Σᵢ gᵢ² of each coordinate.

        Parameters
        ----------
        theta : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (D,)
            In float64.
        """
        moments = self._moments(theta)
        return moments.squares + self.n_examples * moments.mean.square()

    @alone
    def gradient_variances(self, theta: Tensor) -> Tensor:
        """Return diag(Σ) = (1/N) Σᵢ (gᵢ - g₀)², whose sum is Tr(Σ).

        Parameters
        ----------
        theta : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (D,)
            In float64.
        """
        return self._moments(theta).squares / self.n_examples

    @alone
    def value_gradient_and_variances(
        self, theta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return L(θ), g₀ and diag(Σ) by one sweep.

        Parameters
        ----------
        theta : Tensor of shape (D,)

        Returns
        -------
        value : Tensor of shape ()
        gradient : Tensor of shape (D,)
        variances : Tensor of shape (D,)
            In float64.
        """
        moments = self._moments(theta)
        variances = moments.squares / self.n_examples
        return moments.value.to(self.dtype), moments.mean.to(self.dtype), variances

    @in_full_float32
    def squared_hessian_product(self, theta: Tensor, v: Tensor) -> Tensor:
        """Return (1/N) Σᵢ Hᵢ² v with Hᵢ = ∇²ℓ̃ᵢ, by two products an example.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (D,)
        """
        v = as_direction(v, "v", (self.n_params,), self._uniform)
        self._model.bind(theta)
        theta = self._model.values()
        total = torch.zeros_like(theta)
        for chunk in self._chunks(self._row_chunk_size):
            total += self._hessians.squared_product(theta, chunk, v)
        return total / self.n_examples

    @alone
    def linearize(self, theta: Tensor) -> Linearization:
        """Prepare θ for many products with H, G and J.

        Parameters
        ----------
        theta : Tensor of shape (D,)
            Copied: the prepared point stays where it is.

        Returns
        -------
        Linearization
            With ``hvp``, ``ggn``, ``jvp``, ``vjp`` and ``directional_derivatives``;
            its ``paths`` tell how each was computed.
        """
        self._model.bind(theta)
        return Linearization(
            self._graphs,
            self._chunks,
            self._model.values(),
            self.n_examples,
            self.output_shape,
        )

    def jvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """Return J v; see :meth:`linearize` for many products.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (N, \\*output_shape)
        """
        return self.linearize(theta).jvp(v)

    def vjp(self, theta: Tensor, u: Tensor) -> Tensor:
        """Return Jᵀ u = Σ Jᵢᵀ uᵢ.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        u : Tensor of shape (N, \\*output_shape)

        Returns
        -------
        Tensor of shape (D,)
        """
        return self.linearize(theta).vjp(u)

    def ggn_matvec(self, theta: Tensor, v: Tensor) -> Tensor:
        """Return G v; see :meth:`linearize` for many products.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (D,)
        """
        return self.linearize(theta).ggn(v)

    def directional_derivatives(self, theta: Tensor, v: Tensor) -> Tensor:
        """Return gᵢᵀ v of each example.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (N,)
        """
        return self.linearize(theta).directional_derivatives(v)

    @alone
    def value_and_gauss_newton_draw(
        self, theta: Tensor, scale: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return L(θ) and g₀ + s ε with ε ~ N(0, G), by one backward pass.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        scale : Tensor of shape ()
            s.
        rng : torch.Generator
            On the risk's device.

        Returns
        -------
        value : Tensor of shape ()
        gradient : Tensor of shape (D,)
        """
        check_scalar("scale", scale)
        check_rng(rng, self.device)
        self._model.bind(theta)
        z = torch.randn(
            (self.n_examples, *self.output_shape),
            generator=rng,
            dtype=self.dtype,
            device=self.device,
        )
        return self._add(
            gauss_newton_draw(
                self._model, self._loss, chunk, z[chunk.rows], scale, self.n_examples
            )
            for chunk in self._chunks()
        )

    def gauss_newton_traces(
        self, theta: Tensor, rng: torch.Generator | None = None
    ) -> Tensor:
        """Return Tr(Gᵢ) of each example, or an unbiased estimate; G is their mean.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        rng : torch.Generator, default=None
            On the risk's device: draws random signs for an estimate by one sweep.
            None takes ``n_outputs`` sweeps, one for each output, and is exact.

        Returns
        -------
        Tensor of shape (N,)
            In float64.
        """
        check_rng(rng, self.device, optional=True)
        shape = (self.n_examples, *self.output_shape)
        if rng is not None:
            bits = torch.randint(0, 2, shape, generator=rng, device=self.device)
            return self._gauss_newton_sweep(theta, (2 * bits - 1).to(self.dtype))
        units = torch.eye(self.n_outputs, dtype=self.dtype, device=self.device)
        sweeps = [
            self._gauss_newton_sweep(theta, unit.view(self.output_shape).expand(shape))
            for unit in units
        ]
        return torch.stack(sweeps).sum(0)

    @property
    def n_outputs(self) -> int:
        """Numbers in one example's output."""
        return torch.Size(self.output_shape).numel()

    @alone
    def model_slopes(self, theta: Tensor, rng: torch.Generator) -> Tensor:
        """Return sᵢ = ∂ℓ̃ᵢ/∂fᵢ for targets that the model draws, E[sᵢsᵢᵀ] = Hᵢ.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        rng : torch.Generator
            On the risk's device.

        Returns
        -------
        Tensor of shape (N, \\*output_shape)

        Raises
        ------
        TypeError
            If the loss is no likelihood.
        FloatingPointError
            If the outputs are not finite.
        """
        check_rng(rng, self.device)
        targets = torch.cat([chunk.y for chunk in self._chunks()])
        outputs = self.outputs(theta)
        if not bool(outputs.isfinite().all()):
            raise FloatingPointError("The outputs at θ are not finite. Look at θ.")
        slopes = self._loss.model_slope(outputs, targets, rng)
        weights = self._data.weights
        if weights is None:
            return slopes
        return slopes * weights.sqrt().view(-1, *(1 for _ in self.output_shape))

    @alone
    def check_label_noise(self) -> None:
        """Raise ValueError if the labels cannot be drawn anew."""
        check_label_noise(self._loss, self._targets())

    @alone
    def value_and_label_draw(
        self, theta: Tensor, draw: LabelDraw, scale: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return L(θ) and g₀ + (c/N) Σ Jᵢᵀuᵢ, u the slopes that new labels add.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        draw : LabelDraw
        scale : Tensor of shape ()
            c.
        rng : torch.Generator
            On the risk's device.

        Returns
        -------
        value : Tensor of shape ()
        gradient : Tensor of shape (D,)
        """
        check_draw(draw)
        check_scalar("scale", scale)
        check_rng(rng, self.device)
        self._model.bind(theta)
        shape = self.output_shape
        random = label_uniforms(self._loss, self.n_examples, shape, rng, theta)

        def slopes(chunk: Chunk) -> Tensor:
            part = random[chunk.rows]
            return scale * label_slopes(self._loss, chunk.y, part, shape, draw)

        return self._add(
            gradient_with_slopes(
                self._model, self._loss, chunk, slopes(chunk), self.n_examples
            )
            for chunk in self._chunks()
        )

    @alone
    def label_covariance_product(
        self, point: Linearization, v: Tensor, draw: LabelDraw
    ) -> Tensor:
        """Return (1/N²) Σ Jᵢᵀ Kᵢ Jᵢ v, Kᵢ the covariance of uᵢ.

        Parameters
        ----------
        point : Linearization
            Of this risk.
        v : Tensor of shape (D,)
        draw : LabelDraw

        Returns
        -------
        Tensor of shape (D,)

        Raises
        ------
        TypeError
            If ``point`` or ``draw`` is something else.
        """
        check_draw(draw)
        if not isinstance(point, Linearization):
            raise TypeError(
                "point must be what linearize(theta) returns. Got "
                f"{type(point).__name__}."
            )
        u = point.jvp(v)
        product = label_kernel_product(self._loss, self._targets(), u, draw)
        if self._data.weights is not None:
            weights = self._data.weights.square()
            product = product * weights.view(-1, *(1 for _ in self.output_shape))
        return point.vjp(product) / self.n_examples**2

    @in_full_float32
    def label_traces(self, theta: Tensor, draw: LabelDraw) -> Tensor:
        """Return Tr(Jᵢᵀ Kᵢ Jᵢ) of each example, exactly, by ``n_outputs`` sweeps.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        draw : LabelDraw

        Returns
        -------
        Tensor of shape (N,)
            In float64.
        """
        check_draw(draw)
        self._model.bind(theta)
        parts = []
        for chunk in self._chunks():
            roots = label_roots(
                self._loss, chunk.y, self.output_shape, draw, self.dtype
            )
            squares = [pulled_back_squares(self._sums, chunk, root) for root in roots]
            parts.append(torch.stack(squares).sum(0))
        return torch.cat(parts)

    def _targets(self) -> Tensor:
        return torch.cat([chunk.y for chunk in self._chunks()])

    def _hold(self, examples: ExampleData, chunk_size: int) -> None:
        n = len(examples)
        self._data = examples
        self.chunk_size = chunk_size
        self._uniform = torch.full((n,), 1 / n, dtype=self.dtype, device=self.device)
        if (n, chunk_size) not in self._all_graphs:
            self._all_graphs[n, chunk_size] = ProductGraphs(
                self._ways, chunk_size, n * self._work_per_example
            )
        self._graphs = self._all_graphs[n, chunk_size]

    def _pull_back(self, theta: Tensor, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return L(θ) and Σ cᵢ ∇ℓ̃ᵢ; ``cotangents`` of shape (N,)."""
        self._model.bind(theta)
        return self._add(
            losses_and_gradient(self._model, self._loss, chunk, cotangents[chunk.rows])
            for chunk in self._chunks()
        )

    @in_full_float32
    def _gauss_newton_sweep(self, theta: Tensor, z: Tensor) -> Tensor:
        self._model.bind(theta)
        return torch.cat(
            [
                gauss_newton_example_traces(
                    self._model, self._loss, self._sums, chunk, z[chunk.rows]
                )
                for chunk in self._chunks()
            ]
        )

    def _chunks(self, chunk_size: int | None = None) -> Iterator[Chunk]:
        size = self.chunk_size if chunk_size is None else chunk_size
        return self._data.iterate(size)

    @in_full_float32
    def _rows(self, theta: Tensor, chunk: Chunk) -> Tensor:
        self._model.bind(theta)
        return self._sums.rows(self._scalars(chunk))

    @in_full_float32
    def _moments(self, theta: Tensor) -> Moments:
        self._model.bind(theta)
        return merge_moments(
            self._sums.moments(self._scalars(chunk)) for chunk in self._chunks()
        )

    def _scalars(self, chunk: Chunk) -> ExampleScalars:
        """Return ℓ̃ᵢ of a chunk, to be differentiated."""

        def weighted(outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
            return self._loss.per_example(outputs, y) * weights

        scalar = self._loss.per_example if chunk.weights is None else weighted
        return ExampleScalars(chunk.X, chunk.args, scalar)

    def _add(self, parts: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        losses, total = next(parts)
        sums = [losses.sum(dtype=torch.float64)]
        for losses, gradient in parts:
            sums.append(losses.sum(dtype=torch.float64))
            total.add_(gradient)
        return self._mean(sums), total

    def _mean(self, sums: list[Tensor]) -> Tensor:
        total = sums[0] if len(sums) == 1 else torch.stack(sums).sum()
        return (total / self.n_examples).to(self.dtype)


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Say whether two modules read alike and hold the same tensors and settings."""
    held = [
        {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for module in (one, other)
    ]
    return (
        repr(one) == repr(other)
        and settings(one) == settings(other)
        and held[0].keys() == held[1].keys()
        and all(
            (a.device, a.dtype) == (b.device, b.dtype) and torch.equal(a, b)
            for a, b in zip(held[0].values(), held[1].values(), strict=True)
        )
    )


def _trial_scalars(model: FlatModel, loss: ExampleLoss, few: Chunk) -> ExampleScalars:
    """Return losses and products of outputs with random numbers, to try rows on."""
    outputs = model.evaluate(few.X)

    def scalar(outputs: Tensor, y: Tensor, u: Tensor) -> Tensor:
        # The loss alone can have slopes of zero.
        return loss.per_example(outputs, y) + inner_products(outputs, u)

    return ExampleScalars(few.X, (few.y, random_like(outputs, 0)), scalar)


def _trial_examples(examples: ExampleData) -> Tensor:
    """Return the indices of up to 16 examples, of those that count if there are any."""
    if examples.weights is None or not bool(examples.weights.any()):
        return trial_indices(len(examples))
    counting = examples.weights.cpu().nonzero().flatten()
    return counting[trial_indices(len(counting))]
