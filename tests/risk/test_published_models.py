"""Models of other people's packages, handed over whole, against autograd."""

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatmin.risk import EmpiricalRisk

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, of what they deprecate

N = 5
with torch.random.fork_rng():
    torch.manual_seed(0)
    MASK = (torch.arange(4) < torch.tensor([4, 2, 3, 4, 1])[:, None]).long()
    IDS = torch.randint(1, 9, (N, 4)) * MASK
    IMAGES = torch.randn(N, 1, 4, 4)
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
GPT2 = {
    "vocab_size": 9,
    "n_positions": 6,
    "n_embd": 4,
    "n_layer": 1,
    "n_head": 2,
    "bos_token_id": 1,
    "eos_token_id": 1,
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
VIT = {**SMALL, "image_size": 4, "patch_size": 2, "num_channels": 1}
TEXT = {"input_ids": IDS, "attention_mask": MASK}


def by_position(outputs):
    return outputs.logits.transpose(1, 2)


# Model, configuration, X, y, output_transform.
MODELS = {
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", GPT2, TEXT, IDS, by_position),
    "BERT": ("BertForSequenceClassification", "BertConfig", SMALL, TEXT, Y, None),
    "DistilBERT": (
        *("DistilBertForSequenceClassification", "DistilBertConfig"),
        *(DISTIL, TEXT, Y, None),
    ),
    "ViT": (
        *("ViTForImageClassification", "ViTConfig"),
        *(VIT, {"pixel_values": IMAGES}, Y, None),
    ),
}


def build(name):
    model, configuration, settings = MODELS[name][:3]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        configured = getattr(transformers, configuration)(**settings)
        return getattr(transformers, model)(configured).double().eval()


class Autograd:
    """Products with a model as it is, by its own parameters."""

    def __init__(self, model, X, y, transform):
        self.model = copy.deepcopy(model)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        X = {k: v.double() if v.is_floating_point() else v for k, v in X.items()}
        outputs = self.model(**X)
        self.outputs = outputs.logits if transform is None else transform(outputs)
        self.losses = F.cross_entropy(self.outputs, y, reduction="none")
        self.losses = self.losses.reshape(len(y), -1).mean(1)

    def pull(self, tensor, cotangent=None, **options):
        parts = torch.autograd.grad(
            *(tensor, self.params, cotangent),
            retain_graph=True,
            materialize_grads=True,
            allow_unused=True,
            **options,
        )
        return torch.cat([part.reshape(-1) for part in parts])

    def rows(self):
        return torch.stack([self.pull(loss) for loss in self.losses])

    def hvp(self, v):
        gradient = self.pull(self.losses.mean(), create_graph=True)
        return self.pull(gradient @ v)

    def ggn(self, v):
        u = torch.zeros_like(self.outputs).requires_grad_()
        pulled = self.pull(self.outputs, u, create_graph=True)
        (Jv,) = torch.autograd.grad(pulled @ v, u)
        logits = self.outputs.detach().requires_grad_()
        losses = F.cross_entropy(logits, TARGETS[len(logits.shape)], reduction="none")
        (slope,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)
        (HJv,) = torch.autograd.grad((slope * Jv).sum(), logits)
        return self.pull(self.outputs, HJv / losses.numel())


TARGETS = {2: Y, 3: IDS}  # by the axes of the logits


@pytest.mark.parametrize("name", MODELS)
def test_a_model_as_it_is(name):
    *_, X, y, transform = MODELS[name]
    model = build(name)
    risk = EmpiricalRisk(
        model, "cross_entropy", X, y, chunk_size=3, output_transform=transform
    )
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
        right = Autograd(model, X, y, transform)
        rows = right.rows()
        theta = risk.params()
        v = torch.linspace(-1, 1, risk.n_params).double()
        expected_hvp, expected_ggn = right.hvp(v), right.ggn(v)
    point = risk.linearize(theta)
    for found, expected in (
        (risk.value(theta), right.losses.mean().detach()),
        (risk.outputs(theta), right.outputs.detach()),
        (risk.gradient(theta), rows.mean(0)),
        (risk.squared_norms(theta), rows.square().sum(1)),
        (risk.gradient_variances(theta), rows.var(0, correction=0)),
        (point.hvp(v), expected_hvp),
        (point.ggn(v), expected_ggn),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert risk.paths["per-example sums"] == "by layer"


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
