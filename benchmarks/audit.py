"""Print ``risk.audit()`` of three networks: ``python benchmarks/audit.py``.

The reference problem's LeNet on 1200 random images, an LSTM on sequences, and a
transformer on padded ones. ``docs/audit.md`` shows what it prints.
"""

import torch
from torch import nn

from flatmin.modules import LeNet
from flatmin.risk import EmpiricalRisk


class Recurrent(nn.Module):
    """An LSTM and a linear layer on its last output."""

    def __init__(self):
        super().__init__()
        self.lstm, self.last = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 3)

    def forward(self, x):
        return self.last(self.lstm(x)[0][:, -1])


class Transformer(nn.Module):
    """PyTorch's own encoder on padded sequences of words."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.words, self.encoder = nn.Embedding(50, 32), nn.TransformerEncoder(layer, 2)
        self.last = nn.Linear(32, 3)

    def forward(self, x):
        hidden = self.encoder(self.words(x), src_key_padding_mask=x == 0)
        return self.last(hidden.mean(1))


def problems():
    """Yield module, X and y of each problem."""
    yield LeNet(), torch.rand(1200, 1, 28, 28), torch.randint(0, 10, (1200,))
    yield Recurrent(), torch.randn(1200, 20, 8), torch.randint(0, 3, (1200,))
    words = torch.randint(1, 50, (1200, 16))
    words[::3, 10:] = 0
    yield Transformer(), words, torch.randint(0, 3, (1200,))


def main():
    torch.manual_seed(0)
    for module, X, y in problems():
        print(EmpiricalRisk(module, "cross_entropy", X, y).audit(), end="\n\n")


if __name__ == "__main__":
    main()
