"""A mask is a read-only value; its file is whole or absent, and a stranger's file is checked."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save

from gradtrace.errors import InvalidValueError, StorageError, UnreadableFileError, UnsupportedFormatError
from gradtrace.evidence.mask import Mask

NAMES = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=12)
BOOLS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def mask() -> Mask:
    return Mask({"b.weight": np.eye(3, 5, dtype=bool), "a.weight": np.ones((2, 3, 1), bool)}, {"by": "hand"})


@settings(max_examples=60)
@given(st.dictionaries(NAMES, BOOLS, min_size=1, max_size=4), st.dictionaries(st.text(), JSON, max_size=3))
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, Any], provenance: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("masks") / "mask.safetensors"
    saved = Mask(arrays, provenance)
    saved.save(path)
    loaded = Mask.load(path)
    assert loaded == saved
    assert list(loaded) == list(saved)
    assert loaded.provenance == saved.provenance
    assert {name: kept.shape for name, kept in loaded.items()} == {k: v.shape for k, v in arrays.items()}


def test_transposed_and_strided_arrays_are_saved_as_they_look(tmp_path: Path) -> None:
    kept = np.random.default_rng(0).random((6, 8)) < 0.5
    Mask({"t": kept.T, "s": kept[::2, ::3]}).save(tmp_path / "m")
    loaded = Mask.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded["t"], kept.T)
    np.testing.assert_array_equal(loaded["s"], kept[::2, ::3])


def test_density_is_that_of_all_dependencies(mask: Mask) -> None:
    assert mask.density == 9 / 21
    assert Mask({"w": np.zeros((0, 3), bool)}).density == 1.0


def test_a_mask_is_a_copy_and_read_only() -> None:
    kept = np.ones((2, 2), bool)
    mask = Mask({"w": kept})
    kept[:] = False
    assert mask["w"].all()
    with pytest.raises(ValueError, match="read-only"):
        mask["w"][0, 0] = False


def test_masks_compare_by_value() -> None:
    kept = np.eye(3, dtype=bool)
    assert Mask({"a": kept, "b": ~kept}) == Mask({"b": ~kept, "a": kept}, {"other": "grounds"})
    assert Mask({"a": kept}) != Mask({"a": ~kept})
    assert Mask({"a": kept}) != Mask({"b": kept})
    assert Mask({"a": kept}) != Mask({"a": kept.reshape(1, 9)})


def test_a_bool_tensor_is_taken() -> None:
    assert Mask({"w": torch.eye(3) > 0}) == Mask({"w": np.eye(3, dtype=bool)})


@pytest.mark.parametrize(
    ("mapping", "provenance", "match"),
    [
        ({}, None, "at least one parameter name"),
        ([1], None, "got list"),
        ({3: np.ones(2, bool)}, None, "names of parameters as keys, got 3"),
        ({"": np.ones(2, bool)}, None, "names of parameters as keys, got ''"),
        ({"a\n": np.ones(2, bool)}, None, "names of parameters as keys"),
        ({"__metadata__": np.ones(2, bool)}, None, "names of parameters as keys"),
        (
            {"w": np.ones((2, 2))},
            None,
            "mask of 'w': expected a bool array, got float64. Pass e.g. array != 0",
        ),
        ({"w": torch.ones(2, 2)}, None, "expected a bool array"),
        ({"w": torch.ones(2, 2).bfloat16()}, None, "mask of 'w': expected a bool array"),
        ({"w": torch.ones(2, device="meta") > 0}, None, "mask of 'w': expected a bool array"),
        ({"w": [[True], [True, False]]}, None, "mask of 'w': expected a bool array, got .*inhomogeneous"),
        ({"w": np.ones(2, bool)}, {"x": object()}, "plain JSON"),
        ({"w": np.ones(2, bool)}, {"x": float("nan")}, "plain JSON"),
    ],
)
def test_what_is_no_mask_is_refused(mapping: Any, provenance: Any, match: str) -> None:
    with pytest.raises(InvalidValueError, match=match):
        Mask(mapping, provenance)


def test_saving_again_replaces_the_file_and_leaves_no_other(mask: Mask, tmp_path: Path) -> None:
    path = tmp_path / "mask.safetensors"
    Mask({"old": np.ones(3, bool)}).save(path)
    mask.save(path)
    assert Mask.load(str(path)) == mask
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_failed_save_keeps_the_old_file_and_leaves_no_other(
    mask: Mask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mask.safetensors"
    mask.save(path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"writing .*mask\.safetensors failed: No space left on device"):
        Mask({"new": np.ones(3, bool)}).save(path)
    monkeypatch.undo()
    assert Mask.load(path) == mask
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_path_that_cannot_be_a_file_is_refused(mask: Mask, tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="expected a file in an existing directory, got a directory"):
        mask.save(tmp_path)
    with pytest.raises(InvalidValueError, match="got no directory"):
        mask.save(tmp_path / "absent" / "mask")
    assert list(tmp_path.iterdir()) == []


def rewritten(path: Path, **changes: Any) -> None:
    """Save the file again with other metadata."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["gradtrace.mask"])
    header = {key: value for key, value in (header | changes).items() if value is not ...}
    path.write_bytes(save(load(data), {"gradtrace.mask": json.dumps(header)}))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"not a mask at all" * 20, pickle.dumps({"w": np.ones(3, bool)}), b"\xff" * 64],
    ids=["empty", "one-byte", "text", "pickle", "huge-header"],
)
def test_garbage_and_pickles_are_not_read(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mask.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        UnreadableFileError, match=r"mask\.safetensors' is not a mask file.*pickles are never read"
    ):
        Mask.load(path)


def test_a_torch_checkpoint_is_not_read(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "model.ckpt")
    with pytest.raises(UnreadableFileError, match="not a mask file"):
        Mask.load(tmp_path / "model.ckpt")


@pytest.mark.parametrize("keep", [1, 8, 60, -1, -5])
def test_a_truncated_file_is_not_read(keep: int, mask: Mask, tmp_path: Path) -> None:
    path = tmp_path / "mask"
    mask.save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UnreadableFileError, match="not a mask file"):
        Mask.load(path)


def test_a_missing_file_and_a_directory_say_so(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="cannot be read: got No such file"):
        Mask.load(tmp_path / "absent")
    with pytest.raises(UnreadableFileError, match="cannot be read: got Is a directory"):
        Mask.load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"names": ...},
        {"names": []},
        {"names": ["a.weight"]},
        {"names": ["a.weight", "b.weight", "c"]},
        {"names": ["a.weight", "a.weight", "b.weight"]},
        {"names": ["a.weight", 3]},
        {"names": "a.weight"},
        {"provenance": ...},
        {"provenance": [1]},
        {"provenance": {"x": float("nan")}},
    ],
)
def test_a_header_that_does_not_fit_is_damage(changes: dict[str, Any], mask: Mask, tmp_path: Path) -> None:
    mask.save(tmp_path / "m")
    rewritten(tmp_path / "m", **changes)
    with pytest.raises(UnreadableFileError, match="is damaged"):
        Mask.load(tmp_path / "m")


def test_a_name_with_control_characters_is_damage(tmp_path: Path) -> None:
    metadata = {"gradtrace.mask": json.dumps({"format": "1.0", "names": ["a\x1b[2J"], "provenance": {}})}
    (tmp_path / "m").write_bytes(save({"a\x1b[2J": np.ones(3, bool)}, metadata))
    with pytest.raises(UnreadableFileError, match="printable names"):
        Mask.load(tmp_path / "m")


@pytest.mark.parametrize("version", ["2.0", "0.9", "x"])
def test_another_major_format_is_refused(version: str, mask: Mask, tmp_path: Path) -> None:
    mask.save(tmp_path / "m")
    rewritten(tmp_path / "m", format=version)
    with pytest.raises(UnsupportedFormatError, match=r"expected format 1\.0"):
        Mask.load(tmp_path / "m")


def test_a_newer_minor_format_is_read(mask: Mask, tmp_path: Path) -> None:
    mask.save(tmp_path / "m")
    rewritten(tmp_path / "m", format="1.7", more="fields")
    assert Mask.load(tmp_path / "m") == mask


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"other": "tool"},
        {"gradtrace.mask": "{"},
        {"gradtrace.mask": "[]"},
        {"gradtrace.mask": '{"format": 1}'},
        {"gradtrace.mask": "[" * 100_000},
    ],
    ids=["none", "foreign", "no-json", "list", "number", "deep"],
)
def test_another_tools_safetensors_is_no_mask(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(save({"w": np.ones(3, bool)}, metadata))
    with pytest.raises(UnreadableFileError, match=r"is not a mask file.*Write masks with Mask\.save"):
        Mask.load(tmp_path / "m")


@pytest.mark.parametrize("array", [np.ones(3, np.float32), np.array([0, 1, 2], np.uint8).view(np.bool_)])
def test_values_that_are_not_bools_are_damage(array: Any, tmp_path: Path) -> None:
    metadata = {"gradtrace.mask": json.dumps({"format": "1.0", "names": ["w"], "provenance": {}})}
    (tmp_path / "m").write_bytes(save({"w": array}, metadata))
    with pytest.raises(UnreadableFileError, match=r"expected (bool values|bytes 0 and 1) for 'w'"):
        Mask.load(tmp_path / "m")


def test_evidence_imports_neither_torch_nor_lightning() -> None:
    code = (
        "import sys, pkgutil, importlib, gradtrace.evidence as room;"
        "[importlib.import_module(room.__name__ + '.' + m.name) for m in"
        " pkgutil.iter_modules(room.__path__)];"
        "print(sorted({'torch', 'lightning', 'pytorch_lightning', 'triton'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
