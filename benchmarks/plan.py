"""What a large problem will cost, from what small ones were measured to cost.

    python benchmarks/plan.py [--measure [--quick]] [--json OUT]

The unit is one gradient of all N examples, b = 6 F N / (operations a second): two for
each of the F multiply-adds of an example, three times, once forward and twice backward.
What λ₁, Tr(Σ), Tr(HΣ) and a step of ``gld_full`` take is a number of gradients, and of
vectors of D numbers that are summed over the processes and orthogonalised. A machine's
constants come from the results that are stored beside this file: those of a GPU from
``vgg11_gpu.json`` and ``scaling_gpu.json`` alone. ``--measure`` fits the same constants
to one small network on one thread, by CPU time, and holds the predictions against two
other networks: ``checks``. Nothing here has run on 64 processes.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed
from torch import nn

from flatmin.comparison._revision import find_revision
from flatmin.curvature import hessian_eigenpairs
from flatmin.measures import trace_hessian_covariance
from flatmin.modules import MLP, VGG11
from flatmin.noise import make_noise_law
from flatmin.risk import EmpiricalRisk

RESULTS = Path(__file__).parent / "results"
STORED = RESULTS / "plan.json"
VGG11_OPERATIONS = 153_293_824  # multiply-adds of an image of 32 x 32 pixels
VGG11_ROWS = 9_220_480  # parameters of its convolutions
VGG11_IMAGES = 500  # of vgg11.py
N_PRODUCTS = 19  # for λ₁ to 1e-4: scaling.json, k = 1
N_SAMPLES = 50  # for Tr(HΣ), of 200 at most
ALONG = 1.0  # a sweep of directional derivatives, in gradients
N_VECTORS = 25  # 20 of a basis, and 5 that are worked on
N_PROCESSES = 64
QUANTITIES = ("gradient", "λ₁", "Tr(Σ)", "Tr(HΣ)", "gld_full")

ASSUMPTIONS = (
    "An example takes 6 operations for each multiply-add of its forward pass, at the "
    "rate that VGG11 had in float32: 500 images on two cores, or on one H100 without "
    "TF32. Other kinds of layers have other rates.",
    "Ratios to a gradient are those of VGG11, also for a transformer. Tr(Σ) is a "
    "gradient and the rows of the convolutions, at VGG11's time for each of their "
    "numbers. No per-example sums of a large transformer are stored, so that its Tr(Σ) "
    "is left out.",
    f"λ₁ to a residual of 1e-4 takes {N_PRODUCTS} products, as LeNet on Fashion-MNIST, "
    f"and Tr(HΣ) {N_SAMPLES} samples, a quarter of the default limit. Another spectrum "
    "takes more or fewer.",
    f"The Lanczos basis is {N_VECTORS} vectors with what is worked on, whole on every "
    "process. A chunk of any network holds what one of VGG11 held.",
    "64 processes share the examples evenly. A sum over them goes round a ring, at the "
    "rate of gloo between two processes on one machine, which was busy. NCCL between "
    "GPUs is not in it, nor is reading the data.",
)


class Job(NamedTuple):
    """A network and its data."""

    name: str
    n_examples: int
    n_params: int
    operations: float  # multiply-adds of one example's forward pass
    # Parameters of the convolutions, of which each example has a row; None is unknown.
    n_rows: int | None


JOBS = (
    Job("VGG11, CIFAR-10", 50_000, 9_750_922, VGG11_OPERATIONS, VGG11_ROWS),
    # Of the network's paper and of torchvision.
    Job("ResNet-50, ImageNet", 1_281_167, 25_557_032, 4.09e9, 23_508_032),
    # One multiply-add for each parameter and token; sequences of 1024.
    Job("language model, 1e6 sequences", 1_000_000, 10**9, 1e9 * 1024, None),
    Job("the same, 1e4 sequences", 10_000, 10**9, 1e9 * 1024, None),
)


def read(name):
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def stored_machine(vgg11, scaling):
    """Return the constants of a machine from two stored results."""
    rows, b = vgg11["rows"], statistics.median(vgg11["b_seconds"])
    largest = max(scaling["parameters"], key=lambda row: row["D"])
    found, seconds = largest["eigenpairs"], largest["seconds"]
    beside = found["seconds"] - found["products"] * seconds["H v"]
    return {
        "operations_per_second": 6 * VGG11_OPERATIONS * VGG11_IMAGES / b,
        "prepare": rows["prepare"]["b"],
        "product": rows["hvp"]["b"],
        # Per-example gradients, in seconds for each of their numbers.
        "row": (rows["the same again"]["seconds"] - b) / VGG11_ROWS / VGG11_IMAGES,
        "gld_full": rows["gld_full, iteration"]["b"],
        # What Lanczos does beside a product, in seconds for each of its D numbers.
        "beside_a_product": beside / found["products"] / largest["D"],
        "held_gib": rows["gld_full, iteration"]["peak_gib"],
    }


def machines():
    return {
        "two cores": stored_machine(read("vgg11.json"), read("scaling.json")),
        "one H100": stored_machine(read("vgg11_gpu.json"), read("scaling_gpu.json")),
    }


def seconds_of_a_sum(n_bytes, all_reduce, n_processes):
    """Return the time of a sum over processes, round a ring."""
    if n_processes == 1:
        return 0.0
    rounds = 2 * (n_processes - 1)
    moved = rounds / n_processes * n_bytes
    return rounds * all_reduce["seconds_a_round"] + moved * all_reduce["seconds_a_byte"]


def predict(
    job, machine, all_reduce, n_processes=1, n_products=N_PRODUCTS, n_samples=N_SAMPLES
):
    """Return seconds and GiB of each quantity."""
    rate = n_processes * machine["operations_per_second"]
    b = 6 * job.operations * job.n_examples / rate
    total = seconds_of_a_sum(4 * job.n_params, all_reduce, n_processes)
    beside = machine["beside_a_product"] * job.n_params
    product, prepare = machine["product"] * b, machine["prepare"] * b
    sweep = None
    if job.n_rows is not None:
        rows = machine["row"] * job.n_rows * job.n_examples / n_processes
        sweep = b + rows + 4 * total  # sums in float64 of the gᵢ and of their squares
    sample = (1 + ALONG) * b + product
    vectors = 4 * job.n_params / 2**30
    # VGG11's own vectors are in what it held.
    held = machine["held_gib"] - N_VECTORS * 4 * JOBS[0].n_params / 2**30
    return {
        "gradient": {"seconds": b + total, "gib": held + 2 * vectors},
        "λ₁": {
            "seconds": prepare + n_products * (product + beside + total),
            "gib": held + N_VECTORS * vectors,
        },
        "Tr(Σ)": {
            "seconds": sweep,
            "gib": held + 5 * vectors,
        },
        "Tr(HΣ)": {
            "seconds": 2 * prepare + n_samples * (sample + 2 * total),
            "gib": held + 5 * vectors,
        },
        "gld_full": {
            "seconds": machine["gld_full"] * b + total,
            "gib": held + 3 * vectors,
        },
    }


def table(constants):
    """Return a row for each job, machine and number of processes."""
    return [
        {"job": job.name, "machine": name, "n_processes": p}
        | predict(job, machine, constants["all_reduce"], p)
        for job in JOBS
        for name, machine in constants["machines"].items()
        for p in (1, N_PROCESSES)
    ]


def spoken(seconds):
    """Return a time in the unit that suits it."""
    if seconds is None:
        return "not told"
    units = {"years": 365 * 86400, "d": 86400, "h": 3600, "min": 60, "s": 1}
    for unit, size in units.items():
        if seconds >= size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{float(f'{1000 * seconds:.2g}'):g} ms"


def as_markdown(rows):
    """Return the table as it stands in docs/what_it_costs.md."""
    lines = [
        f"| problem | machine | processes | {' | '.join(QUANTITIES)} | GiB for λ₁ |",
        "|" + "---|" * (4 + len(QUANTITIES)),
    ]
    for row in rows:
        cells = [spoken(row[name]["seconds"]) for name in QUANTITIES]
        head = f"{row['job']} | {row['machine']} | {row['n_processes']}"
        gib = f"{row['λ₁']['gib']:.3g}"
        lines.append(f"| {head} | {' | '.join(cells)} | {gib} |")
    return "\n".join(lines)


def count_operations(module, x):
    """Return the multiply-adds of a forward pass of one example."""
    found = []

    def hook(layer, _, output):
        if isinstance(layer, nn.Conv2d):
            per_output = layer.in_channels // layer.groups * layer.weight[0, 0].numel()
        else:
            per_output = layer.in_features
        found.append(output.numel() * per_output)

    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    module(x[None])
    for handle in handles:
        handle.remove()
    return sum(found)


def cpu_seconds(call, repeats=5):
    """Return the median CPU time of a call, of several after a first."""
    if repeats > 1:
        call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        result = call()
        times.append(time.process_time() - start)
    return statistics.median(times), result


def make_risk(kind, size, n):
    torch.manual_seed(0)
    if kind == "VGG11":
        module, X = VGG11(width=size), torch.rand(n, 3, 32, 32)
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    else:
        module = MLP(1024, 10, hidden_layer_sizes=(size, 10))
        X = torch.randn(n, 1024)
    y = torch.randint(0, 10, (n,))
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    n_rows = sum(p.numel() for m in convolutions for p in m.parameters())
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    return risk, count_operations(module, X[0]), n_rows


def measure_network(kind, size, n):
    """Return the CPU seconds of each quantity, and the job."""
    risk, operations, n_rows = make_risk(kind, size, n)
    theta, rng = risk.params(), torch.Generator().manual_seed(0)
    v = torch.randn(len(theta), generator=rng)
    law = make_noise_law("gld_full")
    found = {"gradient": cpu_seconds(lambda: risk.gradient(theta))[0]}
    point = risk.linearize(theta)
    point.ggn(v), point.directional_derivatives(v)  # what a first call tries
    found["product"] = cpu_seconds(lambda: point.hvp(v))[0]
    whole = cpu_seconds(lambda: risk.linearize(theta).hvp(v))[0]
    found["prepare"] = whole - found["product"]
    found["Tr(Σ)"] = cpu_seconds(lambda: risk.gradient_variances(theta))[0]
    found["gld_full"] = cpu_seconds(lambda: law.noisy_gradient(risk, theta, None, rng))[
        0
    ]
    found["λ₁"], pairs = cpu_seconds(
        lambda: hessian_eigenpairs(risk, theta, 1, rng=0), repeats=1
    )
    found["Tr(HΣ)"], product = cpu_seconds(
        lambda: trace_hessian_covariance(
            risk, theta, method="sampled", rtol=1e-9, max_matvecs=10
        ),
        repeats=1,
    )
    job = Job(f"{kind}, size {size:g}", n, len(theta), operations, n_rows)
    return {
        "job": job._asdict(),
        "seconds": found,
        "n_products": pairs.n_matvecs,
        "n_samples": product.n_matvecs,
    }


def fitted_machine(measured):
    """Return the constants of one thread from one network."""
    job, seconds = Job(**measured["job"]), measured["seconds"]
    b, n = seconds["gradient"], measured["n_products"]
    beside = seconds["λ₁"] - seconds["prepare"] - n * seconds["product"]
    return {
        "operations_per_second": 6 * job.operations * job.n_examples / b,
        "prepare": seconds["prepare"] / b,
        "product": seconds["product"] / b,
        "row": (seconds["Tr(Σ)"] - b) / job.n_rows / job.n_examples,
        "gld_full": seconds["gld_full"] / b,
        "beside_a_product": max(0.0, beside) / n / job.n_params,
        "held_gib": 0.0,
    }


def check(measured, machine, all_reduce):
    """Return predictions beside what was measured, for its own number of products."""
    options = {name: measured[name] for name in ("n_products", "n_samples")}
    told = predict(Job(**measured["job"]), machine, all_reduce, **options)
    return {
        name: {
            "predicted": told[name]["seconds"],
            "measured": measured["seconds"][name],
            "ratio": told[name]["seconds"] / measured["seconds"][name],
        }
        for name in QUANTITIES
    }


def _sum_over_two(rank, folder, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    found = {}
    for n in (1000, 4_000_000):
        values = torch.ones(n)
        times = []
        for _ in range(20):
            torch.distributed.barrier()
            start = time.perf_counter()
            torch.distributed.all_reduce(values)
            times.append(time.perf_counter() - start)
        found[4 * n] = min(times)
    if rank == 0:
        queue.put(found)
    torch.distributed.destroy_process_group()


def measure_all_reduce(folder):
    """Return what a sum over two processes costs: wall time, the least of twenty."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [
        context.Process(target=_sum_over_two, args=(rank, folder, queue))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    (small, few), (large, many) = sorted(queue.get(timeout=300).items())
    for worker in workers:
        worker.join()
    a_byte = (many - few) / (large - small)
    # A ring of two takes two rounds.
    return {"seconds_a_round": few / 2, "seconds_a_byte": a_byte}


def measure(quick):
    """Return everything that is stored."""
    torch.set_num_threads(1)
    sizes = (
        [("VGG11", 0.06, 8), ("VGG11", 0.1, 8), ("MLP", 10, 100)]
        if quick
        else [("VGG11", 0.25, 32), ("VGG11", 0.5, 16), ("MLP", 300, 600)]
    )
    with tempfile.TemporaryDirectory() as folder:
        all_reduce = measure_all_reduce(folder)
    fit, *others = [measure_network(*size) for size in sizes]
    machine = fitted_machine(fit)
    constants = {"machines": machines(), "all_reduce": all_reduce}
    return {
        "revision": find_revision(),
        "command": " ".join(["python", *sys.argv]),
        "constants": constants,
        "table": table(constants),
        "one_thread": machine,
        "fitted_to": fit,
        "checks": [
            {"measured": other, "quantities": check(other, machine, all_reduce)}
            for other in others
        ],
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("flatmin", "torch")},
    }


def main():
    """Print the table, or measure and store it first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, default=STORED)
    arguments = parser.parse_args()
    if arguments.measure:
        stored = measure(arguments.quick)
        text = json.dumps(stored, indent=1, ensure_ascii=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    stored = json.loads(arguments.json.read_text(encoding="utf-8"))
    print(as_markdown(table(stored["constants"])))
    print(*(f"- {line}" for line in ASSUMPTIONS), sep="\n")
    for one in stored["checks"]:
        ratios = {k: round(q["ratio"], 2) for k, q in one["quantities"].items()}
        print(f"{one['measured']['job']['name']}: predicted / measured {ratios}")


if __name__ == "__main__":
    main()
