"""Entries and voids, and the commit objects that make them exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as member
from types import MappingProxyType
from typing import Any

from gradtrace.errors import CorruptLedgerError, InvalidValueError
from gradtrace.ledger.encoding import JSON, checksum, decode, digest_field, encode, field, integer
from gradtrace.ledger.paths import LARGEST_GENERATION, LARGEST_LAYOUT, LARGEST_STEP

__all__ = ["ArrayDigest", "Commit", "Entry", "Void", "decode_commit", "encode_commit", "live_commits"]

# The checksum ends the file, so that it covers plain bytes and no reader must re-create the JSON.
_SEAL = b',"digest":"'


@dataclass(frozen=True)
class Entry:
    """A committed record of whole windows over the steps [begin, end).

    Attributes:
        begin: first step.
        end: one past the last step.
        generation: rank among commits of the same steps; the higher one counts.
        layout: number of the layout that its flat arrays follow.
        windows: windows it holds.
        details: what the recorder added, in the order of the layout's parameters.
    """

    begin: int
    end: int
    generation: int
    layout: int
    windows: int
    details: Mapping[str, Any] = member(hash=False, repr=False)

    def __post_init__(self) -> None:
        _check_span(self.begin, self.end, self.generation)
        integer(self.layout, "layout", most=LARGEST_LAYOUT)
        integer(self.windows, "windows")
        if not isinstance(self.details, Mapping):
            raise InvalidValueError("details", expected="a mapping", got=type(self.details).__name__)
        object.__setattr__(self, "details", MappingProxyType(dict(self.details)))

    @property
    def steps(self) -> int:
        """Steps it covers."""
        return self.end - self.begin


@dataclass(frozen=True)
class Void:
    """A commit that makes every step from `begin` on of lower generations not have happened."""

    begin: int
    end: int
    generation: int

    def __post_init__(self) -> None:
        _check_span(self.begin, self.end, self.generation)


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
            "stride": 1,
            "sampled": span.steps,
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
    )
    digests: dict[str, object] = field(data, "digests", dict)
    arrays = {name: ArrayDigest.from_json(value) for name, value in digests.items()}
    return run, Commit(entry, digest_field(data, "layout_digest"), arrays)


def live_commits(commits: Iterable[Commit | Void]) -> tuple[Commit, ...]:
    """Return the commits that count, in order of steps.

    A void takes away every commit of a lower generation that ends after the void's begin; of the others, one
    whose steps lie within those of a commit of a higher generation gives way to it.

    Raises:
        CorruptLedgerError: what remains does not run from step 0 on without gap or overlap.
    """
    commits = tuple(commits)
    voids = [commit for commit in commits if isinstance(commit, Void)]
    standing = [
        commit
        for commit in commits
        if isinstance(commit, Commit)
        and not any(void.generation > commit.generation and void.begin < commit.entry.end for void in voids)
    ]
    live = _without_superseded(standing)
    end = 0
    for commit in live:
        if commit.entry.begin != end:
            raise CorruptLedgerError(
                "entries do not join", expected=f"one that begins at step {end}", got=repr(commit.entry)
            )
        end = commit.entry.end
    return tuple(live)


def _without_superseded(commits: Sequence[Commit]) -> list[Commit]:
    live: list[Commit] = []
    for commit in sorted(commits, key=lambda one: (one.entry.begin, -one.entry.end, -one.generation)):
        # In this order whatever covers a commit stands before it, and only the last survivor can reach it.
        above = live[-1] if live else None
        if above is None or above.entry.end < commit.entry.end or above.generation <= commit.generation:
            live.append(commit)
    return live


def _check_span(begin: int, end: int, generation: int) -> None:
    integer(begin, "begin", most=LARGEST_STEP)
    integer(end, "end", least=begin + 1, most=LARGEST_STEP)
    integer(generation, "generation", most=LARGEST_GENERATION)
