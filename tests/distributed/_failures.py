"""What one rank does that another does not: each rank says what it gets from it."""

import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from flatmin.risk import EmpiricalRisk

from ._join import join, say
from ._quantities import data, generator, net


class Breaks(Dataset):
    """Its example 5 cannot be read any more, from some time on."""

    def __init__(self, n):
        self.X, self.y = data(n)
        self.broken = False

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        if self.broken and i == 5:
            raise OSError("the disk of example 5 is gone")
        return self.X[i], self.y[i]


def tell(call):
    """Return the error of a call, and the seconds until it came."""
    start = time.perf_counter()
    try:
        call()
    except Exception as error:
        seconds = time.perf_counter() - start
        return [type(error).__name__, str(error), seconds]
    return ["nothing", "", time.perf_counter() - start]


def make(module=None, loss="cross_entropy", X=None, y=None, **options):
    if X is None:
        X, y = data(11)
    module = net() if module is None else module
    return EmpiricalRisk(module, loss, X, y, distributed=True, **options)


def moved(by):
    module = net()
    with torch.no_grad():
        module[0].bias += by
    return module


def of_risks(rank):
    risk, found = make(), {}
    theta = risk.params()
    examples = Breaks(11)
    streamed = make(X=examples, y=None)
    examples.broken = True  # rank 1 has example 5
    found["a rank raises"] = tell(lambda: streamed.gradient(theta))
    found["and again"] = tell(lambda: streamed.linearize(theta).hvp(theta))
    examples.broken = False
    found["it goes on"] = tell(lambda: streamed.gradient(theta))
    bad = theta[:3] if rank == 1 else theta
    found["a wrong θ on one rank"] = tell(lambda: risk.value(bad))
    other = theta + 1e-12 * rank
    found["another θ"] = tell(lambda: risk.gradient(other))
    found["another v"] = tell(lambda: risk.linearize(theta).hvp(other))
    some = torch.tensor([0, 1 + rank])
    found["another subset"] = tell(lambda: risk.subset(some))
    shape = theta[:3] if rank == 0 else theta
    found["a θ that does not fit"] = tell(lambda: risk.linearize(shape).hvp(theta))
    seed = generator(rank)
    found["another seed"] = tell(
        lambda: risk.value_and_gauss_newton_draw(theta, theta.new_ones(()), seed)
    )
    word = risk.gradient if rank else risk.value
    found["another word"] = tell(lambda: word(theta))
    infinite = theta.clone()
    infinite[0] = torch.nan
    found["not finite"] = tell(lambda: risk.linearize(infinite).hvp(theta))
    found["all is well"] = tell(lambda: risk.gradient(theta))
    return found


def of_constructors(rank):
    X, y = data(11)
    found = {"another module": tell(lambda: make(moved(0.1 * rank)))}
    found["other data"] = tell(lambda: make(X=X + rank, y=y))
    few = X[: 11 - rank], y[: 11 - rank]
    found["another N"] = tell(lambda: make(X=few[0], y=few[1]))
    bad = y.double() - 5 if rank else y
    found["bad targets on one rank"] = tell(lambda: make(X=X, y=bad))
    same = Subset(TensorDataset(X, y), range(6))
    found["the same Subset"] = tell(lambda: make(X=same, y=None))
    none = Subset(TensorDataset(X, y), range(6) if rank else [])
    found["an empty Subset"] = tell(lambda: make(X=none, y=None))
    norm = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    for part in (norm[0], norm[2]):
        nn.init.ones_(part.weight)
        nn.init.zeros_(part.bias)
    found["batch_norm"] = tell(lambda: make(norm, batch_norm="batch"))
    found["no flag"] = tell(lambda: EmpiricalRisk(net(), "cross_entropy", X, y))
    wrong = {"distributed": "yes"}
    found["no bool"] = tell(
        lambda: EmpiricalRisk(net(), "cross_entropy", X, y, **wrong)
    )
    return found


def of_the_end(rank, risk):
    """Return what a rank gets when another has ended; to be called last."""
    theta = risk.params()
    if rank == 1:
        os._exit(3)
    return {"a rank dies": tell(lambda: risk.gradient(theta))}


if __name__ == "__main__":
    without = tell(make)
    rank = join(seconds=100)
    found = {"no process group": without} | of_risks(rank) | of_constructors(rank)
    last = make()
    say(found)
    dist.barrier()
    say(found | of_the_end(rank, last))
    os._exit(0)  # a group that a rank has left can abort Python as it ends
