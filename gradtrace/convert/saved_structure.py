"""gradtrace.json of a saved model: which layers run as which sub-operators; nothing in it is trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradtrace import __version__
from gradtrace.errors import InvalidValueError, UnreadableFileError, UnsupportedFormatError
from gradtrace.structure.sub_operator import SubOperator

__all__ = ["FORMAT", "KIND", "SavedLayer", "SavedStructure"]

KIND = "gradtrace model"
FORMAT = "1.0"


@dataclass(frozen=True, eq=False)
class SavedLayer:
    """A converted layer. Raises InvalidValueError for sizes that are none, or an index outside them."""

    in_features: int
    out_features: int
    bias: bool
    sub_operators: tuple[SubOperator, ...]

    def __post_init__(self) -> None:
        for what in ("in_features", "out_features"):
            if type(getattr(self, what)) is not int or getattr(self, what) < 0:
                raise InvalidValueError(what, expected="a size", got=repr(getattr(self, what))[:80])
        if type(self.bias) is not bool:
            raise InvalidValueError("bias", expected="true or false", got=repr(self.bias)[:80])
        for part in self.sub_operators:
            if part.inputs.max() >= self.in_features or part.outputs.max() >= self.out_features:
                raise InvalidValueError(
                    "sub-operator",
                    expected=f"inputs below {self.in_features}, outputs below {self.out_features}",
                    got=f"{part.inputs.max()}, {part.outputs.max()}",
                )

    @property
    def weights(self) -> int:
        """How many weights the layer holds."""
        return sum(part.size for part in self.sub_operators)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        parts = [part.to_json() for part in self.sub_operators]
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias,
            "sub_operators": parts,
        }

    @classmethod
    def from_json(cls, value: object) -> SavedLayer:
        """The layer that `to_json` wrote, or InvalidValueError."""
        names = {"in_features", "out_features", "bias", "sub_operators"}
        if (
            not isinstance(value, Mapping)
            or set(value) != names
            or not isinstance(value["sub_operators"], list)
        ):
            raise InvalidValueError("layer", expected=f"an object with {sorted(names)}", got=repr(value)[:80])
        parts = tuple(SubOperator.from_json(part) for part in value["sub_operators"])
        return cls(value["in_features"], value["out_features"], value["bias"], parts)


@dataclass(frozen=True, eq=False)
class SavedStructure:
    """`crc32c` of model.safetensors, `aliases` (tied name -> the stored one) and the converted `layers`."""

    crc32c: str
    aliases: Mapping[str, str]
    layers: Mapping[str, SavedLayer]

    def write(self, path: Path) -> None:
        """Write it as a new JSON file."""
        document = {
            "kind": KIND,
            "format": FORMAT,
            "library": __version__,
            "crc32c": self.crc32c,
            "aliases": dict(self.aliases),
            "layers": {name: layer.to_json() for name, layer in self.layers.items()},
        }
        with path.open("x", encoding="utf-8") as file:
            json.dump(document, file, allow_nan=False)

    @classmethod
    def read(cls, path: Path) -> SavedStructure:
        """Read and check it.

        Raises:
            UnreadableFileError: no file, not JSON, another kind of file, or broken.
            UnsupportedFormatError: a format that this library does not know.
        """
        try:
            document: Any = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UnreadableFileError(
                f"'{path.parent}' is no saved model",
                expected=f"a folder with {path.name}",
                got=error.strerror or str(error),
            ) from error
        except (ValueError, RecursionError) as error:
            raise UnreadableFileError(f"'{path}' is not JSON", got=str(error)[:120]) from error
        if not isinstance(document, Mapping) or document.get("kind") != KIND:
            raise UnreadableFileError(
                f"'{path}' is no saved model",
                expected=f'"kind": "{KIND}"',
                remedy="write models with gt.save",
            )
        if document.get("format") != FORMAT:
            raise UnsupportedFormatError(
                f"saved model '{path.parent}' has an unknown format",
                expected=FORMAT,
                got=repr(document.get("format"))[:40],
                remedy="read it with the version of gradtrace that wrote it",
            )
        crc32c, aliases, listed = (document.get(name) for name in ("crc32c", "aliases", "layers"))
        if (
            not isinstance(crc32c, str)
            or not isinstance(listed, Mapping)
            or not isinstance(aliases, Mapping)
            or not all(isinstance(name, str) for name in aliases.values())
        ):
            raise UnreadableFileError(f"'{path}' is broken", expected='"crc32c", "aliases" and "layers"')
        layers = {}
        for name, value in listed.items():
            try:
                layers[name] = SavedLayer.from_json(value)
            except InvalidValueError as error:
                raise UnreadableFileError(
                    f"'{path}' is broken at layer '{name}'", got=error.message
                ) from error
        return cls(crc32c, aliases, layers)
