"""
The page of claims, made from the scripts and the stored results
=========================================================
``python examples/claims/page.py`` writes ``docs/claims.md``; nothing is run. Verdicts
are judged anew from the stored outcomes. A trial that has not been run is listed.
"""

# %%
import argparse
import importlib
import json
import math
import re
from pathlib import Path

from _claim import judged

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "claims"
PAGE = ROOT / "docs" / "claims.md"

# In the order of the page.
SCRIPTS = (
    "plot_what_holds_the_edge",
    "plot_edge_of_stability",
    "plot_tail_index_of_gaussian_noise",
    "plot_the_gradient_penalty",
    "plot_contest_of_measures",
    "plot_shape_size_class",
    "plot_the_tiny_subspace",
    "plot_useful_batch",
    "plot_sparse_truth",
    "plot_flat_zero_loss",
    "plot_sharpness_made_to_order",
)

OPENING = """\
# Claims about noise and flatness, tried

This field argues by claims. Here each is an inequality, written down before its
numbers, and one command that anybody can run. **All of this is on small networks**:
what holds here need not hold on large ones, and what fails here need not fail there.

- *Supported*: the paired 95 % t interval over seeds lies within the bounds of the
  inequality. *Refuted*: it lies wholly outside. *Neither*: it lies across a bound.
- A claim is quoted only as far as its text was seen: the mark behind a source says how
  far that was.
- p is of "not within the bounds", by one-sided t tests at each bound; *Holm* adjusts it
  for the inequalities of a claim. Neither changes a verdict.
- A run that diverged leaves its pair out of the interval, and is counted.
- The seeds are none of those that a pilot or the choice of settings used.
- The cost is of all units on one core, by the CPU's clock; "by the wall" is that of a
  busy machine, and more.
"""

CLOSING = """\
## Not tried here, and why

These belong to the same argument, and no verdict of theirs stands above.

- *Large batches end in sharper minima and test worse* (arXiv 1609.04836, against it
  1705.08741 and 1811.03600). The answer depends on what is held equal, epochs, updates
  or the tuning of η: three claims, and the last needs every η for every batch size.
- *Only the ratio η/m counts* (1711.04623, 1706.02677). [The report](reproduction.md)
  has the paper's form of it.
- *At fixed η there is a best batch* (1710.06451). In a pilot the test error had a
  minimum inside the grid at one η of two: the grid decides.
- *H has as many outliers as there are classes* (1706.04454, 1901.08244). "Outlier" has
  no fixed meaning, and on networks this small the gaps are narrow: λ_C/λ_{C+1} was 1.1
  to 1.5 in a pilot.
- *SAM finds flatter minima, and by small ascent batches alone* (2010.01412,
  2206.06232, against flatness as the reason 2206.10654 and 2307.11007).
  [`sam`](guide/laws.md) ascends on the whole data only.
- *SGD leaves sharp minima exponentially faster* (2002.03495, against it 2105.09557).
  It is about wells; `DoubleWellRisk` and `simulate` measure such times, and networks
  have no one barrier.
- *Only minima that are flat enough for η and m hold SGD* (2207.02628, 2310.00692). The
  bounds are in [the measures](measures.md); a pilot saw none violated, and the one of
  ‖G‖_F a factor of four away.
- *Σ = F = H, or a power law between them* (1906.07774, 1905.12558, 2602.05600). The
  report has it, layer by layer.

## To add a claim

A file `plot_*.py` in `examples/claims/` with a `CLAIM` (`_claim.py` says what belongs
to one, and refuses one without inequality, seeds or source), and a `Trial` of it
(`_trial.py`). Commit it before its numbers, run it with `--full --output`, enter it in
`page.py`, and run that. `tests/examples/test_claims.py` judges every stored result
anew.
"""


# %%
# The page
# --------


def trials():
    """Return (script, name of its result, trial, what its numbers show), in order."""
    found = []
    for script in SCRIPTS:
        module = importlib.import_module(script)
        name = script.removeprefix("plot_")
        # A trial that has not been run has no text.
        first, second = (*getattr(module, "FINDINGS", ()), "", "")[:2]
        found.append((script, name, module.TRIAL, first))
        if hasattr(module, "SECOND"):
            found.append((script, f"{name}_second", module.SECOND, second))
    return found


def page():
    """Return the text of ``docs/claims.md``."""
    table = [
        "| claim | arXiv | inequality | verdict | mean, 95 % interval | cost |",
        "|---|---|---|---|---|---|",
    ]
    sections, missing = [], []
    for script, name, trial, finding in trials():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            missing.append(f"- {trial.claim.title} (`{_command(script, name)}`)")
            continue
        result = json.loads(path.read_text())
        rows = judged(trial.claim, result["outcomes"])
        for place, row in enumerate(rows):
            first = place == 0
            table.append(
                f"| {trial.claim.title if first else ''} | "
                f"{_numbers(trial.claim.sources) if first else ''} | {row['says']} | "
                f"{row['verdict']} | {_interval(row)} | "
                f"{_cost(result['units']) if first else ''} |"
            )
        sections.append(_section(script, name, trial.claim, rows, finding))
    if missing:
        sections.append("\n".join(["## Not run yet", "", *missing, ""]))
    table.append("")
    return "\n".join([OPENING, "\n".join(table), *sections, CLOSING])


def _section(script, name, claim, rows, finding):
    sources = "; ".join(f"{s.cite} (seen: {s.seen})" for s in claim.sources)
    results = [
        f"| {row['says']} | {_compared(inequality)} | {_interval(row)} | {row['n']} | "
        f"{row['lost']} | {row['p']:.2g} | {row['p_holm']:.2g} | {row['verdict']} |"
        for inequality, row in zip(claim.inequalities, rows, strict=True)
    ]
    picture = f"../benchmarks/results/claims/{name}.png"
    return "\n".join(
        [
            f"## {claim.title}",
            "",
            f"**Claim.** {claim.says} {sources}.",
            "",
            f"**Test.** {claim.protocol} Seeds {claim.seeds[0]} to {claim.seeds[-1]}.",
            "",
            "| inequality | compared | mean, 95 % interval | n | lost | p | Holm | "
            "verdict |",
            "|---|---|---|---|---|---|---|---|",
            *results,
            "",
            f"![{claim.title}]({picture})",
            "",
            *([f"**Result.** {finding}", ""] if finding else []),
            f"**Objection.** {claim.objection}",
            "",
            f"**What would change the verdict.** {claim.would_change}",
            "",
            f"`{_command(script, name)}`",
            "",
        ]
    )


def _numbers(sources):
    """Return the arXiv numbers of those who make a claim or object to it."""
    return ", ".join(re.findall(r"\d{4}\.\d{5}", " ".join(s.cite for s in sources)))


def _cost(units):
    """Return the minutes of all units, by the CPU's clock where all have them."""
    measured = all("cpu_seconds" in unit for unit in units)
    seconds = sum(unit["cpu_seconds" if measured else "seconds"] for unit in units)
    return f"{max(1, round(seconds / 60))} min" + ("" if measured else ", by the wall")


def _compared(inequality):
    what = inequality.left
    if inequality.right != "0":
        what += f" − {inequality.right}"
    ends = [f"{end:g}".replace("-", "−") for end in (inequality.low, inequality.high)]
    if inequality.low == -float("inf"):
        return f"{what} ≤ {ends[1]}"
    if inequality.high == float("inf"):
        return f"{what} ≥ {ends[0]}"
    return f"{ends[0]} ≤ {what} ≤ {ends[1]}"


def _interval(row):
    if not math.isfinite(row["low"]):
        return "no interval"
    mean, low, high = (
        f"{row[key]:.3g}".replace("-", "−") for key in ("mean", "low", "high")
    )
    return f"{mean} ({low} to {high})"


def _command(script, name):
    second = " --second" if name.endswith("_second") else ""
    return (
        f"python examples/claims/{script}.py --full{second} "
        f"--output benchmarks/results/claims/{name}.json"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    text = page()
    if arguments.check:
        raise SystemExit(0 if PAGE.read_text(encoding="utf-8") == text else 1)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
