"""Models of the package ``transformers``, in small sizes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from _published_model import N, Published, classes, labels, words
from torch import Tensor, nn

__all__ = ["TRANSFORMERS"]


def logits(returned: Any) -> Tensor:
    """Return what Hugging Face calls so."""
    return returned.logits


def by_class(returned: Any) -> Tensor:
    """Return logits of a sequence with the classes second, as PyTorch's losses do."""
    return returned.logits.transpose(1, 2)


def shifted(returned: Any) -> Tensor:
    """Return the logits that tell the next token, with the classes second."""
    return returned.logits[:, :-1].transpose(1, 2)


TEXT = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 8,
    "num_labels": 3,
    "pad_token_id": 0,
}


def hugging(kind: str, **settings: Any) -> nn.Module:
    """Return a model of transformers in a small size."""
    model = getattr(importlib.import_module("transformers"), kind)
    return model(model.config_class(**settings))


def tokens() -> tuple[dict[str, Tensor], Tensor]:
    """Return padded ids with their mask, and labels that leave the padding out."""
    mask = (torch.arange(5) < torch.tensor([5, 2, 3, 5, 4, 3])[:, None]).long()
    ids = torch.randint(1, 11, (N, 5)) * mask
    return {"input_ids": ids, "attention_mask": mask}, ids.masked_fill(mask == 0, -100)


def causal(kind: str, **settings: Any) -> Published:
    """Return a causal language model on padded text with labels of -100."""
    X, y = tokens()
    return Published(
        *(hugging(kind, **settings), X, y, "next_token"),
        losses=lambda outputs, y: words(outputs, y[:, 1:]),
        outputs=shifted,
        own_loss=lambda module: module(**X, labels=y).loss,
    )


def encoder(kind: str, **settings: Any) -> Published:
    """Return a classifier of padded text."""
    X, y = tokens()[0], labels()
    return Published(
        *(hugging(kind, **settings), X, y, "cross_entropy", classes, logits),
        own_loss=lambda module: module(**X, labels=y).loss,
    )


def images(kind: str, n_channels: int = 3, size: int = 8, **settings: Any) -> Published:
    """Return a classifier of pictures."""
    X, y = {"pixel_values": torch.randn(N, n_channels, size, size)}, labels()
    wide = {"pixel_values": X["pixel_values"].double()}
    return Published(
        *(hugging(kind, **settings), X, y, "cross_entropy", classes, logits),
        own_loss=lambda module: module(**wide, labels=y).loss,
    )


VIT = {
    **{name: TEXT[name] for name in TEXT if "position" not in name},
    "image_size": 8,
    "patch_size": 4,
}
GPT2 = {
    "vocab_size": 11,
    "n_positions": 8,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
DISTIL = {
    "vocab_size": 11,
    "dim": 8,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 12,
    "max_position_embeddings": 8,
    "num_labels": 3,
    "pad_token_id": 0,
}
T5 = {
    "vocab_size": 11,
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 12,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
RESNET = {
    "embedding_size": 4,
    "hidden_sizes": [4, 8],
    "depths": [1, 1],
    "layer_type": "basic",
    "num_labels": 3,
    "downsample_in_first_stage": False,
}
LXMERT = {
    **{name: TEXT[name] for name in ("vocab_size", "hidden_size", "intermediate_size")},
    "num_attention_heads": 2,
    "num_qa_labels": 3,
    "max_position_embeddings": 8,
    "l_layers": 1,
    "x_layers": 1,
    "r_layers": 1,
    "visual_feat_dim": 4,
}


def llama() -> Published:
    return causal("LlamaForCausalLM", **TEXT, num_key_value_heads=1)


def t5() -> Published:
    module = hugging("T5ForConditionalGeneration", **T5)
    X, y = tokens()
    X = {**X, "decoder_input_ids": module._shift_right(y)}
    return Published(
        *(module, X, y, "cross_entropy", words, by_class),
        options={"output_transform": by_class},
        own_loss=lambda module: module(**X, labels=y).loss,
    )


def resnet(batch_norm: str) -> Published:
    published = images("ResNetForImageClassification", **RESNET)
    published.mode = "eval" if batch_norm == "frozen" else "train"
    published.options = {"batch_norm": batch_norm}
    return published


def lxmert() -> Published:
    X = {
        **tokens()[0],
        "visual_feats": torch.randn(N, 4, 4),
        "visual_pos": torch.rand(N, 4, 4),
    }
    return Published(
        *(hugging("LxmertForQuestionAnswering", **LXMERT), X, labels()),
        *("cross_entropy", classes, lambda returned: returned.question_answering_score),
    )


def clip() -> Published:
    text = {**TEXT, "projection_dim": 8}
    del text["num_labels"]
    module = hugging(
        "CLIPModel",
        text_config={**text, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={**VIT, "projection_dim": 8},
        projection_dim=8,
    )
    X = {**tokens()[0], "pixel_values": torch.randn(N, 3, 8, 8)}

    def read(returned: Any) -> Tensor:
        return returned.logits_per_image

    return Published(
        *(module, X, torch.arange(N), "cross_entropy", classes, read),
        options={"output_transform": read},
    )


TRANSFORMERS: dict[str, Callable[[], Published]] = {
    "GPT-2, padded, labels of -100": lambda: causal("GPT2LMHeadModel", **GPT2),
    "BERT with a mask": lambda: encoder("BertForSequenceClassification", **TEXT),
    "DistilBERT with a mask": lambda: encoder(
        "DistilBertForSequenceClassification", **DISTIL
    ),
    "ViT": lambda: images("ViTForImageClassification", **VIT),
    "Llama, padded, labels of -100": llama,
    "T5, encoder and decoder": t5,
    'ResNet, batch_norm="frozen"': lambda: resnet("frozen"),
    'ResNet, batch_norm="batch"': lambda: resnet("batch"),
    "LXMERT, text and pictures": lxmert,
    "CLIP, text against pictures": clip,
}
