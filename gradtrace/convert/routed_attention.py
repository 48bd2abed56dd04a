"""nn.MultiheadAttention with projections that are layers of their own, so that each can be decomposed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradtrace.errors import InvalidValueError

__all__ = ["PROJECTIONS", "RoutedAttention"]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The names of an attention's four layers; the first three are the rows of in_proj_weight in this order."""


class RoutedAttention(nn.Module):
    """What the nn.MultiheadAttention it is made of computes, for the same arguments.

    Its children are `q_proj`, `k_proj`, `v_proj` and `out_proj`, each any module (..., inputs) -> (...,
    outputs). `nested` remembers whether the nn.TransformerEncoder around it used nested tensors.
    """

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    out_proj: nn.Module

    # nn.TransformerEncoderLayer looks at these: with them it calls this module instead of reading weights.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, attention: nn.MultiheadAttention, projections: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.kdim, self.vdim, self.head_dim = attention.kdim, attention.vdim, attention.head_dim
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        self.nested = False
        for name in PROJECTIONS:
            self.add_module(name, projections[name])
        self.training = attention.training

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments, shapes and results of nn.MultiheadAttention; `is_causal` needs `attn_mask` as there."""
        if is_causal and attn_mask is None:
            raise InvalidValueError("is_causal", expected="the mask too, as attn_mask", got="none")
        batched = query.dim() == 3
        turned = batched and not self.batch_first
        given = [
            x.transpose(0, 1) if turned else x if batched else x.unsqueeze(0) for x in (query, key, value)
        ]
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        layers = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (self._heads(layer(x)) for layer, x in zip(layers, given, strict=True))
        mask = self._mask(q, attn_mask, key_padding_mask)
        dropped = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = q * self.head_dim**-0.5 @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = functional.dropout(weights, dropped) if dropped else weights
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropped)
        y: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (y.transpose(0, 1) if turned else y if batched else y.squeeze(0)), weights

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, positions, width) -> (batch, heads, positions, head width)."""
        return x.reshape(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _mask(self, q: Tensor, attention: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """Both masks as one that is added to the scores, or None."""
        mask = None
        if attention is not None:
            mask = _additive(attention, q.dtype)
            if mask.dim() == 3:  # (batch * heads, ...)
                mask = mask.reshape(q.shape[0], self.num_heads, *mask.shape[1:])
        if padding is not None:
            added = _additive(padding, q.dtype)[:, None, None, :]
            mask = added if mask is None else mask + added
        return mask


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Torch's masks forbid where they are True, or are added to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
