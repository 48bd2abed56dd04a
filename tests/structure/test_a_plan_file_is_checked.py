"""A plan survives the disk unchanged, and a plan file that somebody edited is refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gradtrace.errors import (
    GradtraceError,
    InvalidValueError,
    StorageError,
    UnknownNameError,
    UnreadableFileError,
    UnsupportedFormatError,
)
from gradtrace.structure.coclusters import coclusters
from gradtrace.structure.components import components
from gradtrace.structure.plan import CHOICES, LayerPlan, Plan
from gradtrace.structure.row_groups import row_groups
from gradtrace.structure.sub_operator import SubOperator
from gradtrace.structure.trimmed import trimmed

KEPT = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.bool_)
Edit = Callable[[dict[str, Any]], object]
printable = st.text().filter(str.isprintable)


def small_plan() -> Plan:
    layer = LayerPlan("components", components(KEPT), KEPT, 1e-3, 3e-3, 2.5, "2 exact blocks")
    return Plan({"net.0": layer}, {"tokens": 512, "mask": {"criterion": "magnitude"}})


@st.composite
def layer_plans(draw: st.DrawFn) -> LayerPlan:
    shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
    mask: NDArray[np.bool_] = draw(hnp.arrays(np.bool_, shapes))
    choice = draw(st.sampled_from(CHOICES))
    methods: dict[str, Callable[[NDArray[np.bool_]], tuple[SubOperator, ...]]] = {
        "dense": lambda mask: (),
        "trimmed": trimmed,
        "components": components,
        "block-triangular": lambda mask: row_groups(mask, 3),  # any cover will do
        "co-clusters": lambda mask: coclusters(mask, 2).covering(mask),
        "row groups": lambda mask: row_groups(mask, 2),
    }
    seconds = st.floats(0, 1e6)
    measured = draw(st.none() | seconds)
    return LayerPlan(
        choice, methods[choice](mask), mask, draw(seconds), draw(seconds), measured, draw(printable)
    )


@given(
    layers=st.dictionaries(printable, layer_plans(), max_size=3),
    provenance=st.dictionaries(st.text(), st.text()),
)
def test_a_plan_comes_back_from_disk_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, layers: dict[str, LayerPlan], provenance: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    Plan(layers, provenance).save(path)
    read = Plan.load(path)
    assert list(read) == list(layers)
    assert read.provenance == provenance
    for name, layer in layers.items():
        back = read[name]
        assert (back.choice, back.predicted, back.dense, back.measured, back.reason) == (
            layer.choice,
            layer.predicted,
            layer.dense,
            layer.measured,
            layer.reason,
        )
        np.testing.assert_array_equal(back.mask, layer.mask)
        assert [part.to_json() for part in back.sub_operators] == [
            part.to_json() for part in layer.sub_operators
        ]


def layer_of(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["layers"]["net.0"]
    return found


EDITS: dict[str, tuple[Edit, type[GradtraceError], str]] = {
    "an index outside the layer": (
        lambda d: layer_of(d)["sub_operators"][0]["inputs"].append(4),
        UnreadableFileError,
        "net.0.*inputs of sub-operator 0: expected indices below 4, got 4",
    ),
    "an output outside the layer": (
        lambda d: layer_of(d)["sub_operators"][1]["outputs"].append(3),
        UnreadableFileError,
        "outputs of sub-operator 1: expected indices below 3, got 3",
    ),
    "a negative index": (
        lambda d: layer_of(d)["sub_operators"][0]["inputs"].append(-1),
        UnreadableFileError,
        "at least 0, got -1",
    ),
    "a lost dependency": (
        lambda d: layer_of(d)["sub_operators"].pop(),
        UnreadableFileError,
        "1 lost, the first being output 2 of input 3",
    ),
    "a doubled dependency": (
        lambda d: layer_of(d)["sub_operators"].append({"inputs": [0], "outputs": [1]}),
        UnreadableFileError,
        "1 doubled, the first being output 1 of input 0",
    ),
    "an index twice": (
        lambda d: layer_of(d)["sub_operators"][0]["inputs"].append(0),
        UnreadableFileError,
        "0 twice",
    ),
    "an index that is a bool": (
        lambda d: layer_of(d)["sub_operators"][0].update(inputs=[True, False]),
        UnreadableFileError,
        "list of integers",
    ),
    "an index that is a fraction": (
        lambda d: layer_of(d)["sub_operators"][0].update(inputs=[0.0, 1.0]),
        UnreadableFileError,
        "list of integers",
    ),
    "an index beyond 64 bits": (
        lambda d: layer_of(d)["sub_operators"][0].update(inputs=[2**70]),
        UnreadableFileError,
        "net.0",
    ),
    "sub-operators of a dense layer": (
        lambda d: layer_of(d).update(choice="dense"),
        UnreadableFileError,
        "no sub-operators",
    ),
    "an unknown choice": (
        lambda d: layer_of(d).update(choice="magic"),
        UnreadableFileError,
        "choice: expected one of dense",
    ),
    "a choice that is a list": (
        lambda d: layer_of(d).update(choice=["dense"]),
        UnreadableFileError,
        "choice: expected one of dense",
    ),
    "a mask of another shape": (
        lambda d: layer_of(d)["mask"].update(shape=[30, 40]),
        UnreadableFileError,
        "expected 150 bytes of bits, got 2 bytes",
    ),
    "a mask beyond all memory": (
        lambda d: layer_of(d)["mask"].update(shape=[2**35, 2**35]),
        UnreadableFileError,
        "bytes of bits",
    ),
    "a full mask beyond all memory": (
        lambda d: layer_of(d).update(mask={"shape": [2**30, 2**30], "all": True}),
        UnreadableFileError,
        "bytes of bits",
    ),
    "a full dense mask beyond all models": (
        lambda d: layer_of(d).update(
            choice="dense", sub_operators=[], mask={"shape": [2**30, 2**30], "all": True}
        ),
        UnreadableFileError,
        "bytes of bits",
    ),
    "a side beyond all arrays": (
        lambda d: layer_of(d).update(mask={"shape": [0, 10**30], "bits": ""}, sub_operators=[]),
        UnreadableFileError,
        "mask: expected an object with .shape.",
    ),
    "a full dense side beyond all arrays": (
        lambda d: layer_of(d).update(
            choice="dense", sub_operators=[], mask={"shape": [10**30, 0], "all": True}
        ),
        UnreadableFileError,
        "mask: expected an object with .shape.",
    ),
    "a mask that is no base64": (
        lambda d: layer_of(d)["mask"].update(bits="?!"),
        UnreadableFileError,
        "bits",
    ),
    "a mask that is missing": (lambda d: layer_of(d).pop("mask"), UnreadableFileError, "expected an object"),
    "a time that is no number": (
        lambda d: layer_of(d).update(predicted="fast"),
        UnreadableFileError,
        "predicted: expected a finite number",
    ),
    "a time that is not finite": (
        lambda d: layer_of(d).update(dense=float("nan")),
        UnreadableFileError,
        "NaN is no number",
    ),
    "a time beyond all numbers": (
        lambda d: layer_of(d).update(dense=10**400),
        UnreadableFileError,
        "dense: expected a finite number",
    ),
    "a reason that moves the cursor": (
        lambda d: layer_of(d).update(reason="fast\x1b[2J"),
        UnreadableFileError,
        "reason: expected printable characters",
    ),
    "a name that moves the cursor": (
        lambda d: d["layers"].update({"net\x1b[2J": layer_of(d)}),
        UnreadableFileError,
        "layer name: expected printable characters",
    ),
    "a reason that is no text": (
        lambda d: layer_of(d).update(reason=None),
        UnreadableFileError,
        "reason: expected words",
    ),
    "a layer that is no object": (
        lambda d: d["layers"].update({"net.0": 3}),
        UnreadableFileError,
        "net.0.*expected an object",
    ),
    "layers that are a list": (lambda d: d.update(layers=[]), UnreadableFileError, '"layers"'),
    "a newer format": (
        lambda d: d.update(format="2.0"),
        UnsupportedFormatError,
        "1.0 or 1.1, got '2.0'",
    ),
    "no format": (lambda d: d.pop("format"), UnsupportedFormatError, "unknown format"),
    "another kind of file": (lambda d: d.update(kind="recipe"), UnreadableFileError, "is not a plan"),
}


@pytest.mark.parametrize(("edit", "error", "words"), EDITS.values(), ids=EDITS)
def test_a_plan_file_edited_by_hand_is_refused_by_name(
    tmp_path: Path, edit: Edit, error: type[GradtraceError], words: str
) -> None:
    path = tmp_path / "plan.json"
    small_plan().save(path)
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    with pytest.raises(error, match=words):
        Plan.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"not json", b"\xff\xfe\x00", b"[1, 2]", b"null", b"[" * 100_000, b"1" * 10_000]
)
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match=r"plan\.json"):
        Plan.load(path)


def test_a_number_beyond_all_floats_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    Plan({}, {"tokens": 1.5}).save(path)
    path.write_text(path.read_text().replace("1.5", "1e999"))
    with pytest.raises(UnreadableFileError, match="1e999 is no number"):
        Plan.load(path)


@pytest.mark.parametrize("cut", [1, 100, 300])
def test_a_truncated_plan_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "plan.json"
    small_plan().save(path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UnreadableFileError, match="not JSON"):
        Plan.load(path)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="No such file"):
        Plan.load(tmp_path / "absent.json")
    with pytest.raises(UnreadableFileError, match="cannot be read"):
        Plan.load(tmp_path)


def test_a_plan_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="existing directory"):
        small_plan().save(tmp_path / "absent" / "plan.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidValueError, match="plan path"):
        small_plan().save(tmp_path / "folder")
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for provenance in ({"object": object()}, {"deep": deep}):
        with pytest.raises(InvalidValueError, match="plain JSON"):
            Plan({}, provenance).save(tmp_path / "plan.json")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_failed_save_keeps_the_plan_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    small_plan().save(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        Plan({}).save(path)
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("plan.json", before)]


def test_an_unknown_layer_is_named_with_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match=r"no layer 'net.9' in this plan: expected net.0"):
        small_plan()["net.9"]


def test_a_layer_plan_keeps_its_own_mask() -> None:
    mask = KEPT.copy()
    layer = LayerPlan("trimmed", trimmed(mask), mask, 0.0, 0.0, None, "")
    mask[:] = True
    np.testing.assert_array_equal(layer.mask, KEPT)
    assert copy.deepcopy(layer).weights == 9


@pytest.mark.parametrize("mask", [KEPT.astype(np.int8), KEPT[0], [[True]]])
def test_a_mask_that_is_no_bool_matrix_is_refused(mask: Any) -> None:
    with pytest.raises(InvalidValueError, match="mask: expected a bool array"):
        LayerPlan("dense", (), mask, 0.0, 0.0, None, "")


def test_blocks_may_overlap_where_the_mask_drops() -> None:
    mask = np.array([[1, 0], [0, 1]], dtype=np.bool_)
    parts = (SubOperator(np.array([0, 1]), np.array([0])), SubOperator(np.array([1]), np.array([0, 1])))
    assert LayerPlan("components", parts, mask, 0.0, 0.0, None, "").weights == 4


def test_a_plan_of_the_first_format_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    small_plan().save(path)
    document = json.loads(path.read_text())
    assert document["format"] == "1.1"
    document["format"] = "1.0"
    path.write_text(json.dumps(document))
    assert list(Plan.load(path)) == list(small_plan())
