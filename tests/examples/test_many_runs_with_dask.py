"""The example on fewer digits and iterations: its claims are asserted in it."""

import pytest


@pytest.mark.slow
def test_the_cluster_gives_the_table_of_one_process(load_example, monkeypatch, capsys):
    pytest.importorskip("distributed", reason="needs the extra 'distributed'")
    module = load_example("plot_many_runs_with_dask")
    for name in ("N", "N_ITER"):
        monkeypatch.setattr(module, name, getattr(module, name) // 3)
    module.main()
    printed = capsys.readouterr().out
    assert "in a worker: {1}" in printed
    assert printed.endswith("to the last digit, in one process\n")
