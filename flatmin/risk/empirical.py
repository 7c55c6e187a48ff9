"""The empirical risk of a module on a data set, as a function of one flat θ."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatmin._utils.callables import check_callable
from flatmin._utils.names import check_known
from flatmin._utils.numbers import (
    check_count,
    check_flag,
    check_held_by,
    check_positive,
)
from flatmin._utils.placement import resolve_device, resolve_dtype
from flatmin.risk.audit import Audit, audit
from flatmin.risk.autodiff.surroundings import alone, undisturbed
from flatmin.risk.chains.ways import ChainWays
from flatmin.risk.data.chunks import find_chunk_size
from flatmin.risk.data.example_data import ArrayData, ExampleData
from flatmin.risk.data.inputs import check_held
from flatmin.risk.data.opened_data import open_data
from flatmin.risk.data.shared_data import share_out
from flatmin.risk.data.weights import KnownWeights, as_weights, example_weights
from flatmin.risk.example_sums.per_example import ROW_BUDGET
from flatmin.risk.example_sums.sums import ExampleSums
from flatmin.risk.example_sums.trial_points import trial_scalars
from flatmin.risk.independence import check_independence
from flatmin.risk.losses.module_loss import GivenLosses, ModuleLoss
from flatmin.risk.losses.resolve_loss import LossLike, resolve_loss
from flatmin.risk.module_state import check_state
from flatmin.risk.network.loss_module import (
    LossModule,
    as_held,
    check_losses,
    check_untransformed,
)
from flatmin.risk.network.model import FlatModel
from flatmin.risk.network.module_checks import trainable
from flatmin.risk.network.module_copy import copy_module
from flatmin.risk.network.module_update import alike, comparable
from flatmin.risk.network.outputs import OutputTransform
from flatmin.risk.network.prepared_module import (
    BatchNorm,
    evaluation_mode,
    prepare_module,
)
from flatmin.risk.padding import check_padding
from flatmin.risk.probe import (
    check_dependence,
    choose_strides,
    enough_examples,
    probe_example,
    trial_chunk,
    trial_examples,
)
from flatmin.risk.products.example_hessians import ExampleHessians
from flatmin.risk.products.product_ways import ProductWays
from flatmin.risk.quantities.label_noise import LabelNoiseRisk
from flatmin.risk.quantities.over_chains import OverChains
from flatmin.risk.ranks.words import made_on_all_ranks

__all__ = ["EmpiricalRisk"]


class EmpiricalRisk(LabelNoiseRisk):
    """L(θ) = Σ wᵢℓᵢ(θ) / Σ wᵢ of a network, with everything that laws ask of it.

    Written as (1/N) Σ ℓ̃ᵢ with ℓ̃ᵢ = N wᵢ ℓᵢ / Σw; per-example gradients are
    gᵢ = ∇ℓ̃ᵢ, always with the divisor N. A penalty (λ/2)‖θ‖² adds to L, and so to g₀,
    H, G and the gradients of minibatches, and to no gᵢ: Σ is centred at the mean of the
    gᵢ, which is g₀ - λθ. θ lists the trainable parameters in
    ``module.named_parameters()`` order, a shared parameter once. The risk works on a
    deep copy in eval mode, in which an InstanceNorm that is handed over in train mode
    keeps to each example's own statistics. Every quantity is a sum over examples and
    does not depend on the chunk size, up to rounding. On a GPU, what is measured has
    all digits of float32, whatever PyTorch's setting for convolutions; the gradients
    that come with a loss, which train, follow the setting. One risk may be used from
    several threads; calls wait for each other.

    θ may have leading dimensions, (\\*chains, D): independent copies of the network,
    each with its own weights, minibatch or direction in (\\*chains) of the other
    arguments, and results with (\\*chains) in front. Each is what it is alone, to
    rounding. What is drawn from a generator is one tensor with the chains in front.
    Copies that are small go through the network together, by ``vmap``, in blocks that
    bound the memory. Where a chain takes more than half a million numbers, or where
    ``vmap`` cannot take the module or differs from a chain alone, they go one after
    the other; ``paths`` tells. ``squared_hessian_product`` and
    ``covariance_trace_gradient`` always take them so. ``accuracy``,
    ``batch_statistics``, ``set_params`` and ``audit`` take one θ, as does ``linearize``
    with ``select``.

    Parameters
    ----------
    module : torch.nn.Module
        Maps X of shape (n, ...) to outputs of shape (n, ...). It may return a tensor, a
        tuple, a mapping or an object with ``logits``: see ``output_transform``.
    loss : str, loss module, callable or ModuleLoss
        "cross_entropy", "squared_error", "binary_cross_entropy", "next_token", or
        anything that gives one loss an example; see :func:`flatmin.risk.resolve_loss`.
        A :class:`~flatmin.risk.ModuleLoss` is given the module, X and y.
    X : array-like or Tensor of shape (N, ...), a mapping, a tuple, or a data set
        An array is copied. A tensor of the right dtype, device and strides is not, and
        so must not be written into as long as the risk is used. A mapping
        from names to arrays gives the module's keywords, as ``{"input_ids": ...,
        "attention_mask": ...}``, a tuple of arrays its arguments in order; both may be
        nested. Each array in it has the examples first, and keeps its dtype unless that
        is floating. A list is one array. A map-style ``torch.utils.data.Dataset`` of
        pairs (x, y), or a ``DataLoader`` that keeps their order, is read a chunk at a
        time: for data larger than memory. Sequences of several lengths are padded, with
        a mask for the module.
    y : array-like or Tensor of shape (N, ...), default=None
        Class indices or numbers, as the loss needs; None with a data set or a
        ``target``, and with a ``ModuleLoss`` that needs none.
    sample_weight : array-like of shape (N,), default=None
        wᵢ ≥ 0.
    positions : {"all", "example"}, default="all"
        What an example with several targets counts, as a sequence has: "all" is the
        mean over all targets of the data, as PyTorch's modules take it, so that wᵢ is
        the number of targets that count in example i (times their class weights, and
        the sample weight); "example" is the mean over examples of each one's mean, so
        that wᵢ is 1, or 0 where no target counts. An example with one target counts
        its class weight in the first and 1 in the second.
    l2 : float, default=0.0
        λ ≥ 0 of the penalty (λ/2)‖θ‖² over all of θ.
    target : str, default=None
        The name of y in X, where that is a mapping, or a data set of mappings.
    chunk_size : int, default=None
        Examples at a time; None chooses from shapes alone.
    output_transform : callable, default=None
        Takes what ``forward`` returns, and returns the tensor of shape (n, ...) that
        the loss compares with y. None takes a tensor as it is; of anything else
        ``logits``, as an attribute or a key, else the first entry of a tuple or the
        first tensor of a mapping.
    batch_norm : {"error", "frozen", "batch"}, default="error"
        BatchNorm in train mode is an error; "frozen" uses its running statistics.
        "batch" gives every BatchNorm, in any mode, the statistics of all examples at
        each θ, unweighted: L, ∇L, H and G are those of full-batch training. All
        examples are one chunk. None has a loss of its own: what needs a gᵢ is refused.
    hvp : {"exact", "finite_difference"}, default="exact"
        How H v is computed. "finite_difference" is for networks of which PyTorch has no
        second derivative: a central difference of the gradient in float64, at a step
        that agrees with a quarter of it; four gradients a product. ``paths`` tells by
        how much the two differ. In both, what the module detaches is held constant.
    compile : bool, default=False
        Run ``torch.compile`` on the graph of each product, once for each shape of a
        chunk. It takes a minute or more, and a C++ compiler on a CPU. The first product
        is compared with the one that is not compiled; ``paths`` tells.
    device : torch.device or str, default=None
        None is the module's, "auto" CUDA where there is any.
    dtype : {"float32", "float64"} or torch.dtype, default=None
        Of θ; None is the module's. The losses that have names keep their digits where
        predictions are sure, in float32 too. A softmax within the module does not: with
        a log_softmax there, and NLLLoss, H v has an error of about 1 % at a loss of
        1e-6, and of 10 % at 1e-7. Leave the softmax to "cross_entropy" there.

    distributed : bool, default=False
        Whether the processes of the default group of ``torch.distributed`` share the
        examples. All are given the same X and y, and process r of p takes r, r + p,
        ...; a ``torch.utils.data.Subset`` is its own part, that of rank 0 first. All
        ask for the same at the same θ and from one seed: what differs on a CPU is
        refused. Each gets, bit for bit, the same numbers of all N examples; what is one
        number or row an example is gathered. What one raises, all raise.

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
    l2 : float
        λ.

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

    @made_on_all_ranks
    @undisturbed
    def __init__(
        self,
        module: nn.Module,
        loss: LossLike,
        X: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        positions: Literal["all", "example"] = "all",
        l2: float = 0.0,
        target: str | None = None,
        chunk_size: int | None = None,
        output_transform: OutputTransform | None = None,
        batch_norm: BatchNorm = "error",
        hvp: Literal["exact", "finite_difference"] = "exact",
        compile: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        distributed: bool = False,
    ) -> None:
        check_known("hvp", hvp, ("exact", "finite_difference"))
        check_known("positions", positions, ("all", "example"))
        if chunk_size is not None:
            chunk_size = check_count("chunk_size", chunk_size)
        if output_transform is not None:
            check_callable("output_transform", output_transform, "outputs")
        self._hvp, self._compile = hvp, check_flag("compile", compile)
        self.l2 = check_positive("l2", l2, or_zero=True)
        joins = isinstance(loss, ModuleLoss)
        if isinstance(loss, ModuleLoss):
            check_untransformed(output_transform)
            module, loss = LossModule(module, loss.f), GivenLosses()
        original, module = module, prepare_module(module, batch_norm, device, dtype)
        first = trainable(module)[0]
        self.device, self.dtype = first.device, first.dtype
        check_held_by("l2", self.l2, self.dtype)
        data = open_data(X, y, target, module=module, joins=joins)
        if not isinstance(sample_weight, KnownWeights):  # before any trial
            sample_weight = as_weights(sample_weight, len(data), self.device)
        self._loss = resolve_loss(loss).to(self.device, self.dtype).guarded()
        self._model = FlatModel(module, output_transform)
        if isinstance(module, LossModule) and isinstance(original, LossModule):
            check_losses(module, data.X)
            original.differentiates = module.differentiates
        X, by_rows = choose_strides(self._model, data.X)
        probe = probe_example(self._model, X)
        self.output_shape = tuple(probe.output.shape[1:])
        targets = self._loss.prepare_targets(data.y, probe.output)
        check_held(targets, data.y, "y")
        data = replace(data, X=X, y=targets)
        examples = data.as_examples(
            self._model, self._loss, probe.output, by_rows=by_rows
        )
        shared = share_out(data, examples, self._ranks, self._shard)
        size = find_chunk_size(
            *(chunk_size, len(shared.own), probe.n_numbers, first, self._ranks.size),
            whole=self._model.normalises_batch,
        )
        weigh = partial(example_weights, sample_weight, positions, shared, self._ranks)
        shared.set_weights(weigh(loss=self._loss, size=size, like=first))
        self._try(shared.tried, original, size)
        self._make_kernels(probe.n_numbers, size, len(shared.own))
        self._hold(shared.own, size, shared.shard)
        check_dependence(self._model, self._loss, shared.tried, size)
        self._model.guard.trust()
        self._loss.trust()
        self._theta = self._model.theta()

    def _try(self, examples: ExampleData, original: nn.Module, size: int) -> None:
        """Try module and loss on a few of the examples, and the module on a chunk."""
        indices = trial_examples(examples, self._model).to(self.device)
        # A weight of 0 would hide an example.
        self._few = replace(examples.select(indices), weights=None)
        check_state(self._model, self._loss, self._few, original)
        whole = trial_chunk(examples, size)
        check_independence(self._model, self._loss, self._few, whole)
        if not isinstance(examples, ArrayData) and not self._model.normalises_batch:
            apart = (examples.select(index[None]) for index in indices)
            check_padding(self._model, self._loss, self._few, apart)

    def _make_kernels(self, n_numbers: int, chunk_size: int, n_examples: int) -> None:
        """Make what computes sums over examples and products; nothing is tried yet."""
        self._work_per_example = work = n_numbers + self.n_params
        self._all_graphs = {}
        self._row_chunk_size = max(1, min(chunk_size, ROW_BUDGET // work))
        # No method of the risk's own: it would be held by what it holds, and its memory
        # would wait for a collection.
        scalars = partial(trial_scalars, self._model, self._loss, self._few)
        self._sums = ExampleSums(self._model, self._row_chunk_size, scalars, n_examples)
        self._ways = ProductWays(
            *(self._model, self._loss, self._sums),
            enough_examples(self._few, self._model, n_numbers),
            finite_difference=self._hvp == "finite_difference",
        )
        self._ways.gradient.warn()
        self._hessians = ExampleHessians(self._ways)
        self._chain_ways = ChainWays(self._ways, n_numbers)

    @property
    def _over_chains(self) -> OverChains:
        return OverChains(self)

    @alone
    def audit(self, theta: Tensor | None = None) -> Audit:
        """Try the identities of the mathematics on this module, loss and data.

        Each compares two ways to the same numbers: on up to 16 examples, under
        ``batch_norm="batch"`` on all, in float64 where the module allows, also where a
        quantity takes a path of its own. Then the paths that this risk takes, and what
        a call of each quantity costs.

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
        return audit(self, self._theta if theta is None else theta)

    @alone
    def to(
        self,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        hvp: Literal["exact", "finite_difference"] | None = None,
        compile: bool | None = None,
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
        compile : bool, default=None
            None stays.

        Returns
        -------
        EmpiricalRisk
            Itself where nothing changes, else a copy.
        """
        changed = {
            "device": self.device if device is None else resolve_device(device),
            "dtype": self.dtype if dtype is None else resolve_dtype(dtype),
            "hvp": self._hvp if hvp is None else hvp,
            "compile": self._compile if compile is None else compile,
        }
        own = (self.device, self.dtype, self._hvp, self._compile)
        if tuple(changed.values()) == own:
            return self
        self._model.bind(self._theta)
        return self._of(self._model.module, **changed)

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
        self._model.bind(self._theta)
        module = as_held(self._model.module, module)
        other = comparable(module, batch_statistics=self._model.normalises_batch)
        if alike(self._model.module, other) and self._model.computes_as(
            other, self._few.X
        ):
            return self
        module = evaluation_mode(copy_module(module))
        first = trainable(module)[0]
        return self._of(module, device=first.device, dtype=first.dtype)

    def _of(self, module: nn.Module, **changed: Any) -> EmpiricalRisk:
        return EmpiricalRisk(
            module,
            self._loss,
            *self._data.arguments(),
            # As they are: a subset's mean is not one.
            sample_weight=KnownWeights(self._data.weights),
            l2=self.l2,
            chunk_size=self.chunk_size,
            output_transform=self._model.output_transform,
            batch_norm="batch" if self._model.normalises_batch else "error",
            **{"hvp": self._hvp, "compile": self._compile, **changed},
            distributed=self._shard if self.distributed else False,  # type: ignore[arg-type]
        )
