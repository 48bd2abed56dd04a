"""JSON and checksums of the ledger: one canonical text, and strict reading of what strangers wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeAlias, TypeVar

import google_crc32c
import numpy as np

from gradtrace.errors import CorruptLedgerError, InvalidValueError

__all__ = [
    "JSON",
    "checksum",
    "decode",
    "digest_field",
    "encode",
    "extended",
    "field",
    "integer",
    "reading",
    "texts",
]

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
T = TypeVar("T")
# Counts and sizes stay below this, so that no stranger's number overflows int64 arithmetic.
_LARGEST = 2**62


def checksum(data: bytes | np.ndarray[Any, Any]) -> str:
    """Return the crc32c of bytes, or of a C-contiguous array's bytes, as 8 lower-case hex digits."""
    return f"{google_crc32c.value(data):08x}"


def extended(crc: int, data: np.ndarray[Any, Any]) -> int:
    """Return the crc32c of the bytes whose crc32c is `crc` (0 for none) followed by those of `data`."""
    value: int = google_crc32c.extend(crc, data)
    return value


def encode(value: object) -> bytes:
    """Return canonical JSON: sorted keys, no white space, ASCII, finite numbers only.

    Raises:
        InvalidValueError: `value` holds something JSON has no word for, such as NaN or a tensor.
    """
    try:
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain_mapping
        ).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidValueError(
            "value for the ledger",
            expected="JSON: text, finite numbers, booleans, null, lists, mappings with text keys",
            got=str(error),
            remedy="convert tensors and numpy numbers to plain Python first",
        ) from error


def _plain_mapping(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"an object of type {type(value).__name__}")


def decode(raw: bytes) -> Any:
    """Parse strict JSON (no NaN, no Infinity); raises InvalidValueError."""
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidValueError("unreadable JSON", got=str(error)) from error


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"the constant {name}")


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn what a validator says of stored data into a CorruptLedgerError that names `what`."""
    try:
        yield
    except InvalidValueError as error:
        raise CorruptLedgerError(f"{what} is damaged: {error.message}") from error


def field(data: object, name: str, kind: type[T]) -> T:
    """Return `data[name]`, which must be exactly of JSON type `kind` (a bool is no int)."""
    if not isinstance(data, Mapping):
        raise InvalidValueError("JSON value", expected=f"an object with {name!r}", got=type(data).__name__)
    value = data.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InvalidValueError(f"field {name!r}", expected=f"a {kind.__name__}", got=repr(value)[:80])
    return value


def integer(value: object, name: str, *, least: int = 0, most: int = _LARGEST) -> int:
    """Return `value` as a Python int in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise InvalidValueError(name, expected=f"an integer in [{least}, {most}]", got=repr(value)[:80])
    return int(value)


def texts(data: object, name: str) -> tuple[str, ...]:
    """Return the list of strings `data[name]`."""
    values: list[object] = field(data, name, list)
    if not all(isinstance(value, str) for value in values):
        raise InvalidValueError(f"field {name!r}", expected="a list of strings", got=repr(values)[:80])
    return tuple(str(value) for value in values)


def digest_field(data: object, name: str) -> str:
    """Return the checksum (8 lower-case hex digits) `data[name]`."""
    value = field(data, name, str)
    if len(value) != 8 or set(value) - set("0123456789abcdef"):
        raise InvalidValueError(f"field {name!r}", expected="8 hex digits", got=repr(value)[:80])
    return value
