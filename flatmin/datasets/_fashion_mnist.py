"""Fashion-MNIST."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from flatmin._utils.numbers import check_flag
from flatmin.datasets._descr import FASHION_MNIST
from flatmin.datasets._fashion_mnist_files import find_files, read_split
from flatmin.datasets._images import scale_pixels, splits_of

TARGET_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def fetch_fashion_mnist(
    *,
    data_home: str | os.PathLike[str] | None = None,
    subset: str = "train",
    normalize: bool = True,
    download_if_missing: bool = True,
    return_X_y: bool = False,
) -> Bunch | tuple[NDArray[Any], NDArray[np.int64]]:
    """Load the Fashion-MNIST data set (classification).

    It reads the four original files (``train-images-idx3-ubyte.gz``,
    ``train-labels-idx1-ubyte.gz``, ``t10k-images-idx3-ubyte.gz`` and
    ``t10k-labels-idx1-ubyte.gz``) from a folder ``fashion-mnist``, which it looks for

    - under `data_home`, if that is given;
    - else under the folder that the environment variable ``FLATMIN_DATA`` names;
    - else under scikit-learn's data folder, ``~/scikit_learn_data`` by default.

    If they are in none of these, it downloads the data set from OpenML, and keeps it in
    these four files under `data_home` or scikit-learn's data folder. Sizes and
    checksums are verified, wherever the data comes from.

    ================  ====================
    Classes                             10
    Samples total                   70,000
    Training samples                60,000
    Test samples                    10,000
    Dimensionality                 28 x 28
    Features          real between 0 and 1
    ================  ====================

    Parameters
    ----------
    data_home : str or path-like, default=None
        Parent of the folder ``fashion-mnist``, and the place to download to.

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

        data : ndarray of shape (n_samples, 1, 28, 28)
            The images, with an axis of length 1 for the channel; float32, or uint8
            if `normalize` is False.
        images : ndarray of shape (n_samples, 28, 28)
            A view of `data` without that axis.
        target : ndarray of shape (n_samples,), dtype=int64
            The classes, 0 to 9.
        target_names : ndarray of shape (10,)
            Names of the classes.
        DESCR : str
            Description of the data set.
        path : str
            The folder that the files were read from.

    (data, target) : tuple if `return_X_y` is True
        The arrays `data` and `target` of the Bunch.

    Raises
    ------
    OSError
        If the files are missing and cannot, or may not, be downloaded, or if one is
        damaged, not a regular file, or not the original.

    ValueError
        If `subset` is none of the options.

    See Also
    --------
    load_noisy_fashion_mnist : A small training set with some wrong labels.

    Notes
    -----
    The data set is by Zalando SE, under the MIT licence.

    References
    ----------
    .. [1] Xiao, Rasul and Vollgraf (2017). "Fashion-MNIST: a Novel Image Dataset for
       Benchmarking Machine Learning Algorithms". :doi:`10.48550/arXiv.1708.07747`

    Examples
    --------
    >>> from flatmin.datasets import fetch_fashion_mnist
    >>> fashion_mnist = fetch_fashion_mnist()  # doctest: +SKIP
    >>> fashion_mnist.data.shape  # doctest: +SKIP
    (60000, 1, 28, 28)
    >>> round(float(fashion_mnist.data.mean()), 4)  # doctest: +SKIP
    0.286
    >>> str(fashion_mnist.target_names[fashion_mnist.target[0]])  # doctest: +SKIP
    'Ankle boot'
    """
    check_flag("normalize", normalize)
    check_flag("return_X_y", return_X_y)
    check_flag("download_if_missing", download_if_missing)
    splits = splits_of(subset, "fetch_fashion_mnist")
    folder = find_files(
        splits, data_home=data_home, download_if_missing=download_if_missing
    )
    images, labels = zip(*(read_split(folder, split) for split in splits), strict=True)
    pixels = np.concatenate(images)[:, np.newaxis]
    data = scale_pixels(pixels) if normalize else pixels
    target = np.concatenate(labels).astype(np.int64)
    if return_X_y:
        return data, target
    return Bunch(
        data=data,
        images=data[:, 0],
        target=target,
        target_names=np.array(TARGET_NAMES),
        DESCR=FASHION_MNIST,
        path=str(folder),
    )
