"""Chains of a network: each is what it is alone, given the same random numbers."""

from functools import cache

import pytest
import torch
from torch import nn

from flatmin.dynamics import DivergenceError, simulate
from flatmin.noise import METHODS, Projected, Step, make_noise_law, step_for
from flatmin.risk import EmpiricalRisk

N_CHAINS, N = 3, 8
SILENT = ("gd", "sam", "gradient_penalty")  # draw nothing


def network(n_hidden=4, n_out=2):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(3, n_hidden), nn.Tanh(), nn.Linear(n_hidden, n_out)
        ).double()


def make_risk(module=None, **options):
    rng = torch.Generator().manual_seed(1)
    X = torch.randn(N, 3, generator=rng, dtype=torch.float64)
    y = torch.arange(N) % 2
    module = network() if module is None else module
    return EmpiricalRisk(module, "cross_entropy", X, y, **options)


class Tape:
    """Keeps what many chains draw, and plays one chain's part of it."""

    def __init__(self, monkeypatch):
        self.draws = []
        self.rng = torch.Generator().manual_seed(3)  # others draw for trials
        self.chain = None
        self.position = 0
        for name in ("randn", "rand", "randint"):
            original = getattr(torch, name)
            monkeypatch.setattr(torch, name, self._wrapped(original))

    def play(self, chain):
        self.chain, self.position = chain, 0

    def _wrapped(self, original):
        def draw(*args, **kwargs):
            drawn = original(*args, **kwargs)
            if kwargs.get("generator") is not self.rng:
                return drawn
            if self.chain is None:
                self.draws.append(drawn)
                return drawn.clone()
            recorded = self.draws[self.position]
            self.position += 1
            return self._part(recorded, drawn.shape).clone()

        return draw

    def _part(self, recorded, shape):
        if recorded.ndim == len(shape):  # the chains one after the other
            return recorded.view(N_CHAINS, *shape)[self.chain]
        axis, *_ = [
            axis
            for axis in range(recorded.ndim)
            if recorded.shape[axis] == N_CHAINS
            and recorded.shape[:axis] + recorded.shape[axis + 1 :] == shape
        ]
        return recorded.select(axis, self.chain)


def fix_signs(monkeypatch):
    """An eigenvector has no sign of its own, and a draw along it depends on that."""
    original = torch.linalg.eigh

    def eigh(matrix, *args, **kwargs):
        values, vectors = original(matrix, *args, **kwargs)
        # No largest entry decides: two may be equal but for rounding, of either sign.
        probe = torch.linspace(1, 2, matrix.shape[-1], dtype=matrix.dtype).cos()
        return values, vectors * (probe @ vectors).unsqueeze(-2).sign()

    monkeypatch.setattr(torch.linalg, "eigh", eigh)


def settings(name):
    known = METHODS[name]._get_param_names()
    given = {"batch_size": 2, "n_components": 3}
    return {key: value for key, value in given.items() if key in known}


LAWS = {name: make_noise_law(name, **settings(name)) for name in METHODS} | {
    "sgd, epochs": make_noise_law("sgd", batch_size=3, sampling="epoch"),
    "sgd, scaled": make_noise_law("sgd", batch_size=3, noise_scale=2.0),
    "full, by curvature": make_noise_law("gld_full", match="curvature", batch_size=2),
    "ggn, by curvature": make_noise_law("gld_ggn", match="curvature", batch_size=2),
    "label noise, by trace": make_noise_law("label_noise", match="trace"),
    "examples": make_noise_law("gld_leading", source="examples", batch_size=2),
    "bulk of labels": Projected(make_noise_law("label_noise"), keep="bulk"),
    "langevin": make_noise_law("gld_const", temperature=0.1),
}


@cache
def shared_risk(penalised):
    return make_risk(l2=0.1, chunk_size=3) if penalised else make_risk()


@pytest.mark.parametrize(
    ("label", "penalised"),
    [(label, bool(i % 2)) for i, label in enumerate(LAWS)],
)
def test_each_chain_is_its_run_alone(label, penalised, monkeypatch):
    """12 iterations, so that every law refreshes more than once."""
    law, risk = LAWS[label], shared_risk(penalised)
    start, lr = risk.params(), 0.05
    tape = Tape(monkeypatch)
    fix_signs(monkeypatch)
    run = simulate(
        risk, {label: law}, start, lr=lr, n_iter=12, n_chains=N_CHAINS, rng=tape.rng
    )[label]
    for chain in range(N_CHAINS):
        tape.play(chain)
        theta, rng, state = start, tape.rng, None
        for t in range(12):
            step = Step(t, lr / law.n_substeps)
            if t % law.refresh_every == 0:
                told = step_for(law.refresh, step)
                state = law.refresh(risk, theta, rng, state, **told)
            for _ in range(law.n_substeps):
                told = step_for(law.noisy_gradient, step)
                gradient = law.noisy_gradient(risk, theta, state, rng, **told)[1]
                theta = theta - step.lr * gradient
        torch.testing.assert_close(run.theta[chain], theta, rtol=1e-7, atol=1e-9)
        assert tape.position == len(tape.draws)
    assert run.theta.std(0).max() > 0 or label in SILENT
    paths = {name: path for name, path in risk.paths.items() if "of chains" in name}
    assert set(paths.values()) == {"vmap"}


def test_a_module_without_a_rule_goes_one_by_one():
    """Its chains are the loop's to the last bit."""

    class Branch(nn.Linear):
        def forward(self, X):
            outputs = super().forward(X)
            return outputs if self.weight.sum() > 0 else 2 * outputs

    risk = make_risk(Branch(3, 2).double())
    start = risk.params() + torch.arange(3.0)[:, None]
    options = {"lr": 0.01, "n_iter": 3, "n_chains": 3}
    run = simulate(risk, "gd", start, **options)["gd"]
    for theta, found in zip(start, run.theta, strict=True):
        for _ in range(3):
            theta = theta - 0.01 * risk.gradient(theta)
        assert torch.equal(theta, found)
    assert risk.paths["gradients of chains"].startswith("reference: one chain at a")


def test_what_many_chains_cannot_is_refused_before_the_first_method():
    risk = make_risk(network(250, 2))
    full = make_noise_law("gld_hessian", n_components="full")
    for law in (full, Projected(full)):
        laws = {"gd": make_noise_law("gd"), "full": law}
        with pytest.raises(ValueError, match=r"'full' of gld_hessian takes one θ"):
            simulate(risk, laws, risk.params(), lr=0.01, n_iter=1, n_chains=2)


def test_start_and_stability_of_a_network():
    risk = make_risk()
    with pytest.raises(ValueError, match=r"start must have shape \(26,\) or \(2, 26\)"):
        simulate(risk, "gd", torch.zeros(25), lr=0.01, n_iter=1, n_chains=2)
    broken = risk.params().clone()
    broken[3] = torch.nan
    for start in (broken, broken.tolist()):
        with pytest.raises(ValueError, match="start"):
            simulate(risk, "gd", start, lr=0.01, n_iter=1, n_chains=2)
    with pytest.raises(TypeError, match="or an EmpiricalRisk"):
        simulate(network(), "gd", risk.params(), lr=0.01, n_iter=1)
    hessian = torch.autograd.functional.hessian(_loss, risk.params())
    sharpest = float(torch.linalg.eigvalsh(hessian).max())
    with pytest.warns(UserWarning, match=f"stable one is below {2 / sharpest:.3g}"):
        simulate(risk, "gd", risk.params(), lr=100.0, n_iter=1, n_chains=2)


def _loss(theta):
    rng = torch.Generator().manual_seed(1)
    X = torch.randn(N, 3, generator=rng, dtype=torch.float64)
    W, b, V, c = theta.split([12, 4, 8, 2])
    outputs = (X @ W.view(4, 3).T + b).tanh() @ V.view(2, 4).T + c
    return nn.functional.cross_entropy(outputs, torch.arange(N) % 2)


def test_a_chain_that_is_lost_is_told():
    risk = make_risk()

    class Lost(METHODS["gld_ggn"]):
        name = "lost"

        def noisy_gradient(self, risk, theta, state, rng, *, step=None):
            loss, gradient = super().noisy_gradient(risk, theta, state, rng)
            gradient[1] = torch.inf
            return loss, gradient

    law = Lost(refresh_every=1)
    with pytest.raises(DivergenceError, match="1 chains of lost are not finite"):
        simulate(risk, {"lost": law}, risk.params(), lr=0.01, n_iter=3, n_chains=2)


@pytest.mark.parametrize("name", ["gld_fisher", "gld_ggn", "gld_dynamic"])
def test_a_sampled_match_is_of_each_chain(name, monkeypatch):
    """With more than 60 parameters Tr(HΣ) and Tr(HC) are means over draws."""
    risk = make_risk(network(20))
    law = make_noise_law(name, match="curvature", batch_size=2)
    thetas = risk.params() * torch.tensor([[1.0], [0.9], [1.1]])
    tape = Tape(monkeypatch)
    state = law.refresh(risk, thetas, tape.rng)
    assert state.factor.shape == state.stderr.shape == (N_CHAINS,)
    for chain, theta in enumerate(thetas):
        tape.play(chain)
        alone = law.refresh(risk, theta, tape.rng)
        torch.testing.assert_close(state.factor[chain], alone.factor)
        torch.testing.assert_close(state.stderr[chain], alone.stderr)
