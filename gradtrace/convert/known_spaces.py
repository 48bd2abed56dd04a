"""Hidden units known by the module they are in, where tracing cannot follow: attentions, BERT's MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from gradtrace.convert.hidden_space import HiddenSpace, Member
from gradtrace.convert.linear_layer import LinearLayer
from gradtrace.convert.space_walk import FUNCTIONS, MODULES
from gradtrace.ledger.names import canonical

__all__ = ["known_spaces"]

# Class -> where its queries, keys, values and results are projected, below the module.
_ATTENTIONS = {
    "MultiheadAttention": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "BertAttention": ("self.query", "self.key", "self.value", "output.dense"),
    "LlamaAttention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "GPT2Attention": ("c_attn", "c_attn", "c_attn", "c_proj"),
}
# Class -> the writer and the reader of its hidden units.
_MLPS = {
    "BertLayer": ("intermediate.dense", "output.dense"),
    "TransformerEncoderLayer": ("linear1", "linear2"),
    "TransformerDecoderLayer": ("linear1", "linear2"),
}


def known_spaces(model: nn.Module, layers: Mapping[str, LinearLayer]) -> list[HiddenSpace]:
    """The hidden spaces of the modules of `model` whose classes are known, by exact name.

    Of an attention two: whole heads, of queries, keys, values and results together; and the places within a
    head, of values and results. Queries and keys keep the places within a head: rotations pair them. Heads
    keep their order where a mask or what is returned may be by head: nn.MultiheadAttention, and Hugging
    Face's with output_attentions.
    """
    found = []
    for given, module in model.named_modules():
        kind = type(module).__name__
        prefix = canonical(given)
        if kind in _MLPS and _is(module, kind):
            writer, reader = (f"{prefix}.{leaf}".lstrip(".") for leaf in _MLPS[kind])
            known = writer in layers and reader in layers and _unitwise(module)
            if known and layers[writer].shape[0] == layers[reader].shape[1]:
                members = (Member(writer, outputs=True), Member(reader, outputs=False))
                found.append(HiddenSpace(layers[writer].shape[0], members))
        elif kind in _ATTENTIONS and _is(module, kind):
            names = [f"{prefix}.{leaf}".lstrip(".") for leaf in _ATTENTIONS[kind]]
            if all(name in layers for name in names):
                found += _of_attention(module, kind, names, layers)
    return found


def _of_attention(
    module: Any, kind: str, names: list[str], layers: Mapping[str, LinearLayer]
) -> list[HiddenSpace]:
    query, key, value, result = names
    size = layers[result].shape[1]
    heads = _heads(module, kind)
    offsets = (0, size, 2 * size) if kind == "GPT2Attention" else (0, 0, 0)
    together = tuple(
        Member(name, outputs=True, offset=offset)
        for name, offset in zip((query, key, value), offsets, strict=True)
    )
    reading = Member(result, outputs=False)
    why = "several heads share one of the values" if layers[value].shape[0] < size else ""
    if kind == "GPT2Attention" and layers[query].shape[0] != 3 * size:
        why = "it attends to another sequence"
    if not heads or size % heads or why:
        return [HiddenSpace(size, (reading,), why_not=why or "its heads are unknown")]
    places = HiddenSpace(size, (together[2], reading), blocks=heads)
    config = getattr(module.self if kind == "BertAttention" else module, "config", None)
    if kind == "MultiheadAttention" or getattr(config, "output_attentions", True):
        return [places]
    return [HiddenSpace(size, (*together, reading), unit=size // heads), places]


def _heads(module: Any, kind: str) -> int:
    if kind == "BertAttention":
        return int(getattr(module.self, "num_attention_heads", 0))
    if kind == "LlamaAttention":
        return int(getattr(module.config, "num_attention_heads", 0))
    return int(getattr(module, "num_heads", 0))


def _unitwise(module: nn.Module) -> bool:
    """Torch's layers take any activation; those of transformers are all unitwise."""
    activation = getattr(module, "activation", None)
    return activation is None or activation in FUNCTIONS or type(activation) in MODULES


def _is(module: nn.Module, kind: str) -> bool:
    # Of a class by that name, and where that is known to come from: anybody may call a class so.
    home = type(module).__module__
    return home.startswith(("torch.nn.modules.", "transformers.models."))
