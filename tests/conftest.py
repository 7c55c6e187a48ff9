"""What all tests share: one thread, what is skipped, where the real images lie."""

import logging
import os
from pathlib import Path

import pytest
import torch


def pytest_configure():
    # Workers of pytest-xdist already fill the cores; more threads only make them wait.
    # Without workers too: sums are the same to the last bit for one number of threads.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    if "slow" in config.option.markexpr:
        return
    skip = pytest.mark.skip(reason="is slow; run it with -m slow")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def no_fault_of_our_own(caplog):
    """Fail where a mistake in flatmin, and no module's, led to a slower path."""
    yield
    found = [
        record.getMessage() + "\n" + str(record.exc_info)
        for when in ("setup", "call")
        for record in caplog.get_records(when)
        if record.name.startswith("flatmin") and record.levelno >= logging.ERROR
    ]
    assert not found, found


@pytest.fixture(scope="session")
def fashion_mnist_home():
    """The folder that holds ``fashion-mnist/``, from ``FLATMIN_DATA``."""
    home = os.environ.get("FLATMIN_DATA")
    if home is None:
        found = "FLATMIN_DATA is not set"
    elif (Path(home) / "fashion-mnist" / "train-images-idx3-ubyte.gz").is_file():
        return Path(home)
    else:
        found = f"FLATMIN_DATA={home} has no fashion-mnist/train-images-idx3-ubyte.gz"
    pytest.skip(
        f"needs Fashion-MNIST, and {found}. Put the four .gz files of "
        "https://github.com/zalandoresearch/fashion-mnist (data/fashion) into a folder "
        "named fashion-mnist and set FLATMIN_DATA to the folder around it."
    )
