"""One risk in two threads: every public method, at a θ of its own in each."""

import copy
import os
import pickle
import threading
import time
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import Dataset, Subset

from flatmin._utils.locks import Lock
from flatmin._utils.quiet import ignored
from flatmin.risk import EmpiricalRisk
from flatmin.risk.autodiff.surroundings import SharedSwitch
from flatmin.risk.label_noise import LabelDraw
from flatmin.risk.products import graphs
from flatmin.risk.products.linearize import Linearization

from ..threads import against, plain, public, race

N = 12


def network(wrap=lambda layer: layer):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(wrap(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 3))


def data():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(N, 3, generator=rng), torch.arange(N) % 3


class FromOnePlace(Dataset):
    """Reads as an open file does: where it was last told to."""

    def __init__(self):
        self.X, self.y = data()
        self.place = 0

    def __len__(self):
        return N

    def __getitem__(self, i):
        self.place = i
        time.sleep(0)
        return self.X[self.place], self.y[self.place]


def lstm():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LastState()


class LastState(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(1, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, X):
        return self.head(self.rnn(X.unsqueeze(-1))[0][:, -1])


KINDS = {
    "default": lambda: EmpiricalRisk(network(), "cross_entropy", *data()),
    "chunks": lambda: EmpiricalRisk(network(), "cross_entropy", *data(), chunk_size=5),
    "finite differences": lambda: EmpiricalRisk(
        network(), "cross_entropy", *data(), hvp="finite_difference"
    ),
    "streamed": lambda: EmpiricalRisk(
        network(), "cross_entropy", FromOnePlace(), chunk_size=5
    ),
    "parametrised": lambda: EmpiricalRisk(
        network(parametrizations.weight_norm), "cross_entropy", *data()
    ),
    "recurrent": lambda: EmpiricalRisk(lstm(), "cross_entropy", *data()),
}


def calls(risk, theta, seed=0):
    """Return a call of every public method and property at θ."""

    def rng():
        return torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=rng())

    v, rows = normal(risk.n_params), normal(N)
    u, scale = normal(N, 3), torch.tensor(0.5)
    few, batches = torch.arange(seed, seed + 4), torch.arange(N).view(-1, 3)
    point, draw = risk.linearize(theta), LabelDraw(0.1, 0.1, "centered")
    module = copy.deepcopy(risk._model.module)
    nn.utils.vector_to_parameters(theta, module.parameters())
    of = {
        "accuracy": lambda: risk.accuracy(theta),
        "audit": lambda: [c.verdict for c in risk.audit(theta).checks],
        "batch_norm": lambda: risk.batch_norm,
        "check_examples": lambda: risk.check_examples("A test"),
        "check_running_statistics": risk.check_running_statistics,
        "batch_gradient": lambda: risk.batch_gradient(theta, few),
        "batch_gradients": lambda: risk.batch_gradients(theta, batches),
        "check_label_noise": risk.check_label_noise,
        "check_gauss_newton": risk.check_gauss_newton,
        "check_likelihood": risk.check_likelihood,
        "frozen_module": lambda: list(risk.frozen_module().parameters()),
        "gauss_newton_traces": lambda: [
            risk.gauss_newton_traces(theta),
            risk.gauss_newton_traces(theta, rng()),
        ],
        "gradient": lambda: risk.gradient(theta),
        "gradient_variances": lambda: risk.gradient_variances(theta),
        "keeps_graph": lambda: risk.keeps_graph,
        "label_covariance_product": lambda: risk.label_covariance_product(
            point, v, draw
        ),
        "label_traces": lambda: risk.label_traces(theta, draw),
        "layout": lambda: risk.layout.names,
        "linearize": lambda: risk.linearize(theta).hvp(v),
        "model_slopes": lambda: risk.model_slopes(theta, rng()),
        "n_examples": lambda: risk.n_examples,
        "distributed": lambda: risk.distributed,
        "n_outputs": lambda: risk.n_outputs,
        "n_params": lambda: risk.n_params,
        "outputs": lambda: risk.outputs(theta),
        "params": risk.params,
        "paths": lambda: type(risk.paths),
        "per_example_gradients": lambda: risk.per_example_gradients(theta),
        "set_params": lambda: risk.set_params(risk.params()),
        "squared_gradient_sum": lambda: risk.squared_gradient_sum(theta),
        "squared_hessian_product": lambda: risk.squared_hessian_product(theta, v),
        "covariance_trace_gradient": lambda: risk.covariance_trace_gradient(theta),
        "squared_norms": lambda: risk.squared_norms(theta),
        "subset": lambda: risk.subset(few).gradient(theta),
        "to": lambda: risk.to(dtype=torch.float64).value(theta.double()),
        "value": lambda: risk.value(theta),
        "value_and_batch_gradient": lambda: risk.value_and_batch_gradient(theta, few),
        "value_and_gauss_newton_draw": lambda: risk.value_and_gauss_newton_draw(
            theta, scale, rng()
        ),
        "value_and_gradient": lambda: risk.value_and_gradient(theta),
        "value_and_label_draw": lambda: risk.value_and_label_draw(
            theta, draw, scale, rng()
        ),
        "value_and_noisy_gradient": lambda: risk.value_and_noisy_gradient(theta, rows),
        "value_gradient_and_product": lambda: risk.value_gradient_and_product(theta),
        "value_gradient_and_variances": lambda: risk.value_gradient_and_variances(
            theta
        ),
        "losses_at": lambda: risk.losses_at(torch.stack([theta, 2 * theta])),
        "vjp": lambda: risk.vjp(theta, u),
        "weighted_gradient": lambda: risk.weighted_gradient(theta, rows),
        "with_module": lambda: risk.with_module(module).params(),
    }
    products = {
        "directional_derivatives": lambda: point.directional_derivatives(v),
        "fisher": lambda: point.fisher(v),
        "ggn": lambda: point.ggn(v),
        "hvp": lambda: point.hvp(v),
        "jvp": lambda: point.jvp(v),
        "paths": lambda: type(point.paths),
        "vjp": lambda: point.vjp(u),
    }
    return of, products


def both(risk, seed):
    """Return the calls at another θ for another seed."""
    rng = torch.Generator().manual_seed(seed)
    theta = risk.params() + torch.randn(risk.n_params, generator=rng)
    of, products = calls(risk, theta, seed)
    return of | {f"prepared {name}": call for name, call in products.items()}


def test_the_list_has_every_method():
    risk = KINDS["default"]()
    of, products = calls(risk, risk.params())
    # These change what all calls are of; points from before it refuse.
    changes = {"update_from", "set_batch_statistics"}
    # Of a risk without gᵢ, below.
    assert set(of) == public(EmpiricalRisk) - changes - {"batch_statistics"}
    assert set(products) == public(Linearization)


@pytest.mark.parametrize("kind", [*KINDS, "graph"])
def test_every_method_in_two_threads(kind, monkeypatch):
    if kind == "graph":
        monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)
    make = KINDS.get(kind, KINDS["default"])
    risk = make()
    work = [both(risk, seed) for seed in (0, 1)]
    audits = [each.pop("audit") for each in work]
    right, faults = race(work)
    assert not faults
    assert right == sum(map(len, work))
    if kind == "default":  # some seconds
        right, faults = race([{"audit": audits[0]}, work[1]])
        assert not faults
    # And the risk is whole: its numbers are those of one that no thread has seen.
    fresh = both(make(), 0)
    for name in ("value", "gradient", "prepared hvp", "squared_norms"):
        torch.testing.assert_close(work[0][name](), fresh[name]())


def test_the_statistics_of_a_batch_in_two_threads():
    layers = nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)
    net = nn.Sequential(network()[0], *layers)
    risk = EmpiricalRisk(net, "cross_entropy", *data(), batch_norm="batch")

    def calls(seed):
        theta = risk.params() + seed
        point, v = risk.linearize(theta), torch.ones(risk.n_params)
        return {
            "batch_statistics": lambda: risk.batch_statistics(theta)["1"],
            "gradient": lambda: risk.gradient(theta),
            "hvp": lambda: point.hvp(v),
        }

    right, faults = race([calls(0), calls(1)])
    assert not faults
    assert right == 6


def test_a_new_risk_in_two_threads(monkeypatch):
    """What is tried, and traced, at the first call."""
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)
    names = ("prepared hvp", "prepared jvp", "squared_norms", "squared_hessian_product")
    before = KINDS["default"]()
    expected = []
    for seed in (0, 1):
        work = both(before, seed)
        expected.append({name: plain(work[name]()) for name in names})
    risk = KINDS["default"]()
    work = [both(risk, seed) for seed in (0, 1)]
    work = [{name: each[name] for name in names} for each in work]
    right, faults = against(expected, work)
    assert not faults
    assert right == 2 * len(names)


def test_a_risk_and_others_of_its_module_and_data():
    module, stream = network(), FromOnePlace()
    one = EmpiricalRisk(module, "cross_entropy", stream, chunk_size=5)
    part = Subset(Subset(stream, range(1, N)), range(N - 2))
    two = EmpiricalRisk(module, "cross_entropy", part, chunk_size=4)
    three = one.to(dtype=torch.float64)
    one, two, three = (both(risk, i) for i, risk in enumerate((one, two, three)))
    names = ("value", "gradient", "per_example_gradients", "gradient_variances")
    work = [{name: each[name] for name in names} for each in (one, two)]
    work.append({name: three[name] for name in names})
    _, faults = race(work, rounds=5)
    assert not faults
    right = nn.functional.cross_entropy(module(stream.X), stream.y)
    risk = EmpiricalRisk(module, "cross_entropy", stream)
    torch.testing.assert_close(risk.value(risk.params()), right.detach())


def test_rows_that_nobody_takes_hold_no_lock():
    risk = KINDS["chunks"]()
    rows = risk.per_example_gradients(risk.params())
    next(rows)
    found = []
    thread = threading.Thread(target=lambda: found.append(risk.value(risk.params())))
    thread.start()
    thread.join(30)
    assert len(found) == 1


def test_a_loss_that_asks_the_risk_does_not_wait_for_itself():
    seen = []

    def loss(outputs, y):
        if len(risks) == 1 and not seen:
            seen.append(True)
            seen.append(float(risks[0].value(risks[0].params())))
        return (outputs - y).square().sum(1)

    risks = []
    X, _ = data()
    risks.append(EmpiricalRisk(network(), loss, X, X))
    risks[0].value(risks[0].params())
    assert len(seen) == 2


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda risk: pickle.loads(pickle.dumps(risk))]
)
def test_a_copy_is_free_while_the_risk_is_in_use(copied):
    risk = KINDS["default"]()
    theta = risk.params()
    right = risk.gradient(theta)
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with risk._model.lock:
            inside.set()
            leave.wait(30)

    other = copied(risk)
    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(30)
    if copied is copy.copy:  # of one network, as a subset is
        assert other._lock is risk._lock
    else:
        torch.testing.assert_close(other.gradient(theta), right, rtol=0, atol=0)
    leave.set()
    thread.join()


def test_copies_made_in_the_middle_are_whole():
    risk = KINDS["parametrised"]()
    work = [both(risk, 0)["prepared hvp"], lambda: copy.deepcopy(risk).params()]
    work[0]()
    theta = risk.params()
    _, faults = race(
        [
            {"hvp": work[0]},
            {"copy": lambda: copy.deepcopy(risk).gradient(theta)},
        ],
        rounds=20,
    )
    assert not faults


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("busy", [False, True])
def test_a_fork_waits_for_no_thread_that_it_lacks(busy):
    locks = Lock("A risk"), Lock()
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with locks[0], locks[1]:
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    if busy:
        thread.start()
        inside.wait(30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads and fork
        child = os.fork()
    if child == 0:
        status = 1
        try:
            with locks[1]:
                status = 2
            with locks[0]:
                status = 3
        except RuntimeError as error:
            status = 4 if "Make it anew in this process" in str(error) else 5
        finally:
            os._exit(status)
    leave.set()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (4 if busy else 3)
    if busy:
        thread.join()
    with locks[0], locks[1]:  # of the parent
        pass


def test_a_lock_copies_as_a_free_one():
    lock = Lock("A risk")
    with lock:
        for other in (copy.copy(lock), copy.deepcopy(lock)):
            assert other is not lock
            assert other._guarded == "A risk"
            thread = threading.Thread(target=other.__enter__)
            thread.start()
            thread.join(30)
            assert not thread.is_alive()


def test_ignored_warnings_leave_the_filters_as_they_were():
    """Overlapping catch_warnings would leave the "ignore" of the last behind."""
    before = list(warnings.filters)
    first, second = ignored(), ignored(UserWarning, "of no")
    first.__enter__()
    second.__enter__()
    warnings.warn("anything", stacklevel=1)
    first.__exit__(None, None, None)
    warnings.warn("of no interest", stacklevel=1)
    with pytest.raises(UserWarning, match="of some"):
        warnings.warn("of some interest", stacklevel=1)
    second.__exit__(None, None, None)
    assert list(warnings.filters) == before
    seen = []

    def other():
        try:
            warnings.warn("of another thread", stacklevel=1)
        except UserWarning as warning:
            seen.append(str(warning))

    with ignored():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == ["of another thread"]


def test_a_switch_stays_off_until_the_last_has_left():
    state = [True]
    switch = SharedSwitch(lambda: state[0], lambda on: state.__setitem__(0, on))
    first, second = switch.off(), switch.off()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert state == [False]
    second.__exit__(None, None, None)
    assert state == [True]
