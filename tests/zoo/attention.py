"""Attention and transformers."""

import torch
from torch import nn

from ._nets import N, around

KINDS = {}
E = 2


def _to_itself(name, *, masks=None, heads=1, batch_first=True, first=True, **options):
    def build():
        layer = nn.MultiheadAttention(E, heads, batch_first=batch_first, **options)

        def call(layer, h):
            h = h if batch_first else h.transpose(0, 1)
            given = {} if masks is None else masks(h)
            outputs, weights = layer(h, h, h, **given)
            if not first:
                return weights
            return outputs if batch_first else outputs.transpose(0, 1)

        return around(layer, torch.randn(N, 3, E), call=call)

    KINDS[name] = build


def _causal(h):
    mask = torch.ones(3, 3, dtype=torch.bool).triu(1)
    return {"attn_mask": mask, "need_weights": False}


def _padding(h):
    return {"key_padding_mask": h.detach()[..., 0] > 1}


def _numbers(h):
    return {"attn_mask": h.new_ones(3, 3).tril()}


_to_itself("MultiheadAttention")
_to_itself("MultiheadAttention, two heads", heads=2)
_to_itself("MultiheadAttention, time first", batch_first=False)
_to_itself("MultiheadAttention, its weights", first=False)
_to_itself(
    "MultiheadAttention without weights", masks=lambda h: {"need_weights": False}
)
_to_itself("MultiheadAttention, causal mask", masks=_causal)
_to_itself("MultiheadAttention, mask of numbers", masks=_numbers)
_to_itself("MultiheadAttention, add_zero_attn", add_zero_attn=True)
_to_itself("MultiheadAttention, add_bias_kv", add_bias_kv=True)
_to_itself("MultiheadAttention without bias", bias=False)


def _key_padding():
    """Positions whose token is 0 are left out."""
    words, layer = nn.Embedding(5, E), nn.MultiheadAttention(E, 1, batch_first=True)

    def call(layers, X):
        h = layers[0](X)
        return layers[1](h, h, h, key_padding_mask=X == 0)[0]

    X = torch.randint(1, 5, (N, 3))
    X[:4, 2] = 0
    return around(nn.ModuleList([words, layer]), X, call=call)


KINDS["MultiheadAttention, key padding"] = _key_padding


def _other_widths():
    layer = nn.MultiheadAttention(E, 1, kdim=1, vdim=3, batch_first=True)
    return around(
        layer,
        torch.randn(N, 3, 3),
        call=lambda layer, h: layer(h[..., :2], h[..., :1], h)[0],
    )


KINDS["MultiheadAttention, kdim and vdim"] = _other_widths


def _to_another():
    layer = nn.MultiheadAttention(E, 1, batch_first=True)
    return around(
        layer,
        torch.randn(N, 4, E),
        call=lambda a, h: a(h[:, :2], h[:, 1:], h[:, 1:])[0],
    )


KINDS["MultiheadAttention to another sequence"] = _to_another


def _encoder_layer(**options):
    options = {"dropout": 0.0, "batch_first": True, **options}
    return nn.TransformerEncoderLayer(E, 1, 2, **options)


def _decoder_layer(**options):
    options = {"dropout": 0.0, "batch_first": True, **options}
    return nn.TransformerDecoderLayer(E, 1, 2, **options)


def _encoder(name, make, **given):
    KINDS[name] = lambda: around(
        make(), torch.randn(N, 3, E), call=lambda layer, h: layer(h, **given)
    )


_CAUSAL = torch.ones(3, 3, dtype=torch.bool).triu(1)
_encoder("TransformerEncoderLayer", _encoder_layer)
_encoder("TransformerEncoderLayer, norm first", lambda: _encoder_layer(norm_first=True))
_encoder("TransformerEncoderLayer, GELU", lambda: _encoder_layer(activation="gelu"))
_encoder("TransformerEncoderLayer with dropout", lambda: _encoder_layer(dropout=0.5))
_encoder("TransformerEncoderLayer without bias", lambda: _encoder_layer(bias=False))
_encoder("TransformerEncoderLayer, causal mask", _encoder_layer, src_mask=_CAUSAL)
_encoder("TransformerEncoder", lambda: nn.TransformerEncoder(_encoder_layer(), 1))
_encoder(
    "TransformerEncoder, two layers and a norm",
    lambda: nn.TransformerEncoder(_encoder_layer(), 2, nn.LayerNorm(E)),
)
_encoder(
    "TransformerEncoder, causal mask",
    lambda: nn.TransformerEncoder(_encoder_layer(), 1),
    mask=_CAUSAL,
    is_causal=True,
)


def _time_first():
    layer = nn.TransformerEncoderLayer(E, 1, 2, dropout=0.0)
    return around(
        layer,
        torch.randn(N, 3, E),
        call=lambda layer, h: layer(h.transpose(0, 1)).transpose(0, 1),
    )


KINDS["TransformerEncoderLayer, time first"] = _time_first


def _mistaken():
    """Without batch_first the examples attend to each other."""
    layer = nn.TransformerEncoderLayer(E, 1, 2, dropout=0.0)
    return around(layer, torch.randn(N, 3, E), refused="must not depend on the others")


KINDS["TransformerEncoderLayer, batch second by mistake"] = _mistaken


def _padded():
    """The fast path without gradients fills padded positions with 0."""
    words, encoder = nn.Embedding(5, E), nn.TransformerEncoder(_encoder_layer(), 1)

    def call(layers, X):
        return layers[1](layers[0](X), src_key_padding_mask=X == 0).mean(1)

    X = torch.randint(1, 5, (N, 3))
    X[:4, 2] = 0
    return around(nn.ModuleList([words, encoder]), X, call=call)


KINDS["TransformerEncoder, padded"] = _padded


def _decoder(name, make):
    KINDS[name] = lambda: around(
        make(), torch.randn(N, 4, E), call=lambda layer, h: layer(h[:, :2], h[:, 2:])
    )


_decoder("TransformerDecoderLayer", _decoder_layer)
_decoder("TransformerDecoderLayer, norm first", lambda: _decoder_layer(norm_first=True))
_decoder("TransformerDecoder", lambda: nn.TransformerDecoder(_decoder_layer(), 1))
_decoder(
    "Transformer",
    lambda: nn.Transformer(E, 1, 1, 1, 2, dropout=0.0, batch_first=True),
)


def _scaled_dot_product(**given):
    return around(
        nn.Linear(E, 3 * E),
        torch.randn(N, 3, E),
        call=lambda layer, h: nn.functional.scaled_dot_product_attention(
            *layer(h).unsqueeze(1).chunk(3, -1), **given
        ),
    )


KINDS["scaled_dot_product_attention"] = _scaled_dot_product
KINDS["scaled_dot_product_attention, causal"] = lambda: _scaled_dot_product(
    is_causal=True
)
