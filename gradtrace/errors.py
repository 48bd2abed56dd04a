"""Every error this library raises: a GradtraceError that is also the builtin a caller would expect."""

from __future__ import annotations

__all__ = [
    "CorruptLedgerError",
    "EmptyLedgerError",
    "GradtraceError",
    "InvalidValueError",
    "LedgerBusyError",
    "LedgerExistsError",
    "LedgerNotFoundError",
    "MismatchError",
    "NotEquivalentError",
    "RankLostError",
    "StateError",
    "StorageError",
    "UnknownNameError",
    "UnreadableFileError",
    "UnsupportedError",
    "UnsupportedFormatError",
]


class GradtraceError(Exception):
    """Base of every error: one line that says what is wrong and, where it helps, expected, got and remedy."""

    def __init__(self, what: str, *, expected: str = "", got: str = "", remedy: str = "") -> None:
        facts = [f"{label} {text}" for label, text in (("expected", expected), ("got", got)) if text]
        message = what + (": " + ", ".join(facts) if facts else "")
        if remedy:
            message = f"{message.rstrip('.')}. {remedy[:1].upper()}{remedy[1:]}"
        # Names come from strangers' files and messages go to terminals: no control character gets through.
        line = " ".join(message.split())
        self.message = "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
        super().__init__(self.message)

    def __str__(self) -> str:
        # KeyError would show the repr, OSError an errno: every error here reads as its one line.
        return self.message


class InvalidValueError(GradtraceError, ValueError):
    """An argument or a setting is outside what is allowed."""


class UnknownNameError(GradtraceError, KeyError):
    """A name (criterion, parameter, module, accumulator) that does not exist here."""


class MismatchError(GradtraceError, ValueError):
    """Two things that must belong together do not: ledger and weights, plan and model, mask and shapes."""


class UnsupportedError(GradtraceError, TypeError):
    """A model, parameter, optimizer or set-up whose gradients or layers cannot be used."""


class StateError(GradtraceError, RuntimeError):
    """A call at a moment when it cannot work, such as observing after close."""


class StorageError(GradtraceError, OSError):
    """The disk or the object store failed: full, read-only, not permitted, gone. `errno` is the system's."""


class NotEquivalentError(GradtraceError, ArithmeticError):
    """A converted model differs from the masked dense model that it must equal."""


class LedgerExistsError(GradtraceError, FileExistsError):
    """The path already exists: a ledger without `mode=`, or something that is not a ledger."""


class LedgerNotFoundError(GradtraceError, FileNotFoundError):
    """There is no ledger at the path."""


class LedgerBusyError(GradtraceError, BlockingIOError):
    """Another process is writing this ledger."""


class EmptyLedgerError(GradtraceError, EOFError):
    """The ledger holds no committed entry."""


class CorruptLedgerError(GradtraceError, OSError):
    """Stored data is missing, truncated or altered."""


class RankLostError(GradtraceError, ConnectionError):
    """Another rank of the run did not come to where all must meet: it died, hangs or went elsewhere."""


class UnsupportedFormatError(GradtraceError, ValueError):
    """A format version that this library cannot read."""


class UnreadableFileError(GradtraceError, OSError):
    """A weights, mask or plan file that cannot be read, or that would need pickle."""
