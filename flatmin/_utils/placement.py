"""Where tensors live and how many digits they have."""

import torch

from flatmin._utils.messages import first_line

__all__ = ["resolve_device", "resolve_dtype"]


def resolve_device(device: str | torch.device, name: str = "device") -> torch.device:
    """Turn "cpu", "cuda", "auto", … into a device that is there.

    Parameters
    ----------
    device : str or torch.device
        "auto" is CUDA where there is any.
    name : str, default="device"
        For the message.

    Returns
    -------
    torch.device

    Raises
    ------
    ValueError
        If it is no name and no device, or PyTorch does not know it, or cannot use it
        on this machine.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = isinstance(device, str | torch.device)
    try:
        # A number would be that of a GPU.
        resolved = torch.device(device if known else repr(device))
        torch.empty(0, device=resolved)
    # A build without CUDA raises an AssertionError.
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be one that PyTorch can use on this machine; 'cpu' always "
            f"is, and 'auto' is CUDA where there is any. Got {str(device)!r}: "
            f"{first_line(error)}."
        ) from error
    return resolved


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Turn "float32" or "float64" into a torch.dtype.

    Parameters
    ----------
    dtype : str or torch.dtype

    Returns
    -------
    torch.dtype

    Raises
    ------
    ValueError
        If it is neither.

    Examples
    --------
    >>> resolve_dtype("float64")
    torch.float64
    """
    resolved = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    known = (torch.float32, torch.float64)
    if not isinstance(resolved, torch.dtype) or resolved not in known:
        raise ValueError(
            f"dtype must be 'float32' or 'float64'. Got {dtype!r}; a module of another "
            "precision is converted if dtype says to which."
        )
    return resolved
