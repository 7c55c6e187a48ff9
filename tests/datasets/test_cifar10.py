"""Finding, reading, identifying and downloading CIFAR-10.

The download is tested against stand-ins for the homepage and for OpenML.
"""

import doctest
import gzip
import hashlib
import io
import os
import pickle
import tarfile
import warnings
from urllib.error import URLError

import numpy as np
import pytest
from sklearn.utils import Bunch

from flatmin.datasets import _cifar10_download, _cifar10_files, fetch_cifar10

TRAIN = [f"data_batch_{number}" for number in range(1, 6)]
TEST = ["test_batch"]


def archive_of(folder, path, prefix="cifar-10-batches-py/"):
    """Pack a folder of batches, in an order that is not that of the names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for member in sorted(folder.iterdir(), reverse=True):
            archive.add(member, prefix + member.name)
    return path


class Malicious:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class FakeHomepage:
    """Stands in for ``urlopen``: serves one file, and counts the calls."""

    def __init__(self, content):
        self.content = content
        self.calls = []

    def __call__(self, url, **kwargs):
        self.calls.append((url, kwargs))
        return io.BytesIO(self.content)


class FakeOpenml:
    """Stands in for ``fetch_openml``: the batches in some order."""

    def __init__(self, small, names):
        rows = np.concatenate([small.pixels[name] for name in names])
        labels = np.concatenate([small.labels[name] for name in names])
        self.data = rows.astype(np.int64)
        self.target = labels.astype(str).astype(object)
        self.calls = []

    def __call__(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        return Bunch(data=self.data, target=self.target)


@pytest.fixture
def homepage(small_cifar10, monkeypatch, tmp_path):
    folder = small_cifar10.write(tmp_path / "homepage")
    path = archive_of(folder, tmp_path / "homepage" / "archive")
    homepage = FakeHomepage(path.read_bytes())
    monkeypatch.setattr(_cifar10_download, "urlopen", homepage)
    return homepage


@pytest.fixture
def openml(small_cifar10, monkeypatch):
    openml = FakeOpenml(small_cifar10, TEST + TRAIN[::-1])
    monkeypatch.setattr(_cifar10_download, "fetch_openml", openml)
    return openml


@pytest.fixture
def re_encoded(small_cifar10, monkeypatch):
    """The stand-in, known as the re-encoded copy."""
    for name, sha1 in _cifar10_files.ORIGINAL.items():
        monkeypatch.setitem(_cifar10_files.RE_ENCODED, name, sha1)
        monkeypatch.setitem(_cifar10_files.ORIGINAL, name, "0" * 40)
    return small_cifar10


@pytest.mark.parametrize(
    ("subset", "names"), [("train", TRAIN), ("test", TEST), ("all", TRAIN + TEST)]
)
@pytest.mark.parametrize("packed", [False, True])
def test_subsets(small_cifar10, tmp_path, subset, names, packed):
    source = small_cifar10.write(tmp_path)
    if packed:
        source = archive_of(source, tmp_path / "a" / "cifar-10-python.tar.gz")
    bunch = fetch_cifar10(data_home=source.parent, subset=subset)
    rows = np.concatenate([small_cifar10.pixels[name] for name in names])
    labels = np.concatenate([small_cifar10.labels[name] for name in names])

    expected = rows.reshape(-1, 3, 32, 32).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(bunch.data, expected, strict=True)
    np.testing.assert_array_equal(bunch.target, labels.astype(np.int64), strict=True)
    assert bunch.path == str(source)
    assert bunch.origin == "original"


def test_train_is_the_default(small_cifar10, tmp_path):
    small_cifar10.write(tmp_path)
    assert len(fetch_cifar10(data_home=tmp_path).target) == 40


def test_the_rest_of_the_bunch(small_cifar10, tmp_path):
    small_cifar10.write(tmp_path)
    bunch = fetch_cifar10(data_home=str(tmp_path))
    assert bunch.images.shape == (40, 32, 32, 3)
    assert np.shares_memory(bunch.images, bunch.data)
    np.testing.assert_array_equal(bunch.images[3, 4, 5], bunch.data[3, :, 4, 5])
    assert bunch.target_names.shape == (10,)
    assert bunch.target_names[[0, 9]].tolist() == ["airplane", "truck"]
    assert "Krizhevsky" in bunch.DESCR


@pytest.mark.parametrize("subset", ["train", "test"])
def test_pixels_as_they_are(small_cifar10, tmp_path, subset):
    small_cifar10.write(tmp_path)
    bunch = fetch_cifar10(data_home=tmp_path, subset=subset, normalize=False)
    names = TRAIN if subset == "train" else TEST
    rows = np.concatenate([small_cifar10.pixels[name] for name in names])
    np.testing.assert_array_equal(bunch.data, rows.reshape(-1, 3, 32, 32), strict=True)
    assert bunch.data.flags.writeable


def test_the_tuple_holds_the_arrays_of_the_bunch(small_cifar10, tmp_path):
    small_cifar10.write(tmp_path)
    X, y = fetch_cifar10(data_home=tmp_path, subset="test", return_X_y=True)
    bunch = fetch_cifar10(data_home=tmp_path, subset="test")
    np.testing.assert_array_equal(X, bunch.data, strict=True)
    np.testing.assert_array_equal(y, bunch.target, strict=True)


def test_unknown_subset_lists_the_choices():
    match = r"of fetch_cifar10 must be .*\['train', 'test', 'all'\]. Got 'validation'"
    with pytest.raises(ValueError, match=match):
        fetch_cifar10(subset="validation")


def test_places_are_searched_in_the_order_of_the_docstring(
    small_cifar10, tmp_path, monkeypatch
):
    default, named, given = (tmp_path / name for name in ["default", "named", "given"])
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(default))
    # From the last place to the first, so that each takes precedence when it appears.
    places = [
        (None, default / "cifar-10"),
        (None, default),
        (None, named / "cifar-10"),
        (None, named),
        (given, given / "cifar-10"),
        (given, given),
    ]
    for data_home, parent in places:
        if parent.is_relative_to(named):
            monkeypatch.setenv("FLATMIN_DATA", str(named))
        folder = small_cifar10.write(parent)
        assert fetch_cifar10(data_home=data_home).path == str(folder)


def test_only_the_batches_of_the_subset_are_needed(small_cifar10, tmp_path):
    folder = small_cifar10.write(tmp_path)
    (folder / "data_batch_3").unlink()
    assert len(fetch_cifar10(data_home=tmp_path, subset="test").target) == 8
    with pytest.raises(OSError, match="was not found"):
        fetch_cifar10(data_home=tmp_path, download_if_missing=False)


def test_the_archive_stands_in_for_an_incomplete_folder(small_cifar10, tmp_path):
    folder = small_cifar10.write(tmp_path)
    archive = archive_of(folder, tmp_path / "cifar-10-python.tar.gz")
    assert fetch_cifar10(data_home=tmp_path).path == str(folder)
    (folder / "data_batch_3").unlink()
    assert fetch_cifar10(data_home=tmp_path).path == str(archive)


def test_an_archive_may_name_its_members_from_the_working_directory(
    small_cifar10, tmp_path
):
    folder = small_cifar10.write(tmp_path / "unpacked")
    archive_of(folder, tmp_path / "cifar-10-python.tar.gz", "./cifar-10-batches-py/")
    assert len(fetch_cifar10(data_home=tmp_path).target) == 40


def test_the_re_encoded_copy_is_named_without_a_warning(re_encoded, tmp_path):
    re_encoded.write(tmp_path)
    assert fetch_cifar10(data_home=tmp_path, subset="all").origin == "re-encoded"


def change_a_pixel(small):
    small.pixels["test_batch"][-1, -1] ^= 1


def change_a_label(small):
    small.labels["test_batch"][0] = (small.labels["test_batch"][0] + 1) % 10


def swap_two_batches(small):
    pixels, labels = small
    for arrays in (pixels, labels):
        first, last = arrays["data_batch_1"], arrays["test_batch"]
        arrays["data_batch_1"], arrays["test_batch"] = last, first


def drop_a_row(small):
    for arrays in small:
        arrays["test_batch"] = arrays["test_batch"][:-1]


@pytest.mark.parametrize(
    "change", [change_a_pixel, change_a_label, swap_two_batches, drop_a_row]
)
def test_anything_else_is_loaded_with_a_warning(small_cifar10, tmp_path, change):
    change(small_cifar10)
    small_cifar10.write(tmp_path)
    with pytest.warns(UserWarning, match="not those of the original") as caught:
        bunch = fetch_cifar10(data_home=tmp_path, subset="test")
    assert bunch.origin == "unknown"
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(bunch.target, small_cifar10.labels["test_batch"])


def test_a_mixture_of_two_copies_is_unknown(small_cifar10, tmp_path, monkeypatch):
    sha1 = _cifar10_files.ORIGINAL["data_batch_1"]
    monkeypatch.setitem(_cifar10_files.RE_ENCODED, "data_batch_1", sha1)
    monkeypatch.setitem(_cifar10_files.ORIGINAL, "data_batch_1", "0" * 40)
    small_cifar10.write(tmp_path)
    with pytest.warns(UserWarning, match="nor of a known copy"):
        assert fetch_cifar10(data_home=tmp_path).origin == "unknown"
    assert fetch_cifar10(data_home=tmp_path, subset="test").origin == "original"


@pytest.mark.parametrize("packed", [False, True])
def test_a_malicious_file_is_refused_and_does_not_run(small_cifar10, tmp_path, packed):
    trace = tmp_path / "it_ran"
    folder = small_cifar10.write(tmp_path / "home")
    content = pickle.dumps(Malicious(f"touch {trace}"), protocol=2)
    (folder / "test_batch").write_bytes(content)
    if packed:
        archive_of(folder, tmp_path / "packed" / "cifar-10-python.tar.gz")
    match = (
        r"test_batch must be a pickle of plain values .* asks for (posix|nt)\.system"
    )
    with pytest.raises(OSError, match=match):
        fetch_cifar10(
            data_home=tmp_path / ("packed" if packed else "home"), subset="test"
        )
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ([], "a list"),
        ({"data": 0}, r"the keys \['data'\]"),
        ({b"data": [0], b"labels": [0]}, "a b'data' of type list"),
        (
            {b"data": np.zeros((2, 3071), np.uint8), b"labels": [0, 1]},
            r"b'data' of shape \(2, 3071\)",
        ),
        (
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]},
            "2 rows and 1 labels",
        ),
        (
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]},
            "labels that are none of 0 to 9",
        ),
        (
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, True]},
            "labels that are none of 0 to 9",
        ),
    ],
)
def test_a_pickle_of_something_else_is_refused(small_cifar10, tmp_path, content, got):
    folder = small_cifar10.write(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(OSError, match=f"test_batch must be a dict .* Got {got}; repl"):
        fetch_cifar10(data_home=tmp_path, subset="test")


def test_a_truncated_archive_is_named(small_cifar10, tmp_path):
    folder = small_cifar10.write(tmp_path / "unpacked")
    archive = archive_of(folder, tmp_path / "cifar-10-python.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-3000])
    with pytest.raises(OSError, match=r"python.tar.gz is not a complete archive"):
        fetch_cifar10(data_home=tmp_path, subset="all")


def test_a_file_that_is_no_archive_is_named(small_cifar10, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(OSError, match=r"python.tar.gz is not a complete archive"):
        fetch_cifar10(data_home=tmp_path)


def test_an_archive_without_a_batch_is_named(small_cifar10, tmp_path):
    folder = small_cifar10.write(tmp_path / "unpacked")
    (folder / "data_batch_3").unlink()
    archive_of(folder, tmp_path / "cifar-10-python.tar.gz")
    with pytest.raises(OSError, match=r"tar.gz must hold .* Got no data_batch_3; repl"):
        fetch_cifar10(data_home=tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08", b"abc", b"\0\0\0"])
def test_an_archive_of_a_few_bytes_is_named(offline, tmp_path, content):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(content)
    match = r"python.tar.gz (is not a complete archive|must hold)"
    with pytest.raises(OSError, match=match):
        fetch_cifar10(data_home=tmp_path)


def member(name, size=0, kind=tarfile.REGTYPE, link=""):
    header = tarfile.TarInfo(name)
    header.size, header.type, header.linkname = size, kind, link
    return header.tobuf(tarfile.GNU_FORMAT)


BATCH = "cifar-10-batches-py/test_batch"


@pytest.mark.parametrize(
    ("header", "got"),
    [
        (member("../" + BATCH, 512), "must hold"),
        (member("/" + BATCH, 512), "must hold"),
        (member(BATCH, 0, tarfile.SYMTYPE, "/etc/passwd"), "must hold"),
        (member(BATCH, 0, tarfile.LNKTYPE, "/etc/passwd"), "must hold"),
        (member(BATCH, 0, tarfile.CHRTYPE), "must hold"),
        (member(BATCH, 0, tarfile.FIFOTYPE), "must hold"),
        (member(BATCH, 2**62), "must end within"),
        (member(BATCH, -512), "must end within"),
        (member("other", 2**62), "must end within"),
        (member("other", 2**62, tarfile.XHDTYPE), "must end within"),
        (member(BATCH, 2**20), "not a complete archive .it ends within"),
        (member(BATCH, 512), "must be a pickle"),
        (b"\xff" * 512, "not a complete archive"),
    ],
)
def test_a_hostile_archive_is_refused(offline, tmp_path, header, got):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(gzip.compress(header + bytes(4096)))
    before = set(tmp_path.iterdir())
    with pytest.raises(OSError, match=rf"python.tar.gz\S* (is )?{got}"):
        fetch_cifar10(data_home=tmp_path, subset="test")
    assert set(tmp_path.iterdir()) == before


def test_an_archive_that_grows_is_refused(small_cifar10, tmp_path, monkeypatch):
    folder = small_cifar10.write(tmp_path / "unpacked")
    path = archive_of(folder, tmp_path / "cifar-10-python.tar.gz")
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(2**24)))
    fetch_cifar10(data_home=tmp_path)
    monkeypatch.setattr(_cifar10_files, "_MAX_ARCHIVE_BYTES", 2**22)
    with pytest.raises(OSError, match=r"tar.gz must hold 4194304 bytes at most"):
        fetch_cifar10(data_home=tmp_path)


def test_a_flipped_bit_is_refused_or_warned_of(small_cifar10, tmp_path):
    folder = small_cifar10.write(tmp_path)
    path = folder / "test_batch"
    original = path.read_bytes()
    right = fetch_cifar10(data_home=tmp_path, subset="test", normalize=False)
    rng = np.random.RandomState(0)
    # Half of them among the steps that are not pixels.
    bits = np.r_[
        rng.randint(8 * len(original), size=150),
        rng.randint(8 * 100, size=75),
        8 * len(original) - 1 - rng.randint(8 * 100, size=75),
    ]
    refused = warned = 0
    for bit in bits:
        flipped = bytearray(original)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                bunch = fetch_cifar10(
                    data_home=tmp_path, subset="test", normalize=False
                )
            except OSError as error:
                refused += str(path) in str(error)
                continue
        if caught:
            assert bunch.origin == "unknown"
            warned += 1
        else:
            np.testing.assert_array_equal(bunch.data, right.data)
            np.testing.assert_array_equal(bunch.target, right.target)
    assert refused > 50
    assert warned > 50


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize(
    "name", ["cifar-10-python.tar.gz", "cifar-10-batches-py/test_batch"]
)
def test_a_named_pipe_is_refused(offline, tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    match = f"{path} must be a regular file. Got a named pipe"
    with pytest.raises(OSError, match=match):
        fetch_cifar10(data_home=tmp_path, subset="test")


def test_no_folder_is_made_where_nothing_may_be_downloaded(offline, tmp_path):
    with pytest.raises(OSError, match="download_if_missing is False"):
        fetch_cifar10(download_if_missing=False)
    assert list(tmp_path.iterdir()) == []


def test_download_if_missing_false_says_where_the_files_go(
    homepage, openml, tmp_path, monkeypatch
):
    monkeypatch.setenv("FLATMIN_DATA", str(tmp_path / "named"))
    with pytest.raises(OSError, match="download_if_missing is False") as caught:
        fetch_cifar10(download_if_missing=False)
    message = str(caught.value)
    assert f"Looked in {tmp_path / 'named'} and in" in message
    assert f"into {tmp_path / 'scikit-learn' / 'cifar-10'} or" in message
    assert "cifar-10-python.tar.gz" in message
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in message
    assert "FLATMIN_DATA" in message
    assert "data_home" in message
    assert homepage.calls == openml.calls == []


def test_offline_error_says_where_the_files_go(offline, tmp_path):
    match = r"neither from https.*no network.* nor from OpenML .*no network"
    with pytest.raises(OSError, match=match) as caught:
        fetch_cifar10(data_home=tmp_path / "home")
    assert f"into {tmp_path / 'home' / 'cifar-10'} or" in str(caught.value)
    assert isinstance(caught.value.__cause__, URLError)
    assert not (tmp_path / "home").exists()


def test_the_archive_is_downloaded_once(homepage, openml, small_cifar10, tmp_path):
    home = tmp_path / "home"
    bunch = fetch_cifar10(data_home=home)
    assert bunch.origin == "original"
    assert bunch.path == str(home / "cifar-10" / "cifar-10-python.tar.gz")
    again = fetch_cifar10(data_home=home, subset="test", download_if_missing=False)
    np.testing.assert_array_equal(again.target, small_cifar10.labels["test_batch"])
    ((url, kwargs),) = homepage.calls
    assert url == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert kwargs["timeout"] > 0
    assert [path.name for path in (home / "cifar-10").iterdir()] == [
        "cifar-10-python.tar.gz"
    ]
    assert openml.calls == []


def test_a_download_goes_to_scikit_learns_folder_by_default(
    homepage, tmp_path, monkeypatch
):
    monkeypatch.setenv("FLATMIN_DATA", str(tmp_path / "named"))
    path = tmp_path / "scikit-learn" / "cifar-10" / "cifar-10-python.tar.gz"
    assert fetch_cifar10().path == str(path)
    assert not (tmp_path / "named").exists()


@pytest.mark.parametrize("damage", ["cut", "another copy"])
def test_a_download_that_is_not_the_original_is_not_kept(
    homepage, tmp_path, monkeypatch, damage
):
    if damage == "cut":
        homepage.content, got = homepage.content[:-3000], "not a complete archive"
    else:
        monkeypatch.setitem(_cifar10_files.ORIGINAL, "test_batch", "0" * 40)
        got = "not the original: unknown"
    with pytest.raises(OSError, match=f"neither from .*{got}.* nor from OpenML"):
        fetch_cifar10(data_home=tmp_path)
    assert list((tmp_path / "cifar-10").iterdir()) == []


def test_openml_is_asked_once_where_the_homepage_does_not_answer(
    openml, small_cifar10, tmp_path
):
    for subset, names in [("train", TRAIN), ("test", TEST)]:
        bunch = fetch_cifar10(data_home=tmp_path, subset=subset, normalize=False)
        rows = np.concatenate([small_cifar10.pixels[name] for name in names])
        labels = np.concatenate([small_cifar10.labels[name] for name in names])
        np.testing.assert_array_equal(bunch.data.reshape(-1, 3072), rows)
        np.testing.assert_array_equal(bunch.target, labels)
        assert bunch.origin == "original"
    ((args, kwargs),) = openml.calls
    assert args == ("CIFAR_10",)
    assert kwargs["version"] == 1
    assert kwargs["as_frame"] is False
    assert kwargs["data_home"] == str(tmp_path)
    assert [path.name for path in (tmp_path / "cifar-10").iterdir()] == [
        "cifar-10-batches-py"
    ]


def test_openml_rows_in_an_order_of_their_own_are_refused(openml, tmp_path):
    openml.data = np.roll(openml.data, 1, axis=0)
    match = r"nor from OpenML \(the images there are not the six batches"
    with pytest.raises(OSError, match=match):
        fetch_cifar10(data_home=tmp_path)
    assert not (tmp_path / "cifar-10").exists()


def test_the_real_images_are_a_known_copy(cifar10_home):
    bunch = fetch_cifar10(data_home=cifar10_home, subset="all")
    train = bunch.data[:50_000]
    assert bunch.data.shape == (60_000, 3, 32, 32)
    assert bunch.origin in ("original", "re-encoded")
    assert (bunch.data.min(), bunch.data.max()) == (0, 1)
    # The published means and deviations of the channels; compression moves the means
    # by 1e-4 and takes 1e-3 to 2e-3 of the deviations.
    mean, std = train.mean(axis=(0, 2, 3)), train.std(axis=(0, 2, 3))
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=3e-4)
    np.testing.assert_allclose(std, [0.2470, 0.2435, 0.2616], atol=3e-3)
    np.testing.assert_array_equal(np.bincount(bunch.target[:50_000]), 5000)
    np.testing.assert_array_equal(np.bincount(bunch.target[50_000:]), 1000)


def test_the_examples_of_the_docstring_hold(cifar10_home, monkeypatch):
    monkeypatch.setenv("FLATMIN_DATA", str(cifar10_home))
    (test,) = doctest.DocTestFinder(recurse=False).find(
        fetch_cifar10, "fetch_cifar10", globs={}
    )
    for example in test.examples:
        example.options.pop(doctest.SKIP, None)
    results = doctest.DocTestRunner().run(test)
    assert results.attempted >= 3
    assert results.failed == 0


def test_the_checksum_is_that_of_the_binary_version(tmp_path):
    batch = _cifar10_files.Batch(
        np.arange(2 * 3072, dtype=np.uint64).reshape(2, 3072).astype(np.uint8),
        np.array([6, 9], dtype=np.uint8),
    )
    content = b"\x06" + bytes(range(256)) * 12 + b"\x09" + bytes(range(256)) * 12
    assert batch.sha1() == hashlib.sha1(content).hexdigest()
