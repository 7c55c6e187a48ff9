"""Small stand-ins for the image data sets, and a machine that is offline."""

import gzip
import hashlib
import os
import pickle
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import numpy as np
import pytest

from flatmin.datasets import (
    _cifar10_download,
    _cifar10_files,
    _fashion_mnist_files,
)
from flatmin.datasets._fashion_mnist_files import IdxFile, Split


def idx_bytes(array):
    """Encode an array as the IDX format prescribes."""
    lengths = np.array(array.shape, dtype=">u4")
    return bytes([0, 0, 8, array.ndim]) + lengths.tobytes() + array.tobytes()


class SmallFashionMnist(NamedTuple):
    """Arrays of the stand-in by split, and its files."""

    images: dict
    labels: dict

    def write(self, home, *, splits=("train", "test")):
        """Write the files under home / "fashion-mnist" and return that folder."""
        folder = home / "fashion-mnist"
        folder.mkdir(parents=True)
        for split in splits:
            files = _fashion_mnist_files.FILES[split]
            arrays = self.images[split], self.labels[split]
            for file, array in zip(files, arrays, strict=True):
                with gzip.open(folder / file.filename, "wb") as stream:
                    stream.write(idx_bytes(array))
        return folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No data set anywhere and no network."""

    def fail(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.delenv("FLATMIN_DATA", raising=False)
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "scikit-learn"))
    monkeypatch.setattr(_fashion_mnist_files, "fetch_openml", fail)
    monkeypatch.setattr(_cifar10_download, "fetch_openml", fail)
    monkeypatch.setattr(_cifar10_download, "urlopen", fail)


@pytest.fixture
def small(offline, monkeypatch):
    """A Fashion-MNIST of 40 training and 12 test images, not yet written."""
    rng = np.random.RandomState(0)
    images, labels, files = {}, {}, {}
    for split, n in [("train", 40), ("test", 12)]:
        images[split] = rng.randint(256, size=(n, 28, 28)).astype(np.uint8)
        labels[split] = rng.randint(10, size=n).astype(np.uint8)
        files[split] = Split(
            *(
                IdxFile(
                    original.filename,
                    array.shape,
                    hashlib.sha256(array.tobytes()).hexdigest(),
                )
                for original, array in zip(
                    _fashion_mnist_files.FILES[split],
                    (images[split], labels[split]),
                    strict=True,
                )
            )
        )
    monkeypatch.setattr(_fashion_mnist_files, "FILES", files)
    return SmallFashionMnist(images, labels)


class SmallCifar10(NamedTuple):
    """Rows and labels of the stand-in by batch, and its files."""

    pixels: dict
    labels: dict

    def content(self, name):
        """Return what the file of a batch holds."""
        return {b"data": self.pixels[name], b"labels": self.labels[name].tolist()}

    def write(self, parent):
        """Write the batches under parent and return their folder."""
        folder = parent / "cifar-10-batches-py"
        folder.mkdir(parents=True)
        for name in self.pixels:
            (folder / name).write_bytes(pickle.dumps(self.content(name), protocol=2))
        return folder


@pytest.fixture
def small_cifar10(offline, monkeypatch):
    """A CIFAR-10 of six batches of 8 images, not yet written."""
    rng = np.random.RandomState(0)
    pixels, labels, sums = {}, {}, {}
    for name in _cifar10_files.ORIGINAL:
        pixels[name] = rng.randint(256, size=(8, 3072)).astype(np.uint8)
        labels[name] = rng.randint(10, size=8).astype(np.uint8)
        rows = [bytes([y, *x]) for x, y in zip(pixels[name], labels[name], strict=True)]
        sums[name] = hashlib.sha1(b"".join(rows)).hexdigest()
    # In place: the table is imported by name elsewhere.
    for name, sha1 in sums.items():
        monkeypatch.setitem(_cifar10_files.ORIGINAL, name, sha1)
    return SmallCifar10(pixels, labels)


@pytest.fixture(scope="session")
def cifar10_home():
    """The folder that holds CIFAR-10, from ``FLATMIN_DATA``."""
    home = os.environ.get("FLATMIN_DATA")
    if home is None:
        found = "FLATMIN_DATA is not set"
    elif _cifar10_files.find_source(tuple(_cifar10_files.ORIGINAL), home)[0]:
        return Path(home)
    else:
        found = f"FLATMIN_DATA={home} has no cifar-10-batches-py"
    pytest.skip(
        f"needs CIFAR-10, and {found}. Put cifar-10-python.tar.gz, the python version "
        "of https://www.cs.toronto.edu/~kriz/cifar.html, or the folder that it holds "
        "into a folder, and set FLATMIN_DATA to that."
    )
