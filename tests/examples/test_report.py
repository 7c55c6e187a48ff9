"""The report is that of the stored results, and its verdicts follow from them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "paper"
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    import report

    yield report
    for name in set(sys.modules) - before:
        if (
            getattr(sys.modules[name], "__file__", None)
            and FOLDER in Path(sys.modules[name].__file__).parents
        ):
            del sys.modules[name]


def read(path):
    return json.loads((RESULTS / path).read_text())


def t_interval(values):
    """Return mean, low and high by SciPy's one-sample test."""
    found = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return np.mean(values), found.low, found.high


def claims(report, path):
    """Return the claims of a section, by place in the paper and words."""
    (section,) = (s for s in report.SECTIONS if s.path == path)
    found = report.find(section).claims
    return {(c.where, c.says): c for c in found}


def words(values, digits=3):
    mean, low, high = (f"{v:.{digits}g}".replace("-", "−") for v in values)
    return f"{mean} ({low} to {high})"


def test_the_report_is_that_of_the_results(report):
    assert report.REPORT.read_text(encoding="utf-8") == report.report()


def test_every_stored_result_of_the_paper_is_in_the_report(report):
    known = {section.path for section in report.SECTIONS}
    folders = {path for path in known if not path.endswith(".json")}
    stored = [*RESULTS.glob("paper/*.json"), *RESULTS.glob("fashion_mnist/*.json")]
    assert {str(path.relative_to(RESULTS)) for path in stored} <= known
    assert "edge_of_stability" in folders


@pytest.mark.parametrize(
    "path", sorted(RESULTS.rglob("*.json")), ids=lambda p: str(p.relative_to(RESULTS))
)
def test_a_stored_result_says_what_it_was_made_by(path):
    result = json.loads(path.read_text())
    origins = result.get("provenance", [{}])
    for origin in origins:
        assert {"revision", "command", "versions"} <= set({**result, **origin})
        assert (result | origin)["revision"]  # or that it is not recorded


def test_every_section_has_its_script(report):
    text = report.report()
    for section in report.SECTIONS:
        assert (FOLDER / f"{section.script}.py").exists()
        assert section.title in text


def test_equation_six(report):
    result = read("paper/fisher_equals_hessian.json")
    gaps = np.array(result["gaps"]["truth"])
    slopes = np.polyfit(np.log(result["n_examples"]), np.log(gaps), 1)[0]
    slope = t_interval(slopes)
    found = list(claims(report, "paper/fisher_equals_hessian.json").values())
    assert slope[1] > -0.55
    assert slope[2] < -0.45
    assert found[0].verdict == "reproduced"
    assert words(slope) in found[0].effect
    last = {point: np.mean(rows[-1]) for point, rows in result["gaps"].items()}
    assert last["maximum likelihood"] < 0.05 < last["mislabelled"]
    assert found[1].verdict == "partly"


def test_the_noise_of_figure_eleven(report):
    result = read("paper/noise_against_gradient.json")
    logs = []
    for run in result["runs"]:
        ratio = np.array(run["noise_norm"]) / run["gradient_norm"]
        late = ratio[-(len(ratio) // 3) :]
        logs.append(np.log(result["lr"] ** 0.5 * late).mean())
    late = np.exp(t_interval(logs))
    (found,) = claims(report, "paper/noise_against_gradient.json").values()
    assert late[1] > 1
    assert found.verdict == "reproduced"
    assert words(late) in found.effect


def test_one_hidden_layer(report):
    runs = read("paper/one_hidden_layer.json")["runs"]
    least = []
    for product, isotropic in zip(runs["trace_HS"], runs["isotropic"], strict=True):
        if min(isotropic) > 0:
            least.append(min(np.array(product) / isotropic))
    assert 10 ** t_interval(np.log10(least))[1] > 10
    (found,) = claims(report, "paper/one_hidden_layer.json").values()
    assert found.verdict == "reproduced"
    assert words(10 ** np.array(t_interval(np.log10(least)))) in found.effect


@pytest.mark.parametrize("network", ["251", "141", "103"])
def test_cosines_of_the_cubic(report, network):
    runs = read("paper/cubic_regression.json")["networks"][network]
    cosines = np.array(runs["cosines"])
    quarter = cosines.shape[1] // 4
    lows = [t_interval(c)[1] for c in cosines[:, -quarter:].mean(1).T]
    expected = "not" if lows[0] <= 0.8 else "partly"
    expected = "reproduced" if min(lows) > 0.8 else expected
    ratio = np.log10(np.divide(runs["noise_norm"], runs["gradient_norm"]))
    is_larger = t_interval(ratio[:, -quarter:].mean(1))[1] > 0
    found = claims(report, "paper/cubic_regression.json")
    found = {
        says: c.verdict
        for (where, says), c in found.items()
        if f"{network} parameters" in where
    }
    aligned, noise = (
        next(v for says, v in found.items() if word in says)
        for word in ("align", "overwhelmingly")
    )
    assert aligned == expected
    assert noise == ("reproduced" if is_larger else "not")


def test_escapes_in_two_dimensions(report):
    settings = read("paper/basins_2d.json")["settings"]
    found = claims(report, "paper/basins_2d.json")
    for name, isotropic in (("matched", "gld_dynamic"), ("released_code", "gld_const")):
        rates = {
            law: cell.get("many", cell["few"])["success"]
            for law, cell in settings[name]["methods"].items()
        }
        least = min(rates[law]["low"] for law in ("gld_leading", "gld_hessian"))
        assert least > rates[isotropic]["high"]
        verdicts = {
            says: c.verdict
            for (where, says), c in found.items()
            if name.replace("_", " ") in where
        }
        assert verdicts.pop("GLD Hessian escapes most often") == "not"
        assert rates["gld_hessian"]["high"] < rates["gld_leading"]["low"]
        assert next(iter(verdicts.values())) == "reproduced"


def of_figure_five(column, law, phase):
    """Return the ends of a law and of GD, paired by seed, from the file itself."""
    table = read("fashion_mnist/figure5.json")["table"]
    keys = zip(table["method"], table["seed"], table["phase"], strict=True)
    ends = dict(zip(keys, table[column], strict=True))  # the last row of a phase
    seeds = [s for s in range(6) if (law, s, phase) in ends]
    return (np.array([ends[name, s, phase] for s in seeds]) for name in (law, "gd"))


@pytest.mark.parametrize(
    ("column", "law", "phase", "scale"),
    [
        ("test_score", "sgd", "noise", 100),
        ("test_score", "gld_hessian", "quench", 100),
        ("end_sharpness", "gld_leading", "noise", None),
        ("end_sharpness", "gld_dynamic", "quench", None),
    ],
)
def test_figure_five_on_a_gpu(report, column, law, phase, scale):
    own, gd = of_figure_five(column, law, phase)
    scale = scale or 100 / gd.mean()
    mean, low, high = scale * np.array(t_interval(own - gd))
    least = 0.5 if column == "test_score" else 20
    if law == "gld_dynamic":
        expected = "reproduced" if -least < low and high < least else "not"
    else:
        sign = 1 if column == "test_score" else -1
        parts = [min(sign * low, sign * high) > 0, sign * mean >= least]
        expected = ("not", "partly", "reproduced")[sum(parts)]
    found = claims(report, "fashion_mnist/figure5.json").items()
    says = {"test_score": "generalises", "end_sharpness": "minimum"}[column]
    (claim,) = (c for (_, text), c in found if text.startswith(law) and says in text)
    text = words((mean, low, high), digits=2)
    if phase == "noise":
        assert claim.verdict == expected
        assert text in claim.effect
    else:
        assert f"quenched: **{expected}**, {text}" in claim.after


def late_stability(folder, law):
    """Return λ₁η/2 over the last third by seed, read from the files themselves."""
    found = {}
    for path in folder.glob(f"{law}-seed*.json"):
        unit = json.loads(path.read_text())
        rows = unit["rows"]
        late = [
            value
            for t, value in zip(rows["iteration"], rows["stability"], strict=True)
            if t > 8000
        ]
        if not unit["diverged"]:
            found[unit["seed"]] = np.mean(late)
    return found


@pytest.mark.parametrize(
    ("setting", "moves"),
    [
        ("digits-squared_error-lr1-m16", ("sgd", "gld_leading", "gld_hessian")),
        ("digits-squared_error-lr2-m16", ("sgd", "gld_leading")),
        ("fashion_mnist-squared_error-lr1-m16", ("sgd",)),
    ],
)
def test_the_groups_at_the_edge(report, setting, moves):
    folder = RESULTS / "edge_of_stability" / setting
    gd = late_stability(folder, "gd")
    does = {}
    for law in (*moves, "gld_const", "gld_dynamic"):
        own = late_stability(folder, law)
        seeds = sorted(set(own) & set(gd))
        mean, low, high = t_interval([own[s] - gd[s] for s in seeds])
        least = 0.2 * np.mean([gd[s] for s in seeds])
        if high < 0 and -mean >= least:
            does[law] = "moves"
        elif max(abs(low), abs(high)) < least:
            does[law] = "stays"
        effects = [c.effect for c in claims(report, "edge_of_stability").values()]
        assert any(f"{law} {words((mean, low, high), digits=2)}" in e for e in effects)
    assert does == {
        **dict.fromkeys(moves, "moves"),
        **dict.fromkeys(("gld_const", "gld_dynamic"), "stays"),
    }


def test_what_the_controls_say(report):
    folder = RESULTS / "edge_of_stability" / "digits-squared_error-lr1-m16"
    gd = late_stability(folder, "gd")

    def less(law):
        own = late_stability(folder, law)
        return np.mean([own[s] - gd[s] for s in own])

    for law in ("gld_full", "gld_full-top", "sgd"):
        assert less(law) < -0.2
    for law in ("gld_full-bulk", "gld_random_subspace"):
        assert abs(less(law)) < 0.05
    for number in (4, 16):  # against GD with the same steps
        small_steps = late_stability(folder, f"gd-{number}")
        own = late_stability(folder, f"svag-l-{number}")
        assert len(own) == len(small_steps) == 8
        assert all(own[seed] < small_steps[seed] for seed in own)
        ratio = np.mean(list(small_steps.values())) / np.mean(list(own.values()))
        assert 1.8 < ratio < 2
    of_const, of_sgd = (
        np.mean(
            [value for path in folder.glob(name) for value in late(path, "noise_norm")]
        )
        for name in ("gld_const-seed*.json", "sgd-seed*.json")
    )
    assert 4 < of_const / of_sgd < 6
    of_gd = np.mean([late(path, "loss") for path in folder.glob("gd-seed*.json")])
    for law in ("gld_dynamic-Tr-HC", "gld_diagonal-Tr-HC"):
        for path in folder.glob(f"{law}-seed*.json"):
            diverged = json.loads(path.read_text())["diverged"]
            assert diverged or np.mean(late(path, "loss")) > 100 * of_gd
    assert "hundreds of times higher, or diverges" in report.report()


def late(path, column):
    rows = json.loads(path.read_text())["rows"]
    both = zip(rows["iteration"], rows[column], strict=True)
    return [value for t, value in both if t > 8000]


def test_the_numbers_of_the_readme(report):
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    stay = ("gld_const", "gld_dynamic", "gld_diagonal")
    move = ("sgd", "gld_leading", "gld_hessian", "gld_full")
    folder = RESULTS / "edge_of_stability" / "digits-squared_error-lr1-m16"
    ends = {
        law: list(late_stability(folder, law).values()) for law in ("gd", *stay, *move)
    }
    assert {len(values) for values in ends.values()} == {8}
    means = {law: np.mean(values) for law, values in ends.items()}
    low, high = (f(means[law] for law in stay) for f in (min, max))
    assert f"λ₁η/2 = {means['gd']:.2f}" in readme
    assert f"leaves it there ({low:.2f} to {high:.2f})" in readme
    low, high = (f(means[law] for law in move) for f in (min, max))
    assert f"end at {low:.2f} to {high:.2f}" in readme
    assert max(max(ends[law]) for law in move) < min(min(ends[law]) for law in stay)
    found = claims(report, "edge_of_stability").values()
    assert {c.verdict for c in found if "generalise" in c.says} == {"not"}

    shares, points = [], []
    for law in ("sgd", "gld_leading", "gld_hessian", "gld_full"):
        own, gd = of_figure_five("end_sharpness", law, "quench")
        shares.append(100 - 100 * own.mean() / gd.mean())
        own, gd = of_figure_five("test_score", law, "quench")
        points.append(100 * (own - gd).mean())
    assert f"{min(shares):.0f} to {max(shares):.0f} % less sharp" in readme
    assert f"{min(points):.1f} to {max(points):.1f} points more" in readme
    found = claims(report, "fashion_mnist/figure5.json").values()
    assert all(c.after.startswith("quenched: **reproduced**") for c in found)


@pytest.mark.usefixtures("report")
def test_two_passes_beside_each_other():
    findings = sys.modules["_findings"]
    path = RESULTS / "fashion_mnist" / "figure5.json"
    first = findings.judge(findings.ComparisonResult.from_json(path))
    table = findings.agreement(first, first)
    assert len(table) == (first["n"] > 1).sum()
    assert set(table["sign"]) == set(table["size"]) == {"same"}
    columns = ["difference", "low", "high"]
    turned = first.copy()
    turned[columns] = -first[["difference", "high", "low"]].to_numpy()
    table = findings.agreement(first, turned)
    assert set(table["sign"]) == {"other"}
    sgd = (table["method"] == "sgd") & (table["column"] == "end_sharpness")
    assert set(table[sgd]["size"]) == {"other"}


def test_another_number_is_another_verdict(report, tmp_path, monkeypatch):
    result = read("paper/noise_against_gradient.json")
    for run in result["runs"]:
        run["noise_norm"] = [x / 10 for x in run["noise_norm"]]
    path = tmp_path / "paper" / "noise_against_gradient.json"
    path.parent.mkdir()
    path.write_text(json.dumps(result))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    (found,) = claims(report, "paper/noise_against_gradient.json").values()
    assert found.verdict == "not"


def test_what_has_not_been_run_is_said(report, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    text = report.report()
    assert text.count("**Not run yet.**") == len(report.SECTIONS)


def test_a_report_that_is_stale_is_told(report, tmp_path, monkeypatch):
    stale = tmp_path / "reproduction.md"
    stale.write_text("another")
    monkeypatch.setattr(report, "REPORT", stale)
    with pytest.raises(SystemExit, match="is not that of the results"):
        report.main(["--check"])
    assert stale.read_text() == "another"
