"""One writer at a time on an object store: a lease that its holder renews and that runs out when it dies."""

from __future__ import annotations

import math
import threading
import uuid
import weakref
from contextlib import suppress
from time import monotonic

from gradtrace.errors import GradtraceError, InvalidValueError, LedgerBusyError, StorageError
from gradtrace.ledger.encoding import decode, encode, field
from gradtrace.ledger.versioned_object import Found, Version, VersionedObject

__all__ = ["FRESH", "Lease"]

FRESH = 60.0  # seconds after a renewal within which a write may begin
_EVERY = 20.0  # seconds between renewals
_ROUNDING = 2.0  # servers tell times in whole seconds
_LONGEST = 3600  # seconds; a lease is data from strangers, and must not keep everybody out for ever


class Lease:
    """The object writer.lease, held from construction to `release`.

    Its holder renews it every 20 s from a thread, and begins no write unless the last renewal is at most 60 s
    ago. It may be taken over once the server's clock has seen no renewal for 60 s and the longest time that
    one call can take. So no write of the old holder is under way when a new one begins, unless the server
    itself carries out a request after its client has given it up.

    Args:
        place: the lease object.
        where: how messages name the ledger.
        longest_call: seconds after which a call of this writer is over, one way or the other.
        clock: key of the objects that are written to learn the server's time.

    Raises:
        LedgerBusyError: someone else holds it; says for how long at most.
        StorageError: the store failed.
    """

    def __init__(self, place: VersionedObject, where: str, *, longest_call: float, clock: str) -> None:
        self._place, self._where, self._clock = place, where, clock
        self._holder = uuid.uuid4().hex
        self._seconds = math.ceil(FRESH + longest_call)
        self._renewals = 0
        self._lost: str | None = None
        self._guard = threading.Lock()
        self._released = threading.Event()
        self._renewed = monotonic()
        self._version = self._acquire()
        reference = weakref.ref(self)
        threading.Thread(
            target=_renew_until, args=(reference, self._released), name="gradtrace-lease", daemon=True
        ).start()
        weakref.finalize(self, self._released.set)

    @property
    def is_locked(self) -> bool:
        """Whether it was not released yet."""
        return not self._released.is_set()

    def confirm(self, *, now: bool = False) -> None:
        """Return if a write may begin: after a renewal if `now` or where the last one is too long ago.

        Raises:
            LedgerBusyError: another writer has taken the lease over.
            StorageError: it could not be renewed.
        """
        with self._guard:
            if self._lost is not None:
                raise self._taken_over(self._lost)
            if self._released.is_set():
                return
            if now or monotonic() - self._renewed > FRESH:
                self._renew()

    def release(self) -> None:
        """Let the next writer in at once; what cannot be written here runs out by itself."""
        if self._released.is_set():
            return
        self._released.set()
        with self._guard, suppress(GradtraceError):
            if self._lost is None:
                self._place.put(self._body(released=True), self._version)

    def _acquire(self) -> Version:
        found: Found | None = None
        for _ in range(5):
            self._renewed = monotonic()
            version = self._place.put(self._body(), found.version if found else None)
            if version is not None:
                return version
            found = self._place.read()
            if found is None:
                continue
            holder, seconds, released = _read(found, self._seconds)
            if holder == self._holder:
                return found.version
            if not released:
                self._refuse_unless_old(found, seconds)
        raise StorageError(
            f"the lease of {self._where} cannot be taken", remedy="check that the bucket is there"
        )

    def _refuse_unless_old(self, found: Found, seconds: float) -> None:
        age = (self._place.now(self._clock) - found.written).total_seconds()
        left = seconds + _ROUNDING - age
        if left > 0:
            raise LedgerBusyError(
                f"another process is writing {self._where}, or was killed while it did",
                got=f"its lease, renewed {max(age, 0):.0f} s ago",
                remedy=f"end it first or choose another path; if it was killed, try again in {left:.0f} s, "
                "when its lease has run out",
            )

    def _renew(self) -> None:
        began = monotonic()
        self._renewals += 1
        version = self._place.put(self._body(), self._version)
        if version is None:
            found = self._place.read()
            if found is None or _read(found, 0)[0] != self._holder:
                self._lost = f"no renewal for {began - self._renewed:.0f} s"
                raise self._taken_over(self._lost)
            version = found.version
        self._version, self._renewed = version, began

    def _taken_over(self, why: str) -> LedgerBusyError:
        return LedgerBusyError(
            f"another process has taken over {self._where}",
            expected="the lease that this writer held",
            got=why,
            remedy="let one process write it; what was committed is there, resume from the last checkpoint",
        )

    def _body(self, *, released: bool = False) -> bytes:
        return encode(
            {
                "holder": self._holder,
                "released": released,
                "renewals": self._renewals,
                "seconds": self._seconds,
            }
        )


def _renew_until(reference: weakref.ref[Lease], released: threading.Event) -> None:
    while not released.wait(_EVERY):
        lease = reference()
        if lease is None:
            return
        # The next write says what is wrong; until then the server may come back.
        with suppress(GradtraceError):
            lease.confirm(now=True)
        del lease


def _read(found: Found, otherwise: float) -> tuple[str, float, bool]:
    """Return holder, seconds and released of a lease; one that makes no sense runs out as ours would."""
    try:
        data = decode(found.data)
        seconds = min(field(data, "seconds", int), _LONGEST)
        return field(data, "holder", str), seconds, field(data, "released", bool)
    except InvalidValueError:
        return "", otherwise, False
