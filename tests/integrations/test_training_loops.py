"""The same training, monitored from a plain loop and from those of other packages."""

import numpy as np
import pandas as pd
import pytest
import torch
from skorch import NeuralNetClassifier
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from flatmin import FlatnessMonitor, NoisyDiffusionClassifier
from flatmin.integrations.skorch import FlatnessCallback as SkorchCallback

# Of the other packages, which warn about much.
pytestmark = pytest.mark.filterwarnings("ignore")

N, BATCH, EPOCHS, LR = 64, 16, 2, 0.1
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
y = (X[:, 0] > X[:, 1]).long()
QUANTITIES = ["loss", "max_eigenvalue", "edge_of_stability", "covariance_trace"]


def make_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def make_monitor(**options):
    return FlatnessMonitor(
        X,
        y,
        loss="cross_entropy",
        quantities=QUANTITIES,
        every=2,
        budget=1000,
        **options,
    )


def agree(history, wanted):
    pd.testing.assert_frame_equal(history, wanted, rtol=1e-5)


@pytest.fixture(scope="module")
def wanted():
    """The history of a plain loop."""
    net, monitor = make_net(), make_monitor()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    monitor(net, 0, lr=LR)
    step = 0
    for _ in range(EPOCHS):
        for rows in torch.arange(N).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(net(X[rows]), y[rows]).backward()
            optimizer.step()
            step += 1
            monitor(net, step, lr=LR)
    history = monitor.history_
    assert history["step"].tolist() == [0, 2, 4, 6, 8]
    assert history["loss"].is_monotonic_decreasing
    return history


def test_skorch(wanted):
    monitor = make_monitor()
    net = NeuralNetClassifier(
        make_net(),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        lr=LR,
        max_epochs=EPOCHS,
        batch_size=BATCH,
        train_split=None,
        callbacks=[SkorchCallback(monitor, steps="batch")],
        verbose=0,
    ).fit(X, y)
    agree(monitor.history_, wanted)
    assert net.history[-1]["loss"] == monitor.history_["loss"].iloc[-1]


def test_lightning(wanted):
    pl = pytest.importorskip("lightning.pytorch")
    from flatmin.integrations.lightning import FlatnessCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make_net()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=LR)

    class Logger(pl.loggers.logger.DummyLogger):
        def __init__(self):
            super().__init__()
            self.rows = []

        def log_metrics(self, metrics, step=None):
            if "flatmin/loss" in metrics:
                self.rows.append({"step": step, **metrics})

    monitor, logger = make_monitor(), Logger()
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=logger,
        callbacks=[FlatnessCallback(monitor)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), DataLoader(TensorDataset(X, y), batch_size=BATCH))
    agree(monitor.history_, wanted)
    logged = pd.DataFrame(logger.rows).rename(columns=lambda n: n.split("/")[-1])
    agree(logged, wanted)


def test_transformers(wanted, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from flatmin.integrations.transformers import FlatnessCallback

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_net()

        def forward(self, x, labels=None):
            outputs = self.net(x)
            loss = None if labels is None else F.cross_entropy(outputs, labels)
            return {"loss": loss, "logits": outputs}

    class Trainer(transformers.Trainer):
        def _get_train_sampler(self, *args, **kwargs):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    trainer = Trainer(
        Module(),
        transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            learning_rate=LR,
            optim="sgd",
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=[{"x": a, "labels": b} for a, b in zip(X, y, strict=True)],
    )
    monitor = make_monitor(output_transform=lambda outputs: outputs["logits"])
    trainer.add_callback(FlatnessCallback(monitor, trainer))
    trainer.train()
    agree(monitor.history_, wanted)
    logged = [row for row in trainer.state.log_history if "flatmin_loss" in row]
    assert [row["step"] for row in logged] == wanted["step"].tolist()
    np.testing.assert_allclose(
        [row["flatmin_max_eigenvalue"] for row in logged],
        monitor.history_["max_eigenvalue"],
    )


def test_an_estimator_of_flatmin():
    monitor = make_monitor()
    clf = NoisyDiffusionClassifier(
        module=make_net(),
        method="gd",
        lr=LR,
        max_iter=4,
        record_every=1,
        callbacks=[SkorchCallback(monitor)],
        random_state=0,
    ).fit(X.numpy(), y.numpy())
    history = monitor.history_
    assert history["step"].tolist() == [0, 2, 4]
    recorded = clf.history_.set_index("iteration")["loss"][[0, 2, 4]]
    np.testing.assert_allclose(history["loss"], recorded, rtol=1e-6)


def test_an_estimator_of_flatmin_has_no_batches():
    callback = SkorchCallback(make_monitor(), steps="batch")
    with pytest.raises(ValueError, match="FlatnessCallback works on batches"):
        NoisyDiffusionClassifier(callbacks=[callback]).fit(X.numpy(), y.numpy())
