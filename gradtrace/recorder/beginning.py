"""Where a recording begins: the writer that the mode asks for, and what the ledger there already knows."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from gradtrace.errors import EmptyLedgerError, LedgerNotFoundError, MismatchError
from gradtrace.ledger.creation import holds_nothing
from gradtrace.ledger.format import Layout
from gradtrace.ledger.location import StorageOptions
from gradtrace.ledger.reader import Ledger
from gradtrace.ledger.writer import LedgerWriter
from gradtrace.recorder.settings import Mode

__all__ = ["known_support", "open_writer"]

_log = logging.getLogger(__name__)


def open_writer(
    path: str,
    mode: Mode,
    resume_at: int | None,
    settings: Mapping[str, object],
    storage_options: StorageOptions = None,
) -> LedgerWriter:
    """Create the ledger, or go on in the one that is there, from `resume_at` if that is given.

    Raises:
        LedgerNotFoundError: there is no ledger to resume in at a later step than the first.
        InvalidValueError: no entry ends at `resume_at`; the nearest step where one does is named.
    """
    if mode != "append" or holds_nothing(path, storage_options):
        if resume_at:
            raise LedgerNotFoundError(
                f"resuming at step {resume_at}",
                expected=f"a ledger at {path!r}",
                got="nothing there",
                remedy="put the ledger back, or leave resume_at out to begin a new one",
            )
        return LedgerWriter.create(
            path, settings=settings, overwrite=mode == "overwrite", storage_options=storage_options
        )
    writer = LedgerWriter.reopen(path, storage_options=storage_options)
    try:
        if resume_at is not None:
            end = writer.end
            writer.void(resume_at)
            if resume_at < end:
                said = "steps %d to %d of the ledger %s are void: the run goes on before them"
                _log.warning(said, resume_at, end, path)
    except BaseException:
        writer.close()
        raise
    return writer


def known_support(path: str, layout: Layout, storage_options: StorageOptions = None) -> npt.NDArray[np.bool_]:
    """Which dependencies already had an event, by what the ledger holds.

    Raises:
        MismatchError: the ledger knows a parameter of this name in another shape: it is another model's.
    """
    supported = np.zeros(layout.size(0), np.bool_)
    try:
        ledger = Ledger.open(path, storage_options=storage_options)
    except EmptyLedgerError:
        return supported
    for piece in layout.ranks[0]:
        info = layout.parameters[piece.parameter]
        if info.name not in ledger:
            continue
        if ledger[info.name].shape != info.shape:
            raise MismatchError(
                f"parameter {info.name!r} has another shape than in the ledger {path!r}",
                expected=str(ledger[info.name].shape),
                got=str(info.shape),
                remedy="pass the model that this ledger recorded, or record this one at another path",
            )
        supported[piece.offset : piece.offset + info.size] = ledger[info.name].events.reshape(-1) > 0
    return supported
