"""How to open a ledger when training goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradtrace.errors import InvalidValueError, LedgerNotFoundError, MismatchError
from gradtrace.ledger.header import read_header
from gradtrace.ledger.location import StorageOptions, storage_at
from gradtrace.recorder.settings import Mode

__all__ = ["Checkpoint", "continuation"]


@dataclass(frozen=True)
class Checkpoint:
    """What a training checkpoint says about the ledger: its run, and the steps recorded by then.

    Raises:
        InvalidValueError: it does not say that; checkpoints are files, and files are untrusted.
    """

    run_id: str
    steps: int

    def __post_init__(self) -> None:
        if not isinstance(self.run_id, str) or type(self.steps) is not int or self.steps < 0:
            raise InvalidValueError(
                "the checkpoint's note of its ledger",
                expected="a run id and a number of steps",
                got=f"{self.run_id!r} and {self.steps!r}",
                remedy="resume from a checkpoint that was not altered",
            )


def continuation(
    path: str, mode: Mode, checkpoints: Sequence[Checkpoint], storage_options: StorageOptions = None
) -> tuple[Mode, int | None]:
    """The `mode` and `resume_at` of a Recorder that goes on after the last checkpoint of the ledger's run.

    Without checkpoints that is `mode`, and nothing to void.

    Raises:
        LedgerNotFoundError: there is no ledger at `path` to go on with, and `mode` is not "overwrite".
        MismatchError: the ledger there is of another run.
    """
    if not checkpoints:
        return mode, None
    latest = checkpoints[-1]
    try:
        # Its entries may all be void, or none committed yet: the header says whose it is.
        run_id = read_header(storage_at(path, storage_options)).run_id
    except LedgerNotFoundError:
        if mode == "overwrite":
            return mode, None
        raise LedgerNotFoundError(
            f"resuming at step {latest.steps}",
            expected=f"the ledger of run {latest.run_id} at {path!r}",
            got="nothing there",
            remedy="put the ledger back, or pass mode='overwrite' to begin a new one",
        ) from None
    for checkpoint in reversed(checkpoints):
        if checkpoint.run_id == run_id:
            return "append", checkpoint.steps
    raise MismatchError(
        f"ledger {path!r}",
        expected=f"run {latest.run_id}, which the checkpoint belongs to",
        got=f"run {run_id}",
        remedy="pass the path of that run's ledger",
    )
