"""Where PyTorch's derivatives are missing or wrong: right, by another way, or refused.

The reference is written without flatmin: rows and J by plain backward passes, H by
central differences of the gradient in float64.
"""

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from flatmin.risk import EmpiricalRisk
from flatmin.risk.products import graphs

N = 7
PRODUCTS = ("ggn", "jvp", "directional_derivatives")


class Net(nn.Module):
    """Two linear layers with a function between them."""

    def __init__(self, function, hidden=6, middle=6, classes=3):
        super().__init__()
        self.function = function
        self.first, self.last = nn.Linear(4, hidden), nn.Linear(middle, classes)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


class Bags(nn.Module):
    """Means, sums or maxima of an embedding's rows."""

    def __init__(self, **options):
        super().__init__()
        self.bag, self.last = nn.EmbeddingBag(9, 4, **options), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.bag(x).tanh())


class OnceDifferentiable(torch.autograd.Function):
    """x², whose backward is not differentiated again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


class ThroughNumPy(torch.autograd.Function):
    """x², with a backward that autograd takes for a constant factor."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * torch.from_numpy(2 * x.detach().numpy())


class WrongSecond(torch.autograd.Function):
    """x³ with a right backward, itself with a wrong one."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (3 * x * x.detach())


def data(n=N, d=4):
    rng = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, generator=rng, dtype=torch.float64)
    return X, torch.randint(0, 3, (n,), generator=rng)


def tokens():
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 9, (N, 5), generator=rng), data()[1]


def cross_entropy(outputs, y):
    return F.cross_entropy(outputs, y, reduction="none")


def reference(module, X, y, losses=cross_entropy):
    """Return rows, J and H; two copies of an example dodge a fault of BatchNorm."""
    params = [p for p in module.parameters() if p.requires_grad]
    start = torch.nn.utils.parameters_to_vector(params).detach()

    def flat(value):
        grads = torch.autograd.grad(value, params, retain_graph=True, allow_unused=True)
        pairs = zip(grads, params, strict=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]
        )

    def gradient(theta):
        torch.nn.utils.vector_to_parameters(theta.clone(), params)
        return flat(losses(module(X.clone()), y).mean())

    rows, jacobians = [], []
    for i in range(len(X)):
        outputs = module(X[[i, i]])[:1]
        rows.append(flat(losses(outputs, y[i : i + 1]).sum()))
        jacobians.append(torch.stack([flat(number) for number in outputs.flatten()]))
    h, columns = 1e-5, []
    for unit in torch.eye(len(start), dtype=start.dtype):
        wide = gradient(start + 2 * h * unit) - gradient(start - 2 * h * unit)
        narrow = gradient(start + h * unit) - gradient(start - h * unit)
        columns.append((8 * narrow - wide) / (12 * h))
    torch.nn.utils.vector_to_parameters(start, params)
    return torch.stack(rows), torch.stack(jacobians), torch.stack(columns, 1)


def make(function, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(function, **options).double().eval()


def check(module, X, y, losses=cross_entropy, *, hvp="exact", H=True, tol=1e-6):
    """Compare every product with the reference, whole and in chunks of 3 and 1."""
    rows, J, hessian = reference(module, X, y, losses)
    loss = "cross_entropy" if losses is cross_entropy else losses
    v = torch.linspace(-1, 1, rows.shape[1], dtype=torch.float64)
    # A graph serves every chunk, the last one filled up.
    for size in (3,) if graphs._WORTH_A_GRAPH == 0 else (None, 3, 1):
        risk = EmpiricalRisk(module, loss, X, y, chunk_size=size, hvp=hvp)
        theta = risk.params()
        point = risk.linearize(theta)
        close(risk.gradient(theta), rows.mean(0), 1e-7)
        close(torch.cat(list(risk.per_example_gradients(theta))), rows, 1e-7)
        close(point.directional_derivatives(v), rows @ v, 1e-7)
        close(point.jvp(v), (J @ v).view(risk.outputs(theta).shape), 1e-7)
        if H:
            close(point.hvp(v), hessian @ v, tol)
        else:
            with pytest.raises(ValueError, match=r"Pass hvp='finite_difference'"):
                point.hvp(v)
    return risk


def close(found, right, tol):
    assert (found - right).norm() <= tol * right.norm(), float(
        (found - right).norm() / right.norm()
    )


@pytest.fixture(params=["reference", "graph"])
def path(request, monkeypatch):
    monkeypatch.setattr(
        graphs, "_WORTH_A_GRAPH", 0 if request.param == "graph" else 1 << 60
    )


PROTOTYPES = torch.linspace(-1, 1, 180, dtype=torch.float64).view(30, 6).sin()

# What PyTorch 2.13 has no second derivative of, or a wrong one, or NaN.
SPELLED = {
    "hardsigmoid": (F.hardsigmoid, 6),
    "hardsigmoid, in place": (lambda h: F.hardsigmoid(h.clone(), inplace=True), 6),
    "cdist, few rows": (lambda h: torch.cdist(h, PROTOTYPES[:5]), 5),
    "cdist, many rows": (lambda h: torch.cdist(h, PROTOTYPES), 30),
    "cdist, p = 1": (lambda h: torch.cdist(h, PROTOTYPES[:5], p=1.0), 5),
    "sinc": (torch.sinc, 6),
    "sinc at 0": (lambda h: torch.sinc(h * (h > 0)), 6),
    "lp_pool": (lambda h: F.lp_pool1d(h[:, None], 2.0, 2)[:, 0], 3),
    "lp_pool of zeros": (lambda h: F.lp_pool1d(h.relu()[:, None], 2.0, 2)[:, 0], 3),
    "logcumsumexp": (lambda h: h.logcumsumexp(1), 6),
    "prod": (lambda h: h.prod(1, keepdim=True), 1),
    "prod with a tiny factor": (
        lambda h: torch.cat([h, 1e-200 * h[:, :1]], 1).prod(1, keepdim=True) * 1e200,
        1,
    ),
    "prod with a factor of 0": (
        lambda h: (h * torch.tensor([1, 0, 1, 1, 1, 1.0])).prod(1, keepdim=True) + h,
        6,
    ),
    "cumprod": (lambda h: h.cumprod(1), 6),
    "cumprod with a tiny factor": (
        lambda h: torch.cat([1e-150 * h[:, :1], h[:, 1:]], 1).cumprod(1) * 1e150,
        6,
    ),
}


@pytest.mark.parametrize("name", SPELLED)
def test_spelled_out(name, path):
    function, middle = SPELLED[name]
    check(make(function, middle=middle), *data())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "sum"},
        {"mode": "max"},
        {"padding_idx": 2},
        {"mode": "sum", "padding_idx": 0},
    ],
    ids=str,
)
def test_bags_of_words(options, path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Bags(**options).double()
    check(module, *tokens())


@pytest.mark.parametrize("loss", ["multi_margin", "multilabel_margin"])
def test_margin_losses(loss, path):
    X, y = data()
    if loss == "multi_margin":

        def losses(outputs, y):
            return F.multi_margin_loss(outputs, y, p=2, reduction="none")

    else:
        y = torch.stack([y, torch.full_like(y, -1), y], 1)

        def losses(outputs, y):
            return F.multilabel_margin_loss(outputs, y, reduction="none")

    check(make(torch.tanh), X, y, losses)


@pytest.mark.parametrize("function", [OnceDifferentiable, ThroughNumPy, WrongSecond])
def test_a_wrong_second_derivative_is_refused_and_all_else_is_right(function, path):
    check(make(function.apply), *data(), H=False)


def fitted(function, size):
    """A network that is sure of class 0, its data, and labels of which some are 1."""
    module = make(function)
    with torch.no_grad():
        module.last.bias[0] = size
    return module, data()[0]


@pytest.mark.parametrize("n_wrong", [0, 1, 5])
@pytest.mark.parametrize("size", [28.0, 32.0])
@pytest.mark.parametrize("named", [True, False])
def test_fitted_examples_are_no_fault(named, size, n_wrong):
    """Their slopes p - y are roundings of 1: differences of the gradient are none."""
    module, X = fitted(torch.tanh, size)
    y = torch.zeros(N, dtype=torch.long)
    y[:n_wrong] = 1
    params = list(module.parameters())
    gradient = torch.autograd.grad(
        F.cross_entropy(module(X), y), params, create_graph=True
    )
    v = [torch.linspace(-1, 1, p.numel(), dtype=p.dtype).view(p.shape) for p in params]
    along = sum((g * w).sum() for g, w in zip(gradient, v, strict=True))
    right = torch.cat([h.flatten() for h in torch.autograd.grad(along, params)])
    risk = EmpiricalRisk(module, "cross_entropy" if named else cross_entropy, X, y)
    point, v = risk.linearize(risk.params()), torch.cat([w.flatten() for w in v])
    off = (point.hvp(v) - right).norm()
    assert off <= 1e-9 * right.norm() + 1e-15  # a few roundings of the slopes
    point.ggn(v)


@pytest.mark.parametrize("function", [OnceDifferentiable, ThroughNumPy, WrongSecond])
def test_what_is_wrong_is_refused_at_fitted_examples_too(function):
    module, X = fitted(function.apply, 32.0)
    risk = EmpiricalRisk(module, "cross_entropy", X, torch.zeros(N, dtype=torch.long))
    theta = risk.params()
    with pytest.raises(ValueError, match=r"Pass hvp='finite_difference'"):
        risk.linearize(theta).hvp(theta)


@pytest.mark.parametrize("function", [OnceDifferentiable, ThroughNumPy, WrongSecond])
def test_finite_differences_of_the_gradient(function):
    risk = check(make(function.apply), *data(), hvp="finite_difference")
    told = risk.paths["hvp"]
    assert told.startswith("reference: hvp='finite_difference'; two steps agree to ")
    assert float(told.split()[-1]) < 1e-7


def test_finite_differences_in_float32():
    module, (X, y) = make(ThroughNumPy.apply), data()
    hessian = reference(module, X, y)[2]
    risk = EmpiricalRisk(
        module.float(), "cross_entropy", X.float(), y, hvp="finite_difference"
    )
    v = torch.linspace(-1, 1, risk.n_params)
    product = risk.linearize(risk.params()).hvp(v)
    assert product.dtype == torch.float32
    close(product.double(), hessian @ v.double(), 1e-5)


def test_a_kink_has_no_finite_difference():
    module = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2))
    module[0].weight.data.zero_()  # every unit sits at the kink
    X, y = torch.randn(5, 2), torch.tensor([0, 1, 0, 1, 1])
    risk = EmpiricalRisk(module, "cross_entropy", X, y, hvp="finite_difference")
    with pytest.raises(ValueError, match="as at a kink"):
        risk.linearize(risk.params()).hvp(torch.ones(risk.n_params))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_kink_is_no_fault(dtype):
    """ReLU behind a bias of zero over black pixels: H is that of autograd."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).to(dtype)
        X, y = torch.rand(9, 6, dtype=dtype), torch.randint(0, 3, (9,))
    module[0].bias.data.zero_()
    X[::2] = 0
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    theta = risk.params()
    params = tuple(module.parameters())
    losses = F.cross_entropy(module(X), y)
    g = torch.autograd.grad(losses, params, create_graph=True)
    right = torch.autograd.grad(sum(part.sum() for part in g), params)
    right = torch.cat([part.flatten() for part in right])
    close(risk.linearize(theta).hvp(torch.ones_like(theta)), right, 1e-5)


def half_square(h):
    """Return h²/2 for h > 0, else 0: its second derivative jumps at 0."""
    return F.relu(h).square() / 2


def test_at_a_jump_of_the_second_derivative_either_side_is_right():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Net(half_square).double()
    torch.nn.init.zeros_(module.first.bias)
    X, y = data()
    X[0] = 0  # a black image: all of h is 0
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    theta = risk.params()
    v = torch.linspace(-1, 1, len(theta)).double()
    params = tuple(module.parameters())
    g = torch.autograd.grad(F.cross_entropy(module(X), y), params, create_graph=True)
    flat = torch.cat([part.flatten() for part in g])
    right = torch.autograd.grad(flat @ v, params)
    close(risk.linearize(theta).hvp(v), torch.cat([p.flatten() for p in right]), 1e-9)


def detached(parts, h):
    return h / h.detach().norm(dim=1, keepdim=True)


def without_grad(parts, h):
    with torch.no_grad():
        size = parts.first.weight.norm()
    return (h / size).tanh()


def by_torch_detach(parts, h):
    return h / torch.detach(h).norm(dim=1, keepdim=True)


def by_data(parts, h):
    return h / h.data.norm(dim=1, keepdim=True)


def by_item(parts, h):
    return h / parts.first.weight.norm().item()


def several_without_grad(parts, h):
    with torch.no_grad():
        least, most = torch.aminmax(h, dim=1, keepdim=True)
    return ((h - least) / (most - least)).tanh()


class Cubed(torch.autograd.Function):
    """Its forward pass has the code of PyTorch's decorator, as what follows has."""

    @staticmethod
    @torch.no_grad()
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 3 * g * ctx.saved_tensors[0] ** 2


@torch.no_grad()
def _size_of(h):
    return h.norm(dim=1, keepdim=True)


def beside_a_decorated_function(parts, h):
    return Cubed.apply(h / _size_of(h))


def into_a_buffer(parts, h):
    filled = torch.empty_like(h)  # is no constant, once filled
    filled[:] = h / h.detach().norm(dim=1, keepdim=True)
    return filled


class Cut(Net):
    def forward(self, x):
        return self.last(self.function(self, self.first(x)))


@pytest.mark.parametrize("hvp", ["exact", "finite_difference"])
@pytest.mark.parametrize(
    "function",
    [
        *(detached, by_torch_detach, by_data, by_item, without_grad),
        *(several_without_grad, into_a_buffer, beside_a_decorated_function),
    ],
)
def test_a_constant_by_decree_is_held(function, hvp):
    """H is that of the loss with the constant held, as autograd has it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Cut(function).double()
    X, y = data()
    params = tuple(module.parameters())
    g = torch.autograd.grad(F.cross_entropy(module(X), y), params, create_graph=True)
    v = [torch.linspace(-1, 1, p.numel()).double().view(p.shape) for p in params]
    along = sum((a * b).sum() for a, b in zip(g, v, strict=True))
    right = torch.cat([h.flatten() for h in torch.autograd.grad(along, params)])
    risk = EmpiricalRisk(module, "cross_entropy", X, y, hvp=hvp)
    product = risk.linearize(risk.params()).hvp(torch.cat([p.flatten() for p in v]))
    close(product, right, 1e-9)


class KeepsItsSlope(torch.autograd.Function):
    """x³, with a slope from a copy that its forward pass detaches."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = 3 * x.detach() ** 2
        return x**3

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


class LinearInTheEnd(Net):
    def forward(self, x):
        return KeepsItsSlope.apply(self.last(self.first(x)))


def test_what_a_function_detaches_is_not_held():
    """PyTorch's H lacks the second derivative of x³: nothing may hide that."""

    def loss(outputs, y):
        return outputs.sum(1)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = LinearInTheEnd(None).double()
    X, y = data()
    right = reference(module, X, y, loss)[2]
    v = torch.linspace(-1, 1, len(right), dtype=right.dtype)
    risk = EmpiricalRisk(module, loss, X, y)
    with pytest.raises(ValueError, match=r"double backward \(it differs by"):
        risk.linearize(risk.params()).hvp(v)
    differences = risk.to(hvp="finite_difference").linearize(risk.params())
    close(differences.hvp(v), right @ v, 1e-7)


def test_where_the_gradient_is_not_finite_the_parameters_are_named():
    module = make(lambda h: (h - h).sqrt() + h)
    X, y = data()
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    theta = risk.params()
    with pytest.raises(FloatingPointError, match=r"finite.*first\.weight, first\.bias"):
        risk.linearize(theta).vjp(risk.outputs(theta))


def test_a_derivative_that_is_nan_on_some_examples_takes_another_way(monkeypatch):
    """Forward mode of a square root at 0 is NaN, whatever it is multiplied with."""

    class SafeRoot(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x.clamp(min=0).sqrt()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return torch.where(x > 0, g / (2 * x.clamp(min=1e-300).sqrt()), 0 * g)

        @staticmethod
        def jvp(ctx, t):
            (x,) = ctx.saved_tensors
            return t / (2 * x.clamp(min=0).sqrt())

    X, y = data(40)
    X[:35, 0], X[35:, 0] = 3.0, -30.0

    def function(h):
        return torch.cat([SafeRoot.apply(h[:, :1]), h[:, 1:]], 1)

    module = make(function)
    module.first.weight.data[0] = torch.tensor([1.0, 0, 0, 0])
    module.first.bias.data[0] = 0.0
    rows, _, _ = reference(module, X, y)
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    v = torch.linspace(-1, 1, risk.n_params, dtype=torch.float64)
    # As if no example of the trial had a unit at rest.
    few = risk._data.select(torch.arange(16))
    monkeypatch.setattr(risk, "_few", few)
    point = risk.linearize(risk.params())
    close(point.directional_derivatives(v), rows @ v, 1e-9)


@pytest.mark.parametrize("quantity", ["jvp", "hvp"])
def test_a_theta_without_a_derivative_refuses_no_other(quantity):
    """The gradient of this square root is NaN at 0, where the other side is taken."""
    X, y = data()
    X[0] = 0.0
    module = make(lambda h: torch.where(h > 0, h.abs().sqrt(), h))
    with torch.no_grad():
        module.first.bias.fill_(0.3)
    _, J, H = reference(module, X, y)
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    theta = risk.params()
    at_zero = theta.clone()
    at_zero[risk.layout.slice("first.bias")] = 0.0
    v = torch.linspace(-1, 1, risk.n_params, dtype=torch.float64)
    with pytest.raises(ValueError, match="another θ is tried anew"):
        getattr(risk.linearize(at_zero), quantity)(v)
    found = getattr(risk.linearize(theta), quantity)(v)
    right = {"jvp": (J @ v).view(len(X), -1), "hvp": H @ v}[quantity]
    close(found, right, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_kink_hides_no_wrong_second_derivative(dtype):
    """At a kink of an earlier layer differences tell nothing: it is tried beside θ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = nn.Linear(6, 5), nn.ReLU(), Net(KeepsItsSlope.apply, 6, 6)
        module = nn.Sequential(parts[0], parts[1], nn.Linear(5, 4), parts[2]).to(dtype)
        X, y = torch.rand(9, 6, dtype=dtype), torch.randint(0, 3, (9,))
    module[0].bias.data.zero_()
    X[::2] = 0
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    with pytest.raises(ValueError, match=r"H v needs the second derivatives.*differs"):
        risk.linearize(risk.params()).hvp(risk.params())


class Multiplied(torch.autograd.Function):
    """The gradient is multiplied, as in wav2vec 2.0, or reversed."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return ctx.factor * g, None


class Rounded(torch.autograd.Function):
    """A rounding with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx, g):
        return g


def hooked(h):
    """A hook that keeps a tenth of the gradient."""
    if h.requires_grad:
        h.register_hook(lambda g: 0.1 * g)
    return h.tanh()


class Masked(torch.autograd.Function):
    """The gradient of some weights is cut off, behind autograd's back."""

    @staticmethod
    def forward(ctx, x):
        ctx.mask = torch.arange(x.numel()).view_as(x) % 2
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.mask


class HalfOfTheWeights(Net):
    def forward(self, x):
        weight = Masked.apply(self.first.weight)
        return self.last(F.linear(x, weight, self.first.bias).tanh())


class Deep(Net):
    """One of twenty layers multiplies the gradient by 1.2."""

    def __init__(self):
        super().__init__(None)
        self.inner = nn.ModuleList(nn.Linear(6, 6) for _ in range(20))

    def forward(self, x):
        h = Multiplied.apply(self.first(x), 1.2).tanh()
        for layer in self.inner:
            h = h + layer(h).tanh()
        return self.last(h)


class AtTheEnd(Net):
    """The whole of the gradient is multiplied: its derivative is symmetric still."""

    def forward(self, x):
        return Multiplied.apply(super().forward(x), 0.1)


@pytest.mark.parametrize("hvp", ["exact", "finite_difference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Net(lambda h: Multiplied.apply(h.tanh(), 0.1)),
        lambda: Net(lambda h: Multiplied.apply(h.tanh(), -1.0)),
        lambda: Net(Rounded.apply),
        lambda: Net(hooked),
        lambda: AtTheEnd(torch.tanh),
        lambda: HalfOfTheWeights(None),
        Deep,
    ],
)
def test_a_gradient_that_is_not_the_derivative_is_told_of(make, dtype, hvp):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make().to(dtype)
    X, y = data()
    with pytest.warns(UserWarning, match="gradient that PyTorch gives is not the deri"):
        risk = EmpiricalRisk(module, "cross_entropy", X.to(dtype), y, hvp=hvp)
    theta = risk.params()
    # It is PyTorch's.
    loss = F.cross_entropy(module(X.to(dtype)), y)
    right = torch.autograd.grad(loss, list(module.parameters()))
    close(risk.gradient(theta), torch.cat([g.flatten() for g in right]), 1e-4)
    with pytest.raises(ValueError, match="H v needs a gradient that is the derivative"):
        risk.linearize(theta).hvp(theta)
    with pytest.raises(ValueError, match="H v needs a gradient that is the derivative"):
        risk.squared_hessian_product(theta, theta)
    block = risk.linearize(theta, select="last.weight")
    with pytest.raises(ValueError, match="H v needs a gradient that is the derivative"):
        block.hvp(theta[: module.last.weight.numel()])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize(
    "function",
    [torch.tanh, torch.relu, F.gelu, torch.abs, F.hardtanh, torch.round],
)
def test_a_gradient_that_is_the_derivative_is_not(function, scale, dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Net(function).to(dtype)
    module.first.bias.data.zero_()
    with torch.no_grad():
        module.last.weight *= scale
    X, y = data()
    X = X.to(dtype)
    X[::2] = 0  # at the kink
    EmpiricalRisk(module, "cross_entropy", X, y)


class Clamped(torch.autograd.Function):
    """A clamp that lets the gradient through, as of quantised networks."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx, g):
        return g


@pytest.mark.parametrize("hvp", ["exact", "finite_difference"])
def test_a_gradient_is_tried_again_where_h_is_asked_for(hvp):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Net(Clamped.apply).double()
    torch.nn.init.uniform_(module.first.weight, -0.01, 0.01)
    risk = EmpiricalRisk(module, "cross_entropy", *data(), hvp=hvp)  # no clamp is met
    theta = 1000 * risk.params()
    with pytest.raises(ValueError, match="H v needs a gradient that is the derivative"):
        risk.linearize(theta).hvp(theta)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_near_a_minimum_a_gradient_is_not_called_wrong(dtype):
    """There a difference of losses is mostly what the slope is not."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        X, y = torch.randn(12, 3).double(), torch.randint(0, 2, (12, 1)).double()
        away = torch.randn(100, 4, dtype=torch.float64)

    def loss(theta):
        logits = X @ theta[:3, None] + theta[3]
        return F.binary_cross_entropy_with_logits(logits, y)

    best = torch.zeros(4, dtype=torch.float64)
    for _ in range(20):
        hessian = torch.autograd.functional.hessian(loss, best)
        best -= torch.linalg.solve(
            hessian, torch.autograd.functional.jacobian(loss, best)
        )
    module = nn.Linear(3, 1).double()
    for k, step in enumerate(away):
        theta = best + 10 ** (-5 - k / 25) * step
        module.weight.data, module.bias.data = theta[None, :3], theta[3:]
        own = module.to(dtype), "binary_cross_entropy", X.to(dtype), y.to(dtype)
        EmpiricalRisk(*own)
        module.double()
