"""
The dynamics of the paper on 1200 Fashion-MNIST images
======================================================

Section 5.1 of arXiv 1803.00195 runs gradient descent on 1000 images with correct and
200 with wrong labels until the training loss is nearly zero, and then continues with
noise of different shapes from there (figure 5).
Its claim: SGD, GLD leading and GLD Hessian move on to flatter minima that generalise
better; GD, GLD const, GLD dynamic and GLD diagonal stay.

*Protocol.* A LeNet of 11,330 parameters, PyTorch's initialisation, pixels in [0, 1]; GD
for 3000 iterations at 0.1; then 2000 iterations of each law at 0.03 with m = 20 and
k = 20. Beside the paper's laws stand noise with all of SGD's covariance, with that of
the Gauss-Newton matrix and of the Fisher information, and controls: the first
eigenvector of H, a random subspace, SGD's eigenvalues on other eigenvectors. A seed
draws the images, the wrong labels, the initialisation and the noise, and all methods
share it, so that differences are paired: eight seeds, six for the laws that need
eigenpairs. With ``--rates`` also GD, SGD, its Gaussian twin and SVAG, whose noise goes
from SGD's to Gaussian, at 0.01, 0.05 and the paper's 0.07.

*Confounders.* Noise holds the training loss up, and the curvature of the cross-entropy
vanishes with the loss. So an end point is also *quenched*: 500 iterations of GD at
0.03, without noise, lead to the bottom of the basin it lies in; and once more, from the
same point, to a training loss of 0.002 for all, below that of GD's own end in a first
pass: flat basins converge more slowly, and what is left of the loss may pass for
curvature. A unit that is below it before, or does not reach it, says so.

*Rule, fixed before the numbers.* *Reproduced*: the paired 95 % interval of the
difference from GD excludes 0 in the claimed direction, and the effect is at least 0.5
points of test accuracy, or a fifth of GD's sharpness. *Partly*: one of the two, in that
direction. Else *not*. It is judged with the noise, after the quench, and at equal loss.
A law that is said to stay does if its interval lies within those bounds on both sides.

The result of a unit, a method with a seed, is written when it ends, and a second call
goes on where the first stopped. Without ``--full`` a short version shows in less than a
minute that all works; it says nothing about the claim.
"""

# %%
import argparse
import os
from functools import partial
from pathlib import Path

import _comparison
from _claims import MOVE, STAY

from flatmin import NoisyDiffusionClassifier
from flatmin.comparison import compare_dynamics
from flatmin.datasets import load_noisy_fashion_mnist
from flatmin.modules import LeNet

TWINS = ("gld_full", "gld_ggn", "gld_fisher")
CONTROLS = ("gld_first_eigenvector", "gld_random_subspace", "gld_shuffled")
METHODS = ("gd", *STAY, *MOVE, *TWINS, *CONTROLS)
# Six for the laws that need eigenpairs.
N_SEEDS = dict.fromkeys(METHODS, 6)
N_SEEDS |= dict.fromkeys(("gd", *STAY, "sgd", "gld_full", "gld_ggn"), 8)
WARMUP_LR, LR, BATCH_SIZE = 0.1, 0.03, 20
RATES = (0.01, 0.05, 0.07)
# At other rates, and at LR too: is the noise of minibatches Gaussian enough?
AT_RATES = {name: {"method": name} for name in ("gd", "sgd", "gld_full")}
AT_RATES["svag"] = {"method": "svag", "method_params": {"n_substeps": 4}}

# Images with right and with wrong labels and for the test, iterations, k, and draws of
# the sharpness along a run: there are ten times as many at its end, where it is judged,
# and products with H for each of the other measures.
FULL = {"clean": 1000, "corrupt": 200, "test": 10_000, "components": 20}
FULL |= {"warmup": 3000, "noise": 2000, "quench": 500, "every": 100, "draws": 30}
FULL |= {"matvecs": 200}
SHORT = {"clean": 200, "corrupt": 40, "test": 500, "components": 5}
SHORT |= {"warmup": 60, "noise": 20, "quench": 10, "every": 10, "draws": 2}
SHORT |= {"matvecs": 10}
QUENCH_LOSS, QUENCH_LOSS_ITER = 0.002, 6000


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--full", action="store_true", help="the whole protocol")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="SEED")
    parser.add_argument(
        "--methods", nargs="*", choices=METHODS, metavar="NAME", help="which laws"
    )
    parser.add_argument(
        "--rates", action="store_true", help="also GD, SGD, its twin and SVAG at others"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--n-jobs", type=int, default=1, metavar="J")
    parser.add_argument(
        "--output", type=Path, default=Path("fashion-mnist-output"), metavar="DIR"
    )
    parser.add_argument("--plot-only", action="store_true", help="draw what is there")
    parsed = parser.parse_args(arguments)
    if parsed.methods is None:
        parsed.methods = METHODS if parsed.full else ("gd", "gld_dynamic", "sgd")
    return parsed


# %%
# What is compared, and on what
# -----------------------------


def load(seed, sizes):
    data = load_noisy_fashion_mnist(sizes["clean"], sizes["corrupt"], random_state=seed)
    test = slice(sizes["test"])
    return data.data, data.target, data.data_test[test], data.target_test[test]


def make_methods(arguments):
    methods = {name: {"method": name} for name in arguments.methods}
    if arguments.rates:
        methods["svag"] = AT_RATES["svag"]
        for lr in RATES:
            methods |= {
                f"{n} at {lr}": {**own, "lr": lr} for n, own in AT_RATES.items()
            }
    return methods


def compare(methods, seeds, on_unit, arguments):
    sizes = FULL if arguments.full else SHORT
    classifier = NoisyDiffusionClassifier(
        LeNet,
        lr=LR,
        max_iter=sizes["noise"],
        batch_size=BATCH_SIZE,
        n_components=sizes["components"],
        warmup={"max_iter": sizes["warmup"], "lr": WARMUP_LR},
        record_every=sizes["every"],
        device=arguments.device,
    )
    return compare_dynamics(
        methods,
        partial(load, sizes=sizes),
        estimator=classifier,
        n_seeds=seeds,
        **_comparison.measures(sizes["draws"], sizes["matvecs"]),
        quench=sizes["quench"],
        quench_lr=LR,
        quench_loss=QUENCH_LOSS if arguments.full else 1.4,
        quench_loss_iter=QUENCH_LOSS_ITER if arguments.full else 60,
        n_jobs=arguments.n_jobs,
        memory=str(arguments.output / "warm-ups"),
        on_unit=on_unit,
        verbose=True,
    )


def claims(result):
    """Return what the paper's claim on each law came to."""
    return _comparison.claims(result, "figure 5")


# %%
def main():
    arguments = parse_arguments()
    units = arguments.output / ("full" if arguments.full else "short")
    units.mkdir(parents=True, exist_ok=True)
    # In the workers too: convolutions on a GPU else keep three digits.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    methods = make_methods(arguments)
    if not arguments.plot_only:
        run = partial(compare, arguments=arguments)
        _comparison.run_missing(units, methods, arguments.seeds, run)
    result = _comparison.collect(units, methods, arguments.seeds, BATCH_SIZE)
    result.to_json(units.with_suffix(".json"))
    _comparison.print_tables(result)
    path = units.with_suffix(".png")
    _comparison.draw(result).savefig(path, dpi=150)
    print(f"\nThe picture: {path}")


if __name__ == "__main__":
    main()
