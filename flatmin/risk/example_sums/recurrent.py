"""Recurrent layers step by step, as the linear maps that they are made of.

PyTorch's own run as one kernel, which tells nothing of its steps. The map of the states
is called at each; what comes out of it is tapped by a sum with zeros, whose gradient is
that of all steps in one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flatmin.risk.example_sums.row_rules import alias
from flatmin.risk.failures import UnsupportedLayers

__all__ = ["CELLS", "UNROLLED", "Record", "unroll", "unroll_cell"]

# (weight, bias, input, output) of a linear map; examples first, then steps.
Record = Callable[[Tensor, Tensor | None, Tensor, Tensor], None]
State = tuple[Tensor, ...]  # what is put out comes first
# What came from the input and from the state, and the state, to the next state.
Step = Callable[[Tensor, Tensor, State], State]


def unroll(func: Any, args: tuple[Any, ...], record: Record) -> tuple[Tensor, ...]:
    """Return what a call of a recurrent kernel returns, and record its linear maps.

    Parameters
    ----------
    func : callable
        Of :data:`UNROLLED`.
    args : tuple
        Of the kernel.
    record : callable
        Takes weight, bias, input ``(n, t, i)`` and output ``(n, t, o)`` of each map.

    Returns
    -------
    tuple of Tensor

    Raises
    ------
    UnsupportedLayers
        If the sequences are packed, states are projected or layers dropped out.
    """
    if not isinstance(args[3], bool):
        raise UnsupportedLayers("packed sequences")
    x, start, weights, has_biases, n_layers, dropout, train, both_ways, batch_first = (
        args
    )
    per_direction = 4 if has_biases else 2
    n_directions = 2 if both_ways else 1
    if train and dropout:
        raise UnsupportedLayers("dropout in a recurrent layer")
    if len(weights) != per_direction * n_directions * n_layers:
        raise UnsupportedLayers("a recurrent layer that projects its states")
    starts = (start,) if isinstance(start, Tensor) else tuple(start)
    sequence = x if batch_first else x.transpose(0, 1)
    last: list[State] = []
    for _ in range(n_layers):
        outputs = []
        for backwards in (False, True)[:n_directions]:
            index = len(last)
            own = weights[per_direction * index :][:per_direction]
            state = tuple(part[index] for part in starts)
            inputs = sequence.flip(1) if backwards else sequence
            output, state = _run(UNROLLED[func], inputs, state, own, record)
            outputs.append(output.flip(1) if backwards else output)
            last.append(state)
        sequence = torch.cat(outputs, -1)
    output = sequence if batch_first else sequence.transpose(0, 1)
    return output, *(torch.stack(parts) for parts in zip(*last, strict=True))


def unroll_cell(
    func: Any, args: tuple[Any, ...], record: Record
) -> Tensor | tuple[Tensor, ...]:
    """Return what a call of a recurrent cell returns, and record its linear maps.

    Parameters
    ----------
    func : callable
        Of :data:`CELLS`.
    args : tuple
        Of the cell.
    record : callable
        As in :func:`unroll`, with t = 1.

    Returns
    -------
    Tensor or tuple of Tensor
    """
    x, start, *weights = args
    starts = (start,) if isinstance(start, Tensor) else tuple(start)
    weights = [weight for weight in weights if weight is not None]
    _, state = _run(CELLS[func], x.unsqueeze(1), starts, weights, record)
    return state[0] if isinstance(start, Tensor) else state


def _run(
    step: Step,
    sequence: Tensor,
    state: State,
    weights: list[Tensor],
    record: Record,
) -> tuple[Tensor, State]:
    """Return the outputs of one layer in one direction, and the last state."""
    of_input, of_state, *biases = weights
    input_bias, state_bias = biases or (None, None)
    inputs = F.linear(sequence, alias(of_input), alias(input_bias))
    record(of_input, input_bias, sequence, inputs)
    taps = torch.zeros_like(inputs).requires_grad_()
    weight, bias = alias(of_state), alias(state_bias)
    before, outputs = [], []
    for put_in, tap in zip(inputs.unbind(1), taps.unbind(1), strict=True):
        before.append(state[0])
        state = step(put_in, F.linear(state[0], weight, bias) + tap, state)
        outputs.append(state[0])
    record(of_state, state_bias, torch.stack(before, 1), taps)
    return torch.stack(outputs, 1), state


def _lstm(a: Tensor, b: Tensor, state: State) -> State:
    i, f, g, o = (a + b).chunk(4, -1)
    cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _gru(a: Tensor, b: Tensor, state: State) -> State:
    (r, z, n), (r_b, z_b, n_b) = a.chunk(3, -1), b.chunk(3, -1)
    new = (n + (r + r_b).sigmoid() * n_b).tanh()
    return (new + (z + z_b).sigmoid() * (state[0] - new),)


def _tanh(a: Tensor, b: Tensor, _state: State) -> State:
    return ((a + b).tanh(),)


def _relu(a: Tensor, b: Tensor, _state: State) -> State:
    return ((a + b).relu(),)


UNROLLED: Mapping[Any, Step] = {
    torch.lstm: _lstm,
    torch.gru: _gru,
    torch.rnn_tanh: _tanh,
    torch.rnn_relu: _relu,
}
CELLS: Mapping[Any, Step] = {
    torch.lstm_cell: _lstm,
    torch.gru_cell: _gru,
    torch.rnn_tanh_cell: _tanh,
    torch.rnn_relu_cell: _relu,
}
