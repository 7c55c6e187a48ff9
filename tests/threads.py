"""The same calls in two threads, compared with those of one to the last bit."""

import dataclasses
import random
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch


def public(kind):
    """Return the names of a class's own public methods and properties."""
    return {
        name
        for base in kind.__mro__
        if base.__module__.startswith("flatmin.")
        for name, value in vars(base).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    }


def plain(value):
    """Return a value's numbers as something that compares to the last bit."""
    if isinstance(value, torch.Tensor):
        return plain(value.detach().numpy())
    if isinstance(value, np.ndarray) and value.dtype != object:
        return (value.shape, value.dtype.str, value.tobytes())
    if isinstance(value, pd.DataFrame):
        return plain([value[name].to_numpy() for name in value])
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | Iterator | np.ndarray):
        return [plain(part) for part in value]
    if dataclasses.is_dataclass(value):
        return [plain(getattr(value, f.name)) for f in dataclasses.fields(value)]
    return repr(value)


def race(work, rounds=1):
    """Run the calls of each thread together; count right, wrong and crashed ones.

    Parameters
    ----------
    work : list of dict of str to callable
        Of each thread; what they return in one thread is what is right. They are called
        once before.
    rounds : int

    Returns
    -------
    right : int
    faults : list of str
        Wrong values and exceptions, with the call's name.
    """
    expected = [{n: plain(call()) for n, call in calls.items()} for calls in work]
    return against(expected, work, rounds)


def against(expected, work, rounds=1):
    """As :func:`race`, with the right values given; nothing is called before."""
    right, faults, together = [], [], threading.Barrier(len(work))

    def run(index):
        names = list(work[index]) * rounds
        random.Random(index).shuffle(names)
        together.wait()
        for name in names:
            try:
                found = plain(work[index][name]())
            except Exception as error:
                faults.append(f"{name} crashed: {type(error).__name__}: {error}")
                continue
            if found == expected[index][name]:
                right.append(name)
            else:
                faults.append(f"{name} wrong")

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(work))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    return len(right), faults
