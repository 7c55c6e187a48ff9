"""Fully connected networks."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor, nn

from flatmin._utils.messages import naming
from flatmin._utils.numbers import check_count, is_count

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
}

# The three networks of appendix A of Zhu et al., by their number of parameters.
_CUBIC_HIDDEN_LAYER_SIZES = {
    251: (10, 10, 10),
    141: (10, 10),
    103: (6, 6, 6),
}


class MLP(nn.Module):
    """A multi-layer perceptron that flattens its input.

    With the activation ``a`` and L hidden layers it computes
    ``W_L a(... a(W_1 a(W_0 x + b_0) + b_1) ...) + b_L``: the last layer is linear,
    so a classifier's outputs are logits.

    Parameters
    ----------
    n_features : int
        Number of features of an example, over all its axes: 784 for an image of
        shape (1, 28, 28).

    n_outputs : int
        Number of outputs: classes, or regression targets.

    hidden_layer_sizes : int or sequence of int, default=(100,)
        Number of units of each hidden layer; an int means one layer, and an empty
        sequence a linear model.

    activation : {"identity", "logistic", "relu", "tanh"}, default="relu"
        Activation of the hidden layers, in the words of
        :class:`~sklearn.neural_network.MLPClassifier`.

    Attributes
    ----------
    n_features : int
        As given.

    layers : torch.nn.Sequential
        Linear layers and activations in turn, initialised as PyTorch does by default.

    See Also
    --------
    cubic_regression_mlp : The networks of the paper's regression experiment.
    LeNet : The paper's convolutional network.

    Examples
    --------
    >>> import torch
    >>> from flatmin.modules import MLP
    >>> mlp = MLP(784, 10, hidden_layer_sizes=(32, 16), activation="tanh")
    >>> sum(parameter.numel() for parameter in mlp.parameters())
    25818
    >>> mlp(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        n_features: int,
        n_outputs: int,
        *,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if not isinstance(activation, str) or activation not in _ACTIVATIONS:
            raise ValueError(
                f"The 'activation' parameter of MLP must be one of "
                f"{sorted(_ACTIVATIONS)}. Got {activation!r} instead."
            )
        with naming("hidden_layer_sizes"):
            hidden = np.atleast_1d(hidden_layer_sizes).tolist()
        n_features = check_count("n_features", n_features)
        n_outputs = check_count("n_outputs", n_outputs)
        for size in hidden:
            check_count("each of hidden_layer_sizes", size)

        self.n_features = n_features
        self.layers = nn.Sequential()
        for n_in, n_out in pairwise([n_features, *hidden]):
            self.layers.append(nn.Linear(n_in, n_out))
            self.layers.append(_ACTIVATIONS[activation]())
        self.layers.append(nn.Linear([n_features, *hidden][-1], n_outputs))

    def forward(self, X: Tensor) -> Tensor:
        """Compute the outputs of a batch.

        Parameters
        ----------
        X : Tensor of shape (n_samples, ...)
            Examples; the axes after the first hold `n_features` numbers in all.

        Returns
        -------
        outputs : Tensor of shape (n_samples, n_outputs)
            Outputs of the last linear layer.

        Raises
        ------
        ValueError
            If an example does not have `n_features` numbers.
        """
        if X.ndim < 2 or math.prod(X.shape[1:]) != self.n_features:
            raise ValueError(
                f"MLP expects X of shape (n_samples, ...) with n_features="
                f"{self.n_features} numbers an example. Got shape {tuple(X.shape)}; "
                "reshape X or build the MLP with another n_features."
            )
        outputs: Tensor = self.layers(X.flatten(1))
        return outputs


def cubic_regression_mlp(n_params: int = 251) -> MLP:
    """Build a network of the paper's regression experiment (appendix A).

    ========== ================ =============
    n_params   architecture     learning rate
    ========== ================ =============
    251        1-10-10-10-1     0.05
    141        1-10-10-1        0.05
    103        1-6-6-6-1        0.1
    ========== ================ =============

    All use ReLU. The learning rates are those that the paper trains them with, by SGD
    with batches of 5.

    Parameters
    ----------
    n_params : {251, 141, 103}, default=251
        Number of parameters; 251 is the network of the main text (figures 1 and 2).

    Returns
    -------
    mlp : MLP
        The network, with PyTorch's default initialisation.

    Raises
    ------
    ValueError
        If the paper has no network of that size.

    See Also
    --------
    flatmin.datasets.make_cubic_regression : The data of that experiment.

    References
    ----------
    .. [1] Zhu, Wu, Yu, Wu and Ma (2018). "The Regularization Effects of
       Anisotropic Noise in Stochastic Gradient Descent".
       :doi:`10.48550/arXiv.1803.00195`

    Examples
    --------
    >>> from flatmin.modules import cubic_regression_mlp
    >>> mlp = cubic_regression_mlp(141)
    >>> [tuple(parameter.shape) for parameter in mlp.parameters()]
    [(10, 1), (10,), (10, 10), (10,), (1, 10), (1,)]
    >>> sum(parameter.numel() for parameter in mlp.parameters())
    141
    """
    if not is_count(n_params) or n_params not in _CUBIC_HIDDEN_LAYER_SIZES:
        raise ValueError(
            f"The 'n_params' parameter of cubic_regression_mlp must be one of "
            f"{sorted(_CUBIC_HIDDEN_LAYER_SIZES)}. Got {n_params!r} instead; use MLP "
            "for another architecture."
        )
    return MLP(1, 1, hidden_layer_sizes=_CUBIC_HIDDEN_LAYER_SIZES[n_params])
