"""What every quantity of a kind is, by plain float64 autograd, without flatmin.

One example after another, without vmap. Each derivative has to agree with a difference
of what it is the derivative of: PyTorch's can be missing, or wrong. A kind where the
second one is says so, and its H v is the difference itself, extrapolated.
"""

import copy
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import oracles

__all__ = ["QUANTITIES", "compute", "direction", "in_float64"]

QUANTITIES = (
    "value",
    "gradient",
    "rows",
    "diag Σ",
    "‖gᵢ‖²",
    "H v",
    "G v",
    "J v",
    "Jᵀu",
    "gᵢᵀv",
    "Tr Gᵢ",
    "ΣHᵢ²v/N",
)

# Of a difference, relative to ‖θ‖; each is extrapolated with its half.
_STEPS = (1e-3, 3e-4, 1e-4, 3e-5, 1e-2, 3e-3)
# A wrong derivative is off by a per cent or more, a difference by 1e-8 or so.
_SAME = 1e-5


def direction(*shape):
    """Return the v or u of a product, the same every time."""
    rng = torch.Generator().manual_seed(1)
    return torch.randn(shape, dtype=torch.float64, generator=rng)


def in_float64(module):
    """Return a copy of a module in float64, with complex numbers in complex128."""
    # What a module keeps of its last pass has a graph, and cannot be copied.
    kept = [v for m in module.modules() for v in vars(m).values()]
    kept = [v for v in kept if torch.is_tensor(v) and not v.is_leaf]
    twin = copy.deepcopy(module, {id(v): v.detach() for v in kept})
    tensors = [*twin.parameters(), *twin.buffers()]
    if any(tensor.is_complex() for tensor in tensors):  # to() drops imaginary parts
        for tensor in tensors:
            tensor.data = _wide(tensor.data)
    else:
        twin = twin.double()
    for part in twin.modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            part.sparse = False  # a layout of the gradient
    return twin


def _wide(data):
    if data.is_complex():
        return data.to(torch.complex128)
    return data.double() if data.is_floating_point() else data


def compute(kind):
    """Return the right value of each of ``QUANTITIES``; H v is NaN where it is refused.

    Raises ``ArithmeticError`` where autograd and differences give two derivatives, and
    the kind does not say which is right.
    """
    with sdpa_kernel(SDPBackend.MATH):
        return _of_batch(kind) if kind.together else _Risk(kind).quantities()


def _of_batch(kind):
    """Return the same of the examples together, in train mode; NaN for what is not."""
    module = in_float64(kind.module).train()
    theta, call = oracles.flat_parameters(module), oracles.function_of(module)
    X = _wide(kind.X)

    def outputs(theta):
        return call(theta, X)

    def loss(f):
        pairs = zip(f.split(1), kind.y.split(1), strict=True)
        return torch.stack([kind.loss_of(*pair) for pair in pairs]).mean()

    f = outputs(theta).detach()
    J = jacobian(lambda t: outputs(t).flatten(), theta)
    S = hessian(lambda numbers: loss(numbers.view_as(f)), f.flatten())
    v, u = direction(len(theta)), direction(*f.shape)
    found = {
        "value": loss(f),
        "gradient": jacobian(lambda t: loss(outputs(t)), theta),
        "H v": hessian(lambda t: loss(outputs(t)), theta) @ v,
        "G v": J.T @ (S @ (J @ v)),
        "J v": (J @ v).view_as(f),
        "Jᵀu": J.T @ u.flatten(),
    }
    nothing = torch.full_like(v, float("nan"))
    return {quantity: found.get(quantity, nothing) for quantity in QUANTITIES}


class _Risk:
    """One kind at its θ, an example at a time."""

    def __init__(self, kind):
        self.kind = kind
        module = kind.module
        if kind.reference is not None:
            module = kind.reference
            module.load_state_dict(kind.module.state_dict())
        self.module = in_float64(module).train(kind.trains)
        self.params = [p for p in self.module.parameters() if p.requires_grad]
        self.X, self.y = _wide(kind.X), _wide(kind.y)

    def quantities(self):
        n, D = len(self.X), sum(p.numel() for p in self.params)
        v, values, rows, products, squares, parts = direction(D), [], [], [], [], []
        for i in range(n):
            output, value, gradient = self._example(i)
            values.append(value.detach())
            rows.append(gradient.detach())
            self._check_first(i, rows[-1], v)
            numbers = output.flatten()
            J = torch.stack([self._grad(a, retain_graph=True) for a in numbers])
            parts.append((output.detach(), J, self._curvature(i, output.detach())))
            if self.kind.second != "refused":
                products.append(self._second(i, gradient, v))
                self._check_second(i, products[-1], v)
                squares.append(self._second(i, gradient, products[-1]))
        outputs = torch.cat([output for output, _, _ in parts])
        u = direction(*outputs.shape).reshape(n, -1)
        rows = torch.stack(rows)
        gradient = rows.mean(0)
        nothing = [torch.full_like(v, float("nan"))]
        found = (
            torch.stack(values).mean(),
            gradient,
            rows,
            (rows - gradient).square().mean(0),
            rows.square().sum(1),
            torch.stack(products or nothing).mean(0),
            sum(J.T @ (S @ (J @ v)) for _, J, S in parts) / n,
            torch.stack([J @ v for _, J, _ in parts]).view(outputs.shape),
            sum(J.T @ u[i] for i, (_, J, _) in enumerate(parts)),
            rows @ v,
            torch.stack([((S @ J) * J).sum() for _, J, S in parts]),
            torch.stack(squares or nothing).mean(0),
        )
        return dict(zip(QUANTITIES, found, strict=True))

    def _example(self, i):
        """Return fᵢ, ℓ̃ᵢ and gᵢ, each with its graph."""
        # Twice: the derivative of PyTorch's BatchNorm on one example can be wrong.
        outputs = self.module(self.X[[i, i]])
        if self.kind.options.get("output_transform"):
            outputs = self.kind.options["output_transform"](outputs)
        output = outputs[:1]
        value = self.kind.loss_of(output, self.y[i : i + 1])
        # Some have a backward pass that cannot be run with a graph.
        with_graph = self.kind.second in ("autograd", "unchecked")
        return (
            output,
            value,
            self._grad(value, create_graph=with_graph, retain_graph=True),
        )

    def _grad(self, number, **options):
        grads = [None] * len(self.params)
        if number.requires_grad:
            options["allow_unused"] = True
            grads = torch.autograd.grad(number, self.params, **options)
        pairs = zip(grads, self.params, strict=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]
        )

    def _second(self, i, gradient, v):
        """Return Hᵢ v."""
        if self.kind.second == "difference":
            return self._difference(i, v)
        return self._grad(gradient @ v, retain_graph=True)

    def _check_first(self, i, gradient, v):
        """Check that gᵢ is the derivative of ℓ̃ᵢ."""
        if self.kind.second == "unchecked":
            return
        found = []
        for step in _STEPS:
            along = self._at(i, v, step, 1)
            found.append(_off(gradient @ v, along))
            if found[-1] < _SAME or abs(gradient @ v - along) < 1e-8:
                return
        raise ArithmeticError(
            f"autograd's gradient is {min(found):.1e} from differences of the value"
        )

    def _check_second(self, i, product, v):
        if self.kind.second != "autograd":
            return
        found = []
        for step in _STEPS:
            found.append(_off(product, self._at(i, v, step)))
            if found[-1] < _SAME:
                return
        raise ArithmeticError(
            f"autograd's H v is {min(found):.1e} from differences of the gradient"
        )

    def _difference(self, i, v):
        """Return Hᵢ v from the two steps that agree best."""
        found = [self._at(i, v, step) for step in _STEPS]
        pairs = [(_off(b, a), b) for a, b in pairwise(found)]
        off, product = min(pairs, key=lambda pair: pair[0])
        if off > 1e-7:
            raise ArithmeticError(f"differences of the gradient are {off:.1e} apart")
        return product

    def _at(self, i, v, step, which=2):
        """Return the derivative along v of the gradient, or of the value: which = 1."""
        size = torch.cat([p.detach().flatten() for p in self.params]).norm()
        h = float(step * size / (v.norm() or 1))
        wide, narrow = (
            (self._moved(i, s * v, which) - self._moved(i, -s * v, which)) / (2 * s)
            for s in (h, h / 2)
        )
        return (4 * narrow - wide) / 3

    def _moved(self, i, step, which):
        """Return ℓ̃ᵢ or gᵢ at θ plus a step."""
        before = [p.detach().clone() for p in self.params]
        parts = step.split([p.numel() for p in self.params])
        for p, part in zip(self.params, parts, strict=True):
            p.data.add_(part.view(p.shape))
        try:
            return self._example(i)[which].detach()
        finally:
            for p, value in zip(self.params, before, strict=True):
                p.data.copy_(value)

    def _curvature(self, i, output):
        """Return the Hessian of ℓ̃ᵢ in the output."""

        def loss(numbers):
            return self.kind.loss_of(numbers.view(output.shape), self.y[i : i + 1])

        numbers = output.flatten()
        S = hessian(loss, numbers)
        slope = partial(jacobian, loss)
        h = 1e-5
        units = torch.eye(len(numbers), dtype=torch.float64)
        found = torch.stack(
            [(slope(numbers + h * e) - slope(numbers - h * e)) / (2 * h) for e in units]
        )
        if not (S - found).norm() < 1e-5 * (1 + S.norm()):
            raise ArithmeticError("autograd's Hessian of the loss is no difference")
        return S


def _off(found, right):
    size = right.norm()
    return float((found - right).norm() / (size if size else 1))
