"""CIFAR-10."""

import os
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from flatmin._utils.numbers import check_flag
from flatmin.datasets._cifar10_download import download
from flatmin.datasets._cifar10_files import (
    HOMEPAGE,
    SPLITS,
    find_source,
    how_to_get_it,
    origin_of,
    read_batches,
)
from flatmin.datasets._descr import CIFAR10
from flatmin.datasets._images import scale_pixels, splits_of

TARGET_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def fetch_cifar10(
    *,
    data_home: str | os.PathLike[str] | None = None,
    subset: str = "train",
    normalize: bool = True,
    download_if_missing: bool = True,
    return_X_y: bool = False,
) -> Bunch | tuple[NDArray[Any], NDArray[np.int64]]:
    """Load the CIFAR-10 data set (classification).

    It reads the "python version" of the data set: the folder ``cifar-10-batches-py``
    with the files ``data_batch_1`` to ``data_batch_5`` and ``test_batch``, or the
    archive ``cifar-10-python.tar.gz`` that holds it. These files are pickles; they are
    read without running any code that they may contain. The folder or the archive is
    looked for

    - under `data_home`, if that is given;
    - else under the folder that the environment variable ``FLATMIN_DATA`` names;
    - else under scikit-learn's data folder, ``~/scikit_learn_data`` by default;

    and in each of them also in the subfolder ``cifar-10``. If it is in none of these,
    the archive is downloaded from the homepage of the data set [1]_ and kept in the
    subfolder ``cifar-10`` of `data_home` or of scikit-learn's data folder. Where the
    homepage does not answer, OpenML is asked for the same images. A download that is
    not the original is refused.

    ================  ====================
    Classes                             10
    Samples total                   60,000
    Training samples                50,000
    Test samples                    10,000
    Dimensionality             3 x 32 x 32
    Features          real between 0 and 1
    ================  ====================

    Parameters
    ----------
    data_home : str or path-like, default=None
        Where to look for the data set, and to download it to.

    subset : {"train", "test", "all"}, default="train"
        The images to load: the training set, the test set, or the training set
        followed by the test set.

    normalize : bool, default=True
        If True, pixels are float32 in [0, 1], that is, divided by 255. If False, they
        are the original uint8 from 0 to 255.

    download_if_missing : bool, default=True
        If False, raise an OSError where the files are missing instead of downloading
        them.

    return_X_y : bool, default=False
        If True, return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Dictionary-like object, with the following attributes.

        data : ndarray of shape (n_samples, 3, 32, 32)
            The images, the channels red, green and blue first; float32, or uint8 if
            `normalize` is False.
        images : ndarray of shape (n_samples, 32, 32, 3)
            A view of `data` with the channels last.
        target : ndarray of shape (n_samples,), dtype=int64
            The classes, 0 to 9.
        target_names : ndarray of shape (10,)
            Names of the classes.
        DESCR : str
            Description of the data set.
        origin : {"original", "re-encoded", "unknown"}
            Which copy of the data set this is; see the notes.
        path : str
            The folder or archive that was read.

    (data, target) : tuple if `return_X_y` is True
        The arrays `data` and `target` of the Bunch.

    Raises
    ------
    OSError
        If the files are missing and cannot, or may not, be downloaded, or if one is
        damaged, not a regular file, far larger than the original, or not a plain
        pickle (in protocol 2, as the original) of images and labels.

    ValueError
        If `subset` is none of the options.

    Warns
    -----
    UserWarning
        If `origin` is "unknown".

    See Also
    --------
    fetch_fashion_mnist : Grey images of the same number of classes.
    flatmin.modules.VGG11 : The network the paper trains on this data.

    Notes
    -----
    Copies of CIFAR-10 differ, and so do the results on them. A SHA-1 checksum of the
    labels and pixels of each file that is read decides `origin`:

    - "original": every checksum is that of the data set as [1]_ distributes it. The
      checksums are those that MXNet publishes for its "binary version".
    - "re-encoded": every checksum is that of a copy whose images went through JPEG
      compression of quality about 75, and whose examples come in another order.
      Accuracies differ slightly from those on the original: say so beside them.
    - "unknown": anything else, for example a mixture of the two, changed labels, or a
      JPEG copy that another decoder unpacked.

    The download has been tested against stand-ins for the homepage and OpenML only, not
    yet live. From OpenML it takes several GB of memory.

    References
    ----------
    .. [1] Krizhevsky (2009). "Learning Multiple Layers of Features from Tiny Images".
       https://www.cs.toronto.edu/~kriz/cifar.html

    Examples
    --------
    >>> from flatmin.datasets import fetch_cifar10
    >>> cifar10 = fetch_cifar10(subset="test")  # doctest: +SKIP
    >>> cifar10.data.shape  # doctest: +SKIP
    (10000, 3, 32, 32)
    >>> cifar10.origin in ("original", "re-encoded")  # doctest: +SKIP
    True
    >>> str(cifar10.target_names[cifar10.target.max()])  # doctest: +SKIP
    'truck'
    """
    check_flag("normalize", normalize)
    check_flag("return_X_y", return_X_y)
    check_flag("download_if_missing", download_if_missing)
    names = [
        name for split in splits_of(subset, "fetch_cifar10") for name in SPLITS[split]
    ]
    source, searched = find_source(names, data_home)
    if source is None:
        if not download_if_missing:
            raise OSError(
                f"CIFAR-10 was not found and download_if_missing is False. Looked in "
                f"{' and in '.join(map(str, searched))}. {how_to_get_it(searched[-1])}"
            )
        source = download(searched[-1])
    batches = read_batches(source, names)
    origin = origin_of(batches)
    if origin == "unknown":
        warnings.warn(
            f"The images and labels in {source} are not those of the original "
            "CIFAR-10, nor of a known copy: results on them cannot be compared with "
            f"others. Replace it by the python version of {HOMEPAGE}.",
            UserWarning,
            stacklevel=2,
        )
    rows = np.concatenate([batch.pixels for batch in batches.values()])
    pixels = rows.reshape(-1, 3, 32, 32)
    data = scale_pixels(pixels) if normalize else pixels
    target = np.concatenate([batch.labels for batch in batches.values()])
    target = target.astype(np.int64)
    if return_X_y:
        return data, target
    return Bunch(
        data=data,
        images=data.transpose(0, 2, 3, 1),
        target=target,
        target_names=np.array(TARGET_NAMES),
        DESCR=CIFAR10,
        origin=origin,
        path=str(source),
    )
