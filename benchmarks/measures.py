"""What each measure gives and costs at the reference θ: the table of docs/measures.md.

    python benchmarks/measures.py [--theta FILE] [--repeats 3]

The problem is "reference" of ``report.py``. Times are medians in units b of a
full-batch gradient, which is timed before and after each call. Graphs are traced
before; what takes longer than ``PATIENCE`` seconds is called once.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from _problems import make_problem
from _timing import seconds

from flatmin import EmpiricalRisk, measures

M = 20
PATIENCE = 12.0


def calls(risk, few, theta):
    """Return what is called, by the name it has in the table."""
    product = measures.trace_hessian_covariance
    routes = ("sampled", "low_rank")
    names = [
        *measures.SHARPNESS_MEASURES.values(),
        measures.noise_spectrum,
        measures.gradient_noise,
        measures.gradient_signal_to_noise,
        measures.curvature_noise_scale,
        measures.covariance_exponents,
        measures.loss_scaled_alignment,
        measures.non_uniformity,
        measures.negative_mass,
        measures.alignment,
    ]
    table = {f.__name__: lambda f=f: f(risk, theta) for f in names}
    table |= {
        f"Tr(HΣ), {route}": lambda route=route: product(risk, theta, method=route)
        for route in routes
    }
    table |= {
        f"Tr(HΣ), 300 images, {route}": lambda route=route: product(
            few, theta, method=route
        )
        for route in ("exact", *routes)
    }
    table["minibatch_gaussianity"] = lambda: measures.minibatch_gaussianity(
        risk, theta, batch_size=M
    )
    table["tic, the last layer"] = lambda: measures.tic(
        risk, theta, damping=1.0, select=risk.layout.names[-2]
    )
    return table


def describe(result):
    """Return a result in a line or a few."""
    if isinstance(result, measures.Alignment):
        return f"{result.to_frame()} n_matvecs {result.n_matvecs}"
    if isinstance(result, dict):
        return {name: (float(fit), fit.stderr) for name, fit in result.items()}
    if isinstance(result, measures.Gaussianity):
        return result.to_frame()
    if isinstance(result, torch.Tensor):
        return f"{float(result):.5g}"
    parts = {"value": float(result)}
    for name in ("stderr", "bound", "n_matvecs"):
        if hasattr(result, name):
            parts[name] = float(getattr(result, name))
    return {name: f"{value:.5g}" for name, value in parts.items()} | (
        {"norm": float(result.norm.value), "stderr": float(result.norm.stderr)}
        if hasattr(result, "norm")
        else {}
    )


def time_one(call, risk, theta):
    """Return the seconds of a call, those of a gradient, and what came out."""
    before = seconds(lambda: risk.value_and_gradient(theta), 5)
    start = time.perf_counter()
    result = call()
    took = time.perf_counter() - start
    after = seconds(lambda: risk.value_and_gradient(theta), 5)
    return took, (before + after) / 2, result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--theta", type=Path, help="read θ from here, or write it to")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    problem = make_problem("lenet", False)
    if arguments.theta is None or not arguments.theta.exists():
        theta = problem.descend()
        if arguments.theta is not None:
            torch.save(theta, arguments.theta)
    else:
        theta = torch.load(arguments.theta)
    whole, few = (
        EmpiricalRisk(problem.module, "cross_entropy", problem.X[:n], problem.y[:n])
        for n in (None, 300)
    )
    print(f"{problem.source}; D = {whole.n_params}, N = {whole.n_examples}")
    print(f"L = {float(whole.value(theta)):.6f}")
    for risk in (whole, few):
        for _ in range(2):
            risk.linearize(theta).hvp(theta)
    for name, call in calls(whole, few, theta).items():
        unit = few if "300" in name else whole
        timed = [time_one(call, unit, theta)]
        if timed[0][0] < PATIENCE:  # the first may have traced
            timed = [time_one(call, unit, theta) for _ in range(arguments.repeats)]
        ratios = [took / b for took, b, _ in timed]
        units = [1e3 * b for _, b, _ in timed]
        result = timed[-1][-1]
        times = ", ".join(f"{ratio:.1f}" for ratio in sorted(ratios))
        print(f"{name}: {statistics.median(ratios):.1f} b ({times}; b = ", end="")
        print(f"{statistics.median(units):.1f} ms)\n  {describe(result)}", flush=True)


if __name__ == "__main__":
    main()
