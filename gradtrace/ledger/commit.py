"""Commit objects: the bytes that make an entry or a void exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.encoding import JSON, checksum, decode, digest_field, encode, field
from gradtrace.ledger.entry import Entry, Void
from gradtrace.ledger.sampling import Sampling

__all__ = ["ArrayDigest", "Commit", "decode_commit", "encode_commit", "span_of"]

# The checksum ends the file, so that it covers plain bytes and no reader must re-create the JSON.
_SEAL = b',"digest":"'


@dataclass(frozen=True)
class ArrayDigest:
    """Checksums of one stored array: of its zarr.json, and of each chunk's raw little-endian bytes."""

    metadata: str
    chunks: tuple[str, ...]

    def to_json(self) -> Mapping[str, JSON]:
        """Return the object that commits and layouts hold."""
        return {"metadata": self.metadata, "chunks": list(self.chunks)}

    @classmethod
    def from_json(cls, data: object) -> ArrayDigest:
        """Read the object that commits and layouts hold; raises InvalidValueError."""
        chunks: list[object] = field(data, "chunks", list)
        return cls(
            digest_field(data, "metadata"),
            tuple(digest_field({"chunks": chunk}, "chunks") for chunk in chunks),
        )


@dataclass(frozen=True)
class Commit:
    """An entry with the checksums of all it commits; `arrays` is keyed "rank-0000/grad_sum"."""

    entry: Entry
    layout_digest: str
    arrays: Mapping[str, ArrayDigest]

    @property
    def generation(self) -> int:
        """The entry's generation."""
        return self.entry.generation


def span_of(commit: Commit | Void) -> tuple[int, int, int]:
    """Return (begin, end, generation)."""
    span = commit.entry if isinstance(commit, Commit) else commit
    return span.begin, span.end, span.generation


def encode_commit(commit: Commit | Void, *, run: str, version: str) -> bytes:
    """Return the bytes of a commit object; raises InvalidValueError for details that are not JSON."""
    body: dict[str, JSON] = {"format": version, "run": run}
    if isinstance(commit, Void):
        body |= {"kind": "void"}
        span: Void | Entry = commit
    else:
        span = commit.entry
        body |= {
            "kind": "entry",
            "layout": span.layout,
            "windows": span.windows,
            **span.sampling.to_json(),
            "details": dict(span.details),
            "layout_digest": commit.layout_digest,
            "digests": {name: digest.to_json() for name, digest in commit.arrays.items()},
        }
    raw = encode(body | {"begin": span.begin, "end": span.end, "generation": span.generation})
    return raw[:-1] + _SEAL + checksum(raw[:-1]).encode() + b'"}'


def decode_commit(raw: bytes) -> tuple[str, Commit | Void]:
    """Return (run id, commit) from the bytes of a commit object; raises InvalidValueError."""
    body, seal, digest = raw.rpartition(_SEAL)
    if not seal or digest != checksum(body).encode() + b'"}':
        raise InvalidValueError("checksum", expected=checksum(body), got=repr(digest[:8]))
    data = decode(raw)
    run, kind = field(data, "run", str), field(data, "kind", str)
    begin, end, generation = (field(data, name, int) for name in ("begin", "end", "generation"))
    if kind == "void":
        return run, Void(begin, end, generation)
    if kind != "entry":
        raise InvalidValueError("kind", expected="'entry' or 'void'", got=repr(kind)[:80])
    entry = Entry(
        begin,
        end,
        generation,
        layout=field(data, "layout", int),
        windows=field(data, "windows", int),
        details=field(data, "details", dict),
        sampling=Sampling(
            None if data.get("stride", 0) is None else field(data, "stride", int), field(data, "sampled", int)
        ),
    )
    digests: dict[str, object] = field(data, "digests", dict)
    arrays = {name: ArrayDigest.from_json(value) for name, value in digests.items()}
    return run, Commit(entry, digest_field(data, "layout_digest"), arrays)
