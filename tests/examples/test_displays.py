"""The script draws every Display."""

import pytest


@pytest.mark.slow
def test_every_display_is_drawn(
    load_example, fashion_mnist_home, tmp_path, monkeypatch
):
    monkeypatch.setenv("FLATMIN_DATA", str(fashion_mnist_home))
    module = load_example("plot_displays")
    module.main(["--output", str(tmp_path)])
    assert len(list(tmp_path.glob("*.png"))) == 7
