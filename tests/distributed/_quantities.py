"""Every word of a risk and every law: two processes against one, and dense autograd."""

import inspect
import zlib

import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev, vmap
from torch.utils.data import Subset, TensorDataset

from flatmin.noise import METHODS, Step, make_noise_law
from flatmin.risk import EmpiricalRisk, LabelDraw, ModuleLoss

from ._join import join, say

DRAW = LabelDraw(0.1, 0.2)
# Laws that move many copies of a network at once.
CHAINED = (
    *("gd", "gld_const", "gld_dynamic", "gld_diagonal", "gld_full", "gld_ggn"),
    *("gradient_penalty", "label_noise", "sam", "sgd"),
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def data(n):
    X = torch.randn(n, 4, dtype=torch.float64, generator=generator(1))
    return X, torch.randint(0, 3, (n,), generator=generator(2))


def words(n, chains=(), *, labels=True):
    """Return functions of (risk, θ), by name."""

    def randn(*shape):
        shape = (*chains, *shape)
        return torch.randn(shape, dtype=torch.float64, generator=generator(3))

    v, u, d = randn(n), randn(n, 3), randn(43)
    scale = randn().abs()
    indices = torch.randint(0, n, (*chains, 5), generator=generator(4))
    batches = torch.randint(0, n, (*chains, 4, 3), generator=generator(5))
    found = {
        "value": lambda r, t: r.value(t),
        "outputs": lambda r, t: r.outputs(t),
        "gradient": lambda r, t: r.gradient(t),
        "value_and_gradient": lambda r, t: r.value_and_gradient(t),
        "weighted_gradient": lambda r, t: r.weighted_gradient(t, v),
        "value_and_noisy_gradient": lambda r, t: r.value_and_noisy_gradient(t, v),
        "batch_gradient": lambda r, t: r.batch_gradient(t, indices),
        "value_and_batch_gradient": lambda r, t: r.value_and_batch_gradient(t, indices),
        "batch_gradients": lambda r, t: r.batch_gradients(t, batches),
        "per_example_gradients": lambda r, t: torch.cat(
            list(r.per_example_gradients(t)), -2
        ),
        "squared_norms": lambda r, t: r.squared_norms(t),
        "squared_gradient_sum": lambda r, t: r.squared_gradient_sum(t),
        "gradient_variances": lambda r, t: r.gradient_variances(t),
        "value_gradient_and_variances": lambda r, t: r.value_gradient_and_variances(t),
        "squared_hessian_product": lambda r, t: r.squared_hessian_product(t, d),
        "covariance_trace_gradient": lambda r, t: r.covariance_trace_gradient(t),
        "value_gradient_and_product": lambda r, t: r.value_gradient_and_product(t),
        "value_and_gauss_newton_draw": lambda r, t: r.value_and_gauss_newton_draw(
            t, scale, generator(6)
        ),
        "gauss_newton_traces": lambda r, t: r.gauss_newton_traces(t),
        "gauss_newton_traces, two": lambda r, t: r.gauss_newton_traces(
            t, generator(6), n_sweeps=2
        ),
        "model_slopes": lambda r, t: r.model_slopes(t, generator(6)),
        "vjp": lambda r, t: r.vjp(t, u),
    }
    for product in ("hvp", "ggn", "fisher", "jvp", "directional_derivatives"):
        found[product] = lambda r, t, p=product: getattr(r.linearize(t), p)(d)
    if labels:
        found |= {
            "value_and_label_draw": lambda r, t: r.value_and_label_draw(
                t, DRAW, scale, generator(7)
            ),
            "label_traces": lambda r, t: r.label_traces(t, DRAW),
            "label_covariance_product": lambda r, t: r.label_covariance_product(
                r.linearize(t), d, DRAW
            ),
        }
    if not chains:
        found |= {
            "losses_at": lambda r, t: r.losses_at(torch.stack([t, 2 * t])),
            "accuracy": lambda r, t: r.accuracy(t),
            "subset": lambda r, t: r.subset(indices).squared_norms(t),
            "subset, products": lambda r, t: r.subset(indices).linearize(t).jvp(d),
            "to": lambda r, t: r.to(dtype="float32").gradient(t.float()).double(),
            "with_module": lambda r, t: r.with_module(
                nn.Sequential(*net(), nn.Tanh()).double()
            ).gradient(t),
            "a block": lambda r, t: r.linearize(t, select="0").hvp(d[:25]),
        }
    return found


def compare(one, two, theta, names, prefix):
    """Return how far the words of one risk are from another's, and their bits."""
    found = {}
    for name, word in names.items():
        right, got = word(one, theta), word(two, theta)
        right = right if isinstance(right, tuple) else (right,)
        got = got if isinstance(got, tuple) else (got,)
        off = max(
            float((a - b).norm() / (a.norm() + 1e-300)) if a.shape == b.shape else 1e300
            for a, b in zip(right, got, strict=True)
        )
        bits = [zlib.crc32(part.contiguous().numpy().tobytes()) for part in got]
        found[f"{prefix}: {name}"] = [off, bits]
    return found


def of_problems():
    found = {}
    weights = torch.arange(1.0, 12, dtype=torch.float64)
    X, y = data(11)
    left_out = y.clone()
    left_out[1] = -100
    problems = {
        "plain": (y, {}),
        "chunks, l2": (y, {"l2": 0.1, "chunk_size": 2}),
        "weights, l2": (y, {"l2": 0.1, "sample_weight": weights}),
        "a target left out": (left_out, {}),
        "positions": (left_out, {"positions": "example", "sample_weight": weights}),
        "finite differences": (y, {"hvp": "finite_difference"}),
    }
    for name, (targets, options) in problems.items():
        one, two = (
            EmpiricalRisk(
                *(net(), "cross_entropy", X, targets), **options, distributed=many
            )
            for many in (False, True)
        )
        plain = not bool((targets < 0).any())
        theta = one.params()
        found |= compare(one, two, theta, words(11, labels=plain), name)
        if name not in ("plain", "chunks, l2", "weights, l2"):
            continue
        thetas = torch.stack([theta, 1.3 * theta, theta - 0.1])
        chained = words(11, (3,), labels=plain)
        found |= compare(one, two, thetas, chained, f"{name}, chains")
    return found


def of_sizes():
    """One example for two ranks, and for each loss that is its own."""
    found = {}
    for n in (1, 2, 3):
        X, y = data(n)
        one, two = (
            EmpiricalRisk(net(), "cross_entropy", X, y, l2=0.1, distributed=many)
            for many in (False, True)
        )
        found |= compare(one, two, one.params(), words(n), f"N = {n}")
    return found


def of_data_sets(rank):
    X, y = data(11)
    one = EmpiricalRisk(net(), "cross_entropy", X, y)
    examples = TensorDataset(X, y)
    streamed = EmpiricalRisk(net(), "cross_entropy", examples, distributed=True)
    found = compare(one, streamed, one.params(), words(11), "a data set")
    shard = Subset(examples, range(4) if rank == 0 else range(4, 11))
    own = EmpiricalRisk(net(), "cross_entropy", shard, distributed=True)
    found |= compare(one, own, one.params(), words(11), "shards of 4 and 7")
    weights = torch.arange(1.0, 12, dtype=torch.float64)
    one = EmpiricalRisk(net(), "cross_entropy", X, y, sample_weight=weights)
    own = EmpiricalRisk(
        *(net(), "cross_entropy", shard),
        sample_weight=weights[:4] if rank == 0 else weights[4:],
        distributed=True,
    )
    return found | compare(one, own, one.params(), words(11), "shards with weights")


def of_module_losses():
    X, y = data(11)

    def losses(module, X, y):
        return nn.functional.cross_entropy(module(X), y, reduction="none")

    one, two = (
        EmpiricalRisk(net(), ModuleLoss(losses), X, y, distributed=many)
        for many in (False, True)
    )
    names = ("value", "gradient", "squared_norms", "gradient_variances", "hvp")
    some = {name: words(11)[name] for name in names}
    return compare(one, two, one.params(), some, "ModuleLoss")


def of_laws():
    found = {}
    X, y = data(41)
    one, two = (
        EmpiricalRisk(net(), "cross_entropy", X, y, l2=0.01, distributed=many)
        for many in (False, True)
    )
    for name in METHODS:
        law = make_noise_law(name)
        if "batch_size" in law.get_params():
            law = make_noise_law(name, batch_size=4)

        def iterate(risk, theta, law=law):
            rng, all_of_it = generator(8), []
            state = law.refresh(risk, theta, rng)
            told = "step" in inspect.signature(law.noisy_gradient).parameters
            for i in range(3):
                step = {"step": Step(i, 0.1)} if told else {}
                loss, noisy = law.noisy_gradient(risk, theta, state, rng, **step)
                theta = theta - 0.1 * noisy
                all_of_it += [loss, noisy]
            return (*all_of_it, theta)

        def covariance(risk, theta, law=law):
            state = law.refresh(risk, theta, generator(8))
            return law.covariance(risk, theta, state).to_dense()

        chosen = {"iterations": iterate}
        if name != "alpha_stable":  # it has none
            chosen["covariance"] = covariance
        found |= compare(one, two, one.params(), chosen, f"law {name}")
        if name in CHAINED:
            thetas = torch.stack([one.params(), 1.3 * one.params()])
            chosen = {"iterations": iterate}
            found |= compare(one, two, thetas, chosen, f"law {name}, chains")
    return found


def of_dense_autograd():
    """Return how far some are from autograd on the whole data, without flatmin."""
    X, y = data(11)
    module, weights = net(), torch.arange(1.0, 12, dtype=torch.float64)
    names, parts = zip(*module.named_parameters(), strict=True)
    sizes, shapes = [p.numel() for p in parts], [p.shape for p in parts]
    theta = torch.cat([p.detach().reshape(-1) for p in parts])

    def loss(theta, x, y):
        cut = theta.split(sizes)
        params = {k: p.view(s) for k, p, s in zip(names, cut, shapes, strict=True)}
        out = functional_call(module, params, (x,))
        return nn.functional.cross_entropy(out, y)

    relative = weights / weights.mean()
    rows = vmap(jacrev(loss), (None, 0, 0))(theta, X[:, None], y[:, None])
    rows = relative[:, None] * rows
    centred = rows - rows.mean(0)
    each = vmap(hessian(loss), (None, 0, 0))(theta, X[:, None], y[:, None])
    H = (relative[:, None, None] * each).mean(0) + 0.1 * torch.eye(
        43, dtype=torch.float64
    )
    d = torch.randn(43, dtype=torch.float64, generator=generator(3))
    right = {
        "gradient": rows.mean(0) + 0.1 * theta,
        "squared_norms": rows.square().sum(1),
        "gradient_variances": centred.square().mean(0),
        "hvp": H @ d,
    }
    options = {"l2": 0.1, "sample_weight": weights, "distributed": True}
    two = EmpiricalRisk(module, "cross_entropy", X, y, **options)
    some = {name: words(11)[name] for name in right}
    some["hvp"] = lambda r, t: r.linearize(t).hvp(d)
    return {
        f"dense: {name}": [float((some[name](two, theta) - a).norm() / a.norm()), []]
        for name, a in right.items()
    }


if __name__ == "__main__":
    rank = join()
    found = of_problems() | of_sizes() | of_data_sets(rank) | of_module_losses()
    say(found | of_laws() | of_dense_autograd())
