"""Finding, verifying and loading Fashion-MNIST."""

import doctest
import gzip
import os
from urllib.error import URLError

import numpy as np
import pytest
from sklearn.datasets import get_data_home
from sklearn.utils import Bunch

from flatmin.datasets import (
    _fashion_mnist_files,
    fetch_fashion_mnist,
    load_noisy_fashion_mnist,
)
from flatmin.datasets._homes import homes

FILENAMES = [
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
]


class FakeOpenml:
    """Stands in for ``fetch_openml``: the training rows, then the test rows."""

    def __init__(self, small):
        rows = np.concatenate([small.images["train"], small.images["test"]])
        labels = np.concatenate([small.labels["train"], small.labels["test"]])
        self.data = rows.reshape(len(rows), -1).astype(np.int64)
        self.target = labels.astype(str).astype(object)
        self.calls = []

    def __call__(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        return Bunch(data=self.data, target=self.target)


@pytest.fixture
def openml(small, monkeypatch):
    openml = FakeOpenml(small)
    monkeypatch.setattr(_fashion_mnist_files, "fetch_openml", openml)
    return openml


@pytest.mark.parametrize(
    ("subset", "splits"),
    [("train", ["train"]), ("test", ["test"]), ("all", ["train", "test"])],
)
def test_subsets(small, tmp_path, subset, splits):
    folder = small.write(tmp_path)
    bunch = fetch_fashion_mnist(data_home=tmp_path, subset=subset)
    images = np.concatenate([small.images[split] for split in splits])
    labels = np.concatenate([small.labels[split] for split in splits])

    assert bunch.data.dtype == np.float32
    expected = images[:, np.newaxis].astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(bunch.data, expected, strict=True)
    np.testing.assert_array_equal(bunch.target, labels.astype(np.int64), strict=True)
    assert bunch.path == str(folder)


def test_train_is_the_default(small, tmp_path):
    small.write(tmp_path)
    assert len(fetch_fashion_mnist(data_home=tmp_path).target) == 40


def test_the_rest_of_the_bunch(small, tmp_path):
    small.write(tmp_path)
    bunch = fetch_fashion_mnist(data_home=str(tmp_path))
    assert bunch.images.shape == (40, 28, 28)
    assert np.shares_memory(bunch.images, bunch.data)
    assert bunch.target_names.shape == (10,)
    assert bunch.target_names[[0, 9]].tolist() == ["T-shirt/top", "Ankle boot"]
    assert "MIT licence" in bunch.DESCR


def test_pixels_as_they_are(small, tmp_path):
    small.write(tmp_path)
    bunch = fetch_fashion_mnist(data_home=tmp_path, normalize=False)
    expected = small.images["train"][:, np.newaxis]
    np.testing.assert_array_equal(bunch.data, expected, strict=True)
    bunch.data[:] = 0
    again = fetch_fashion_mnist(data_home=tmp_path, normalize=False)
    np.testing.assert_array_equal(again.data, expected)


def test_the_tuple_holds_the_arrays_of_the_bunch(small, tmp_path):
    small.write(tmp_path)
    X, y = fetch_fashion_mnist(data_home=tmp_path, subset="test", return_X_y=True)
    bunch = fetch_fashion_mnist(data_home=tmp_path, subset="test")
    np.testing.assert_array_equal(X, bunch.data, strict=True)
    np.testing.assert_array_equal(y, bunch.target, strict=True)


def test_unknown_subset_lists_the_choices():
    match = r"one of \['train', 'test', 'all'\]. Got 'validation' instead"
    with pytest.raises(ValueError, match=match):
        fetch_fashion_mnist(subset="validation")


def test_places_are_searched_in_the_order_of_the_docstring(
    small, tmp_path, monkeypatch
):
    given, named, default = (tmp_path / name for name in ["given", "named", "default"])
    folders = [small.write(home) for home in (given, named, default)]
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(default))
    assert fetch_fashion_mnist().path == str(folders[2])
    monkeypatch.setenv("FLATMIN_DATA", str(named))
    assert fetch_fashion_mnist().path == str(folders[1])
    assert fetch_fashion_mnist(data_home=given).path == str(folders[0])


def test_an_empty_environment_variable_is_not_the_working_directory(
    small, tmp_path, monkeypatch
):
    small.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLATMIN_DATA", "")
    with pytest.raises(OSError, match="was not found"):
        fetch_fashion_mnist(download_if_missing=False)


def test_the_environment_variable_may_name_a_folder_without_the_data(
    small, tmp_path, monkeypatch
):
    folder = small.write(tmp_path / "default")
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "default"))
    monkeypatch.setenv("FLATMIN_DATA", str(tmp_path / "named"))
    assert fetch_fashion_mnist().path == str(folder)


def test_a_given_home_is_the_only_one_searched(small, tmp_path, monkeypatch):
    small.write(tmp_path / "named")
    monkeypatch.setenv("FLATMIN_DATA", str(tmp_path / "named"))
    with pytest.raises(OSError, match="was not found"):
        fetch_fashion_mnist(data_home=tmp_path / "given", download_if_missing=False)


def test_scikit_learns_folder_is_not_made_when_it_is_not_needed(
    small, tmp_path, monkeypatch
):
    small.write(tmp_path / "named")
    monkeypatch.setenv("FLATMIN_DATA", str(tmp_path / "named"))
    fetch_fashion_mnist()
    assert not (tmp_path / "scikit-learn").exists()


def test_a_tilde_is_the_home_of_the_user(small, tmp_path, monkeypatch):
    folder = small.write(tmp_path / "data")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert fetch_fashion_mnist(data_home="~/data").path == str(folder)


def test_only_the_files_of_the_subset_are_needed(small, tmp_path):
    small.write(tmp_path, splits=["test"])
    bunch = fetch_fashion_mnist(
        data_home=tmp_path, subset="test", download_if_missing=False
    )
    assert len(bunch.target) == 12
    with pytest.raises(OSError, match="Looked for train-images"):
        fetch_fashion_mnist(data_home=tmp_path, download_if_missing=False)


def test_download_if_missing_false_says_where_the_files_go(
    openml, tmp_path, monkeypatch
):
    monkeypatch.setenv("FLATMIN_DATA", str(tmp_path / "named"))
    with pytest.raises(OSError, match="download_if_missing is False") as caught:
        fetch_fashion_mnist(subset="all", download_if_missing=False)
    message = str(caught.value)
    assert f"in {tmp_path / 'named' / 'fashion-mnist'} and in" in message
    assert f"into {tmp_path / 'scikit-learn' / 'fashion-mnist'}" in message
    assert all(filename in message for filename in FILENAMES)
    assert "FLATMIN_DATA" in message
    assert "data_home" in message
    assert openml.calls == []


def test_offline_error_says_where_the_files_go(offline, tmp_path):
    with pytest.raises(
        OSError, match=r"could not be downloaded .*no network"
    ) as caught:
        fetch_fashion_mnist(data_home=tmp_path)
    message = str(caught.value)
    assert f"into {tmp_path / 'fashion-mnist'}" in message
    assert all(filename in message for filename in FILENAMES)
    assert "FLATMIN_DATA" in message
    assert "data_home" in message
    assert isinstance(caught.value.__cause__, URLError)


def test_openml_rows_are_the_training_images_then_the_test_images(
    openml, small, tmp_path
):
    for split in ["train", "test"]:
        bunch = fetch_fashion_mnist(data_home=tmp_path, subset=split, normalize=False)
        np.testing.assert_array_equal(bunch.images, small.images[split])
        np.testing.assert_array_equal(bunch.target, small.labels[split])


def test_openml_is_asked_once_with_data_home_as_its_cache(openml, tmp_path):
    fetch_fashion_mnist(data_home=tmp_path)
    fetch_fashion_mnist(data_home=tmp_path, subset="all", download_if_missing=False)
    ((args, kwargs),) = openml.calls
    assert args == ("Fashion-MNIST",)
    assert kwargs["version"] == 1
    assert kwargs["as_frame"] is False
    assert kwargs["data_home"] == str(tmp_path)
    folder = tmp_path / "fashion-mnist"
    assert sorted(path.name for path in folder.iterdir()) == FILENAMES


def test_a_download_goes_to_scikit_learns_folder_by_default(
    openml, tmp_path, monkeypatch
):
    monkeypatch.setenv("FLATMIN_DATA", str(tmp_path / "named"))
    bunch = fetch_fashion_mnist()
    assert bunch.path == str(tmp_path / "scikit-learn" / "fashion-mnist")
    assert not (tmp_path / "named").exists()


def test_openml_rows_in_another_order_are_refused(openml, tmp_path):
    openml.data = np.roll(openml.data, 1, axis=0)
    match = "OpenML's copy of train-images.* SHA-256 .*Delete the folder .*openml"
    with pytest.raises(OSError, match=match):
        fetch_fashion_mnist(data_home=tmp_path)
    assert not (tmp_path / "fashion-mnist").exists()


def test_a_download_completes_a_folder_and_keeps_its_files(openml, small, tmp_path):
    folder = small.write(tmp_path)
    (folder / FILENAMES[3]).unlink()
    for path in folder.iterdir():
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), mtime=0))
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    bunch = fetch_fashion_mnist(data_home=tmp_path)
    np.testing.assert_array_equal(bunch.target, small.labels["train"])
    assert len(openml.calls) == 1
    assert all(path.read_bytes() == content for path, content in kept.items())


@pytest.mark.parametrize("filename", FILENAMES)
def test_a_changed_byte_names_the_file(small, tmp_path, filename):
    path = small.write(tmp_path) / filename
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-1] ^= 1
    path.write_bytes(gzip.compress(content))
    match = f"{filename} must hold .* SHA-256 checksum .*Replace it .*or delete it"
    with pytest.raises(OSError, match=match):
        fetch_fashion_mnist(data_home=tmp_path, subset="all")


def test_another_compression_is_accepted(small, tmp_path):
    path = small.write(tmp_path) / FILENAMES[2]
    before = path.read_bytes()
    path.write_bytes(gzip.compress(gzip.decompress(before), compresslevel=1, mtime=0))
    assert path.read_bytes() != before
    assert len(fetch_fashion_mnist(data_home=tmp_path).target) == 40


def test_swapped_files_are_refused(small, tmp_path):
    folder = small.write(tmp_path)
    (folder / FILENAMES[0]).replace(folder / FILENAMES[2])
    match = r"train-images.* must hold an array of shape \(40, 28, 28\). Got .*\(12, 28"
    with pytest.raises(OSError, match=match):
        fetch_fashion_mnist(data_home=tmp_path)


def test_a_truncated_file_is_named(small, tmp_path):
    path = small.write(tmp_path) / FILENAMES[2]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OSError, match=r"train-images.* is not a complete gzip file"):
        fetch_fashion_mnist(data_home=tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("filename", FILENAMES)
def test_a_named_pipe_is_refused_before_a_download(openml, tmp_path, filename):
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    os.mkfifo(folder / filename)
    with pytest.raises(OSError, match=f"{filename} must be a regular file. Got a nam"):
        fetch_fashion_mnist(data_home=tmp_path)
    assert openml.calls == []


def test_a_folder_in_the_place_of_a_file_is_refused(offline, tmp_path):
    (tmp_path / "fashion-mnist" / FILENAMES[2]).mkdir(parents=True)
    with pytest.raises(OSError, match=r"must be a regular file\. Got a folder"):
        fetch_fashion_mnist(data_home=tmp_path)


def test_no_folder_is_made_where_nothing_may_be_downloaded(offline, tmp_path):
    with pytest.raises(OSError, match="download_if_missing is False"):
        fetch_fashion_mnist(download_if_missing=False)
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_is_that_of_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.delenv("FLATMIN_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for named in ("~/named", None):
        if named:
            monkeypatch.setenv("SCIKIT_LEARN_DATA", named)
        else:
            monkeypatch.delenv("SCIKIT_LEARN_DATA")
        assert [str(home) for home in homes(None)] == [get_data_home()]


def test_the_real_images_pass_the_pinned_checksums(fashion_mnist_home):
    bunch = fetch_fashion_mnist(data_home=fashion_mnist_home, subset="all")
    train = bunch.data[:60_000].astype(np.float64)
    assert bunch.data.shape == (70_000, 1, 28, 28)
    assert (bunch.data.min(), bunch.data.max()) == (0, 1)
    assert train.mean() == pytest.approx(0.2860, abs=5e-5)
    assert train.std() == pytest.approx(0.3530, abs=5e-5)
    np.testing.assert_array_equal(np.bincount(bunch.target[:60_000]), 6000)
    np.testing.assert_array_equal(np.bincount(bunch.target[60_000:]), 1000)


@pytest.mark.parametrize("function", [fetch_fashion_mnist, load_noisy_fashion_mnist])
def test_the_examples_of_the_docstrings_hold(fashion_mnist_home, monkeypatch, function):
    monkeypatch.setenv("FLATMIN_DATA", str(fashion_mnist_home))
    (test,) = doctest.DocTestFinder(recurse=False).find(
        function, function.__name__, globs={}
    )
    for example in test.examples:
        example.options.pop(doctest.SKIP, None)
    results = doctest.DocTestRunner().run(test)
    assert results.attempted >= 3
    assert results.failed == 0
