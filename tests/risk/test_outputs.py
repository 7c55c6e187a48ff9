"""What a module returns, and which of it the loss compares."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn

from flatmin.risk import EmpiricalRisk

N = 5
X, Y = torch.linspace(-1, 1, 4 * N).view(N, 4).double(), torch.tensor([0, 1, 2, 0, 1])


class Pair(NamedTuple):
    hidden: torch.Tensor
    logits: torch.Tensor


@dataclass
class Output:
    hidden: torch.Tensor
    logits: torch.Tensor


class Returns(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form, self.linear = form, nn.Linear(4, 3)
        with torch.no_grad():
            self.linear.weight.copy_(torch.linspace(-1, 1, 12).view(3, 4))
            self.linear.bias.zero_()

    def forward(self, x):
        return self.form(self.linear(x), x)


def make(form, **options):
    return EmpiricalRisk(Returns(form).double(), "cross_entropy", X, Y, **options)


loss = torch.tensor(1.0)
FORMS = {
    "a tensor": lambda f, x: f,
    "a tuple": lambda f, x: (f, x),
    "a list": lambda f, x: [f, (x, x)],
    "one in a tuple": lambda f, x: (f,),
    "a named tuple": lambda f, x: Pair(x, f),
    "an object": lambda f, x: Output(x, f),
    "a mapping": lambda f, x: {"hidden": x, "logits": f},
    "the first of a mapping": lambda f, x: OrderedDict(cache=None, out=f, aux=x),
    "a loss before": lambda f, x: {"loss": loss, "logits": f},
}


@pytest.mark.parametrize("name", FORMS)
def test_the_rule(name):
    risk, plain = make(FORMS[name]), make(FORMS["a tensor"])
    theta = risk.params()
    v = torch.ones_like(theta)
    assert torch.equal(risk.outputs(theta), plain.outputs(theta))
    for ask in (
        lambda r: r.gradient(theta),
        lambda r: r.squared_norms(theta),
        lambda r: r.linearize(theta).hvp(v),
        lambda r: r.linearize(theta).ggn(v),
    ):
        torch.testing.assert_close(ask(risk), ask(plain))


def test_output_transform_goes_before_the_rule():
    risk = make(
        lambda f, x: {"logits": x, "f": f}, output_transform=lambda out: out["f"]
    )
    plain = make(FORMS["a tensor"])
    theta = risk.params()
    assert torch.equal(risk.gradient(theta), plain.gradient(theta))


BAD = {
    "None first": (
        lambda f, x: (None, f),
        "Got tuple of NoneType, Tensor; pass",
    ),
    "a tuple first": (lambda f, x: ((f, x), f), "Got tuple of tuple, Tensor"),
    "nothing": (lambda f, x: (), "Got tuple of nothing"),
    "no tensor in a mapping": (lambda f, x: {"a": None}, r"Got dict with \['a'\]"),
    "a number": (lambda f, x: 1.0, "Got float; pass output_transform"),
    "several logits": (
        lambda f, x: {"start_logits": f, "end_logits": f},
        "Got 'start_logits', 'end_logits'; pass output_transform",
    ),
    "a loss first": (
        lambda f, x: (f.sum(), f),
        r"single number, such as the loss.*outputs\[1\]",
    ),
    "a loss first in a mapping": (
        lambda f, x: {"loss": f.sum(), "out": f},
        r"single number, such as the loss.*outputs\['out'\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name):
    form, text = BAD[name]
    with pytest.raises(TypeError, match=f"(?s){text}"):
        make(form)


def test_a_transform_must_return_a_tensor():
    with pytest.raises(TypeError, match="output_transform must return one Tensor"):
        make(FORMS["a tuple"], output_transform=lambda outputs: outputs)


def test_where_the_first_is_not_meant_the_head_is_not_seen():
    class Features(Returns):
        def __init__(self):
            super().__init__(None)
            self.head = nn.Linear(3, 3)

        def forward(self, x):
            features = self.linear(x)
            return features, self.head(features)

    module = Features().double()
    with pytest.warns(UserWarning, match=r"'head.weight', .*say by output_tr"):
        EmpiricalRisk(module, "cross_entropy", X, Y)


def test_one_number_for_all_examples():
    with pytest.raises(ValueError, match="one output for each example"):
        make(lambda f, x: f.sum())
    with pytest.raises(ValueError, match=r"one output for.*\(1, 3\) for 5 ex"):
        make(lambda f, x: f.mean(0, keepdim=True))
