"""What a token costs in a byte-level model: multiplications counted, seconds measured."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import byte_model
import torch
from torch import nn
from turns import in_turns, spread

__all__ = ["equal_width", "multiplications", "seconds_of"]

HEADS = 4


def multiplications(net: byte_model.ByteModel, kept: float = 1.0) -> int:
    """Of one token in a full context: linear layers, of which the share `kept` runs, and attention itself."""
    linear = sum(one.weight.numel() for one in net.modules() if isinstance(one, nn.Linear))
    attention = 2 * byte_model.CONTEXT * net.bytes.embedding_dim * len(net.blocks)
    return round(kept * linear) + attention


def equal_width(net: byte_model.ByteModel, kept: float) -> int:
    """The width of the dense model of as many layers that costs nearest to `net` with a share `kept`."""
    layers, cost = len(net.blocks), multiplications(net, kept)

    def distance(width: int) -> int:
        return abs(multiplications(byte_model.ByteModel(width, layers, HEADS)) - cost)

    return min(range(HEADS, net.bytes.embedding_dim + HEADS, HEADS), key=distance)


def seconds_of(nets: Mapping[str, nn.Module], sequences: int, seconds: float) -> dict[str, float]:
    """Median seconds of one pass over so many full contexts, the models in turns."""
    tokens = torch.randint(256, (sequences, byte_model.CONTEXT), generator=torch.Generator().manual_seed(0))

    def ask(net: nn.Module) -> object:
        with torch.inference_mode():
            return net(tokens)

    taken = in_turns({name: partial(ask, net.eval()) for name, net in nets.items()}, seconds)
    return {name: spread(times)["median"] for name, times in taken.items()}
