"""One converted module as the dense one that it equals: nn.Linear, Conv1D or nn.MultiheadAttention."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradtrace.convert.routed_attention import PROJECTIONS, RoutedAttention
from gradtrace.convert.routed_linear import RoutedLinear

__all__ = ["dense_attention", "dense_layer"]


@torch.no_grad()
def dense_layer(routed: RoutedLinear) -> nn.Module:
    """A new module of the class that the layer had; the bias is the layer's own Parameter."""
    weight = routed.to_dense()
    with torch.device("meta"):  # nothing is drawn at random only to be overwritten
        if routed.dense_class is nn.Linear:
            made: nn.Module = nn.Linear(routed.in_features, routed.out_features)
        else:
            made = routed.dense_class(routed.out_features, routed.in_features)
            weight = weight.T.contiguous()
    made.register_parameter("weight", nn.Parameter(weight, requires_grad=routed.weight.requires_grad))
    made.register_parameter("bias", routed.bias)
    return made.train(routed.training)


@torch.no_grad()
def dense_attention(routed: RoutedAttention) -> nn.MultiheadAttention:
    """A new nn.MultiheadAttention; what it keeps in one tensor trains if any part of it did."""
    q, k, v, out = (_projection(routed.get_submodule(name)) for name in PROJECTIONS)
    with torch.device("meta"):
        made = nn.MultiheadAttention(
            routed.embed_dim,
            routed.num_heads,
            routed.dropout,
            bias=q.bias is not None,
            kdim=routed.kdim,
            vdim=routed.vdim,
            batch_first=routed.batch_first,
        )
    if made._qkv_same_embed_dim:
        trains = q.trains or k.trains or v.trains
        made.in_proj_weight = nn.Parameter(torch.cat([q.weight, k.weight, v.weight]), requires_grad=trains)
    else:
        for name, part in zip(PROJECTIONS, (q, k, v), strict=False):
            made.register_parameter(f"{name}_weight", nn.Parameter(part.weight, requires_grad=part.trains))
    biases: list[Tensor] = [part.bias for part in (q, k, v) if part.bias is not None]
    if biases:
        trains = any(bias.requires_grad for bias in biases)
        made.in_proj_bias = nn.Parameter(torch.cat(biases), requires_grad=trains)
    made.out_proj.weight = nn.Parameter(out.weight, requires_grad=out.trains)
    made.out_proj.register_parameter("bias", out.bias)
    return made.train(routed.training)


class _Projection(NamedTuple):
    weight: Tensor
    trains: bool
    bias: nn.Parameter | None


def _projection(module: nn.Module) -> _Projection:
    weight = module.get_parameter("weight")
    dense = module.to_dense() if isinstance(module, RoutedLinear) else weight.detach()
    return _Projection(dense, weight.requires_grad, module._parameters.get("bias"))
