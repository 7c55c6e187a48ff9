"""Fashion-MNIST with wrong labels, as in the paper."""

import os

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from flatmin._utils.numbers import check_count, check_flag
from flatmin._utils.random_state import resolve_random_state
from flatmin.datasets._corrupt import redraw_codes
from flatmin.datasets._descr import NOISY_FASHION_MNIST
from flatmin.datasets._fashion_mnist import TARGET_NAMES
from flatmin.datasets._fashion_mnist_files import find_files, read_split
from flatmin.datasets._images import scale_pixels


def load_noisy_fashion_mnist(
    n_clean: int = 1000,
    n_corrupt: int = 200,
    *,
    allow_same: bool = False,
    data_home: str | os.PathLike[str] | None = None,
    download_if_missing: bool = True,
    random_state: int | np.random.RandomState | None = None,
    return_X_y: bool = False,
) -> Bunch | tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Load a part of Fashion-MNIST with some wrong labels, as in the paper.

    Section 5.1 and appendix C of [1]_ train on 1200 images, "randomly sampled from
    original FashionMNIST training set", of which 200 have "randomly wrong labels", and
    test on the original test set. Here ``n_clean + n_corrupt`` images are drawn without
    replacement, and the labels of `n_corrupt` of them are drawn anew.

    Parameters
    ----------
    n_clean : int, default=1000
        Number of training images with their right label.

    n_corrupt : int, default=200
        Number of training images whose label is drawn anew.

    allow_same : bool, default=False
        If False, a new label is drawn uniformly from the nine wrong ones. If True, it
        is drawn from all ten, as the authors' released code does, so that a tenth of
        the new labels is right.

    data_home : str or path-like, default=None
        Where to look for the data set; see :func:`fetch_fashion_mnist`.

    download_if_missing : bool, default=True
        If False, raise an OSError where the files are missing instead of downloading
        them.

    random_state : int, RandomState instance or None, default=None
        Determines the images, which of them are corrupted, and their new labels. Pass
        an int for the same result in every call.

    return_X_y : bool, default=False
        If True, return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Dictionary-like object, with the following attributes, where n_samples is
        ``n_clean + n_corrupt``.

        data : ndarray of shape (n_samples, 1, 28, 28), dtype=float32
            The training images, with pixels in [0, 1].
        target : ndarray of shape (n_samples,), dtype=int64
            The training labels, 0 to 9, some of them wrong.
        clean_target : ndarray of shape (n_samples,), dtype=int64
            The right labels.
        corrupted : ndarray of shape (n_samples,), dtype=bool
            True where the label was drawn anew.
        indices : ndarray of shape (n_samples,), dtype=int64
            Positions of the images in the original training set.
        data_test : ndarray of shape (10000, 1, 28, 28), dtype=float32
            The test images, with pixels in [0, 1].
        target_test : ndarray of shape (10000,), dtype=int64
            Their right labels.
        target_names : ndarray of shape (10,)
            Names of the classes.
        DESCR : str
            Description of the data set.

    (data, target) : tuple if `return_X_y` is True
        The arrays `data` and `target` of the Bunch.

    Raises
    ------
    OSError
        If the files are missing and cannot, or may not, be downloaded, or if one is
        damaged or not the original.

    TypeError
        If `allow_same`, `return_X_y` or `download_if_missing` is not a bool.

    ValueError
        If `n_clean` or `n_corrupt` is negative or not an integer, or their sum is not
        between 1 and the 60,000 training images.

    See Also
    --------
    fetch_fashion_mnist : The whole data set.
    corrupt_labels : The same label noise for any labels.
    flatmin.modules.LeNet : The network the paper trains on this data.

    References
    ----------
    .. [1] Zhu, Wu, Yu, Wu and Ma (2018). "The Regularization Effects of
       Anisotropic Noise in Stochastic Gradient Descent".
       :doi:`10.48550/arXiv.1803.00195`

    Examples
    --------
    >>> from flatmin.datasets import load_noisy_fashion_mnist
    >>> noisy = load_noisy_fashion_mnist(random_state=0)  # doctest: +SKIP
    >>> noisy.data.shape, noisy.data_test.shape  # doctest: +SKIP
    ((1200, 1, 28, 28), (10000, 1, 28, 28))
    >>> int((noisy.target != noisy.clean_target).sum())  # doctest: +SKIP
    200
    """
    check_flag("allow_same", allow_same)
    check_flag("return_X_y", return_X_y)
    check_flag("download_if_missing", download_if_missing)
    n_clean = check_count("n_clean", n_clean, at_least=0)
    n_corrupt = check_count("n_corrupt", n_corrupt, at_least=0)
    folder = find_files(
        ("train", "test"), data_home=data_home, download_if_missing=download_if_missing
    )
    images, labels = read_split(folder, "train")
    n_samples = n_clean + n_corrupt
    if not 1 <= n_samples <= len(images):
        raise ValueError(
            f"n_clean + n_corrupt must be from 1 to {len(images)}, the number of "
            f"training images. Got n_clean={n_clean} and n_corrupt={n_corrupt}."
        )
    rng = resolve_random_state(random_state)
    indices = rng.choice(len(images), size=n_samples, replace=False)
    clean_target = labels[indices].astype(np.int64)
    target, corrupted = redraw_codes(
        clean_target, len(TARGET_NAMES), n_corrupt, rng=rng, allow_same=allow_same
    )
    data = scale_pixels(images[indices, np.newaxis])
    if return_X_y:
        return data, target
    images_test, labels_test = read_split(folder, "test")
    return Bunch(
        data=data,
        target=target,
        clean_target=clean_target,
        corrupted=corrupted,
        indices=indices,
        data_test=scale_pixels(images_test[:, np.newaxis]),
        target_test=labels_test.astype(np.int64),
        target_names=np.array(TARGET_NAMES),
        DESCR=NOISY_FASHION_MNIST,
    )
