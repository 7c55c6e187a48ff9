"""A risk in dense float64, by plain autograd and without flatmin: one θ, one example.

Faster than ``tests/oracles.py``, which differentiates by everything: here a quantity is
computed when it is asked for. Inputs are rounded to the risk's precision first, since
that is where the risk is to be right.
"""

import copy
from functools import cached_property

import numpy as np
import torch
from torch.func import functional_call


def plain(data):
    """Return an array of the same values, in memory of its own."""
    data = data.detach().numpy() if isinstance(data, torch.Tensor) else data
    return np.array(data, order="C")


def rounded(values, dtype):
    """Return numbers as the risk holds them, in float64."""
    return torch.from_numpy(np.asarray(values).astype(str(dtype)[6:])).double()


def normalised(weights, counts):
    """Return N wᵢ / Σ wⱼcⱼ; first divided by the largest, whose sum may overflow."""
    if weights is None:
        weights = np.ones(len(counts))
    w = torch.from_numpy(plain(weights).astype(float))
    w = w / w.max()
    return len(w) * w / (w * counts).sum()


class Reference:
    """A weighted risk at one θ: N examples, D parameters, c numbers an output."""

    def __init__(self, module, losses, X, y, w, theta, eps):
        self.module, self.losses_of = module, losses
        self.X, self.y, self.w, self.theta = X, y, w, theta
        self.eps = eps  # of the precision in which the risk computes

    @classmethod
    def of(cls, problem, theta):
        """Round all inputs to the precision of a problem's risk."""
        dtype = problem.risk_dtype
        module = copy.deepcopy(problem.module).to(dtype).double().eval()
        X, y = plain(problem.X), plain(problem.y)
        if problem.takes_indices:
            X = torch.from_numpy(X.astype(np.int64))
        else:
            X = rounded(X, dtype)
        if problem.loss.targets == "classes":
            y = torch.from_numpy(y.astype(np.int64))
        else:
            y = rounded(y, dtype)
        counts = torch.ones(len(X), dtype=torch.float64)
        if problem.loss.counts is not None:
            counts = problem.loss.counts(y)
        w = normalised(problem.options.get("sample_weight"), counts)
        theta, eps = rounded(plain(theta), dtype), torch.finfo(dtype).eps
        return cls(module, problem.loss.right, X, y, w, theta, eps)

    def subset(self, indices):
        parts = self.X[indices], self.y[indices], self.w[indices]
        return Reference(self.module, self.losses_of, *parts, self.theta, self.eps)

    def disturbed(self):
        """Return the same with another rounding of every number that goes in."""
        rng = torch.Generator().manual_seed(0)

        def off(t):
            if not t.is_floating_point():
                return t
            noise = torch.rand(t.shape, generator=rng, dtype=t.dtype)
            return t * (1 + self.eps * (2 * noise - 1))

        numbers = map(off, (self.X, self.y, self.w, self.theta))
        return Reference(self.module, self.losses_of, *numbers, self.eps)

    def in_float32(self):
        """Return the same with every operation in float32."""
        numbers = (
            t.float() if t.is_floating_point() else t
            for t in (self.X, self.y, self.w, self.theta)
        )
        module = copy.deepcopy(self.module).float()
        return Reference(module, self.losses_of, *numbers, self.eps)

    @cached_property
    def _graph(self):
        """θ, outputs, losses."""
        t = self.theta.clone().requires_grad_()
        named = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]
        parts = t.split([p.numel() for _, p in named])
        values = {n: v.view(p.shape) for (n, p), v in zip(named, parts, strict=True)}
        # Of a copy: where a layer is called twice, the values stay in the module.
        f = functional_call(copy.deepcopy(self.module), values, (self.X.clone(),))
        return t, f, self.w * self.losses_of(f, self.y)

    @property
    def outputs(self):
        return self._graph[1].detach()

    @property
    def losses(self):
        return self._graph[2].detach()

    @cached_property
    def gradients(self):
        """All gᵢ, shape (N, D)."""
        t, _, losses = self._graph
        return torch.stack([_grad(loss, t) for loss in losses])

    @cached_property
    def jacobians(self):
        """All Jᵢ, shape (N, c, D)."""
        t, f, _ = self._graph
        rows = [_grad(one, t) for one in f.reshape(-1)]
        return torch.stack(rows).view(len(f), -1, len(t))

    @cached_property
    def output_hessians(self):
        """All Hessians of ℓ̃ᵢ in the output, shape (N, c, c)."""
        f = self.outputs.requires_grad_()
        total = (self.w * self.losses_of(f, self.y)).sum()
        slopes = _grad(total, f, create_graph=True).reshape(len(f), -1)
        columns = [_grad(slopes[:, a].sum(), f) for a in range(slopes.shape[1])]
        return torch.stack(columns, -1).view(len(f), -1, len(columns))

    def hessian_products(self, v):
        """All Hᵢ v, shape (N, D)."""
        t, _, losses = self._graph
        slopes = [_grad(loss, t, create_graph=True) for loss in losses]
        return torch.stack([_grad(slope @ v.to(t), t) for slope in slopes])

    def gauss_newton_products(self, v):
        """All Gᵢ v, shape (N, D)."""
        J, S = self.jacobians, self.output_hessians
        return torch.einsum("nap,nab,nbq,q->np", J, S, J, v.to(J))


def _grad(scalar, by, create_graph=False):
    if not scalar.requires_grad:
        return torch.zeros_like(by)
    return torch.autograd.grad(
        scalar,
        by,
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )[0]
