"""What a caller has switched on does not change a number, and comes back as it was."""

import contextlib
import threading
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin.risk import EmpiricalRisk
from flatmin.risk.autodiff import surroundings
from flatmin.risk.autodiff.isolation import isolated

from ._cases import CASES, SINGLE, mlp, problem

QUANTITIES = {
    "value": lambda r, t: r.value(t),
    "outputs": lambda r, t: r.outputs(t),
    "gradient": lambda r, t: r.gradient(t),
    "rows": lambda r, t: torch.cat(list(r.per_example_gradients(t))),
    "norms": lambda r, t: r.squared_norms(t),
    "variances": lambda r, t: r.gradient_variances(t),
    "hvp": lambda r, t: r.linearize(t).hvp(t),
    "ggn": lambda r, t: r.linearize(t).ggn(t),
    "jvp": lambda r, t: r.linearize(t).jvp(t),
    "directional": lambda r, t: r.linearize(t).directional_derivatives(t),
    "Tr G": lambda r, t: r.gauss_newton_traces(t),
    "weighted": lambda r, t: r.weighted_gradient(
        t, torch.ones_like(r.squared_norms(t))
    ),
    "batches": lambda r, t: r.batch_gradients(t, torch.tensor([[0, 2], [1, 3]])),
    "squared Hessians": lambda r, t: r.squared_hessian_product(t, t),
}


@contextlib.contextmanager
def frozen_flags():
    """As ``torch.backends.disable_global_flags()``, which cannot be taken back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends, "__allow_nonbracketed_mutation_flag", False)
        yield


SWITCHES = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "frozen flags": frozen_flags,
    "anomaly detection": torch.autograd.set_detect_anomaly,
}


def switched(name):
    return SWITCHES[name](True) if name.startswith("anomaly") else SWITCHES[name]()


@cache
def undisturbed(case):
    p = problem(case)
    return {name: ask(p.risk(), p.theta) for name, ask in QUANTITIES.items()}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("case", ["mlp", "LSTM", "transformer", "weight norm"])
def test_switches(switch, case):
    assert case in CASES
    p = problem(case)
    before = undisturbed(case)
    with switched(switch):
        risk = p.risk()
        theta = p.theta + 0  # an inference tensor, in inference mode
        after = {name: ask(risk, theta) for name, ask in QUANTITIES.items()}
    for name in QUANTITIES:
        torch.testing.assert_close(after[name], before[name], msg=name)
    assert torch.is_grad_enabled()


def test_arrays_from_inference_mode_are_taken():
    p = problem("mlp")
    with torch.inference_mode():
        X, theta = p.X + 0, p.theta + 0
    risk = EmpiricalRisk(p.module, "cross_entropy", X, p.y)
    torch.testing.assert_close(
        risk.linearize(theta).hvp(theta), p.risk().linearize(p.theta).hvp(p.theta)
    )


class Encoder(nn.Module):
    """Padded sequences through PyTorch's own transformer."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.words, self.last = nn.Embedding(9, 8), nn.Linear(8, 3)
        self.encoder = nn.TransformerEncoder(layer, 2) if kind == "encoder" else layer
        if kind == "attention":
            self.encoder = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        h, padded = self.words(x), x == 0
        if self.kind == "attention":
            h = self.encoder(h, h, h, key_padding_mask=padded, need_weights=False)[0]
        else:
            h = self.encoder(h, src_key_padding_mask=padded)
        return self.last(h.mean(1))


@pytest.mark.parametrize("kind", ["encoder", "layer", "attention"])
@pytest.mark.parametrize("seen", [True, False], ids=["seen", "not seen"])
def test_a_padded_transformer_has_one_value(kind, seen):
    """Its fused path fills padded positions with zeros; no trial may see padding."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Encoder(kind).double().eval()
        X, y = torch.randint(1, 9, (40, 6)), torch.arange(40) % 3
    X[slice(0, 20) if seen else slice(4, 5), 3:] = 0
    with torch.enable_grad():
        right = F.cross_entropy(module(X), y).detach()
        outputs = module(X).detach()
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    theta = risk.params()
    torch.testing.assert_close(risk.value(theta), right)
    torch.testing.assert_close(risk.outputs(theta), outputs)
    torch.testing.assert_close(risk.value_and_gradient(theta)[0], right)
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_switch_of_attention_is_shared_by_threads():
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with surroundings.one_attention():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    with surroundings.one_attention():
        pass
    still = torch.backends.mha.get_fastpath_enabled()
    leave.set()
    thread.join()
    assert not still
    assert torch.backends.mha.get_fastpath_enabled()


class Two(nn.Module):
    """Another function where gradients are off, as some libraries' fused layers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        h = self.linear(x)
        return h if torch.is_grad_enabled() else h.relu()


def test_the_value_is_of_the_function_that_is_differentiated():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, X, y = Two(), torch.randn(9, 4), torch.arange(9) % 3
    right = F.cross_entropy(module(X), y).detach()
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    torch.testing.assert_close(risk.value(risk.params()), right)
    torch.testing.assert_close(risk.outputs(risk.params()), module(X).detach())


def quantile(h):
    return h * h.quantile(0.3, dim=1, keepdim=True)


def test_a_trace_that_fails_leaves_autograd_alive(monkeypatch):
    from flatmin.risk.products import graphs

    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.last(quantile(self.first(x)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Net().double()
        X, y = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    theta = risk.params()
    keys = str(torch._C._dispatch_tls_local_exclude_set())
    norms = risk.squared_norms(theta)
    for quantity in ("ggn", "hvp"):
        getattr(risk.linearize(theta), quantity)(theta)
        assert str(torch._C._dispatch_tls_local_exclude_set()) == keys
    assert torch.ones(1, requires_grad=True).exp().requires_grad
    assert torch.equal(risk.squared_norms(theta), norms)
    assert norms.all()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_whatever_fails_is_put_back(error):
    keys = torch._C.DispatchKey.AutogradCPU
    function = torch.nn.Module.__call__

    def fail():
        torch._C._dispatch_tls_set_dispatch_key_excluded(keys, True)
        torch.func.vmap(lambda x: raise_(error("inside")))(torch.ones(3))

    def raise_(error):
        raise error

    with pytest.raises(error, match="inside") as raised:
        isolated(fail)
    assert "in raise_" in raised.value.__notes__[0]
    assert not torch._C._dispatch_tls_is_dispatch_key_excluded(keys)
    assert torch._C._functorch.get_dynamic_layer_stack_depth() == 0
    assert torch.nn.Module.__call__ is function


def test_without_autograd_nothing_is_answered():
    p = problem("mlp")
    risk = p.risk()
    messages = []

    def work():
        for key in ("AutogradCPU",):
            torch._C._dispatch_tls_set_dispatch_key_excluded(
                getattr(torch._C.DispatchKey, key), True
            )
        try:
            risk.squared_norms(p.theta)
        except RuntimeError as error:
            messages.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "autograd, which is switched off in this thread" in messages[0]


@pytest.mark.parametrize("name", SINGLE[:2])
def test_a_default_dtype_of_the_caller_changes_nothing(name):
    theta = problem(name).theta
    right = problem(name).risk().linearize(theta).hvp(theta)
    torch.set_default_dtype(torch.float64)
    try:
        found = problem(name).risk().linearize(theta).hvp(theta)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, right)


def test_the_global_device_of_the_caller_is_not_taken():
    p = problem("mlp")
    right = {name: ask(p.risk(), p.theta) for name, ask in QUANTITIES.items()}
    module = mlp().double()
    module.load_state_dict(p.module.state_dict())
    with torch.device("meta"):
        risk = EmpiricalRisk(module, "cross_entropy", p.X, p.y)
        for name in ("value", "gradient", "rows", "variances", "hvp", "ggn"):
            found = QUANTITIES[name](risk, p.theta)
            torch.testing.assert_close(found, right[name], msg=name)


class Watch(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        raise AssertionError("this watch is over")


class Spy(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError("this watch is over")


@pytest.mark.parametrize("mode", [torch.no_grad, Watch, Spy])
def test_a_mode_whose_exit_is_interrupted_is_off(mode):
    @surroundings.modes_put_back
    def interrupted():
        mode().__enter__()
        raise KeyboardInterrupt

    p = problem("mlp")
    right = p.risk().gradient(p.theta)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.is_grad_enabled()
    assert torch.equal(p.risk().gradient(p.theta), right)


def test_a_warning_is_of_the_line_that_makes_the_risk():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x):
            return self.used(x)

    X = torch.ones(3, 2)
    dropout = nn.Sequential(nn.Linear(2, 1), nn.Dropout())
    for module, match in ((Net(), "depend"), (dropout, "dropout")):
        with pytest.warns(UserWarning, match=match) as caught:
            EmpiricalRisk(module, "squared_error", X, X[:, :1])
        assert caught[0].filename == __file__
