"""Recurrent layers and cells."""

from functools import partial

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ._nets import N, around

KINDS = {}


def _layer(kind, *, batch_first=True, last=True, refused=None, **options):
    layer = kind(2, 2, batch_first=batch_first, **options)

    def call(layer, h):
        outputs = layer(h if batch_first else h.transpose(0, 1))[0]
        outputs = outputs if batch_first else outputs.transpose(0, 1)
        return outputs[:, -1] if last else outputs

    return around(layer, torch.randn(N, 3, 2), call=call, refused=refused)


def _hidden(kind):
    """The states, not the outputs."""

    def call(layer, h):
        states = layer(h)[1]
        states = states if isinstance(states, tuple) else (states,)
        return torch.cat([s.transpose(0, 1).flatten(1) for s in states], 1)

    return around(kind(2, 2, batch_first=True), torch.randn(N, 3, 2), call=call)


def _packed(kind):
    def call(layer, h):
        lengths = torch.full((len(h),), 2)
        packed = pack_padded_sequence(h, lengths, batch_first=True)
        return pad_packed_sequence(layer(packed)[0], batch_first=True)[0]

    return around(kind(2, 2, batch_first=True), torch.randn(N, 3, 2), call=call)


def _cell(kind):
    def call(cell, h):
        state = None
        for x in h.unbind(1):
            state = cell(x, state)
        return state[0] if isinstance(state, tuple) else state

    return around(kind(2, 2), torch.randn(N, 3, 2), call=call)


def _mistaken(kind):
    """Given (N, T, F) where (T, N, F) is due, it runs through the examples."""
    return around(
        kind(2, 2),
        torch.randn(N, 3, 2),
        call=lambda layer, h: layer(h)[0][:, -1],
        refused="must not depend on the others",
    )


for kind in (nn.RNN, nn.GRU, nn.LSTM):
    name = kind.__name__
    KINDS[name] = partial(_layer, kind)
    KINDS[f"{name}, time first"] = partial(_layer, kind, batch_first=False)
    KINDS[f"{name}, all outputs"] = partial(_layer, kind, last=False)
    KINDS[f"{name}, bidirectional"] = partial(_layer, kind, bidirectional=True)
    KINDS[f"{name}, two layers without bias"] = partial(
        _layer, kind, num_layers=2, bias=False
    )
    KINDS[f"{name}, its states"] = partial(_hidden, kind)
    KINDS[f"{name}, packed"] = partial(_packed, kind)
    KINDS[f"{name}, batch second by mistake"] = partial(_mistaken, kind)
KINDS["RNN with ReLU"] = partial(_layer, nn.RNN, nonlinearity="relu")
KINDS["LSTM, projected"] = partial(_layer, nn.LSTM, proj_size=1)
for kind in (nn.RNNCell, nn.GRUCell, nn.LSTMCell):
    KINDS[kind.__name__] = partial(_cell, kind)
