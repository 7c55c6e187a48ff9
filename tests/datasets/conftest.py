"""A small stand-in for Fashion-MNIST, and a machine that is offline."""

import gzip
import hashlib
from typing import NamedTuple
from urllib.error import URLError

import numpy as np
import pytest

from flatmin.datasets import _fashion_mnist_files
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
