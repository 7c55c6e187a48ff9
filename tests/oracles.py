"""Every quantity of a risk in dense float64, written without flatmin.

What a test of a network compares with: each example's gradient, Jacobian and output
Hessian, and the Hessian of the mean, row by row. Not by ``torch.func.jacrev``, which is
vectorised: the vectorised second derivative of layer norm is wrong (torch 2.13).
"""

import contextlib
import copy
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map


@dataclass(frozen=True)
class Dense:
    """A risk at one θ; D parameters, N examples, c numbers an output."""

    losses: torch.Tensor  # (N,) ℓ̃ᵢ
    gradients: torch.Tensor  # (N, D) gᵢ
    hessian: torch.Tensor  # (D, D) H
    outputs: torch.Tensor  # (N, *output_shape)
    jacobians: torch.Tensor  # (N, c, D)
    gauss_newtons: torch.Tensor  # (N, D, D) Jᵢᵀ Hᵢ Jᵢ

    @property
    def value(self):
        return self.losses.mean()

    @property
    def gradient(self):
        return self.gradients.mean(0)

    @property
    def gauss_newton(self):
        return self.gauss_newtons.mean(0)

    @property
    def covariance(self):
        centred = self.gradients - self.gradient
        return centred.T @ centred / len(centred)


def flat_parameters(module):
    """Return θ: the trainable parameters in the order of ``named_parameters()``."""
    return torch.cat(
        [p.detach().flatten() for p in module.parameters() if p.requires_grad]
    )


def function_of(module):
    """Return a module's outputs as a function of θ and X, which autograd follows.

    X may be a dict of keywords, or a tuple of arguments.
    """
    # Listed once: where a layer is called twice, a call leaves θ in the module.
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]

    def outputs(theta, X):
        parts = theta.split([p.numel() for _, p in named])
        values = {n: v.view(p.shape) for (n, p), v in zip(named, parts, strict=True)}
        args = X if isinstance(X, tuple) else (X,)
        args, kwargs = ((), X) if isinstance(X, dict) else (args, {})
        return functional_call(module, values, args, kwargs)

    return outputs


def dense(
    module, losses, X, y, theta, *, weights=None, transform=lambda outputs: outputs
):
    """Differentiate a module by everything at θ.

    ``losses(outputs, y)`` gives one loss an example, in plain torch. X may be a dict of
    keywords, or a tuple of arguments.
    """
    module = copy.deepcopy(module).double().eval()
    X = tree_map(lambda x: x.double() if x.is_floating_point() else x, X)
    y = y.double() if y.is_floating_point() else y
    theta = theta.double()
    call, n = function_of(module), len(y)
    w = torch.ones(n) if weights is None else torch.as_tensor(weights)
    w = len(w) * w.double() / w.sum()

    def outputs(t):
        return transform(call(t, tree_map(torch.clone, X)))

    def weighted(t):
        return w * losses(outputs(t), y)

    with right_second_derivatives():
        f = outputs(theta).detach()
        J = jacobian(lambda t: outputs(t).reshape(n, -1), theta)
        gradients = jacobian(weighted, theta)
        H = hessian(lambda t: weighted(t).mean(), theta)
    S = [
        hessian(lambda one, i=i: w[i] * losses(one[None], y[i : i + 1])[0], f[i])
        for i in range(len(f))
    ]
    S = torch.stack(S).view(len(f), J.shape[1], J.shape[1])
    G = torch.einsum("nap,nab,nbq->npq", J, S, J)
    return Dense(weighted(theta), gradients, H, f, J, G)


def weight_norm(v, g, dim):
    """Return g v/‖v‖, which the fused kernel differentiates wrongly a second time."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


@contextlib.contextmanager
def right_second_derivatives():
    """Replace two kernels: one has no second derivative, one has a wrong one."""
    with sdpa_kernel(SDPBackend.MATH), mock.patch("torch._weight_norm", weight_norm):
        yield


# Per-example losses in plain torch, by the names that flatmin gives them.


def cross_entropy(outputs, y, **options):
    losses = F.cross_entropy(outputs, y, reduction="none", **options)
    return losses.reshape(len(losses), -1).mean(1)


def squared_error(outputs, y):
    return (outputs - y.reshape(outputs.shape)).square().reshape(len(y), -1).mean(1)


def binary_cross_entropy(outputs, y):
    y = y.to(outputs.dtype).reshape(outputs.shape)
    return (F.softplus(outputs) - y * outputs).reshape(len(y), -1).mean(1)


@contextlib.contextmanager
def untouched(module):
    """Fail if the block changes a module, its gradients or a global generator."""
    before = _fingerprint(module)
    yield
    after = _fingerprint(module)
    assert before.keys() == after.keys()
    changed = [key for key in before if before[key] != after[key]]
    assert not changed, changed


def _fingerprint(module):
    found = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002 - the global one
    }
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if isinstance(value, dict):
                found[name, key, "entries"] = [(k, id(v)) for k, v in value.items()]
            elif not isinstance(value, list | torch.Tensor):
                found[name, key] = value
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        grad = tensor.grad
        found[name] = (
            tensor.detach().numpy().tobytes(),
            (tensor.data_ptr(), tensor.stride(), tensor.dtype),
            tensor.requires_grad,
            tensor._version,
            (id(grad), grad.numpy().tobytes()) if grad is not None else None,
        )
    return found
