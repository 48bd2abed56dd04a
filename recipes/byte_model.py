"""A small byte-level transformer, and Python's own standard library as the text it learns.

Usable by name from the command line, in the repository root:

    gradtrace compare LEDGER WEIGHTS --model recipes.byte_model:model --validate recipes.byte_model:validate
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

__all__ = ["CONTEXT", "ByteModel", "Text", "batches", "held_out", "loss_of", "model", "text", "validate"]

CONTEXT = 128
_TESTS = {"test", "tests", "idle_test", "site-packages", "dist-packages"}


class Text(NamedTuple):
    """Bytes as uint8, shape (N,); `digest` tells the texts of two Python versions apart."""

    train: Tensor
    held_out: Tensor
    digest: str


@cache
def text() -> Text:
    """The .py files of this Python's standard library without its tests, every tenth file held out.

    Which tenth is decided by the file's path alone, so the split is the same on every machine.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not _TESTS.intersection(name.parts):
            parts[crc32(name.as_posix().encode()) % 10 == 0].append(path.read_bytes())
    train, held = (b"".join(files) for files in parts)
    digest = sha256(train + held).hexdigest()[:16]
    return Text(_as_tensor(train), _as_tensor(held), digest)


def _as_tensor(whole: bytes) -> Tensor:
    return torch.frombuffer(bytearray(whole), dtype=torch.uint8)  # a copy: torch wants what can be written


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a LayerNorm and added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_a, self.norm_b = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) in and out; no position sees a later one."""
        seen = self.norm_a(x)
        q, k, v = (
            part(seen).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(-2))
        changed: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm_b(x))))
        return changed


class ByteModel(nn.Module):
    """Predicts each next byte. All weight matrices but the two embeddings are nn.Linear's.

    `embedding_std`: of the normal distribution that the embeddings start from; 1 is how torch starts them.
    """

    def __init__(
        self, width: int = 128, layers: int = 4, heads: int = 4, embedding_std: float = 0.02
    ) -> None:
        super().__init__()
        self.bytes, self.positions = nn.Embedding(256, width), nn.Embedding(CONTEXT, width)
        # Small, so that what a token is does not drown what the blocks add.
        nn.init.normal_(self.bytes.weight, std=embedding_std)
        nn.init.normal_(self.positions.weight, std=embedding_std)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, length, 256) of the bytes that follow `tokens`, int64 (batch, length <= CONTEXT)."""
        places = self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        logits: Tensor = self.head(self.norm(self.blocks(self.bytes(tokens) + places)))
        return logits


def model() -> ByteModel:
    """A fresh model of the size that language.py trains: what `--model recipes.byte_model:model` calls."""
    return ByteModel()


def batches(seed: int, steps: int, size: int) -> Iterator[Tensor]:
    """`steps` batches of training text, int64 (size, CONTEXT + 1), from places drawn by `seed`."""
    source, generator = text().train, torch.Generator().manual_seed(seed)
    for _ in range(steps):
        begins = torch.randint(len(source) - CONTEXT, (size, 1), generator=generator)
        yield source[begins + torch.arange(CONTEXT + 1)].long()


def loss_of(net: nn.Module, batch: Tensor) -> Tensor:
    """Mean cross-entropy, in nats a byte, of each byte of `batch` (size, length + 1) given those before."""
    return cross_entropy(net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


@torch.inference_mode()
def held_out(net: nn.Module, windows: int = 256) -> tuple[float, float]:
    """(nats a byte, share of bytes guessed right) on windows spread evenly over the held-out files."""
    source = text().held_out
    begins = torch.linspace(0, len(source) - CONTEXT - 1, windows).long()[:, None]
    total, right = 0.0, 0
    for first in range(0, windows, 32):
        some = begins[first : first + 32]
        batch = source[some + torch.arange(CONTEXT + 1)].long()
        logits = net(batch[:, :-1])
        total += float(cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
        right += int((logits.argmax(-1) == batch[:, 1:]).sum())
    return total / (windows * CONTEXT), right / (windows * CONTEXT)


def validate(net: nn.Module) -> float:
    """Share of held-out bytes guessed right, on few windows: `--validate recipes.byte_model:validate`."""
    return held_out(net, windows=32)[1]
