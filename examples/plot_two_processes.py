"""
One problem, two processes
==========================

Several processes share the examples of one problem, each with its own part of them:
gradients, products with H and traces are sums over examples, so that a process works on
its part, and one all-reduce adds the parts. ``distributed=True`` is all it takes, in a
program that every process runs alike:

    torchrun --nproc-per-node=2 examples/plot_two_processes.py

On GPUs it is ``init_process_group("nccl")``, and ``device=f"cuda:{rank}"``. What is
asserted below: all processes end with the same θ bit for bit, and it is the θ of one
process to the rounding of sums.
"""

# %%
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits

from flatmin import CurvatureAnalyzer, EmpiricalRisk, NoisyDiffusionClassifier
from flatmin.noise import make_noise_law

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()


def show(*parts):
    """Print on the first process alone."""
    if rank == 0:
        print(*parts, flush=True)


# %%
# Every process is given the same X and y. Process r of p reads rows r, r + p, ...

X, y = load_digits(return_X_y=True)
X = X / 16
settings = {"method": "gld_full", "lr": 0.1, "max_iter": 40, "dtype": "float64"}
clf = NoisyDiffusionClassifier(**settings, random_state=0, distributed=True).fit(X, y)
show(f"{size} processes: accuracy {clf.score(X, y):.3f} after 40 iterations")

theta = torch.tensor(clf.params_)
others = [torch.empty_like(theta) for _ in range(size)]
dist.all_gather(others, theta)
assert all(torch.equal(theta, other) for other in others)

alone = NoisyDiffusionClassifier(**settings, random_state=0).fit(X, y)
off = (theta - torch.tensor(alone.params_)).norm() / theta.norm()
show(f"from θ of one process it differs by {off:.0e}")
assert off < 1e-10

# %%
# The analyzers have the same flag. All processes ask, and all get the answer.

analyzer = CurvatureAnalyzer(clf, n_components=3, random_state=0, distributed=True)
eigenvalues = analyzer.eigen().eigenvalues
show("leading eigenvalues of H:", eigenvalues.round(3))
right = CurvatureAnalyzer(alone, n_components=3, random_state=0).eigen().eigenvalues
assert abs(eigenvalues - right).max() < 1e-6 * right[0]

# %%
# The same parts in a loop of one's own. One seed for all: each process draws the noise
# of all N examples, and takes its part.

risk = EmpiricalRisk(clf.module_, "cross_entropy", X, y, distributed=True)
law, rng = (
    make_noise_law("gld_diagonal", batch_size=20),
    torch.Generator().manual_seed(0),
)
theta = risk.params()
for _ in range(3):
    state = law.refresh(risk, theta, rng)
    loss, noisy_gradient = law.noisy_gradient(risk, theta, state, rng)
    theta = theta - 0.1 * noisy_gradient
trace = risk.gradient_variances(theta).sum()
show(f"L = {loss:.4f}, Tr(Σ) = {trace:.3f}, of all {risk.n_examples} examples")

# %%
# What one process raises, all raise, with its message; none is left waiting.

try:
    risk.gradient(theta if rank == 0 else theta[:-1])
except ValueError as error:
    show("another process has a θ that does not fit:", error)
else:
    raise AssertionError("it must be refused" if size > 1 else "θ fits")

dist.destroy_process_group()
