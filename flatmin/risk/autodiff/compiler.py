"""PyTorch's compiler, loaded where it leaves no frame behind."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from threading import Thread

__all__ = ["load_compiler"]


@cache
def load_compiler() -> None:
    """Import what PyTorch imports in the first call of some of its transforms.

    ``torch.func.grad`` and ``vjp`` do, and so does a product with a zero tangent. The
    import leaves a cycle behind that holds every frame above it, and so the risk that
    asks, until a collection (torch 2.13). Above a thread of its own there are none.
    """
    thread = Thread(target=import_module, args=("torch._dynamo",))
    thread.start()
    thread.join()
