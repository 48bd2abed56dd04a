"""Decoys: window sums with random signs, so that whatever direction there was is gone and the noise is not.

    decoy_sum += s * (sum of g within the window),     s = -1 or +1, by a fair coin

with a coin of its own for every dependency and window. Given the window sums' magnitudes, a decoy is a sum of
independent terms of no direction: what `drift` must not find. Their shares are then binomial whatever goes on
in the run, so that few windows, windows of very different size and rare gradients show as they are. One coin
for a whole window would keep dependencies together, and the share of one run would say next to nothing. Steps
within a window keep their signs: a coin for each would hide that they are correlated. What decoys cannot show
is correlation between windows, for that is gone too; `drift` takes it off by a formula of its own.

The coins are a function of the parameter's name, the window's last step and the place in the full tensor:
alike on any number of ranks, and after a resume; two runs of one model share them. Philox4x64-10 (Salmon et
al. 2011), as numpy counts, with the key (first 8 bytes of the name's SHA-256 as a little-endian number, the
window's end) gives 64-bit words, whose bits, lowest first, are those of the tensor's elements in C order; 1
is a minus.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from hashlib import sha256

import numpy as np
import numpy.typing as npt

from gradtrace.ledger.format import Layout, Piece

__all__ = ["Decoys", "signs_of"]

_BITS = 256  # of one count of Philox's counter: four words
_BLOCK = 1 << 20  # elements at a time


def signs_of(name: str, end: int, begin: int, count: int) -> npt.NDArray[np.uint8]:
    """1 for a minus, 0 for a plus, of `count` elements of a parameter from flat index `begin` on."""
    first = begin // _BITS
    key = [int.from_bytes(sha256(name.encode()).digest()[:8], "little"), end]
    source = np.random.Philox(key=np.array(key, np.uint64), counter=np.array([first, 0, 0, 0], np.uint64))
    words = source.random_raw(4 * (-(-(begin + count) // _BITS) - first))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")
    return bits[begin - first * _BITS :][:count]


class Decoys:
    """The signs for what one rank records of a layout."""

    def __init__(self, layout: Layout, rank: int) -> None:
        self._parameters, self._pieces = layout.parameters, layout.ranks[rank]

    def add(self, out: npt.NDArray[np.float32], window: npt.NDArray[np.float32], end: int) -> None:
        """Add the sums of the window whose last step is `end` - 1 to `out`, both flat (N,), with signs."""
        for piece in self._pieces:
            info = self._parameters[piece.parameter]
            for at, minus in _signs(piece, info.name, info.shape, end):
                part = slice(at, at + minus.size)
                # The sign is the highest bit of a float32.
                turned = window[part].view(np.uint32) ^ (minus.astype(np.uint32) << np.uint32(31))
                out[part] += turned.view(np.float32)


def _signs(
    piece: Piece, name: str, shape: tuple[int, ...], end: int
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Blocks of a piece: offset in the rank's flat arrays, and signs."""
    behind = math.prod(shape[1:])
    if piece.shape[1:] == shape[1:]:
        begin = piece.start[0] * behind if shape else 0
        for done in range(0, piece.size, _BLOCK):
            yield piece.offset + done, signs_of(name, end, begin + done, min(_BLOCK, piece.size - done))
        return
    # Not a run of the full tensor: of each of its first axis' slices a part.
    for row in range(piece.shape[0]):
        whole = signs_of(name, end, (piece.start[0] + row) * behind, behind).reshape(shape[1:])
        part = whole[piece.box[1:]].reshape(-1)
        yield piece.offset + row * part.size, part
