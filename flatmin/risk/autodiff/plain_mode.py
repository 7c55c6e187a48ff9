"""A dispatch mode that does not load PyTorch's compiler."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["PlainMode"]


class PlainMode(TorchDispatchMode):
    """Sees every call of a kernel.

    PyTorch wraps the method of other modes, to keep its compiler out of them, and the
    wrapper imports Dynamo and Inductor in the first call: 1.2 s, and a cycle that holds
    every frame above it until a collection (torch 2.13).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
