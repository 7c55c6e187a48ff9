"""The quickstart, on few iterations and in this process."""

import joblib
import matplotlib as mpl
import pytest


@pytest.fixture
def quickstart(load_example, monkeypatch):
    mpl.use("Agg")
    module = load_example("plot_quickstart")
    monkeypatch.setattr(module, "N_ITER", 50)
    monkeypatch.setattr(module, "N_QUENCH", 25)
    monkeypatch.setitem(module.WARMUP, "max_iter", 25)
    # Workers do not know a module that was loaded from a path.
    with joblib.parallel_config("sequential"):
        yield module


def test_table_and_picture_hold_every_method(quickstart, tmp_path, monkeypatch, capsys):
    names = ["gd", "sgd", "gld_full"]
    monkeypatch.setattr(quickstart, "PAPER", {name: {} for name in names})
    monkeypatch.setattr(
        "sys.argv", ["quickstart.py", "--seeds", "3", "4", "--output", str(tmp_path)]
    )
    quickstart.main()
    printed = capsys.readouterr().out
    table = printed.split("quenched")[1].split("The picture")[0].splitlines()
    assert [row.split()[0] for row in table[2:] if row] == names
    assert str(tmp_path / "quickstart.png") in printed
    assert (tmp_path / "quickstart.png").stat().st_size > 10_000
