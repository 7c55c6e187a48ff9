"""The LeNet-like network of the paper."""

from torch import Tensor, nn
from torch.nn import functional

from flatmin._utils.numbers import check_count

_CHANNELS = 10
_KERNEL_SIZE = 5
_HIDDEN_UNITS = 50
# The smallest image that leaves one pixel: 16 -> 12 -> 6 -> 2 -> 1.
_MIN_IMAGE_SIZE = 16


class LeNet(nn.Module):
    """The small convolutional network of the paper's Fashion-MNIST experiments.

    Appendix C of [1]_: input, conv1, max_pool, ReLU, conv2, max_pool, ReLU, fc1,
    ReLU, fc2, output. Both convolutions have 10 channels, 5 x 5 kernels and no
    padding, both poolings are 2 x 2, and fc1 has 50 units. With the default arguments
    that makes 11,330 parameters: 260 + 2510 + 8050 + 510.

    Parameters
    ----------
    n_outputs : int, default=10
        Number of outputs; for a classifier, of classes.

    in_channels : int, default=1
        Number of channels of an image.

    image_size : int, default=28
        Height and width of an image in pixels, at least 16.

    Attributes
    ----------
    in_channels, image_size : int
        As given.

    conv1, conv2 : torch.nn.Conv2d
        The convolutions, initialised as PyTorch does by default.

    fc1, fc2 : torch.nn.Linear
        The fully connected layers, initialised as PyTorch does by default.

    See Also
    --------
    flatmin.datasets.load_noisy_fashion_mnist : The data the paper trains it on.

    References
    ----------
    .. [1] Zhu, Wu, Yu, Wu and Ma (2018). "The Regularization Effects of
       Anisotropic Noise in Stochastic Gradient Descent".
       :doi:`10.48550/arXiv.1803.00195`

    Examples
    --------
    >>> import torch
    >>> from flatmin.modules import LeNet
    >>> net = LeNet()
    >>> sum(parameter.numel() for parameter in net.parameters())
    11330
    >>> net(torch.zeros(5, 784)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self, n_outputs: int = 10, *, in_channels: int = 1, image_size: int = 28
    ) -> None:
        super().__init__()
        n_outputs = check_count("n_outputs", n_outputs)
        in_channels = check_count("in_channels", in_channels)
        image_size = check_count("image_size", image_size, _MIN_IMAGE_SIZE)
        self.in_channels = in_channels
        self.image_size = image_size
        side = image_size
        for _ in range(2):
            side = (side - _KERNEL_SIZE + 1) // 2
        self.conv1 = nn.Conv2d(in_channels, _CHANNELS, _KERNEL_SIZE)
        self.conv2 = nn.Conv2d(_CHANNELS, _CHANNELS, _KERNEL_SIZE)
        self.fc1 = nn.Linear(_CHANNELS * side**2, _HIDDEN_UNITS)
        self.fc2 = nn.Linear(_HIDDEN_UNITS, n_outputs)

    def forward(self, X: Tensor) -> Tensor:
        """Compute the outputs of a batch of images.

        Parameters
        ----------
        X : Tensor of shape (n_samples, in_channels, image_size, image_size)
            Images. Rows of shape (n_samples, in_channels * image_size ** 2) are
            accepted too, and for one channel (n_samples, image_size, image_size).

        Returns
        -------
        outputs : Tensor of shape (n_samples, n_outputs)
            Outputs of the last linear layer: logits, for a classifier.

        Raises
        ------
        ValueError
            If X has none of these shapes.
        """
        hidden = self._as_images(X)
        hidden = functional.relu(functional.max_pool2d(self.conv1(hidden), 2))
        hidden = functional.relu(functional.max_pool2d(self.conv2(hidden), 2))
        hidden = functional.relu(self.fc1(hidden.flatten(1)))
        outputs: Tensor = self.fc2(hidden)
        return outputs

    def _as_images(self, X: Tensor) -> Tensor:
        channels, size = self.in_channels, self.image_size
        shape = tuple(X.shape[1:])
        if shape == (channels, size, size):
            return X
        if shape == (channels * size**2,):
            return X.reshape(len(X), channels, size, size)
        if channels == 1 and shape == (size, size):
            return X.unsqueeze(1)
        accepted = [f"({channels}, {size}, {size})", f"({channels * size**2},)"]
        if channels == 1:
            accepted.append(f"({size}, {size})")
        raise ValueError(
            f"LeNet(in_channels={channels}, image_size={size}) expects a batch X whose "
            f"examples have shape {' or '.join(accepted)}. Got X of shape "
            f"{tuple(X.shape)}; reshape X (a single image needs a leading axis of "
            "length 1) or build the network with other arguments."
        )
