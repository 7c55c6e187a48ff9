"""Tables that are made from stored results."""

import json
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
PROBLEMS = ("lenet", "transformer", "tabular")
WORK = ("H v", "G v", "diag Σ", "‖gᵢ‖²", "eigenpairs of H")
QUANTITIES = ("gradient", "gld_full", "G v", "H v", "diag Σ")


def load(name: str) -> dict:
    """Return a stored result."""
    return json.loads((RESULTS / name).read_text("utf-8"))


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def peers() -> str:
    """Return medians of each library at each work, in b."""
    medians: dict[tuple[str, str], dict[str, float]] = {}
    for case in load("peers.json")["cases"]:
        if (
            case["work"] in WORK
            and case["problem"] in PROBLEMS
            and "median" in case.get("default", {})
        ):
            key = case["work"], case["library"]
            medians.setdefault(key, {})[case["problem"]] = case["default"]["median"]
    rows = [
        [work, library, *(f"{found[p]:.3g}" if p in found else "–" for p in PROBLEMS)]
        for (work, library), found in sorted(
            medians.items(), key=lambda item: WORK.index(item[0][0])
        )
    ]
    return table(["work", "library", *PROBLEMS], rows)


def scaling() -> str:
    """Return seconds of each quantity by the number of examples and of parameters."""
    stored = load("scaling.json")
    rows = [
        [f"{row['N']:,}", f"{row['D']:,}"]
        + [f"{row['seconds'][quantity]:.3g}" for quantity in QUANTITIES]
        for part in ("examples", "parameters")
        for row in stored[part]
    ]
    return table(["N", "D", *QUANTITIES], rows)


def iterations() -> str:
    """Return what an iteration of each law takes, in b."""
    laws = load("iteration_cost.json")["iterations"]
    rows = [
        [f"`{law}`", *(f"{found[key]:.3g}" for key in ("median", "min", "max"))]
        for law, found in laws.items()
    ]
    return table(["law", "median, b", "minimum", "maximum"], rows)


def large_decoder() -> str:
    """Return what is asked of one large model: gradients, and memory of the process."""
    rows = []
    for asked, found in load("large_decoder.json")["rows"].items():
        later = found["in_b"].get("later")
        gib = found["peak_mib"]["first"] / 1024
        rows.append(
            [
                asked,
                f"{found['in_b']['first']:.3g}",
                "–" if later is None else f"{later:.3g}",
                f"{gib:.1f}",
            ]
        )
    return table(["", "first, b", "later, b", "peak, GiB"], rows)


def kinds() -> str:
    """Return first and later calls by kind of network, beside code by hand."""
    rows = []
    for path in sorted((RESULTS / "kinds").glob("*.json")):
        for kind, found in json.loads(path.read_text("utf-8"))["rows"].items():
            ours, by_hand = (times_of(found[how]) for how in ("flatmin", "by hand"))
            rows += [
                [kind, asked, ours[asked], by_hand.get(asked, "–")] for asked in ours
            ]
    return table(["network", "quantity", "flatmin, b", "by hand, b"], rows)


def times_of(answers: dict) -> dict[str, str]:
    """Return a cell for each question: median, minimum and maximum of processes."""
    cells = {}
    for found in answers.values():
        for asked, clocks in found["in_b"].items():
            median, least, most = (
                f"{clocks['cpu'][key]:.3g}" for key in ("median", "min", "max")
            )
            cells[asked] = f"{median} ({least} to {most})"
    return cells
