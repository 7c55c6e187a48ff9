"""BatchNorm with the statistics of the full batch, against dense float64 autograd."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.nn import functional as F

from flatmin._utils import memory
from flatmin.risk import EmpiricalRisk, ModuleLoss
from flatmin.risk.data import chunks
from flatmin.risk.products import graphs
from flatmin.risk.quantities import first_order
from flatmin.risk.quantities.over_chains import OverChains

from .. import oracles

N, C = 10, 3
REFUSAL = "needs the loss of each example by itself.*batch_norm='frozen', or GroupNorm"


def numbers(*shape, seed=0):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


X, y = numbers(N, 1, 4, 4), torch.arange(N) % C
WEIGHTS = {"unweighted": None, "weighted": torch.linspace(0.0, 2.0, N).double()}


class Residual(nn.Module):
    """Of a ResNet's layers: one BatchNorm behind another, in 2-D and 1-D, dropout."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.inner = nn.BatchNorm2d(2, track_running_stats=False)
        self.fc, self.last = nn.Linear(8, 3), nn.BatchNorm1d(3, momentum=None)
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(3, C)

    def forward(self, x):
        h = torch.tanh(self.norm(self.stem(x)))
        h = F.avg_pool2d(torch.tanh(h + self.inner(self.conv(h))), 2).flatten(1)
        return self.head(self.dropout(torch.tanh(self.last(self.fc(h)))))


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double()


@pytest.fixture
def net():
    return seeded(Residual)


def make_risk(module, X=X, y=y, loss="cross_entropy", **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The module has active dropout")
        return EmpiricalRisk(module, loss, X, y, **{"batch_norm": "batch", **options})


class Dense:
    """L and the outputs as functions of θ, by PyTorch alone, in train mode."""

    def __init__(self, module, weights=None, X=X, y=y):
        module = copy.deepcopy(module).train()
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        self.theta = oracles.flat_parameters(module)
        self.weights = torch.ones(len(X)) if weights is None else weights
        self.weights = self.weights.double() * len(X) / self.weights.sum()
        self.y = y
        call = oracles.function_of(module)
        self.outputs = lambda theta: call(theta, X)
        self.J = jacobian(lambda t: self.outputs(t).flatten(), self.theta)
        self.H = hessian(self.loss, self.theta)
        self.g = jacobian(self.loss, self.theta)

    def loss(self, theta):
        losses = F.cross_entropy(self.outputs(theta), self.y, reduction="none")
        return (self.weights * losses).mean()

    @property
    def roots(self):
        """S with SSᵀ the Hessian of N L in the outputs, (N C, N C)."""
        p = self.outputs(self.theta).detach().softmax(1)
        S = torch.diag_embed(p.sqrt()) - p.unsqueeze(2) * p.sqrt().unsqueeze(1)
        return torch.block_diag(*(S * self.weights.sqrt().view(-1, 1, 1)))

    @property
    def ggn(self):
        pulled = self.J.T @ self.roots
        return pulled @ pulled.T / len(self.y)


def close(found, expected, rtol=1e-9):
    assert torch.allclose(
        found.double(), expected, rtol=rtol, atol=rtol * float(expected.abs().max())
    )


@pytest.mark.parametrize(
    ("way", "weights"),
    [
        ("graph", "weighted"),
        ("reference", "unweighted"),
        ("reference", "weighted"),
        ("finite_difference", "weighted"),
    ],
)
def test_the_full_batch_function_and_its_derivatives(net, weights, way, monkeypatch):
    weights = WEIGHTS[weights]
    if way == "graph":
        monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)
    hvp = way if way == "finite_difference" else "exact"
    risk, dense = make_risk(net, sample_weight=weights, hvp=hvp), Dense(net, weights)
    theta = risk.params()
    assert risk.chunk_size == N
    assert risk.batch_norm == "batch"
    close(risk.value(theta), dense.loss(theta))
    close(risk.losses_at(theta.unsqueeze(0))[0], dense.loss(theta))
    close(risk.outputs(theta), dense.outputs(theta).detach())
    right = dense.outputs(theta).argmax(1) == y
    close(risk.accuracy(theta), right.double().mean())
    close(risk.gradient(theta), dense.g)
    value, gradient = risk.value_and_gradient(theta)
    close(value, dense.loss(theta))
    close(gradient, dense.g)
    v, u = numbers(len(theta)), numbers(N, C)
    point = risk.linearize(theta)
    close(point.hvp(v), dense.H @ v, 1e-9 if hvp == "exact" else 1e-5)
    close(point.ggn(v), dense.ggn @ v)
    close(point.fisher(v), dense.ggn @ v)
    close(point.jvp(v).flatten(), dense.J @ v)
    close(point.vjp(u), dense.J.T @ u.flatten())
    close(risk.vjp(theta, u), dense.J.T @ u.flatten())
    if way == "graph":
        assert set(risk.paths.values()) == {"graph"}


def test_a_penalty_and_float32(net):
    risk, dense = make_risk(net, l2=0.3, dtype="float32"), Dense(net)
    theta, v = risk.params(), numbers(len(dense.theta))
    close(risk.gradient(theta), dense.g + 0.3 * dense.theta, 1e-4)
    close(risk.linearize(theta).hvp(v.float()), dense.H @ v + 0.3 * v, 1e-4)


def test_a_draw_of_the_gauss_newton_matrix(net):
    weights = WEIGHTS["weighted"]
    risk, dense = make_risk(net, sample_weight=weights), Dense(net, weights)
    rng = torch.Generator().manual_seed(3)
    value, gradient = risk.value_and_gauss_newton_draw(
        risk.params(), torch.tensor(0.7, dtype=torch.float64), rng
    )
    z = torch.randn(
        (N, C), generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    close(value, dense.loss(dense.theta))
    noise = 0.7 / N**0.5 * dense.J.T @ dense.roots @ z.flatten()
    close(gradient, dense.g + noise)


def test_slopes_at_labels_of_the_model(net):
    risk, dense = make_risk(net), Dense(net)
    rng = torch.Generator().manual_seed(0)
    draws = [risk.model_slopes(risk.params(), rng).flatten() for _ in range(800)]
    moment = torch.stack(draws).T @ torch.stack(draws) / len(draws)
    blocks = torch.block_diag(*(torch.ones(C, C) for _ in range(N)))
    expected = dense.roots @ dense.roots.T
    # Of products of slopes, each at most 1, the mean of 800 is off by 1/√800 at most.
    assert float((moment - expected)[blocks > 0].abs().max()) < 5 / 800**0.5


EXAMPLES = {
    "batch_gradient": lambda r, t: r.batch_gradient(t, torch.arange(4)),
    "batch_gradients": lambda r, t: r.batch_gradients(t, torch.arange(4).view(2, 2)),
    "check_label_noise": lambda r, t: r.check_label_noise(),
    "gauss_newton_traces": lambda r, t: r.gauss_newton_traces(t),
    "gradient_variances": lambda r, t: r.gradient_variances(t),
    "label_covariance_product": lambda r, t: r.label_covariance_product(
        r.linearize(t), t, None
    ),
    "label_traces": lambda r, t: r.label_traces(t, None),
    "per_example_gradients": lambda r, t: r.per_example_gradients(t),
    "squared_gradient_sum": lambda r, t: r.squared_gradient_sum(t),
    "squared_hessian_product": lambda r, t: r.squared_hessian_product(t, t),
    "covariance_trace_gradient": lambda r, t: r.covariance_trace_gradient(t),
    "squared_norms": lambda r, t: r.squared_norms(t),
    "subset": lambda r, t: r.subset(torch.arange(4)),
    "value_and_batch_gradient": lambda r, t: r.value_and_batch_gradient(
        t, torch.arange(4)
    ),
    "value_and_label_draw": lambda r, t: r.value_and_label_draw(t, None, None, None),
    "value_and_noisy_gradient": lambda r, t: r.value_and_noisy_gradient(
        t, torch.ones(N).double()
    ),
    "value_gradient_and_variances": lambda r, t: r.value_gradient_and_variances(t),
    "weighted_gradient": lambda r, t: r.weighted_gradient(t, torch.ones(N).double()),
}
OF_THE_WHOLE = {
    # Compared with dense autograd above, or below.
    *(
        "value",
        "accuracy",
        "losses_at",
        "outputs",
        "gradient",
        "value_and_gradient",
        "vjp",
    ),
    *("linearize", "value_and_gauss_newton_draw", "model_slopes"),
    "value_gradient_and_product",
    *("batch_statistics", "frozen_module", "update_from", "with_module", "to"),
    "audit",
    # What they return is of the network, or of the data.
    *("params", "set_params", "layout", "n_params", "n_examples", "n_outputs"),
    "distributed",
    *("device", "dtype", "output_shape", "chunk_size", "l2", "paths", "keeps_graph"),
    *("batch_norm", "check_gauss_newton", "check_likelihood"),
    "check_running_statistics",
}
REFUSALS = {*EXAMPLES, "check_examples", "set_batch_statistics"}


def test_every_public_word_is_right_or_refused(net):
    risk = make_risk(net)
    words = {name for name in dir(risk) if not name.startswith("_")}
    assert words == OF_THE_WHOLE | REFUSALS
    for name, call in EXAMPLES.items():
        with pytest.raises(ValueError, match=f"^{name} {REFUSAL}"):
            call(risk, risk.params())
    point = risk.linearize(risk.params())
    with pytest.raises(ValueError, match=f"^directional_derivatives {REFUSAL}"):
        point.directional_derivatives(risk.params())
    with pytest.raises(ValueError, match=f"^Somebody {REFUSAL}"):
        risk.check_examples("Somebody")
    with pytest.raises(ValueError, match="a risk with running statistics"):
        risk.set_batch_statistics({})


def test_many_chains_refuse_what_one_does(net):
    risk = make_risk(net)
    thetas = risk.params().repeat(2, 1)
    ones = torch.ones(2, N).double()
    arguments = {
        "value_and_noisy_gradient": (ones,),
        "weighted_gradient": (ones,),
        "value_and_batch_gradient": (torch.arange(8).view(2, 4),),
        "batch_gradients": (torch.arange(8).view(2, 1, 4),),
        "squared_hessian_product": (thetas,),
    }
    for name in EXAMPLES:
        if hasattr(OverChains, name):
            with pytest.raises(ValueError, match=f"^{name} {REFUSAL}"):
                getattr(risk, name)(thetas, *arguments.get(name, ()))


def test_words_of_examples_go_on_elsewhere(net):
    plain = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, C)))
    risk = make_risk(plain)
    assert risk.batch_norm == "frozen"
    error = make_risk(plain, batch_norm="error")
    theta = risk.params()
    assert torch.equal(risk.squared_norms(theta), error.squared_norms(theta))
    risk.check_examples("Nobody")
    assert make_risk(plain, chunk_size=3).chunk_size == 3
    with pytest.raises(ValueError, match="batch_statistics are those of a BatchNorm"):
        risk.batch_statistics(theta)


def test_chains_have_the_statistics_of_their_own_point(net):
    risk = make_risk(net)
    theta = risk.params()
    thetas = torch.stack([theta, theta + 0.3, 2 * theta])
    v, u = numbers(len(theta)), numbers(N, C)
    words = {
        "value": risk.value,
        "outputs": risk.outputs,
        "gradient": risk.gradient,
        "hvp": lambda t: risk.linearize(t).hvp(v.expand_as(t)),
        "ggn": lambda t: risk.linearize(t).ggn(v.expand_as(t)),
        "vjp": lambda t: risk.linearize(t).vjp(u.expand(*t.shape[:-1], N, C)),
    }
    for word in words.values():
        close(word(thetas), torch.stack([word(t) for t in thetas]))
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    rng = torch.Generator().manual_seed(3)
    _, drawn = risk.value_and_gauss_newton_draw(thetas, scale, rng)
    rng.manual_seed(3)
    z = torch.randn((3, N, C), generator=rng, dtype=torch.float64)
    moved = copy.deepcopy(net)
    for t, s, zs, found in zip(thetas, scale, z, drawn, strict=True):
        nn.utils.vector_to_parameters(t, moved.parameters())
        dense = Dense(moved)
        close(found, dense.g + s / N**0.5 * dense.J.T @ dense.roots @ zs.flatten())
    for name, refused in {
        "squared_norms": lambda: risk.squared_norms(thetas),
        "directional_derivatives": lambda: risk.linearize(
            thetas
        ).directional_derivatives(thetas),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} {REFUSAL}"):
            refused()


def test_the_statistics_give_the_same_outputs_in_evaluation_mode(net):
    risk = make_risk(net)
    theta = risk.params() + 0.1
    statistics = risk.batch_statistics(theta)
    assert set(statistics) == {"norm", "inner", "last"}
    # What the last layer takes in, with divisor n.
    x, where = [], copy.deepcopy(net).train()
    where.dropout.p = 0.0
    where.last.register_forward_pre_hook(lambda _, args: x.append(args[0]))
    nn.utils.vector_to_parameters(theta, where.parameters())
    where(X)
    close(statistics["last"][0], x[0].detach().mean(0))
    close(statistics["last"][1], x[0].detach().var(0, correction=0))
    tracked = copy.deepcopy(net)
    tracked.inner = nn.BatchNorm2d(2).double()
    tracked.inner.load_state_dict(net.inner.state_dict(), strict=False)
    frozen = make_risk(tracked, batch_norm="frozen")
    before = frozen.linearize(theta)
    assert abs(float(frozen.value(theta) - risk.value(theta))) > 1e-3
    frozen.set_batch_statistics(statistics)
    close(frozen.outputs(theta), risk.outputs(theta), 1e-12)
    close(frozen.value(theta), risk.value(theta), 1e-12)
    assert bool(frozen.squared_norms(theta).all())
    for wrong, kind, match in (
        ([1], TypeError, "must be what batch_statistics returns"),
        ({"norm": (1, 2)}, TypeError, "a dict of .mean, variance."),
        ({"other": statistics["norm"]}, ValueError, "'norm', 'inner', 'last'"),
        ({"norm": statistics["last"]}, ValueError, "one number a channel"),
    ):
        with pytest.raises(kind, match=match):
            frozen.set_batch_statistics(wrong)
    with pytest.raises(RuntimeError, match="linearize again"):
        before.hvp(theta)
    # The module itself has not been touched.
    assert float(tracked.norm.num_batches_tracked) == 0


def test_the_frozen_module_predicts_as_it_trains(net):
    risk = make_risk(net)
    theta = risk.params() + 0.1
    risk.set_params(theta)
    risk.value(2 * theta)  # bound since
    module = risk.frozen_module()
    assert not any(part.training for part in module.modules())
    with torch.no_grad():
        close(module(X), Dense(net).outputs(theta))
        module.last.running_mean += 1
    close(risk.outputs(theta), Dense(net).outputs(theta))


def test_the_statistics_take_one_pass_a_point(net, monkeypatch):
    passes, true = [], first_order.recorded_statistics

    def counted(module):
        passes.append(module)
        return true(module)

    monkeypatch.setattr(first_order, "recorded_statistics", counted)
    risk = make_risk(net)
    theta, other = risk.params(), risk.params() + 0.1
    kept = risk.batch_statistics(theta)
    kept["last"][0].zero_()  # which is the caller's
    here = risk.batch_statistics(theta.clone())
    assert here["last"][0].any()
    assert len(passes) == 1
    there = risk.batch_statistics(other)
    assert not torch.equal(there["last"][0], here["last"][0])
    before = len(passes)
    close(risk.batch_statistics(other)["last"][1], there["last"][1])
    risk.update_from(net)
    risk.batch_statistics(other)  # other buffers may be behind it
    assert len(passes) == before + 1


def test_running_statistics_and_mode_of_the_module_do_not_count(net):
    expected = make_risk(net).value(make_risk(net).params())
    net(X)  # moves the running statistics
    assert torch.equal(make_risk(net).value(make_risk(net).params()), expected)
    net.eval()
    risk = make_risk(net)
    before = {name: b.clone() for name, b in net.named_buffers()}
    assert torch.equal(risk.value(risk.params()), expected)
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())


def test_copies_keep_to_the_statistics_of_the_batch(net):
    risk = make_risk(net)
    theta = risk.params()
    expected, g = risk.value(theta), risk.gradient(theta)
    for other in (
        risk.with_module(net),
        pickle.loads(pickle.dumps(risk)),
        copy.deepcopy(risk),
        risk.to(hvp="finite_difference"),
    ):
        assert other.batch_norm == "batch"
        assert other.chunk_size == N
        close(other.value(theta), expected, 1e-13)
        close(other.gradient(theta), g, 1e-13)
    assert risk.with_module(net) is risk
    single = risk.to(dtype="float32")
    assert abs(float(single.value(single.params())) - float(expected)) < 1e-6
    for part in net.parameters():
        part.data.mul_(1.1)
    net.eval()
    moved = risk.with_module(net)
    assert moved is not risk
    assert moved.batch_norm == "batch"
    risk.update_from(net)
    dense = Dense(net)
    close(risk.gradient(risk.params()), dense.g)
    close(moved.gradient(moved.params()), dense.g)


def test_a_data_set_is_one_chunk(net):
    dataset = torch.utils.data.TensorDataset(X, y)
    theta = make_risk(net).params()
    for data in (dataset, torch.utils.data.DataLoader(dataset, batch_size=4)):
        risk = make_risk(net, data, None)
        assert risk.chunk_size == N
        close(risk.gradient(theta), Dense(net).g)
        close(risk.linearize(theta).hvp(theta), Dense(net).H @ theta)


def test_a_loss_that_looks_inside(net):
    def f(module, X, y):
        return F.cross_entropy(module(X), y, reduction="none")

    risk = make_risk(net, loss=ModuleLoss(f))
    theta = risk.params()
    close(risk.gradient(theta), Dense(net).g)
    close(risk.linearize(theta).hvp(theta), Dense(net).H @ theta)
    assert set(risk.batch_statistics(theta)) == {"norm", "inner", "last"}


def test_audit_compares_what_exists():
    layers = nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3), nn.Tanh()
    audit = make_risk(seeded(lambda: nn.Sequential(*layers, nn.Linear(3, C)))).audit()
    verdicts = {check.identity: check.verdict for check in audit.checks}
    assert audit.fails == ()
    assert audit.n_examples == N
    assert verdicts["aᵀHb = bᵀHa"] == verdicts["uᵀ(J v) = vᵀ(Jᵀu)"] == "holds"
    assert verdicts["g₀ = (1/N) Σ gᵢ"] == "refused"
    assert verdicts["gᵢᵀv of the graph = that of the reference"] == "refused"


def test_sync_batch_norm_is_one_of_its_process():
    def make():
        return nn.Sequential(nn.Flatten(), nn.Linear(16, C), nn.SyncBatchNorm(C))

    module = seeded(make)
    plain = seeded(make)
    plain[2] = nn.BatchNorm1d(C).double()
    risk = make_risk(module)
    close(risk.gradient(risk.params()), Dense(plain).g)


def test_one_example_where_batch_norm_takes_it():
    module = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, C)
        )
    )
    risk = make_risk(module, X[:1], y[:1])
    dense = Dense(module, X=X[:1], y=y[:1])
    close(risk.gradient(risk.params()), dense.g)
    close(risk.linearize(risk.params()).hvp(dense.theta), dense.H @ dense.theta)


def test_one_example_where_it_does_not():
    vectors = seeded(lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16)))
    with pytest.raises(ValueError, match="more than one number of each channel"):
        make_risk(vectors, X[:1], y[:1])
    vectors[1].eps = 0.0  # which has nothing to do with how many there are
    with pytest.raises(ValueError, match=r"cannot take X .*eps must be positive"):
        make_risk(vectors)


@pytest.mark.parametrize("data", ["arrays", "a data set"])
def test_a_smaller_chunk_is_refused(net, data):
    given = (X, y)
    if data == "a data set":
        given = (torch.utils.data.TensorDataset(X, y), None)
    with pytest.raises(ValueError, match=f"one chunk. Got chunk_size=4 for {N}"):
        make_risk(net, *given, chunk_size=4)
    assert make_risk(net, *given, chunk_size=50).chunk_size == N


def test_memory_is_looked_at_before(net, monkeypatch):
    monkeypatch.setattr(chunks, "available_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"activations of 10 take .* GB, and 1e-06"):
        make_risk(net)
    assert memory.available_memory() is not None


class Sharing(nn.Module):
    """Examples see each other beside BatchNorm."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(16, C), nn.BatchNorm1d(C)

    def forward(self, x):
        h = self.norm(self.fc(x.flatten(1)))
        return F.batch_norm(h + h.square(), None, None, training=True)


def test_other_statistics_of_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"only an nn.BatchNorm layer may take"):
        make_risk(seeded(Sharing))


def test_statistics_of_a_batch_without_a_layer_name_the_way_out():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(16, C)

        def forward(self, x):
            return F.batch_norm(self.fc(x.flatten(1)), None, None, training=True)

    with pytest.raises(ValueError, match=r"an nn.BatchNorm layer, with batch_norm='ba"):
        make_risk(seeded(Bare))
