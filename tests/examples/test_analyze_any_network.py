"""The example as it is: its claims are asserted in it."""

import pytest


@pytest.mark.slow
def test_three_networks(load_example, capsys):
    module = load_example("plot_analyze_any_network")
    module.main()
    table = capsys.readouterr().out.splitlines()[-3:]
    assert [row.split()[1:3] for row in table] == [
        ["flatmin", "estimator"],
        ["skorch", "net"],
        ["PyTorch", "module"],
    ]
