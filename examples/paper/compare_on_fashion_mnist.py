"""
The dynamics of the paper on 1200 Fashion-MNIST images
======================================================

Section 5.1 of arXiv 1803.00195 runs gradient descent on 1000 images with correct and
200 with wrong labels until the training loss is nearly zero, and then continues with
noise of different shapes from there.
Its claim: SGD, GLD leading and GLD Hessian move on to flatter minima that generalise
better; GD, GLD const, GLD dynamic and GLD diagonal stay.

The protocol here: a LeNet of 11,330 parameters, PyTorch's initialisation, pixels in
[0, 1]; GD for 3000 iterations at 0.1; then 1000 iterations of each law at 0.03 with
m = 20 and k = 20, and of the cheap laws at the paper's 0.07 too. Noise holds the
training loss up, and the curvature of the cross-entropy vanishes with the loss, so an
end point is also *quenched*: 500 iterations of GD, without noise, lead to the bottom of
the basin it lies in. Loss, test accuracy and sharpness are compared before and after.
One seed draws the images, the wrong labels, the initialisation and the noise, and all
laws share it.

The result is written after every run, and a second call goes on where the first
stopped. Without ``--full`` a short version runs in a few minutes and shows that all
works; it says nothing about the claim.
"""

# %%
import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch

from flatmin import DivergenceError, NoisyDiffusionClassifier, expected_sharpness
from flatmin.datasets import load_noisy_fashion_mnist
from flatmin.modules import LeNet

PAPER = (
    "gd",
    "gld_const",
    "gld_dynamic",
    "gld_diagonal",
    "sgd",
    "gld_leading",
    "gld_hessian",
)
CHEAP = ("gd", "gld_const", "sgd", "gld_full")
WARMUP_LR, LR, PAPER_LR, BATCH_SIZE, N_COMPONENTS = 0.1, 0.03, 0.07, 20, 20


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--full", action="store_true", help="the whole protocol")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    parser.add_argument("--plot-only", action="store_true", help="draw what is there")
    return parser.parse_args()


def protocol(full):
    """Numbers of iterations, and the runs as (method, lr)."""
    sizes = {"warmup": 3000, "noise": 1000, "quench": 500, "every": 100, "draws": 100}
    if not full:
        sizes = {"warmup": 300, "noise": 60, "quench": 30, "every": 20, "draws": 10}
    runs = [(method, LR) for method in (*PAPER, "gld_full")]
    runs += [(method, PAPER_LR) for method in CHEAP]
    return sizes, runs


# %%
# A run: noise from θ_GD, then the quench
# ---------------------------------------


def make_classifier(sizes, seed, **settings):
    def sharpness(risk, theta):
        return expected_sharpness(risk, theta, sigma=0.01, n_draws=sizes["draws"])

    return NoisyDiffusionClassifier(
        LeNet,
        metrics={"sharpness": sharpness},
        record_every=sizes["every"],
        random_state=seed,
        verbose=True,
        **settings,
    )


def describe(classifier, last):
    """Final numbers of a run; the sharpness with three times the draws."""
    sharpness = expected_sharpness(
        classifier.risk_,
        classifier.risk_.params(),
        sigma=0.01,
        n_draws=3 * last["draws"],
    )
    row = classifier.history_.iloc[-1]
    return {
        "train_accuracy": row["train_score"],
        "test_accuracy": row["valid_score"],
        "loss": row["loss"],
        "sharpness": float(sharpness),
        "sharpness_stderr": float(sharpness.stderr),
        "gradient_norm": row["gradient_norm"],
        "noise_norm": row["noise_norm"],
    }


def run(data, sizes, seed, theta, method, lr):
    """Return history and end points of one law, before and after the quench."""
    start = time.perf_counter()
    noisy = make_classifier(
        sizes,
        seed,
        method=method,
        lr=lr,
        max_iter=sizes["noise"],
        batch_size=BATCH_SIZE,
        n_components=N_COMPONENTS,
        params_init=theta,
    )
    test = {"X_val": data.data_test, "y_val": data.target_test}
    try:
        noisy.fit(data.data, data.target, **test)
    except DivergenceError as error:
        return {"method": method, "lr": lr, "diverged": str(error)}
    quenched = make_classifier(
        sizes,
        seed,
        method="gd",
        lr=lr,
        max_iter=sizes["quench"],
        params_init=noisy.params_,
    ).fit(data.data, data.target, **test)
    return {
        "method": method,
        "lr": lr,
        "distance": float(np.linalg.norm(noisy.params_ - theta)),
        "noise": describe(noisy, sizes),
        "quench": describe(quenched, sizes),
        "history": noisy.history_.to_dict("list"),
        "quench_history": quenched.history_.to_dict("list"),
        "seconds": time.perf_counter() - start,
    }


# %%
# All runs, written as they end
# -----------------------------


def experiment(arguments, path):
    sizes, runs = protocol(arguments.full)
    data = load_noisy_fashion_mnist(1000, 200, random_state=arguments.seed)
    result = json.loads(path.read_text()) if path.exists() else {}
    stored = (result.get("seed"), result.get("protocol"))
    if result and stored != (arguments.seed, sizes):
        sys.exit(f"{path} holds runs of another seed or protocol: {stored}.")
    if not result:
        warm = make_classifier(
            sizes, arguments.seed, method="gd", lr=WARMUP_LR, max_iter=sizes["warmup"]
        ).fit(data.data, data.target, X_val=data.data_test, y_val=data.target_test)
        result = {
            "command": "python " + " ".join(sys.argv),
            "seed": arguments.seed,
            "protocol": sizes,
            "machine": f"{platform.processor() or platform.machine()}, "
            f"{os.cpu_count()} cores, {torch.get_num_threads()} threads",
            "versions": {
                name: version(name)
                for name in ("flatmin", "torch", "numpy", "scikit-learn", "skorch")
            },
            "theta_gd": describe(warm, sizes),
            "warmup_history": warm.history_.to_dict("list"),
            "runs": [],
        }
        np.save(path.with_suffix(".theta.npy"), warm.params_)
        path.write_text(json.dumps(result, indent=1))
    theta = np.load(path.with_suffix(".theta.npy"))
    done = {(r["method"], r["lr"]) for r in result["runs"]}
    for i, (method, lr) in enumerate(runs):
        if (method, lr) in done:
            continue
        print(f"{i + 1}/{len(runs)}: {method} at {lr}", flush=True)
        result["runs"].append(run(data, sizes, arguments.seed, theta, method, lr))
        path.write_text(json.dumps(result, indent=1))
    return result


# %%
# The table and the picture
# -------------------------


def print_table(result):
    print(
        f"{'method':14} {'lr':>5} | {'train':>6} {'test':>6} {'loss':>7} "
        f"{'sharpness':>16} {'noise':>6} {'grad':>6} {'dist':>5} | after the quench:"
        f" {'test':>6} {'loss':>7} {'sharpness':>16}"
    )
    rows = [{"method": "theta_GD", "lr": WARMUP_LR, "noise": result["theta_gd"]}]
    for row in rows + result["runs"]:
        if "diverged" in row:
            print(f"{row['method']:14} {row['lr']:5} | {row['diverged']}")
            continue
        n, q = row["noise"], row.get("quench")
        line = (
            f"{row['method']:14} {row['lr']:5} | {n['train_accuracy']:6.3f} "
            f"{n['test_accuracy']:6.3f} {n['loss']:7.4f} "
            f"{n['sharpness']:8.5f}±{n['sharpness_stderr']:.5f} "
            f"{n['noise_norm']:6.3f} {n['gradient_norm']:6.3f} "
            f"{row.get('distance', 0):5.2f} |"
        )
        if q:
            line += (
                f"{'':18} {q['test_accuracy']:6.3f} {q['loss']:7.4f} "
                f"{q['sharpness']:8.5f}±{q['sharpness_stderr']:.5f}"
            )
        print(line)


def draw(result, path):
    runs = [r for r in result["runs"] if r["lr"] == LR and "diverged" not in r]
    colours = dict(
        zip((r["method"] for r in runs), sns.color_palette("colorblind"), strict=False)
    )
    quantities = (
        ("valid_score", "test accuracy"),
        ("sharpness", r"expected sharpness, $s=0.01$"),
        ("loss", r"training loss $L(\theta)$"),
    )
    figure, axes = plt.subplots(
        1, 3, figsize=(13, 4.2), sharex=True, layout="constrained"
    )
    switch = result["protocol"]["noise"]
    for ax, (name, label) in zip(axes, quantities, strict=True):
        for row in runs:
            noise, quench = row["history"], row["quench_history"]
            x = noise["iteration"] + [switch + i for i in quench["iteration"]]
            ax.plot(
                x,
                noise[name] + quench[name],
                color=colours[row["method"]],
                label=row["method"],
                lw=1.6,
            )
        ax.axvline(switch, color="0.4", ls="--", lw=1)
        ax.set(xlabel=r"iterations from $\theta_{GD}$", ylabel=label)
    axes[2].set_yscale("log")
    axes[0].annotate(
        "quench",
        (switch, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        color="0.4",
    )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False)
    for ax in axes:
        sns.despine(ax=ax)
    figure.savefig(path, dpi=150)
    print(path)


# %%
if __name__ == "__main__":
    arguments = parse_arguments()
    kind = "full" if arguments.full else "short"
    path = arguments.output or Path(f"fashion_mnist_{kind}_seed{arguments.seed}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    if arguments.plot_only:
        result = json.loads(path.read_text())
    else:
        result = experiment(arguments, path)
    print_table(result)
    draw(result, path.with_suffix(".png"))
