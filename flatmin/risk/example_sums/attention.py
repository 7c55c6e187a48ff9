"""Attention as the two linear maps that hold its parameters, and what is between."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flatmin.risk.example_sums.recurrent import Record
from flatmin.risk.example_sums.row_rules import alias
from flatmin.risk.failures import UnsupportedLayers

__all__ = ["attend"]

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


def attend(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    record: Record,
) -> tuple[Tensor, Tensor | None]:
    """Return what ``multi_head_attention_forward`` returns, and record its linear maps.

    Parameters
    ----------
    args : tuple
    kwargs : dict
        Of the function.
    record : callable
        Takes weight, bias, input ``(n, t, i)`` and output ``(n, t, o)`` of each map.

    Returns
    -------
    outputs : Tensor of shape (t, n, e)
    weights : Tensor of shape (n, t, t) or (n, h, t, t), or None

    Raises
    ------
    UnsupportedLayers
        If it is not attention of sequences to themselves, or has separate or further
        weights, keys or values that are given, an added zero or dropout.
    """
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    call = bound.arguments
    query, n_heads = call["query"], call["num_heads"]
    if not query is call["key"] is call["value"] or query.ndim != 3:
        raise UnsupportedLayers("attention to another sequence")
    if call["use_separate_proj_weight"] or call["bias_k"] is not None:
        raise UnsupportedLayers("attention with further parameters")
    if call["add_zero_attn"] or (call["training"] and call["dropout_p"]):
        raise UnsupportedLayers("attention with dropout, or to nothing")
    if call["static_k"] is not None or call["static_v"] is not None:
        raise UnsupportedLayers("attention to keys or values that are given")

    sequence = query.transpose(0, 1)
    n, t, e = sequence.shape
    weight, bias = call["in_proj_weight"], call["in_proj_bias"]
    projected = F.linear(sequence, alias(weight), alias(bias))
    record(weight, bias, sequence, projected)
    q, k, v = projected.view(n, t, 3, n_heads, -1).permute(2, 0, 3, 1, 4)  # n h t d
    mask, padding = (_added(call[key], q) for key in ("attn_mask", "key_padding_mask"))
    if mask is not None and mask.ndim == 3:
        mask = mask.view(n, n_heads, t, t)
    if padding is not None:
        padding = padding.view(n, 1, 1, t)
        mask = padding if mask is None else mask + padding
    weights = None
    if call["need_weights"]:
        scores = q @ k.mT / q.shape[-1] ** 0.5
        weights = (scores if mask is None else scores + mask).softmax(-1)
        mixed = weights @ v
        if call["average_attn_weights"]:
            weights = weights.mean(1)
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, mask)
    mixed = mixed.transpose(1, 2).reshape(n, t, e)
    weight, bias = call["out_proj_weight"], call["out_proj_bias"]
    outputs = F.linear(mixed, alias(weight), alias(bias))
    record(weight, bias, mixed, outputs)
    return outputs.transpose(0, 1), weights


def _added(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Return a mask that is added to the scores, from one of what to leave out."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    zeros = torch.zeros_like(mask, dtype=like.dtype)
    return zeros.masked_fill_(mask, float("-inf"))
