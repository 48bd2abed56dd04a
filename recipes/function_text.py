"""Texts to classify: functions of Python's standard library by their package, or any labelled JSONL.

Files, not functions, are held out, so that no two functions of one file stand on both sides of the split.
"""

from __future__ import annotations

import ast
import json
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from gradtrace.errors import InvalidValueError, UnreadableFileError

__all__ = ["Example", "Split", "labelled_lines", "standard_library"]

MOST_TRAINED, MOST_HELD_OUT = 160, 40  # of a class: large packages must not decide everything
LEAST_TRAINED, LEAST_HELD_OUT = 20, 6
HELD_OUT = 0.25
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}


class Example(NamedTuple):
    """One text, its label in words, and the file or other group that it must not be parted from."""

    text: str
    label: str
    group: str


class Split(NamedTuple):
    """Examples to train on and held out, and the labels in the order of their numbers."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    labels: tuple[str, ...]


@cache
def standard_library() -> Split:
    """Functions and methods of the packages that have files enough to hold some of them out whole."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, list[Example]] = defaultdict(list)
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if len(name.parts) > 1 and not _LEFT_OUT.intersection(name.parts):
            for source in _functions(path.read_bytes()):
                found[source].append(Example(source, name.parts[0], str(name)))
    # What stands in several files says nothing about where it is from, and would leak.
    return _split([some[0] for some in found.values() if len({one.group for one in some}) == 1])


def labelled_lines(path: Path) -> Split:
    """Examples of a JSONL file: {"text": ..., "label": ..., "group": ...} a line; the group is optional.

    Raises:
        UnreadableFileError: no such file.
        InvalidValueError: a line that is no such object, or no class with examples enough on both sides.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFileError(f"data {path}", got=str(error)) from error
    return _split([_example(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line])


def _functions(source: bytes) -> list[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []  # templates that are no Python
    lines = source.splitlines(keepends=True)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    spans = [(one.lineno - 1, one.end_lineno) for one in ast.walk(tree) if isinstance(one, kinds)]
    texts = [b"".join(lines[begin:end]).decode(errors="replace").strip() for begin, end in spans]
    return [text for text in texts if len(text) >= 64]


def _example(line: str, where: str) -> Example:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise InvalidValueError(where, expected="one JSON object", got=str(error)) from error
    if not isinstance(data, Mapping) or not all(isinstance(data.get(key), str) for key in ("text", "label")):
        raise InvalidValueError(where, expected='{"text": "...", "label": "..."}', got=line[:80])
    return Example(data["text"], data["label"], str(data.get("group", data["text"])))


def _split(examples: Sequence[Example]) -> Split:
    by_label: dict[str, list[Example]] = defaultdict(list)
    for one in examples:
        by_label[one.label].append(one)
    train: list[Example] = []
    held_out: list[Example] = []
    labels = []
    for label, some in sorted(by_label.items()):
        apart = _groups_held_out(some)
        inside = _thinned([one for one in some if one.group not in apart], MOST_TRAINED)
        outside = _thinned([one for one in some if one.group in apart], MOST_HELD_OUT)
        if len(inside) >= LEAST_TRAINED and len(outside) >= LEAST_HELD_OUT:
            labels.append(label)
            train += inside
            held_out += outside
    if len(labels) < 2:
        raise InvalidValueError(
            "data",
            expected=f"two classes or more, with {LEAST_TRAINED} texts, and {LEAST_HELD_OUT} held out",
            got=f"{len(labels)} of {len(by_label)}",
        )
    return Split(tuple(train), tuple(held_out), tuple(labels))


def _groups_held_out(examples: Sequence[Example]) -> set[str]:
    """Groups, drawn by their names, until they have HELD_OUT of the examples; none that has half of all."""
    sizes = Counter(one.group for one in examples)
    apart: set[str] = set()
    held = 0
    for group in sorted(sizes, key=lambda name: crc32(name.encode())):
        if held < HELD_OUT * len(examples) and 2 * (held + sizes[group]) <= len(examples):
            apart.add(group)
            held += sizes[group]
    return apart


def _thinned(examples: Sequence[Example], most: int) -> list[Example]:
    return sorted(examples, key=lambda one: crc32(one.text.encode()))[:most]
