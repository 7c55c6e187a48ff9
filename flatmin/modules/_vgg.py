"""The VGG network of the paper."""

from torch import Tensor, nn

from flatmin._utils.numbers import check_count, check_positive

# Configuration A of Simonyan and Zisserman. The number is the channels of a convolution
# at width 1, and None a pooling that halves height and width: 32 becomes 1.
_LAYERS = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None)
_HIDDEN_UNITS = 512
_IMAGE_SIZE = 32


class VGG11(nn.Module):
    """The eleven-layer VGG network of the paper's CIFAR-10 experiments.

    Configuration A of [2]_ for images of 32 x 32 pixels: eight 3 x 3 convolutions with
    ReLU and five 2 x 2 max-poolings leave 512 features of one pixel, which three fully
    connected layers of 512, 512 and `n_outputs` units take to the outputs. With the
    default arguments that makes 9,750,922 parameters, the number that [1]_ gives:
    9,220,480 in the convolutions and 262,656 + 262,656 + 5130 after them.

    As in [1]_ there is no batch normalisation and, unlike in [2]_, no dropout: the risk
    is a deterministic function of the parameters, in training mode too.

    Parameters
    ----------
    n_outputs : int, default=10
        Number of outputs; for a classifier, of classes.

    in_channels : int, default=3
        Number of channels of an image.

    width : float, default=1.0
        Factor of the number of channels of every convolution and of units of every
        hidden layer, which are rounded and at least 1. The cost grows about with
        its square: a width of 0.25 leaves 611,434 parameters.

    Attributes
    ----------
    in_channels : int
        As given.

    features : torch.nn.Sequential
        Convolutions, ReLU and poolings, initialised as PyTorch does by default.

    classifier : torch.nn.Sequential
        The fully connected layers and ReLU, initialised as PyTorch does by default.

    See Also
    --------
    flatmin.datasets.fetch_cifar10 : The data the paper trains it on.
    LeNet : The paper's network for Fashion-MNIST.

    Notes
    -----
    PyTorch's default initialisation shrinks the signal at every layer: the outputs for
    two images of CIFAR-10 then differ by about 1e-5, whatever the width, and training
    starts on a plateau. At a width of 0.25, on 1000 images with a learning rate of 0.05
    and batches of 50, the loss stayed at 2.296 for 1000 iterations of SGD; after
    :func:`torch.nn.init.kaiming_normal_` for every weight and zeros for every bias it
    fell to 0.003. The paper does not say how it initialises the network.

    References
    ----------
    .. [1] Zhu, Wu, Yu, Wu and Ma (2018). "The Regularization Effects of
       Anisotropic Noise in Stochastic Gradient Descent".
       :doi:`10.48550/arXiv.1803.00195`

    .. [2] Simonyan and Zisserman (2015). "Very Deep Convolutional Networks for
       Large-Scale Image Recognition". :doi:`10.48550/arXiv.1409.1556`

    Examples
    --------
    >>> import torch
    >>> from flatmin.modules import VGG11
    >>> net = VGG11(width=0.25)
    >>> sum(parameter.numel() for parameter in net.parameters())
    611434
    >>> net(torch.zeros(5, 3, 32, 32)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self, n_outputs: int = 10, *, in_channels: int = 3, width: float = 1.0
    ) -> None:
        super().__init__()
        n_outputs = check_count("n_outputs", n_outputs)
        in_channels = check_count("in_channels", in_channels)
        width = check_positive("width", width)
        check_count(f"{_HIDDEN_UNITS} times width", _scale(_HIDDEN_UNITS, width))
        self.in_channels = in_channels
        self.features = nn.Sequential()
        n_in = in_channels
        for channels in _LAYERS:
            if channels is None:
                self.features.append(nn.MaxPool2d(2))
                continue
            n_out = _scale(channels, width)
            self.features.append(nn.Conv2d(n_in, n_out, kernel_size=3, padding=1))
            self.features.append(nn.ReLU())
            n_in = n_out
        hidden = _scale(_HIDDEN_UNITS, width)
        self.classifier = nn.Sequential(
            nn.Linear(n_in, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, n_outputs),
        )

    def forward(self, X: Tensor) -> Tensor:
        """Compute the outputs of a batch of images.

        Parameters
        ----------
        X : Tensor of shape (n_samples, in_channels, 32, 32)
            Images, in either memory format. Rows of shape
            (n_samples, in_channels * 1024) are accepted too.

        Returns
        -------
        outputs : Tensor of shape (n_samples, n_outputs)
            Outputs of the last linear layer: logits, for a classifier.

        Raises
        ------
        ValueError
            If X has neither of these shapes.
        """
        outputs: Tensor = self.classifier(self.features(self._as_images(X)).flatten(1))
        return outputs

    def _as_images(self, X: Tensor) -> Tensor:
        image = (self.in_channels, _IMAGE_SIZE, _IMAGE_SIZE)
        row = self.in_channels * _IMAGE_SIZE**2
        if X.shape[1:] == image:
            return X
        if X.shape[1:] == (row,):
            return X.reshape(len(X), *image)
        raise ValueError(
            f"VGG11(in_channels={self.in_channels}) expects a batch X whose examples "
            f"have shape {image} or ({row},). Got X of shape {tuple(X.shape)}; reshape "
            "X (a single image needs a leading axis of length 1) or build the network "
            "with another in_channels."
        )


def _scale(size: int, width: float) -> int:
    return max(1, round(width * size))
