"""What the compiled CPU kernel reads of a layer's structure: `struct layer` of routed_linear_cpu.c."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LayerTable"]

_TILE = 64  # TILE of the C file: rows that one thread computes at a stretch
# NARROW of the C file, and multiplications for each input and output up to which turning those takes longer.
_NARROW, _THIN = 64, 16
_INPUTS, _OUTPUTS = 1, 2  # what of a block is consecutive


class _Layer(ctypes.Structure):
    """`struct layer` of routed_linear_cpu.c."""

    _fields_ = (
        ("blocks", ctypes.c_void_p),
        ("tiles", ctypes.c_void_p),
        ("work", ctypes.c_void_p),
        ("inputs", ctypes.c_void_p),
        ("outputs", ctypes.c_void_p),
        ("dead", ctypes.c_void_p),
        ("tiles_count", ctypes.c_int64),
        ("dead_count", ctypes.c_int64),
        ("in_features", ctypes.c_int64),
        ("longest", ctypes.c_int64),
        ("longest_n", ctypes.c_int64),
        ("narrow", ctypes.c_int64),
    )


@dataclass(frozen=True, eq=False)
class LayerTable:
    """The tables of one layer; `address` holds for as long as this object lives."""

    address: int
    work: int
    """Multiplications for each token."""
    _kept: tuple[object, ...]

    @classmethod
    def of(
        cls,
        blocks: Sequence[tuple[int, int, int, int, int]],
        inputs: Tensor,
        outputs: Tensor,
        in_features: int,
        out_features: int,
    ) -> LayerTable:
        """Make the tables of `blocks`: (begin of inputs, of outputs, of weight, n, k), n and k at least 1.

        `inputs` and `outputs` are the flat int64 indices; no output lies in two blocks.
        """
        tiles = [
            (number, first) for number, block in enumerate(blocks) for first in range(0, block[3], _TILE)
        ]
        work = [0]
        for number, first in tiles:
            n, k = blocks[number][3:]
            work.append(work[-1] + min(_TILE, n - first) * k)
        rows = [
            (
                *block,
                _INPUTS * _consecutive(inputs, block[0], block[4])
                + _OUTPUTS * _consecutive(outputs, block[1], block[3]),
            )
            for block in blocks
        ]
        live = torch.zeros(out_features, dtype=torch.bool)
        for _, begin, _, n, _ in blocks:
            live[outputs[begin : begin + n]] = True
        tensors = (
            torch.tensor(rows, dtype=torch.int64),
            torch.tensor(tiles, dtype=torch.int32),
            torch.tensor(work, dtype=torch.int64),
            inputs.to(torch.int32),
            outputs.to(torch.int32),
            torch.nonzero(~live).flatten().to(torch.int32),
        )
        layer = _Layer(
            *(tensor.data_ptr() for tensor in tensors),
            tiles_count=len(tiles),
            dead_count=tensors[-1].numel(),
            in_features=in_features,
            longest=max((block[4] for block in blocks), default=0),
            longest_n=max((block[3] for block in blocks), default=0),
            narrow=work[-1] <= _THIN * (in_features + out_features)
            and all(row[4] <= _NARROW and row[5] & _OUTPUTS for row in rows),
        )
        return cls(ctypes.addressof(layer), work[-1], (layer, *tensors))


def _consecutive(index: Tensor, begin: int, count: int) -> bool:
    part = index[begin : begin + count]
    return bool((part[1:] - part[:-1] == 1).all())
