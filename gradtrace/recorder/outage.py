"""What becomes of a commit that fails while a model trains: an error, or a warning and another attempt."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable

from gradtrace.errors import GradtraceError, LedgerBusyError, RankLostError
from gradtrace.recorder.settings import OnError

__all__ = ["Outage"]

_log = logging.getLogger(__name__)


class Outage:
    """Counts the commits that failed since one worked; says once that they do and once that they work again.

    Args:
        on_error: "raise" tolerates no failure, "warn" those of the disk or the object store.
        committed: how many steps are committed.
    """

    def __init__(self, on_error: OnError, committed: Callable[[], int]) -> None:
        self._on_error, self._committed = on_error, committed
        self.failures = 0

    def tolerates(self, failure: GradtraceError) -> bool:
        """Whether the training goes on after it: where only the storage failed."""
        # A ledger that another writer took over will not be ours again, however often it is tried.
        of_storage = isinstance(failure, OSError) and not isinstance(failure, RankLostError | LedgerBusyError)
        return self._on_error == "warn" and of_storage

    def passes(self, failure: GradtraceError) -> bool:
        """Note a commit that failed; return whether the training goes on."""
        if not self.tolerates(failure):
            return False
        self.failures += 1
        if self.failures == 1:
            said = "the ledger could not be written after step %d: %s. It is kept in memory and tried again"
            # Its text only: a handler may keep what it is given.
            _log.warning(said, self._committed(), str(failure))
        _free(failure)
        return True

    def worked(self) -> None:
        """Note a commit that worked."""
        if self.failures:
            _log.info("the ledger is written again, up to step %d", self._committed())
        self.failures = 0

    def warn_checkpoint(self, steps: int) -> None:
        """Say what a checkpoint at `steps` is worth while nothing can be written."""
        said = "the ledger ends at step %d: resuming from a checkpoint at step %d leaves a gap in it"
        _log.warning(said, self._committed(), steps)

    def warn_end(self, steps: int) -> None:
        """Say what is lost at the end of a recording of `steps` steps."""
        said = "the ledger could not be written at the end: it ends at step %d of %d, the rest is lost"
        _log.warning(said, self._committed(), steps)


def _free(failure: BaseException) -> None:
    """Let go at once of the arrays that the frames of a failure hold, without the collector of cycles."""
    error: BaseException | None = failure
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
