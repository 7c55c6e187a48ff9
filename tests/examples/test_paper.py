"""The experiments under examples/paper, on few runs and iterations."""

import importlib.util
import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.utils import Bunch

from flatmin.comparison import (
    ComparisonResult,
    PairedDifference,
    merge_comparisons,
)
from flatmin.linalg import DenseOperator
from flatmin.noise import GaussianLaw
from flatmin.risk import TwoBasinsRisk

FOLDER = Path(__file__).parents[2] / "examples" / "paper"


@pytest.fixture
def load(monkeypatch):
    """Return a function that imports a script by its name."""
    mpl.use("Agg")
    monkeypatch.syspath_prepend(str(FOLDER))

    def load_script(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(__import__("sys").modules, name, module)
        spec.loader.exec_module(module)
        return module

    yield load_script
    plt.close("all")


def run(script, path, capsys):
    """Run a script, then draw again what it stored; return the result and the table."""
    script.main(["--output", str(path)])
    result = json.loads(path.read_text())
    assert result["seed"] == 0
    assert set(result["versions"]) >= {"flatmin", "torch", "python"}
    assert result["command"].startswith("python ")
    table = capsys.readouterr().out
    for picture in path.parent.glob("*.png"):
        picture.unlink()
    script.main(["--output", str(path), "--plot-only"])
    assert path.with_suffix(".png").stat().st_size > 10_000
    assert table.endswith(capsys.readouterr().out)
    return result, table


@pytest.mark.slow
def test_basins(load, tmp_path, capsys, monkeypatch):
    script = load("plot_basins_2d")
    monkeypatch.setattr(script, "N_RUNS", 40)
    monkeypatch.setattr(script, "RECORD_EVERY", 100)
    result, table = run(script, tmp_path / "basins.json", capsys)
    assert (tmp_path / "basins_surface.png").exists()
    assert list(result["settings"]) == ["text", "released_code", "matched"]
    assert table.count("UNSTABLE") == 1
    matched = result["settings"]["matched"]["methods"]
    assert matched["gd"]["few"]["success"]["n"] == 40


def test_more_basins_come_in_blocks(load, monkeypatch):
    script = load("plot_basins_2d")
    monkeypatch.setattr(script, "BLOCK", 8)
    setting = script.SETTINGS["matched"]
    law = setting.laws(setting.lr)["gld_leading"]
    runs = script.run_blocks(setting, "a", law, 24, torch.Generator().manual_seed(0))
    assert runs.success_rate().n == 24
    assert len(runs.theta.unique(dim=0)) == 24


def test_a_law_of_fixed_size(load):
    """C = τ C'/Tr(C'), and draws of that covariance within 4.5 standard errors."""
    script = load("plot_basins_2d")
    risk, rng = TwoBasinsRisk.from_paper("matched"), torch.Generator().manual_seed(0)
    matrix = torch.tensor([[4.0, 1.0], [1.0, 2.0]], dtype=torch.float64)

    class Fixed(GaussianLaw):
        name = "fixed"

        def refresh(self, risk, theta, rng, previous=None):
            return DenseOperator(matrix.expand(*theta.shape[:-1], 2, 2))

    M = 20_000
    law, theta = script.FixedTrace(Fixed(), total=3.0), risk.sharp_minimum.expand(M, 2)
    state = law.refresh(risk, theta, rng)
    _, gradient = law.noisy_gradient(risk, theta, state, rng)
    expected = matrix / 2
    torch.testing.assert_close(
        law.covariance(risk, theta, state).to_dense()[0], expected
    )
    noise = gradient - risk.gradient(theta)
    products = noise[:, :, None] * noise[:, None, :]
    error = (products.mean(0) - expected) / products.std(0)
    assert error.abs().max() < 4.5 / M**0.5


def test_cubic_regression(load, tmp_path, capsys, monkeypatch):
    script = load("plot_cubic_regression")
    monkeypatch.setattr(
        script,
        "protocol",
        lambda full: {"n_iter": 60, "record_every": 20, "n_seeds": 2},
    )
    result, table = run(script, tmp_path / "cubic.json", capsys)
    for name, runs in result["networks"].items():
        assert f"{name} parameters" in table
        k = 4 if name == "251" else 3
        assert np.shape(runs["cosines"]) == (2, 4, k)
        assert np.shape(runs["loss"]) == (2, 4)


def test_what_the_cubic_regression_measures(load):
    """For a network that is linear in θ, with data of one input: known H, Σ, norms."""
    script = load("plot_cubic_regression")
    module = torch.nn.Linear(1, 1)
    risk = script.make_risk(module, 20)
    X, y = (torch.as_tensor(part) for part in script.make_cubic_regression(20))
    design = torch.cat([X, torch.ones(20, 1)], 1)
    theta = torch.tensor([0.3, -0.2], dtype=torch.float64)
    row = script.measure(risk, risk, theta, lr=0.1, k=1)
    rows = 2 * (design @ theta - y)[:, None] * design
    H, S = 2 * design.T @ design / 20, rows.T.cov(correction=0)
    first = [torch.linalg.eigh(matrix).eigenvectors[:, -1] for matrix in (H, S)]
    expected = {
        "loss": (design @ theta - y).square().mean(),
        "cosines": (first[0] @ first[1]).abs()[None],
        "overlap": (first[0] @ first[1]).square(),
        "hessian_eigenvalues": torch.linalg.eigvalsh(H)[-1:] / H.norm(),
        "covariance_eigenvalues": torch.linalg.eigvalsh(S)[-1:] / S.norm(),
        "gradient_norm": rows.mean(0).norm(),
        "noise_norm": (0.1 * S.trace() / 5).sqrt(),
        "noise_norm_in_gradient_units": (S.trace() / 5).sqrt(),
    }
    for key, value in expected.items():
        torch.testing.assert_close(row[key], value)


def test_fisher_equals_hessian(load, tmp_path, capsys):
    script = load("plot_fisher_equals_hessian")
    result, table = run(script, tmp_path / "fisher.json", capsys)
    assert list(result["gaps"]) == list(script.LOOKS)
    assert "exponent" in table


def test_gaps_of_the_logistic_regression(load):
    """H = (1/N) Σ p(1 - p) xxᵀ, Σ that of (p - y) x; at 0, Σ = H - g₀g₀ᵀ."""
    script = load("plot_fisher_equals_hessian")
    X, y, _ = script.draw_data(50, seed=0)
    risk, zero = script.make_risk(X, y), torch.zeros(5, dtype=torch.float64)
    p = torch.sigmoid(X @ script.TRUTH)
    H = (X.T * (p * (1 - p))) @ X / 50
    S = ((p - y)[:, None] * X).T.cov(correction=0)
    expected = float((S - H).norm() / H.norm())
    assert script.gap(risk, script.TRUTH) == pytest.approx(expected)
    H, gradient = X.T @ X / 200, X.T @ (0.5 - y) / 50
    expected = float(gradient.square().sum() / H.norm())
    assert script.gap(risk, zero) == pytest.approx(expected)


def test_one_hidden_layer(load, tmp_path, capsys, monkeypatch):
    script = load("plot_one_hidden_layer")
    monkeypatch.setattr(script, "N_UNITS", 60)
    result, table = run(script, tmp_path / "layer.json", capsys)
    assert np.shape(result["runs"]["trace_HS"]) == (2, 7)
    assert "gain" in table


def test_the_bound_on_the_gain_holds(load, monkeypatch):
    """Tr(HΣ) ≥ λ₁ u₁ᵀΣu₁ for a positive semi-definite H, which this network has."""
    script = load("plot_one_hidden_layer")
    monkeypatch.setattr(script, "N_UNITS", 10)
    risk, y = script.make_risk(3, 60)
    row = script.measure(risk, risk.params(), y)
    assert row["negative_share"] < 1e-6
    gain = row["trace_HS"] / row["isotropic"]
    assert 0 < row["alignment"] * row["bound_without_a"] <= gain * (1 + 1e-9)


def test_noise_against_gradient(load, tmp_path, capsys, monkeypatch):
    script = load("plot_noise_against_gradient")
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 1, 28, 28)).astype(np.float32)
    data = type("Data", (), {"data": X, "target": np.arange(60) % 10})
    monkeypatch.setattr(script, "load_noisy_fashion_mnist", lambda *a, **k: data)
    result, table = run(script, tmp_path / "noise.json", capsys)
    assert result["runs"][0]["iteration"][-1] == 300
    assert "noise / gradient" in table


def test_a_seed_is_taken_from_its_file(load, tmp_path):
    script = load("_record")
    arguments = Bunch(output=tmp_path / "result.json")
    calls = []

    def measure(seed):
        calls.append(seed)
        return {"value": 2 * seed}

    for _ in range(2):
        found = [script.resumed(arguments, f"seed{s}", measure, s) for s in (1, 2)]
        assert [unit["value"] for unit in found] == [2, 4]
        assert {"revision", "command", "device"} <= set(found[0])
    assert calls == [1, 2]
    nowhere = Bunch(output=None)
    assert script.resumed(nowhere, "seed3", measure, 3) == {"value": 6}


@pytest.mark.slow
def test_alignment_on_fashion_mnist(load, tmp_path, capsys, monkeypatch):
    script = load("plot_alignment_on_fashion_mnist")
    sizes = {"n_iter": 2, "record_every": 1, "k": 2, "clean": 8, "corrupt": 2}
    monkeypatch.setattr(script, "SHORT", script.SHORT | sizes)
    rng = np.random.default_rng(0)
    images = rng.random((10, 1, 28, 28), dtype=np.float32)
    data = Bunch(data=images, target=np.arange(10))
    monkeypatch.setattr(script, "load_noisy_fashion_mnist", lambda *a, **k: data)
    result, table = run(script, tmp_path / "alignment.json", capsys)
    (found,) = result["runs"]
    rows = found["rows"]
    assert rows["iteration"] == [0, 1, 2]
    gain = np.array(rows["trace_product"]) * 11_330
    gain /= np.multiply(rows["hessian_trace"], rows["covariance_trace"])
    np.testing.assert_allclose(gain, rows["gain"], rtol=1e-4)
    overlap = 1 - np.array(rows["residual"]) / 2
    np.testing.assert_allclose(overlap, rows["overlap"], rtol=1e-3)
    assert list(found["layers"]) == [
        f"{name}.weight" for name in ("conv1", "conv2", "fc1", "fc2")
    ]
    assert "residual of random subspaces: 2.00" in table


def test_edge_of_stability(load, tmp_path, capsys, monkeypatch):
    script = load("plot_edge_of_stability")
    sizes = {"n_iter": 6, "record_every": 2, "n_draws": 2, "n_train": 40}
    monkeypatch.setattr(script, "SHORT", sizes)
    script.main(["--output", str(tmp_path)])
    assert "6 units, 0 missing" in capsys.readouterr().out
    (setting,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    units = [json.loads(path.read_text()) for path in setting.iterdir()]
    late = {
        (unit["law"], unit["seed"]): np.mean(unit["rows"]["stability"][-1:])
        for unit in units
    }
    stored = json.loads((tmp_path / "verdicts.json").read_text())
    i = stored["law"].index("sgd")
    right = np.mean([late["sgd", seed] - late["gd", seed] for seed in (10, 11)])
    assert stored["difference"][i] == pytest.approx(right, rel=1e-4)
    assert {
        unit["ends"]["noise_curvature"] for unit in units if unit["law"] == "gd"
    } == {0}
    # A second call runs what is missing, and nothing else.
    (setting / "gd-seed10.json").unlink()
    monkeypatch.setattr(script, "run_unit", lambda *args: {**units[0], "law": args[1]})
    script.main(["--output", str(tmp_path)])
    assert capsys.readouterr().out.count("json\n") == 1
    assert len(list(tmp_path.glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("law", "difference", "does", "claim"),
    [
        ("sgd", (-0.4, -0.5, -0.3), "moves", "reproduced"),
        ("sgd", (-0.4, -0.9, 0.1), "between", "partly"),
        ("sgd", (-0.1, -0.15, -0.05), "stays", "partly"),
        ("sgd", (0.1, 0.05, 0.15), "stays", "not"),
        ("gld_dynamic", (0.0, -0.1, 0.1), "stays", "reproduced"),
        ("gld_dynamic", (0.0, -0.3, 0.3), "between", "not"),
        ("gld_full", (-0.4, -0.5, -0.3), "moves", ""),
    ],
)
def test_the_verdict_at_the_edge(load, law, difference, does, claim):
    script = load("plot_edge_of_stability")
    mean, low, high = difference
    found = PairedDifference(mean, low, high, 0.01, 8)
    expected = {"does": does, "claim": claim}
    assert script.verdicts(law, found, -1, 0.2) == expected


def test_laws_at_the_edge_are_compared_on_the_seeds_of_both(load):
    # GD alone has the third seed, whose loss and curvature are far from the others.
    judge = load("plot_edge_of_stability").judge
    rows = [("gd", 0, 1.0, 1.0), ("gd", 1, 1.0, 3.0), ("gd", 2, 7.0, 500.0)]
    rows += [("sgd", 0, 0.5, 2.0), ("sgd", 1, 0.7, 2.0), ("sgd", 3, 9.0, 900.0)]
    names = ["law", "seed", "stability", "loss"]
    units = pd.DataFrame(rows, columns=names)
    units = units.assign(setting="s", diverged=False, test_accuracy=0.5)
    row = judge(units).query("column == 'stability'").iloc[0]
    assert row["n"] == 2
    found = row[["mean", "gd", "difference", "loss ratio"]].astype(float)
    assert found.tolist() == pytest.approx([0.6, 1.0, -0.4, 1.0])


def test_a_law_that_always_diverges_neither_stays_nor_moves(load):
    script = load("plot_edge_of_stability")
    rows = [("gd", seed, 1.0, 1.0, False) for seed in range(3)]
    rows += [("sgd", seed, 0.5 + 0.01 * seed, 1.0, False) for seed in range(3)]
    rows += [("gld_hessian", seed, np.nan, np.nan, True) for seed in range(3)]
    names = ["law", "seed", "stability", "loss", "diverged"]
    units = pd.DataFrame(rows, columns=names).assign(setting="s", test_accuracy=0.5)
    moves = [c for c in script.claims(units) if c.says == script.SAYS["moves"]]
    assert [c.verdict for c in moves] == ["partly"]
    assert "gld_hessian 3 diverged" in moves[0].effect


def test_smaller_steps_take_more_of_them(load):
    script = load("plot_edge_of_stability")
    sizes = {"n_iter": 6, "record_every": 3, "n_draws": 2, "n_train": 30}
    unit = script.run_unit(script.Setting(), "gd, η/4", 10, sizes)
    assert unit["rows"]["iteration"] == [0, 3, 6]
    whole = script.run_unit(script.Setting(lr=0.25), "gd", 10, sizes | {"n_iter": 24})
    assert unit["rows"]["loss"][-1] == whole["rows"]["loss"][-1]
    # λ₁η/2 with the η of the setting.
    ends = [u["rows"]["stability"][-1] for u in (unit, whole)]
    assert ends[0] == pytest.approx(4 * ends[1], rel=1e-6)


@pytest.mark.slow
def test_learning_rate_and_batch_size(load, tmp_path, capsys, monkeypatch):
    script = load("plot_learning_rate_and_batch_size")
    sizes = {"time": 0.1, "warmup": 2, "quench": 1, "loss": 2.25, "loss_iter": 2}
    monkeypatch.setattr(script, "SHORT", script.SHORT | sizes | {"curve": 1})
    rng = np.random.default_rng(0)
    images = rng.random((12, 1, 28, 28), dtype=np.float32)
    data = Bunch(data=images[:8], target=np.arange(8))
    data |= {"data_test": images[8:], "target_test": np.arange(4)}
    monkeypatch.setattr(script, "load_noisy_fashion_mnist", lambda *a, **k: data)
    call = ["--output", str(tmp_path), "--seeds", "20"]
    script.main(call)
    assert "8 units, 0 missing" in capsys.readouterr().out
    result, profiles = script.collect(script.parse_arguments(call))
    # η times the iterations is the same for all.
    last = result.table.query("phase == 'noise'").groupby("method")["iteration"].max()
    assert {last[label] * lr for label, (_, lr, _) in script.runs(False).items()} == {
        0.1
    }
    # The curves begin at θ_GD and end where the quench of that law did.
    losses = result.ends()["loss"]
    for law in ("sgd", "gd"):
        curve = profiles[20][law]["bezier"]["loss"]
        ends = [
            losses[phase, script.label_of(law), 20] for phase in ("start", "quench")
        ]
        assert [curve[0], curve[-1]] == pytest.approx(ends, rel=1e-4)
    stored = json.loads((tmp_path / "verdicts.json").read_text())
    assert stored["claims"] == {"sgd": "no interval yet"}
    # A second call runs what is missing, and nothing else.
    (tmp_path / "gd-lr=0.05-seed20.json").unlink()
    compare, asked = script.compare, []
    monkeypatch.setattr(
        script, "compare", lambda *args: asked.append(args[0]) or compare(*args)
    )
    script.main(call)
    assert asked == [["gd, lr=0.05"]]
    assert (tmp_path / "picture.png").exists()


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        ((0.05, -0.1, 0.15), "agree"),
        ((0.1, 0.05, 0.15), "agree"),
        ((0.05, -0.1, 0.2), "open"),  # log 1.2 is 0.182
        ((-0.1, -0.25, 0.05), "open"),  # log 0.8 is -0.223
        ((-0.2, -0.3, -0.1), "open"),
        ((-0.3, -0.4, -0.2), "differ"),
        ((0.3, -0.1, 0.7), "open"),
        ((np.nan, np.nan, np.nan), "open"),
    ],
)
def test_the_verdict_on_two_runs_at_one_ratio(load, difference, verdict):
    script = load("plot_learning_rate_and_batch_size")
    found = PairedDifference(*difference, 0.01, 4)
    assert script.agreement(found, script.BOUNDS["log_lambda_1"]) == verdict


@pytest.mark.parametrize(
    ("power", "factor", "claim"),
    [
        (-0.7, 1.1, "reproduced"),
        (0.2, 1.1, "partly"),
        (-0.7, 1.5, "partly"),
        (0.2, 1.5, "not"),
    ],
)
def test_the_verdict_on_the_size_of_the_noise(load, power, factor, claim):
    """λ₁ = c (η/m)^power for each seed, times a factor at m = 10."""
    script = load("plot_learning_rate_and_batch_size")
    seeds, rows = [20, 21, 22], []
    for label, (law, lr, m) in script.runs(True).items():
        for seed in seeds:
            at_ten = factor * (1 + 0.001 * seed) if m == 10 else 1
            wobble = 1 + 1e-3 * np.sin(seed * lr * 1e4)
            size = seed * wobble * at_ten * (1 if law == "gd" else (lr / m) ** power)
            row = {"phase": script.END, "method": label, "seed": seed}
            rows.append(row | {"lambda_1": size, "test_score": 0.6 + seed / 1000})
    index = ["phase", "method", "seed"]
    result = Bunch(ends=lambda: pd.DataFrame(rows).set_index(index), seeds=seeds)
    held, varied = (f(result, script.END) for f in (script.held, script.varied))
    slope = varied.query("law == 'sgd' and column == 'log_lambda_1'").iloc[0]
    assert slope["slope"] == pytest.approx(power, abs=0.01)
    assert slope["less gd"] == pytest.approx(power, abs=0.01)
    ten = held.query("law == 'sgd' and column == 'log_lambda_1' and m == 10").iloc[0]
    assert ten["difference"] == pytest.approx(np.log(factor * 1.021), abs=0.01)
    for law in script.LAWS:
        assert script.claim_on_size(held, varied, law) == claim


def test_the_verdict_on_the_landscape(load):
    """A noise that lifts the loss by 1, and curves that climb by 0.5 and by 2."""
    script = load("plot_learning_rate_and_batch_size")
    table = [
        {"method": script.label_of(law), "seed": seed, "phase": "noise"}
        | {"iteration": i, "loss": loss}
        for law in ("gd", "gld_dynamic", *script.LAWS)
        for seed in (20, 21, 22)
        for i, loss in enumerate([0.1, 5.0, 1.1, 1.1 + seed / 1000])
    ]
    result = Bunch(table=pd.DataFrame(table))
    climbs = {"sgd": 0.5, "gld_full": 2.0}
    laws = {}
    for law, climb in climbs.items():
        curve = {"loss": [0.1, 0.1 + climb, 0.0], "barrier": 0.3}
        laws[law] = {"segment": curve, "bezier": curve}
    profiles = dict.fromkeys((20, 21, 22), laws)
    found = script.barriers(result, profiles).set_index(["law", "curve"])
    assert found["climb"]["sgd", "bezier"] == pytest.approx(0.5)
    assert found["lift"]["sgd", "bezier"] == pytest.approx(1 + 0.021 / 2)
    assert found["verdict"]["sgd", "bezier"] == "reproduced"
    assert found["verdict"]["gld_full", "bezier"] == "not"
    assert found["verdict"]["sgd", "segment"] == ""


@pytest.mark.slow
def test_comparison_on_cifar10(load, tmp_path, capsys, monkeypatch):
    script = load("plot_comparison_on_cifar10")
    rng = np.random.default_rng(0)
    y = np.arange(50) % 10
    X = rng.random((50, 3, 32, 32), dtype=np.float32) + y[:, None, None, None] / 10

    def fetch(subset="train", return_X_y=True):
        return (X, y) if subset == "train" else (X[:20], y[:20])

    monkeypatch.setattr(script, "fetch_cifar10", fetch)
    arguments = ["--images", "30", "--output", str(tmp_path)]
    script.main([*arguments, "--methods", "gd", "sgd"])
    assert "quench" in capsys.readouterr().out
    files = sorted(path.name for path in (tmp_path / "short").glob("*.json"))
    assert files == ["gd_seed0.json", "sgd_seed0.json"]
    assert (tmp_path / "short.png").stat().st_size > 10_000
    stored = json.loads((tmp_path / "short" / "sgd_seed0.json").read_text())
    assert stored["protocol"]["estimator"]["module_params"] == {"width": 0.0625}
    # One seed is no verdict.
    result = ComparisonResult.from_json(tmp_path / "short" / "sgd_seed0.json")
    gd = ComparisonResult.from_json(tmp_path / "short" / "gd_seed0.json")
    (claim,) = script.claims(merge_comparisons([gd, result]))
    assert claim.verdict == "not tested at the paper's scale"
    assert "points, n = 1" in claim.effect
    first, second = (script.load(seed, {"images": 30, "test": 10}) for seed in (0, 1))
    assert first[0].shape == (30, 3, 32, 32)
    assert not np.array_equal(first[1], second[1])


def fake_images(n_clean, n_corrupt, random_state):
    """Return noise around a bright square for each class, at a place of its own."""
    rng = np.random.default_rng(random_state)
    y = np.arange(n_clean + n_corrupt) % 10
    X = rng.random((len(y), 1, 28, 28), dtype=np.float32) / 2
    for image, label in zip(X, y, strict=True):
        row, column = divmod(label, 4)
        image[0, 7 * row : 7 * row + 7, 7 * column : 7 * column + 7] += 0.5
    return Bunch(data=X, target=y)


def test_covariance_power_law(load, tmp_path, capsys, monkeypatch):
    script = load("plot_covariance_power_law")
    monkeypatch.setattr(script, "load_noisy_fashion_mnist", fake_images)
    sizes = {"stops": [5, 10], "max_matvecs": 30}
    monkeypatch.setattr(script, "SHORT", script.SHORT | sizes)
    result, _ = run(script, tmp_path / "law.json", capsys)
    assert [len(seed) for seed in result["runs"]] == [2, 2]
    # What is stored is what the measure says at a network trained in the same way.
    model = script.NoisyDiffusionClassifier(
        script.LeNet, method="sgd", lr=0.07, batch_size=20, max_iter=10,
        record_every=5, random_state=0,
    )  # fmt: skip
    data = fake_images(100, 20, random_state=0)
    model.fit(data.data, data.target)
    laws = script.covariance_exponents(
        model.risk_, model.risk_.params(), max_matvecs=30
    )
    stored = result["runs"][0][1]["layers"]
    assert stored
    assert {n: round(law.exponent, 4) for n, law in laws.items()} == {
        n: round(layer["exponent"], 4) for n, layer in stored.items()
    }


@pytest.mark.parametrize(
    ("exponents", "of_hessian", "of_power"),
    [
        ({"a": [1.0, 1.01, 0.99]}, "reproduced", "not"),
        ({"a": [1.4, 1.5, 1.6]}, "not", "reproduced"),
        ({"a": [1.4, 1.5, 1.6], "b": [0.5, 0.6, 0.7]}, "not", "partly"),
        ({"a": [1.0, 1.01, 0.99], "b": [0.5, 0.6, 0.7]}, "partly", "not"),
        ({"a": [1.0, 1.9, 1.5]}, "not", "not"),  # the interval is wide
    ],
)
def test_the_verdict_on_the_power_law(load, exponents, of_hessian, of_power):
    script = load("plot_covariance_power_law")
    runs = [
        [{"layers": {n: {"exponent": v[i]} for n, v in exponents.items()}}]
        for i in range(3)
    ]
    verdicts = [claim.verdict for claim in script.claims({"runs": runs})]
    assert verdicts == [of_hessian, of_power]


@pytest.mark.slow
def test_rmsprop_then_sgd(load, tmp_path, capsys, monkeypatch):
    script = load("plot_rmsprop_then_sgd")
    rng = np.random.default_rng(0)
    images, y = rng.random((40, 1, 28, 28), dtype=np.float32), np.arange(40) % 10
    data = Bunch(
        data=images[:12],
        target=y[:12],
        data_test=images[12:],
        target_test=y[12:],
        indices=np.arange(12),
    )
    monkeypatch.setattr(script, "load_noisy_fashion_mnist", lambda *a, **k: data)
    monkeypatch.setattr(script, "fetch_fashion_mnist", lambda **k: (images, y))
    sizes = {"start": 3, "more": 2, "every": 1, "k": 2, "unused": 9, "quench": 2}
    monkeypatch.setattr(script, "SHORT", script.SHORT | sizes)
    monkeypatch.setattr(script, "SGD_LRS", {"sgd at 0.1": 0.1})
    monkeypatch.setattr(script, "RUNS", ("continued", "sgd at 0.1"))
    script.main(["--output", str(tmp_path)])
    start, own, sgd = (
        json.loads((tmp_path / f"rmsprop-{name}-seed0.json").read_text())
        for name in ("start", "continued", "sgd-at-0.1")
    )
    # Both begin where the first phase ended, and the control has its optimizer's state.
    for unit in (own, sgd):
        assert unit["rows"]["loss"][0] == pytest.approx(start["rows"]["loss"][-1])
    state = torch.load(tmp_path / "states" / "rmsprop-seed0.pt", weights_only=True)
    squares = [
        part["square_avg"].flatten() for part in state["state"]["state"].values()
    ]
    P = 1 / (torch.cat(squares).sqrt() + 1e-8)
    found = start["preconditioner"]["median"]
    assert found == pytest.approx(float(P.quantile(0.5)), rel=1e-4)
    assert start["alignment"]["PΣP"]["Tr(PΣP)"] > 0
    # A second call runs what is missing, and nothing else.
    (tmp_path / "rmsprop-continued-seed0.json").unlink()
    capsys.readouterr()
    script.main(["--output", str(tmp_path)])
    assert capsys.readouterr().out.count("json\n") == 1
    again = json.loads((tmp_path / "rmsprop-continued-seed0.json").read_text())
    assert again["rows"]["loss"] == own["rows"]["loss"]
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_resuming_an_optimizer(load):
    script = load("plot_rmsprop_then_sgd")
    settings = {"optimizer": "adam", "lr": 0.1, "method": "gd", "random_state": 0}
    X, y = np.eye(4, dtype=np.float32), np.arange(4) % 2
    fit = script.NoisyDiffusionClassifier
    whole = fit(max_iter=5, **settings).fit(X, y)
    first = fit(max_iter=3, **settings).fit(X, y)
    callback = script.Resume(first.net_.optimizer_.state_dict())
    for _ in range(2):  # the state is not moved
        rest = fit(
            max_iter=2, params_init=first.params_, callbacks=[callback], **settings
        ).fit(X, y)
        np.testing.assert_allclose(rest.params_, whole.params_, rtol=1e-6)


@pytest.mark.parametrize(
    ("column", "difference", "n_collapsed", "expected"),
    [
        ("test_score", (0.01, 0.005, 0.015), 0, "reproduced"),
        ("test_score", (0.004, 0.003, 0.005), 0, "partly"),
        ("test_score", (0.01, -0.005, 0.025), 0, "partly"),
        ("test_score", (-0.01, -0.02, -0.001), 1, "not"),
        ("end_sharpness", (-0.4, -0.5, -0.3), 0, "reproduced"),
        ("end_sharpness", (-0.1, -0.15, -0.05), 0, "partly"),
        ("end_sharpness", (-0.9, -1.0, -0.8), 1, "collapsed"),
        ("end_sharpness", (0.4, 0.3, 0.5), 0, "not"),
    ],
)
def test_the_verdict_after_rmsprop(load, column, difference, n_collapsed, expected):
    script = load("plot_rmsprop_then_sgd")
    found = PairedDifference(*difference, 0.01, 6)
    direction, least = script.CLAIMS[column]
    name = "sgd at 0.1"
    assert expected == script.verdict(
        found, direction, least, column, n_collapsed, name
    )


def test_the_claims_after_rmsprop(load):
    script = load("plot_rmsprop_then_sgd")
    rows = [
        {
            "optimizer": "rmsprop", "run": name, "seed": seed, "phase": phase,
            "collapsed": False, "test_score": 0.7 + gain + seed / 1000,
            "end_sharpness": (0.01 + seed / 10_000) * share,
            "end_adaptive_sharpness": 0.01, "unused_accuracy": 0.7 + gain,
        }
        for name, gain, share in (
            ("continued", 0, 1), ("sgd at 0.1", -0.02, 0.9), ("sgd at 0.05", 0.01, 0.5),
        )
        for phase in ("noise", "quench")
        for seed in range(3)
    ]  # fmt: skip
    found = {claim.says: claim for claim in script.claims(pd.DataFrame(rows))}
    papers, tuned = (
        {says.split(" than")[0]: claim for says, claim in found.items() if rate in says}
        for rate in ("0.1, the paper's rate", "0.05, the tuned rate")
    )
    assert papers["SGD generalises better"].verdict == "not"
    assert papers["SGD goes on to a flatter minimum"].verdict == "partly"
    assert {claim.verdict for claim in tuned.values()} == {"reproduced"}
    assert "1 (1 to 1) points, n = 3" in tuned["SGD generalises better"].effect
    assert "−50 (" in tuned["SGD goes on to a flatter minimum"].after
