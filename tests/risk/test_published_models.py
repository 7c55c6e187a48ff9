"""Models of other people's packages: what they take, and what they give.

Their numbers are compared with autograd in tests/benchmarks/test_published_models.py.
"""

import pytest
import torch
from torch.nn import functional as F

from flatmin.risk import EmpiricalRisk

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, of what they deprecate

N = 5
with torch.random.fork_rng():
    torch.manual_seed(0)
    MASK = (torch.arange(4) < torch.tensor([4, 2, 3, 4, 1])[:, None]).long()
    IDS = torch.randint(1, 9, (N, 4)) * MASK
    Y = torch.randint(2, (N,))

SMALL = {
    "vocab_size": 9,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 4,
    "max_position_embeddings": 6,
    "type_vocab_size": 1,
    "num_labels": 2,
    "pad_token_id": 0,
}
DISTIL = {
    "vocab_size": 9,
    "dim": 4,
    "n_layers": 1,
    "n_heads": 2,
    "hidden_dim": 4,
    "max_position_embeddings": 6,
    "num_labels": 2,
    "pad_token_id": 0,
}
TEXT = {"input_ids": IDS, "attention_mask": MASK}


MODELS = {
    "BERT": ("BertForSequenceClassification", SMALL),
    "DistilBERT": ("DistilBertForSequenceClassification", DISTIL),
}


def build(name):
    kind, settings = MODELS[name]
    model = getattr(transformers, kind)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(model.config_class(**settings)).double().eval()


def test_what_a_tokenizer_returns_with_its_targets():
    held = transformers.BatchEncoding({**TEXT, "labels": Y})
    found = EmpiricalRisk(build("BERT"), "cross_entropy", held, target="labels")
    expected = EmpiricalRisk(build("BERT"), "cross_entropy", TEXT, Y)
    theta = found.params()
    assert torch.equal(found.gradient(theta), expected.gradient(theta))


def test_the_amount_of_padding_does_not_count():
    longer = {name: F.pad(part, (0, 2)) for name, part in TEXT.items()}
    short, long = (
        EmpiricalRisk(build("BERT"), "cross_entropy", X, Y) for X in (TEXT, longer)
    )
    theta = short.params()
    v = torch.linspace(-1, 1, short.n_params).double()
    for ask in (
        lambda r: r.value(theta),
        lambda r: r.gradient(theta),
        lambda r: r.squared_norms(theta),
        lambda r: r.linearize(theta).hvp(v),
    ):
        torch.testing.assert_close(ask(short), ask(long), rtol=1e-9, atol=1e-12)


def test_labels_in_x_do_not_make_the_loss_the_logits():
    held = {**TEXT, "labels": Y}
    found, expected = (
        EmpiricalRisk(build("BERT"), "cross_entropy", X, Y) for X in (held, TEXT)
    )
    theta = found.params()
    torch.testing.assert_close(found.gradient(theta), expected.gradient(theta))
    model = build("BERT")
    model.config.return_dict = False  # a tuple, with the loss first
    with pytest.raises(TypeError, match="a single number, such as the loss"):
        EmpiricalRisk(model, "cross_entropy", held, Y)


def test_names_that_a_model_does_not_take():
    held = {**TEXT, "token_type_ids": torch.zeros_like(IDS)}
    with pytest.warns(UserWarning, match=r"X\['token_type_ids'\] has no") as seen:
        EmpiricalRisk(build("DistilBERT"), "cross_entropy", held, Y)
    assert __file__ in [warning.filename for warning in seen]
    wrong = {"ids": IDS, "attention_mask": MASK}
    with pytest.raises(ValueError, match=r"cannot take X\['ids'\] of shape.*specify"):
        EmpiricalRisk(build("DistilBERT"), "cross_entropy", wrong, Y)
