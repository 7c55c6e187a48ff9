"""How a claim is carried out: options, units, the stored result, table and picture.

A unit is a label (a law, a setting) with a seed. With ``--output`` each unit is stored
as it ends, and a second call goes on where the first stopped.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import joblib
import matplotlib.pyplot as plt
import torch
from _claim import Claim, judged

sys.path.append(str(Path(__file__).parents[1] / "paper"))
from _record import provenance, save_figure, store


@dataclass(frozen=True)
class Trial:
    """A claim with what carries it out."""

    claim: Claim
    labels: tuple[str, ...]
    # (label, seed, settings) -> numbers of a unit, as JSON can hold them.
    run_unit: Callable[[str, int, dict], dict]
    # The units of one seed by label -> the numbers that the inequalities compare.
    outcomes: Callable[[dict[str, dict]], dict[str, float]]
    # (axes, units by (label, seed), outcomes by name) draws the claim's own picture.
    draw: Callable[[plt.Axes, dict, dict], None]
    full: dict  # settings of the protocol
    short: dict  # settings that only show that all works


def main(trial, second=None):
    """Run a trial, or the one on the second network, and print what came out."""
    parser = argparse.ArgumentParser(description=trial.claim.title)
    parser.add_argument("--full", action="store_true", help="the protocol")
    parser.add_argument("--output", type=Path, help="a JSON file; units go beside it")
    parser.add_argument("--jobs", type=int, default=1, help="units at a time")
    if second is not None:
        parser.add_argument("--second", action="store_true", help="the second network")
    arguments, _ = parser.parse_known_args()  # a gallery has arguments of its own
    if getattr(arguments, "second", False):
        trial = second
    result = carried_out(trial, arguments)
    for row in result["judged"]:
        # Of less than two pairs there is no interval, and a file has None for NaN.
        row = {key: math.nan if x is None else x for key, x in row.items()}
        verdict = row["verdict"] if arguments.full else "(no verdict)"
        print(
            f"{row['says']}: {verdict}, {row['mean']:.3g} "
            f"[{row['low']:.3g}, {row['high']:.3g}], n = {row['n']}, "
            f"{row['lost']} lost, p = {row['p']:.2g}, Holm {row['p_holm']:.2g}"
        )
    save_figure(drawn(trial, result), arguments)


def carried_out(trial, arguments):
    """Return the result of all units, stored if there is an output."""
    settings = trial.full if arguments.full else trial.short
    seeds = trial.claim.seeds if arguments.full else trial.claim.tuned_on[:2]
    folder = arguments.output.with_suffix("") if arguments.output else None
    work = [(label, seed) for seed in seeds for label in trial.labels]
    units = joblib.Parallel(n_jobs=arguments.jobs)(
        joblib.delayed(_unit)(trial.run_unit, label, seed, settings, folder)
        for label, seed in work
    )
    by_seed = [
        trial.outcomes({u["label"]: u for u in units if u["seed"] == seed})
        for seed in seeds
    ]
    outcomes = {name: [o[name] for o in by_seed] for name in by_seed[0]}
    result = provenance() | {
        "title": trial.claim.title,
        "full": arguments.full,
        "settings": settings,
        "seeds": list(seeds),
        "unit_revisions": sorted({str(unit.pop("revision")) for unit in units}),
        "units": units,
        "outcomes": outcomes,
        "judged": judged(trial.claim, outcomes),
    }
    return store(arguments.output, lambda: result)


def drawn(trial, result):
    """Return the claim's own picture beside its inequalities with their bounds."""
    height = max(4, 0.6 * len(trial.claim.inequalities))
    figure, (own, verdicts) = plt.subplots(
        1, 2, figsize=(10, height), layout="constrained"
    )
    units = {(unit["label"], unit["seed"]): unit for unit in result["units"]}
    trial.draw(own, units, result["outcomes"])
    rows = list(zip(trial.claim.inequalities, result["judged"], strict=True))
    _draw_inequalities(verdicts, rows)
    return figure


def _draw_inequalities(axes, rows):
    """Draw each interval over the bounds within which it supports the claim.

    Inequalities are of different units: each is drawn on a scale of its own, and its
    ends are written beside it.
    """
    for place, (inequality, row) in enumerate(reversed(rows)):
        if row["low"] is None:
            text = f"{row['says']}: no interval"
            axes.text(0.5, place, text, ha="center", fontsize=8)
            continue
        ends = [row["low"], row["high"], row["mean"]]
        ends += [b for b in (inequality.low, inequality.high) if abs(b) < float("inf")]
        least, span = min(ends), (max(ends) - min(ends)) or 1.0

        def at(x, least=least, span=span):
            return min(max((x - least) / span, -0.15), 1.15)

        axes.barh(
            place,
            at(inequality.high) - at(inequality.low),
            left=at(inequality.low),
            height=0.3,
            color="tab:green",
            alpha=0.2,
        )
        axes.plot([at(row["low"]), at(row["high"])], [place] * 2, color="k")
        axes.plot(at(row["mean"]), place, "ko", markersize=5)
        axes.text(
            0.5,
            place + 0.2,
            f"{row['says']}: {row['verdict']}\n"
            f"{row['mean']:.3g} ({row['low']:.3g} to {row['high']:.3g})",
            ha="center",
            fontsize=8,
        )
    axes.set(
        xlim=(-0.2, 1.2),
        ylim=(-0.5, len(rows)),
        xticks=[],
        yticks=[],
        title="95 % interval, and the bounds (green)",
    )


def _unit(run_unit, label, seed, settings, folder):
    """Return a unit with its seconds and revision, from its file if it is there."""
    path = folder / f"{label}-{seed}.json".replace(" ", "_") if folder else None
    if path is not None and path.exists():
        unit = json.loads(path.read_text())
    else:
        torch.set_num_threads(1)  # however many units run, a seed gives one number

        def run():
            begin = time.process_time()
            unit = {"label": label, "seed": seed} | run_unit(label, seed, settings)
            return unit | {"cpu_seconds": time.process_time() - begin}

        unit = store(path, run)
    told_once = ("command", "device", "machine", "versions")
    return {key: value for key, value in unit.items() if key not in told_once}
