"""What stored results say: their claims, what made them, and what is missing."""

import json
from argparse import Namespace
from dataclasses import dataclass, field

import pandas as pd
from _claims import Claim, shown
from _comparison import judge

from flatmin.comparison import ComparisonResult, merge_comparisons


@dataclass
class Finding:
    """What stored results say."""

    claims: list[Claim]
    origins: list[dict]  # what each result was made by
    missing: list[str] = field(default_factory=list)
    tables: list[tuple[str, pd.DataFrame]] = field(default_factory=list)


def read_file(path, script):
    """Return what a result in one file says."""
    result = json.loads(path.read_text())
    return Finding(script.claims(result), [result])


def read_edge(path, script):
    """Return what the units at the edge of stability say."""
    asked = Namespace(output=path, seeds=script.SEEDS)
    units, missing = script.collect(asked, script.SETTINGS)
    paths = [p for p in path.rglob("*.json") if p.name != "verdicts.json"]
    origins = [json.loads(p.read_text()) for p in sorted(paths)]
    laws = {}
    for what, n in counted(m.rsplit(", seed", 1)[0] for m in missing).items():
        setting, law = what.split(": ", 1)
        laws.setdefault(setting, []).append(f"`{law}` ({n})")
    total = len(script.SEEDS)
    left = [
        f"{setting}, of {total} seeds each: {', '.join(own)}"
        for setting, own in laws.items()
    ]
    tables = []
    for setting, part in script.judge(units).groupby("setting", sort=False):
        tables.append(
            (f"{setting}: every law against GD", edge_table(part, script.LAWS))
        )
    return Finding(script.claims(units), origins, left, tables)


def edge_table(part, order):
    """Return a row for each law, of both columns that are judged."""
    rows = {}
    for _, row in part.iterrows():
        own = rows.setdefault(row["law"], {"law": row["law"], "seeds": row["n"]})
        text = shown(row["difference"], row["low"], row["high"], digits=2)
        text = text if row["n"] > 1 else ""
        if row["column"] == "stability":
            own["late λ₁η/2"] = f"{row['mean']:.3f}" if row["n"] else ""
            own["less GD's"] = text
            own |= {
                "": row["does"] if row["n"] > 1 else "",
                "diverged": row["n_diverged"],
            }
            equal = 1 / 3 <= row["loss ratio"] <= 3
            loss = f"{row['loss ratio']:.2g}{'' if equal else ', not equal'}"
            own["loss / GD's"] = loss if row["n"] else ""
        else:
            own["test accuracy less GD's"] = text
    return pd.DataFrame(rows[law] for law in order if law in rows)


def read_comparison(path, script):
    """Return what units of a comparison, or those of one file, say."""
    files = [path] if path.is_file() else sorted(path.glob("full/*.json"))
    results = [ComparisonResult.from_json(p) for p in files]
    result = merge_comparisons(results)
    origins = [o for r in results for o in stored_origin(r, path)]
    missing = [] if path.is_file() else missing_units(script, result)
    table = judge(result)
    columns = ["column", "phase", "method"]
    shown_rows = [
        {
            **{name: row[name] for name in columns},
            "mean": f"{row['mean']:.4g}",
            "GD": f"{row['mean of gd']:.4g}",
            "difference": shown(row["difference"], row["low"], row["high"]),
            "seeds": row["n"],
        }
        for _, row in table[table["n"] > 1].iterrows()
    ]
    tables = [("every law against GD", pd.DataFrame(shown_rows))]
    first_pass = path.parent / "fashion_mnist" / "figure5.json"
    if path.name == "comparison_on_fashion_mnist" and first_pass.exists():
        first = ComparisonResult.from_json(first_pass)
        tables.append(("this and the first pass", agreement(table, judge(first))))
    return Finding(script.claims(result), origins, missing, tables)


def read_rmsprop(path, script):
    """Return what the units from RMSProp on say."""
    asked = Namespace(output=path, seeds=script.SEEDS)
    units = script.collect(asked)
    origins = [json.loads(p.read_text()) for p in sorted(path.glob("*-seed*.json"))]
    done = units.drop_duplicates(["optimizer", "run", "seed"])
    done = done.groupby(["optimizer", "run"]).size()
    total = len(script.SEEDS)
    missing = [
        f"{optimizer}, {name}: {total - done.get((optimizer, name), 0)} of {total} "
        "seeds"
        for optimizer in script.OPTIMIZERS
        for name in script.RUNS
        if done.get((optimizer, name), 0) < total
    ]
    lying = script.alignments(asked).reset_index(names=["after", "noise"])
    tables = [("how the noise lies to H, means over seeds", lying.round(3))]
    return Finding(script.claims(units), origins, missing, tables)


def read_sizes(path, script):
    """Return what the units on learning rate and batch size say."""
    asked = Namespace(output=path, seeds=script.SEEDS, full=True)
    result, profiles = script.collect(asked)
    done = counted(result.units["method"])
    total = len(script.SEEDS)
    left = {label: total - done.get(label, 0) for label in script.runs(full=True)}
    missing = [f"{label}: {n} of {total} seeds" for label, n in left.items() if n]
    if len(profiles) < total:
        missing.append(f"curves between minima: {total - len(profiles)} of {total}")
    origins = list(stored_origin(result, path))
    return Finding(script.claims(result, profiles), origins, missing)


def agreement(here, first):
    """Return the differences of two passes beside each other, where both have some.

    They agree in size if each mean lies within the interval of the other.
    """
    keys = ["column", "phase", "method"]
    both = here[here["n"] > 1].merge(
        first[first["n"] > 1], on=keys, suffixes=("", "_1")
    )
    rows = []
    for _, row in both.iterrows():
        pair = [
            [row[name + end] for name in ("difference", "low", "high")]
            for end in ("", "_1")
        ]
        (a, low, high), (b, low_1, high_1) = pair
        rows.append(
            {
                **{key: row[key] for key in keys},
                "here": shown(*pair[0], digits=2),
                "first pass": shown(*pair[1], digits=2),
                "sign": "same" if a * b > 0 else "other",
                "size": "same"
                if low <= b <= high and low_1 <= a <= high_1
                else "other",
            }
        )
    return pd.DataFrame(rows)


def stored_origin(result, path):
    """Return provenances as the other results have them."""
    own = json.loads(path.read_text()) if path.is_file() else {}
    for origin in result.provenance:
        device = origin["machine"]["device"]
        yield {"device": device, "command": own.get("command")} | origin


def missing_units(script, result):
    done = counted(result.units.query("status != 'failed'")["method"])
    left = {m: n - done.get(m, 0) for m, n in script.N_SEEDS.items()}
    return [f"{m}: {n} of {script.N_SEEDS[m]} seeds" for m, n in left.items() if n > 0]


def counted(names):
    """Return how often each name occurs, in order."""
    return pd.Series(list(names), dtype=object).value_counts(sort=False).to_dict()
