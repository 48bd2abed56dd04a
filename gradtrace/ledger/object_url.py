"""The URLs of ledgers on object stores: read strictly, because what they show must hold no credential."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gradtrace.errors import InvalidValueError

__all__ = ["ObjectURL"]

_SCHEMES = ("s3", "gs", "az", "memory")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SEGMENT = re.compile(r"(?!\.{1,2}$)[\w.=+,~ -]+")


@dataclass(frozen=True)
class ObjectURL:
    """`scheme://bucket/prefix`, without user, password, port, query or fragment.

    Attributes:
        scheme: s3, gs, az or memory.
        bucket: bucket or container.
        prefix: what every key begins with, without a "/" at either end; may be empty.
    """

    scheme: str
    bucket: str
    prefix: str

    @classmethod
    def parse(cls, url: str) -> ObjectURL:
        """Read a URL; raises InvalidValueError, whose message repeats nothing of it but the scheme."""
        scheme, _, rest = url.partition("://")
        if scheme not in _SCHEMES:
            raise InvalidValueError(
                "ledger path",
                expected="a path on a local disk or a URL of " + ", ".join(f"{one}://" for one in _SCHEMES),
                got=f"{scheme}://..." if _SCHEME.fullmatch(scheme) else "another URL",
            )
        bucket, _, prefix = rest.partition("/")
        segments = prefix.strip("/").split("/") if prefix.strip("/") else []
        if not _BUCKET.fullmatch(bucket) or not all(map(_SEGMENT.fullmatch, segments)):
            raise InvalidValueError(
                "ledger path",
                expected=f"{scheme}://bucket/name, plain names joined by '/'",
                got=f"a {scheme}:// URL with something else in it",
                remedy="pass credentials and other settings in storage_options= or the environment",
            )
        return cls(scheme, bucket, "/".join(segments))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")
