"""Input moments from a ledger: from its last entries, for the first ones saw older weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from gradtrace.convert.input_moments import InputMoments, LayerMoments
from gradtrace.convert.linear_uses import LinearUse
from gradtrace.errors import EmptyLedgerError, MismatchError, UnknownNameError

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger

__all__ = ["recorded_moments"]

ENOUGH = 32
"""Positions for each input of a layer: fitting |S| weights to N positions adds |S| / N of the error to it."""


def recorded_moments(ledger: Ledger, uses: Mapping[str, LinearUse]) -> InputMoments:
    """The moments of the inputs of these layers (by name), from as few of the last entries as are enough.

    Enough are 32 positions for each input, in every layer; where all entries together hold fewer, all are
    taken. A layer that the ledger has no Gram matrix of is left out.

    Raises:
        UnknownNameError: the ledger was recorded without them.
        MismatchError: a layer has another number of inputs.
        EmptyLedgerError: no step was watched.
    """
    missing = [name for name in ("input_sum", "input_gram") if name not in ledger.accumulators]
    if missing:
        raise UnknownNameError(
            f"compensation needs the accumulator '{missing[0]}'",
            expected="it in the ledger",
            got=", ".join(sorted(ledger.accumulators)),
            remedy='pass batches instead, or record the next run with below=("inputs", "gram")',
        )
    there = {
        name: use for name, use in uses.items() if name in ledger.inputs and ledger.inputs[name].info.groups
    }
    for name, use in there.items():
        info = ledger.inputs[name].info
        if (info.groups, info.size) != (1, use.inputs):
            raise MismatchError(
                f"the ledger is of another model: inputs of layer '{name}'",
                expected=str(use.inputs),
                got=str(info.size),
                remedy="pass the ledger of this model's run",
            )
    last = _last_entries(ledger, there)
    seen = [name for name in there if name in last.inputs and last.inputs[name].positions]
    if there and not seen:
        raise EmptyLedgerError(
            f"the ledger {ledger.path} saw no input of any layer in a watched step",
            remedy="pass batches instead, or record with a smaller below_every",
        )
    begin = last.entries[0].begin

    def read(name: str) -> LayerMoments:
        record = last.inputs[name]
        positions = record.positions
        gram = np.asarray(record.gram[0], np.float64)
        # A float32 product is symmetric but for rounding.
        return LayerMoments(positions, record.sum / positions, (gram + gram.T) / (2 * positions))

    return InputMoments(f"the ledger's steps [{begin}, {last.steps})", seen, read)


def _last_entries(ledger: Ledger, uses: Mapping[str, LinearUse]) -> Ledger:
    needed = {name: min(ENOUGH * use.inputs, ledger.inputs[name].positions) for name, use in uses.items()}
    last = ledger
    for begin in sorted({entry.begin for entry in ledger.entries}, reverse=True):
        last = ledger.between(begin)
        held = {name: last.inputs[name].positions if name in last.inputs else 0 for name in needed}
        if all(held[name] >= enough for name, enough in needed.items()):
            break
    return last
