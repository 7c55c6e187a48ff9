"""The cross-entropy of each token given those before it, as language models take it."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.risk.losses.cross_entropy import CrossEntropy
from flatmin.risk.losses.example_loss import ExampleLoss

__all__ = ["NextToken"]


class NextToken(ExampleLoss):
    """-log softmax(f_t)_{y_{t+1}}: the logits at t are of the token at t + 1.

    Outputs ``(n, T, V)`` and labels ``(n, T)``, as the causal language models of
    Hugging Face have them: the loss shifts the labels itself, and those equal to -100
    are left out. The first label of an example, and the last logits, are of no effect.
    """

    name = "next_token"
    is_likelihood = True

    def __init__(self) -> None:
        self._of_shifted = CrossEntropy()
        self.classes = self._of_shifted.classes

    def prepare_targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.prepare_targets`."""
        shape = ("n", *outputs.shape[1:])
        if outputs.ndim != 3 or outputs.shape[1] < 2:
            raise ValueError(
                "next_token needs logits of shape (n, T, V), T tokens of at least 2 "
                f"and a vocabulary of V. Got outputs {shape}; pass output_transform, "
                "or loss='cross_entropy' for one label an example."
            )
        if y.shape[1:] != outputs.shape[1:2]:
            raise ValueError(
                f"next_token with outputs {shape} needs labels of shape "
                f"{('n', outputs.shape[1])}, not shifted. Got {('n', *y.shape[1:])}."
            )
        shifted = self._of_shifted.prepare_targets(y[:, 1:], _classes_second(outputs))
        first = torch.full_like(shifted[:, :1], self._of_shifted.classes.ignore_index)
        return torch.cat([first, shifted], 1)

    def target_weights(self, targets: Tensor) -> Tensor | None:
        """See :meth:`ExampleLoss.target_weights`."""
        return self._of_shifted.target_weights(targets[:, 1:])

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.per_example`."""
        # The last token's logits, which have no target, are left out there.
        return self._of_shifted.per_example(outputs.transpose(1, 2), targets[:, 1:])

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.right`; of the next token."""
        return self._of_shifted.right(_classes_second(outputs), targets[:, 1:])

    def root_product(self, outputs: Tensor, targets: Tensor, z: Tensor) -> Tensor:
        """S as for cross-entropy; 0 at the last token."""
        shifted = _shifted(outputs, targets, z)
        return self._of_shifted.root_product(*shifted).transpose(1, 2)

    def sign_product(self, outputs: Tensor, targets: Tensor, z: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.sign_product`; as for cross-entropy."""
        shifted = _shifted(outputs, targets, z)
        return self._of_shifted.sign_product(*shifted).transpose(1, 2)

    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        """H as for cross-entropy; 0 at the last token."""
        shifted = _shifted(outputs, targets, u)
        return self._of_shifted.hessian_product(*shifted).transpose(1, 2)

    def model_slope(
        self, outputs: Tensor, targets: Tensor, rng: torch.Generator
    ) -> Tensor:
        """See :meth:`ExampleLoss.model_slope`; 0 at the last token."""
        shifted = outputs.transpose(1, 2), targets[:, 1:]
        return self._of_shifted.model_slope(*shifted, rng).transpose(1, 2)


def _shifted(outputs: Tensor, targets: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    """Return what the cross-entropy takes a product of, z in the outputs' shape."""
    # The last token's logits, which have no target, are left out there.
    return outputs.transpose(1, 2), targets[:, 1:], z.transpose(1, 2)


def _classes_second(logits: Tensor) -> Tensor:
    """Return all but the last token's numbers, (n, T, V) as (n, V, T - 1)."""
    return logits[:, :-1].transpose(1, 2)
