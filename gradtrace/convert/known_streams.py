"""Residual streams of whole models, known by class: what every block reads and adds to."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from gradtrace.convert.hidden_space import HiddenSpace, Member
from gradtrace.convert.linear_layer import LinearLayer
from gradtrace.convert.matching import check_hooks
from gradtrace.errors import UnsupportedError
from gradtrace.ledger.names import canonical

__all__ = ["known_streams"]


class _Stream(NamedTuple):
    """Patterns of what has the stream as its last axis, and of what has nothing to do with it."""

    embeddings: tuple[str, ...]
    norms: tuple[str, ...]
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    others: tuple[str, ...] = ()


def _bert(readers: tuple[str, ...], others: tuple[str, ...] = ()) -> _Stream:
    block = "bert.encoder.layer.*"
    return _Stream(
        embeddings=tuple(f"bert.embeddings.{of}_embeddings" for of in ("word", "position", "token_type")),
        norms=(
            "bert.embeddings.LayerNorm",
            f"{block}.attention.output.LayerNorm",
            f"{block}.output.LayerNorm",
        ),
        writers=(f"{block}.attention.output.dense", f"{block}.output.dense"),
        readers=(
            *(f"{block}.attention.self.{of}" for of in ("query", "key", "value")),
            f"{block}.intermediate.dense",
            *readers,
        ),
        others=others,
    )


# Only of models that keep their stream to themselves: BertModel and its like return it.
_STREAMS = {
    "GPT2LMHeadModel": _Stream(
        embeddings=("transformer.wte", "transformer.wpe"),
        norms=("transformer.h.*.ln_1", "transformer.h.*.ln_2", "transformer.ln_f"),
        writers=("transformer.h.*.attn.c_proj", "transformer.h.*.mlp.c_proj"),
        readers=("transformer.h.*.attn.c_attn", "transformer.h.*.mlp.c_fc", "lm_head"),
    ),
    "LlamaForCausalLM": _Stream(
        embeddings=("model.embed_tokens",),
        norms=("model.layers.*.input_layernorm", "model.layers.*.post_attention_layernorm", "model.norm"),
        writers=("model.layers.*.self_attn.o_proj", "model.layers.*.mlp.down_proj"),
        readers=(
            *(f"model.layers.*.self_attn.{of}_proj" for of in "qkv"),
            *(f"model.layers.*.mlp.{of}_proj" for of in ("gate", "up")),
            "lm_head",
        ),
    ),
    "BertForSequenceClassification": _bert(("bert.pooler.dense",), ("classifier",)),
    "BertForTokenClassification": _bert(("classifier",)),
    "BertForQuestionAnswering": _bert(("qa_outputs",)),
}
_NORMS = ("LayerNorm", "LlamaRMSNorm")


def known_streams(model: nn.Module, layers: Mapping[str, LinearLayer]) -> list[HiddenSpace]:
    """The residual streams of the modules of `model` whose classes are known, by exact name.

    Where a part is not one that the class has (an adapter, a cross attention), the stream must stay.
    """
    found = []
    for given, module in model.named_modules():
        stream = _STREAMS.get(type(module).__name__)
        if stream and type(module).__module__.startswith("transformers.models."):
            found += _of(module, canonical(given), stream, layers)
    return found


def _of(
    module: nn.Module, prefix: str, stream: _Stream, layers: Mapping[str, LinearLayer]
) -> list[HiddenSpace]:
    members: list[Member] = []
    vectors: list[str] = []
    sizes: set[int] = set()
    why = ""
    if getattr(getattr(module, "config", None), "output_hidden_states", True):
        why = "what calls the model sees them too"
    for given, part in module.named_modules():
        own = dict(part.named_parameters(recurse=False))
        leaf = canonical(given)
        name = f"{prefix}.{leaf}".lstrip(".")
        if not own or _among(leaf, stream.others):
            continue
        writes, reads = _among(leaf, stream.writers), _among(leaf, stream.readers)
        if (writes or reads) and name in layers:
            members.append(Member(name, outputs=writes))
            sizes.add(layers[name].shape[0 if writes else 1])
        elif _among(leaf, stream.embeddings) and type(part) is nn.Embedding:
            vectors.append(f"{name}.weight")
            sizes.add(part.embedding_dim)
        elif _among(leaf, stream.norms) and type(part).__name__ in _NORMS:
            vectors += [f"{name}.{one}" for one in own]
            sizes |= {len(one) for one in own.values()}
        else:
            why = why or f"'{name}' may see them too"
        if "forward" in vars(part) or _hooked(part):
            why = why or f"'{name}' has hooks, or a forward of its own"
    if not members or len(sizes) != 1:
        return []
    return [HiddenSpace(sizes.pop(), tuple(members), vectors=tuple(vectors), why_not=why)]


def _among(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _hooked(part: nn.Module) -> bool:
    try:
        check_hooks("", part)
    except UnsupportedError:
        return True
    return False
