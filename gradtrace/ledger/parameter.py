"""What the ledger knows of one parameter, apart from its numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.encoding import JSON, field, integer, texts

__all__ = ["ORIENTATIONS", "ROLES", "ParameterInfo"]

ROLES = ("weight", "bias", "scale", "embedding", "other")
ORIENTATIONS = ("out,in", "in,out", "")
_DTYPE = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter of the model that was trained.

    Attributes:
        name: canonical name.
        shape: full (unsharded) shape.
        dtype: dtype of the weights, such as "float32" or "bfloat16".
        aliases: further names of the same parameter (tied weights).
        module: canonical name of the module that owns it, "" for the root.
        module_class: class name of that module, such as "Linear".
        role: one of ROLES.
        orientation: what the first two dimensions mean, one of ORIENTATIONS.

    Raises:
        InvalidValueError: any of these is not what it should be.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    _: KW_ONLY
    aliases: tuple[str, ...] = ()
    module: str
    module_class: str
    role: str
    orientation: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(integer(side, "shape") for side in self.shape))
        object.__setattr__(self, "aliases", tuple(self.aliases))
        for name in (self.name, *self.aliases):
            _check_text("parameter name", name)
            if not name:
                raise InvalidValueError("parameter name", expected="some text", got="''")
        if self.name in self.aliases or len(set(self.aliases)) < len(self.aliases):
            raise InvalidValueError(f"aliases of {self.name!r}", expected="each once", got=repr(self.aliases))
        _check_text("module", self.module)
        _check_text("module_class", self.module_class)
        if len(self.shape) > 64:
            raise InvalidValueError("shape", expected="at most 64 dimensions", got=str(len(self.shape)))
        integer(self.size, f"size of {self.name!r}")
        if not isinstance(self.dtype, str) or not _DTYPE.fullmatch(self.dtype):
            raise InvalidValueError("dtype", expected="a name such as 'float32'", got=repr(self.dtype))
        if self.role not in ROLES:
            raise InvalidValueError("role", expected=f"one of {', '.join(ROLES)}", got=repr(self.role))
        if self.orientation not in ORIENTATIONS:
            raise InvalidValueError(
                "orientation", expected="'out,in', 'in,out' or ''", got=repr(self.orientation)
            )

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def to_json(self) -> Mapping[str, JSON]:
        """Return the object that layout.json holds."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "aliases": list(self.aliases),
            "module": self.module,
            "module_class": self.module_class,
            "role": self.role,
            "orientation": self.orientation,
        }

    @classmethod
    def from_json(cls, data: object) -> ParameterInfo:
        """Read the object that layout.json holds; raises InvalidValueError."""
        return cls(
            field(data, "name", str),
            tuple(field(data, "shape", list)),
            field(data, "dtype", str),
            aliases=texts(data, "aliases"),
            module=field(data, "module", str),
            module_class=field(data, "module_class", str),
            role=field(data, "role", str),
            orientation=field(data, "orientation", str),
        )


def _check_text(what: str, text: object) -> None:
    # Names are printed to terminals and pages: control characters from a stranger stop here.
    if not isinstance(text, str) or len(text) > 4096 or not text.isprintable():
        raise InvalidValueError(
            what, expected="printable text of at most 4096 characters", got=repr(text)[:80]
        )
