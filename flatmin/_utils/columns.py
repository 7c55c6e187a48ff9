"""One number an example, beside arrays that have several for each."""

from torch import Tensor

__all__ = ["as_column"]


def as_column(values: Tensor, like: Tensor) -> Tensor:
    """Return numbers with as many axes as an array that they multiply.

    Parameters
    ----------
    values : Tensor of shape (n,)
    like : Tensor of shape (n, ...)

    Returns
    -------
    Tensor of shape (n, 1, ..., 1)
        A view.

    Examples
    --------
    >>> import torch
    >>> as_column(torch.ones(4), torch.zeros(4, 3, 2)).shape
    torch.Size([4, 1, 1])
    """
    return values.view(-1, *(1 for _ in like.shape[1:]))
