"""Where a recording begins: the writer that the mode asks for, the layout, what the ledger already knows."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from gradtrace.errors import (
    EmptyLedgerError,
    InvalidValueError,
    LedgerNotFoundError,
    MismatchError,
    UnsupportedError,
)
from gradtrace.ledger.creation import holds_nothing
from gradtrace.ledger.format import ACCUMULATORS, Layout, ParameterInfo
from gradtrace.ledger.header import read_header
from gradtrace.ledger.location import StorageOptions, storage_at
from gradtrace.ledger.reader import Ledger
from gradtrace.ledger.writer import LedgerWriter
from gradtrace.recorder.committing import RankLayout
from gradtrace.recorder.settings import Mode
from gradtrace.recorder.shares import Box, shared_out

__all__ = ["agreed_layout", "known_support", "open_writer"]

_log = logging.getLogger(__name__)


def open_writer(
    path: str,
    mode: Mode,
    resume_at: int | None,
    settings: Mapping[str, object],
    storage_options: StorageOptions = None,
    extra: Collection[str] = (),
) -> LedgerWriter:
    """Create the ledger, or go on in the one that is there, from `resume_at` if that is given.

    Raises:
        LedgerNotFoundError: there is no ledger to resume in at a later step than the first.
        InvalidValueError: no entry ends at `resume_at`; the nearest step where one does is named.
        MismatchError: the ledger there was not begun with these accumulators beside those always there.
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
            path,
            settings=settings,
            overwrite=mode == "overwrite",
            storage_options=storage_options,
            extra=extra,
        )
    writer = LedgerWriter.reopen(path, storage_options=storage_options)
    try:
        known = [name for name in writer.accumulators if name not in ACCUMULATORS]
        if set(known) != set(extra):
            raise MismatchError(
                f"what is recorded on request in the ledger {path!r}",
                expected=", ".join(known) or "none",
                got=", ".join(extra) or "none",
                remedy="go on with the below=, decoys= and movement= it was begun with, or begin another one",
            )
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


def agreed_layout(parts: Sequence[Mapping[str, Any]]) -> Layout:
    """The layout of what the ranks hold; `parts` are what `Roster.described` says on each.

    Raises:
        UnsupportedError: the ranks hold different parameters, or parts that do not make up a parameter.
    """
    named = [[ParameterInfo.from_json(info) for info in part["parameters"]] for part in parts]
    for rank, infos in enumerate(named):
        other = next((mine for mine, first in zip_longest(infos, named[0]) if mine != first), None)
        if len(infos) != len(named[0]) or other is not None:
            raise UnsupportedError(
                f"rank {rank} has other parameters that train than rank 0",
                expected=f"the same {len(named[0])} on every rank",
                got=f"{len(infos)}" + (f", with {other.name!r}" if other else ""),
                remedy="record each rank's model by itself, with together=False and a path of its own",
            )
    held = [[Box(tuple(start), tuple(shape)) for start, shape in part["boxes"]] for part in parts]
    try:
        return shared_out(named[0], held)
    except InvalidValueError as error:
        raise UnsupportedError(
            f"sharded parameters that the ranks do not hold as boxes: {error.message}",
            remedy="leave it out with exclude=, or shard it in one dimension at a time",
        ) from error


def known_support(
    path: str, run_id: str, own: RankLayout, storage_options: StorageOptions = None
) -> npt.NDArray[np.bool_]:
    """Which of this rank's dependencies already had an event, by what the ledger holds.

    Raises:
        MismatchError: the ledger knows a parameter of this name in another shape: it is another model's. Or
            what this rank sees at `path` is not the ledger that rank 0 writes there.
    """
    supported = np.zeros(own.size, np.bool_)
    try:
        found = read_header(storage_at(path, storage_options)).run_id
    except LedgerNotFoundError:
        found = "no ledger"
    if found != run_id:
        raise MismatchError(
            f"the path {path!r} does not lead to the ledger that rank 0 writes",
            expected=f"the ledger of run {run_id}",
            got=found,
            remedy="give all ranks one path, on storage that they share",
        )
    try:
        ledger = Ledger.open(path, storage_options=storage_options)
    except EmptyLedgerError:
        return supported
    for piece in own.layout.ranks[own.rank]:
        info = own.layout.parameters[piece.parameter]
        if info.name not in ledger:
            continue
        if ledger[info.name].shape != info.shape:
            raise MismatchError(
                f"parameter {info.name!r} has another shape than in the ledger {path!r}",
                expected=str(ledger[info.name].shape),
                got=str(info.shape),
                remedy="pass the model that this ledger recorded, or record this one at another path",
            )
        events = ledger[info.name].events[piece.box]
        supported[piece.offset : piece.offset + piece.size] = events.reshape(-1) > 0
    return supported
