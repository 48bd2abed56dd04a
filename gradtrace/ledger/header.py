"""The root of a ledger: format number, run, accumulators and settings."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from gradtrace import __version__
from gradtrace.errors import (
    CorruptLedgerError,
    InvalidValueError,
    LedgerNotFoundError,
    UnsupportedFormatError,
)
from gradtrace.ledger.array_format import ROOT
from gradtrace.ledger.encoding import JSON, checksum, decode, digest_field, encode, field, reading
from gradtrace.ledger.paths import COMMITS, parse_span
from gradtrace.ledger.storage import Storage

__all__ = [
    "ACCUMULATORS",
    "BELOW",
    "FORMAT",
    "KNOWN",
    "ON_REQUEST",
    "Header",
    "appendable_header",
    "read_header",
]

FORMAT = "1.0"
ACCUMULATORS: Mapping[str, str] = MappingProxyType(
    {
        "grad_sum": "float32",
        "grad_sumsq": "float32",
        "window_sumsq": "float32",
        "events": "uint32",
        "votes": "int32",
        "window_votes": "int32",
    }
)
# Evidence below the step: in a ledger where it was asked for.
BELOW: Mapping[str, str] = MappingProxyType(
    {
        "position_sumsq": "float32",
        "position_support": "uint32",
        "sample_sumsq": "float32",
        "sample_support": "uint32",
        "input_sum": "float32",
        "input_sumsq": "float32",
        "input_gram": "float32",
    }
)
# Of every step or window, like ACCUMULATORS, and recorded with the option of this name.
ON_REQUEST: Mapping[str, str] = MappingProxyType({"decoy_sum": "decoys", "grad_weight": "movement"})
KNOWN: Mapping[str, str] = MappingProxyType({**ACCUMULATORS, **BELOW, **dict.fromkeys(ON_REQUEST, "float32")})
_KEY = "gradtrace"


@dataclass(frozen=True)
class Header:
    """What the root group's attribute "gradtrace" says.

    Attributes:
        version: format number, major.minor.
        run_id: names the run; commits of another run do not count.
        created: ISO 8601 time in UTC.
        library: version of the library that wrote it.
        accumulators: name to dtype, those that this library knows.
        settings: what the recorder was told.
    """

    version: str
    run_id: str
    created: str
    library: str
    accumulators: Mapping[str, str]
    settings: Mapping[str, Any]

    @classmethod
    def new(cls, settings: Mapping[str, object], extra: Iterable[str] = ()) -> Header:
        """Return the header of a new run, with these of BELOW and ON_REQUEST beside ACCUMULATORS.

        Raises:
            InvalidValueError: `settings` are not JSON, or `extra` names something else.
        """
        if not isinstance(settings, Mapping):
            raise InvalidValueError("settings", expected="a mapping", got=type(settings).__name__)
        plain: Mapping[str, Any] = decode(encode(settings))
        asked, offered = tuple(extra), (*BELOW, *ON_REQUEST)
        if strange := [name for name in asked if name not in offered]:
            raise InvalidValueError("extra", expected=", ".join(offered), got=repr(strange)[:80])
        accumulators = MappingProxyType(
            {name: dtype for name, dtype in KNOWN.items() if name in ACCUMULATORS or name in asked}
        )
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(FORMAT, uuid.uuid4().hex, created, __version__, accumulators, MappingProxyType(plain))

    @property
    def is_ours(self) -> bool:
        """Whether this library knows everything that the format asks of a writer."""
        return int(self.version.partition(".")[2]) <= int(FORMAT.partition(".")[2])

    def to_bytes(self) -> bytes:
        """Return the root's zarr.json."""
        body: dict[str, JSON] = {
            "format": self.version,
            "library": self.library,
            "run": {"id": self.run_id, "created": self.created},
            "accumulators": dict(self.accumulators),
            "settings": dict(self.settings),
        }
        sealed = body | {"digest": checksum(encode(body))}
        return encode({"zarr_format": 3, "node_type": "group", "attributes": {_KEY: sealed}})


def read_header(storage: Storage) -> Header:
    """Return the ledger's header.

    Raises:
        LedgerNotFoundError: nothing, or nothing of ours, lies there.
        UnsupportedFormatError: a format of another major number.
        CorruptLedgerError: the header is lost or altered.
    """
    raw = storage.get(ROOT)
    if raw is None:
        raise _missing(storage, f"no {ROOT}" if storage.exists() else "nothing")
    with reading(f"{storage.at(ROOT)}"):
        data = decode(raw)
        attributes = data.get("attributes") if isinstance(data, dict) else None
        if not isinstance(attributes, dict) or _KEY not in attributes:
            raise _missing(storage, f"a {ROOT} without {_KEY!r}")
        return _parse(field(attributes, _KEY, dict), storage)


def _missing(storage: Storage, got: str) -> CorruptLedgerError | LedgerNotFoundError:
    # Where commits lie there was a ledger. The folder alone may be one that is just being made.
    if any(parse_span(name.removesuffix(".json")) for name in storage.names(COMMITS)):
        return CorruptLedgerError(f"{storage.at(ROOT)} is damaged", expected="a ledger's header", got=got)
    return LedgerNotFoundError("no ledger", expected=f"one at {storage.location}", got=got)


def _parse(body: dict[str, Any], storage: Storage) -> Header:
    version = field(body, "format", str)
    major, _, minor = version.partition(".")
    if major != FORMAT.partition(".")[0] or not minor.isdecimal():
        raise UnsupportedFormatError(
            f"format of {storage.location}",
            expected=f"{FORMAT.partition('.')[0]}.x",
            got=repr(version)[:40],
            remedy="read it with the gradtrace version that wrote it, or a newer one",
        )
    expected = checksum(encode({name: value for name, value in body.items() if name != "digest"}))
    if digest_field(body, "digest") != expected:
        raise InvalidValueError("checksum", expected=expected, got=body["digest"])
    known = {}
    for name, dtype in field(body, "accumulators", dict).items():
        # Accumulators of later minor versions are not ours to judge.
        if name in KNOWN and dtype != KNOWN[name]:
            raise InvalidValueError(f"dtype of {name}", expected=KNOWN[name], got=repr(dtype)[:40])
        if name in KNOWN:
            known[name] = KNOWN[name]
    run = field(body, "run", dict)
    return Header(
        version,
        field(run, "id", str),
        field(run, "created", str),
        field(body, "library", str),
        MappingProxyType(known),
        MappingProxyType(field(body, "settings", dict)),
    )


def appendable_header(storage: Storage) -> Header:
    """Return the header of a ledger to append to; also a later minor format is an UnsupportedFormatError."""
    header = read_header(storage)
    if not header.is_ours:
        # Its entries may need accumulators that this library does not know.
        raise UnsupportedFormatError(
            f"format of {storage.location}",
            expected=f"at most {FORMAT} to append to",
            got=header.version,
            remedy="go on with the gradtrace version that wrote it, or a newer one",
        )
    return header
