"""The data of the paper's regression experiment."""

import numpy as np
from numpy.typing import NDArray

from flatmin._utils.numbers import check_count


def make_cubic_regression(
    n_samples: int = 20,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Make noise-free points of the cubic ``y = (x + 0.5) x (x - 0.5)``.

    The points are equidistant on [-1, 1], both ends included. Appendix A of [1]_
    trains on 20 of them and tests on 100.

    Parameters
    ----------
    n_samples : int, default=20
        Number of points, at least 2.

    Returns
    -------
    X : ndarray of shape (n_samples, 1)
        The points x in increasing order.

    y : ndarray of shape (n_samples,)
        The values of the cubic.

    See Also
    --------
    flatmin.modules.cubic_regression_mlp : The networks the paper fits to this data.

    References
    ----------
    .. [1] Zhu, Wu, Yu, Wu and Ma (2018). "The Regularization Effects of
       Anisotropic Noise in Stochastic Gradient Descent".
       :doi:`10.48550/arXiv.1803.00195`

    Examples
    --------
    >>> from flatmin.datasets import make_cubic_regression
    >>> X, y = make_cubic_regression(6)
    >>> X.ravel()
    array([-1. , -0.6, -0.2,  0.2,  0.6,  1. ])
    >>> y.round(3)
    array([-0.75 , -0.066,  0.042, -0.042,  0.066,  0.75 ])
    >>> X_test, y_test = make_cubic_regression(100)
    >>> X_test.shape
    (100, 1)
    """
    n_samples = check_count("n_samples", n_samples, at_least=2)
    x = np.linspace(-1.0, 1.0, n_samples)
    return x[:, np.newaxis], (x + 0.5) * x * (x - 0.5)
