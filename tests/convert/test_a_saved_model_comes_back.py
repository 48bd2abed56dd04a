"""save and load: the same bits in a fresh process, nothing half made, and no file that is trusted."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gradtrace as gt
from gradtrace.errors import (
    GradtraceError,
    InvalidValueError,
    MismatchError,
    StateError,
    StorageError,
    UnreadableFileError,
    UnsupportedError,
    UnsupportedFormatError,
)
from gradtrace.structure.components import components
from gradtrace.structure.plan import LayerPlan, Plan
from gradtrace.structure.row_groups import row_groups
from gradtrace.structure.sub_operator import SubOperator
from gradtrace.structure.trimmed import trimmed

# Also run, as text, by the process that loads.
MODEL = """
from torch import nn

def model(hidden=40, bias=True):
    last = nn.Linear(hidden, 16, bias=bias)
    return nn.Sequential(nn.Linear(24, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), last)
"""
SPACE: dict[str, Any] = {}
exec(MODEL, SPACE)
build: Callable[..., nn.Sequential] = SPACE["model"]

METHODS: dict[str, Callable[[NDArray[np.bool_]], tuple[SubOperator, ...]]] = {
    "trimmed": trimmed,
    "components": components,
    "row groups": lambda mask: row_groups(mask, 7),
}


def plan_for(choice: str, density: float = 0.1) -> Plan:
    layers = {}
    for name, shape in (("0", (40, 24)), ("3", (16, 40))):
        mask = np.random.default_rng(0).random(shape) < density
        layers[name] = LayerPlan(choice, METHODS[choice](mask), mask, 1.0, 1.0, None, "")
    return Plan(layers)


def converted(choice: str = "row groups", density: float = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    model = build()
    model(torch.randn(50, 24))  # gives the batch norm statistics of its own
    return gt.convert_(model, plan_for(choice, density)).eval()


def compiled(model: nn.Module) -> nn.Module:
    wrapped = torch.compile(model, backend="eager")
    assert isinstance(wrapped, nn.Module)
    return wrapped


def assert_same_bits(a: nn.Module, b: nn.Module) -> None:
    x = torch.randn(5, 24)
    with torch.no_grad():
        assert torch.equal(a.eval()(x), b.eval()(x))


@pytest.mark.parametrize("choice", METHODS)
def test_a_fresh_process_computes_the_same_bits(choice: str, tmp_path: Path) -> None:
    model = converted(choice)
    x = torch.randn(5, 24)
    with torch.no_grad():
        expected = model(x)
    gt.save(model, tmp_path / "saved")
    save_file({"x": x}, tmp_path / "x.safetensors")
    script = f"""
import sys, torch, gradtrace as gt
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
torch.set_num_threads({torch.get_num_threads()})
{MODEL}
torch.manual_seed(99)
loaded = gt.load(model(), sys.argv[1] + "/saved").eval()
with torch.no_grad():
    save_file({{"y": loaded(load_file(sys.argv[1] + "/x.safetensors")["x"])}}, sys.argv[1] + "/y.safetensors")
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=240)
    assert torch.equal(load_file(tmp_path / "y.safetensors")["y"], expected)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_empty_and_full_masks_come_back(density: float, tmp_path: Path) -> None:
    model = converted("trimmed", density)
    gt.save(model, tmp_path / "saved")
    assert_same_bits(gt.load(build(), tmp_path / "saved"), model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    model = converted().to(dtype)
    gt.save(model, tmp_path / "saved")
    loaded = gt.load(build().to(dtype), tmp_path / "saved")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_a_model_without_converted_layers_comes_back(tmp_path: Path) -> None:
    model = build()
    gt.save(model, tmp_path / "saved")
    assert_same_bits(gt.load(build(), tmp_path / "saved"), model)


def test_a_loaded_model_keeps_its_modes_and_frozen_weights_and_trains(tmp_path: Path) -> None:
    gt.save(converted(), tmp_path / "saved")
    model = build()
    model[3].eval()
    model[0].weight.requires_grad_(False)
    assert gt.load(model, tmp_path / "saved") is model
    assert [module.training for module in model] == [True, True, True, False]
    assert not model[0].weight.requires_grad
    model(torch.randn(5, 24)).sum().backward()
    assert model[3].weight.grad is not None


def test_a_saved_folder_holds_two_plain_files(tmp_path: Path) -> None:
    model = converted()
    gt.save(model, tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "gradtrace.json",
        "model.safetensors",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    tensors = load_file(tmp_path / "saved" / "model.safetensors")
    assert set(tensors) == set(model.state_dict())


class Tied(nn.Module):
    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 24)
        self.middle = nn.Linear(24, 24)
        self.head = nn.Linear(24, 16, bias=False)
        if tie:
            self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.middle(self.embedding(x)))
        return out


def tied(tie: bool = True) -> Tied:
    mask = np.random.default_rng(0).random((24, 24)) < 0.3
    return gt.convert_(
        Tied(tie), Plan({"middle": LayerPlan("trimmed", trimmed(mask), mask, 1.0, 1.0, None, "")})
    )


def test_tied_weights_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    model = tied()
    gt.save(model, tmp_path / "saved")
    assert "head.weight" not in load_file(tmp_path / "saved" / "model.safetensors")
    loaded = gt.load(Tied(), tmp_path / "saved")
    assert loaded.head.weight is loaded.embedding.weight
    assert torch.equal(loaded.head.weight, model.head.weight)


def test_a_model_that_ties_what_differs_in_the_file_is_refused(tmp_path: Path) -> None:
    gt.save(tied(tie=False), tmp_path / "saved")
    with pytest.raises(MismatchError, match=r"ties 'embedding.weight' and 'head.weight', which differ"):
        gt.load(Tied(), tmp_path / "saved")


def test_a_compiled_model_is_saved_under_plain_names(tmp_path: Path) -> None:
    model = converted()
    gt.save(compiled(model), tmp_path / "saved")
    assert_same_bits(gt.load(build(), tmp_path / "saved"), model)
    assert_same_bits(gt.load(compiled(build()), tmp_path / "saved"), model)


def test_views_and_strided_parameters_are_written_with_their_own_values(tmp_path: Path) -> None:
    model = nn.Module()
    storage = torch.arange(24.0)
    model.register_buffer("whole", storage)
    model.register_buffer("part", storage[3:7])
    model.register_parameter("turned", nn.Parameter(storage.view(4, 6).t()))
    gt.save(model, tmp_path / "saved")
    fresh = copy.deepcopy(model)
    for value in fresh.state_dict().values():
        value.zero_()
    with torch.no_grad():
        gt.load(fresh, tmp_path / "saved")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in fresh.state_dict().items())


def test_saving_again_replaces_what_was_saved_and_leaves_nothing_else(tmp_path: Path) -> None:
    gt.save(converted("trimmed"), tmp_path / "saved")
    model = converted("components")
    gt.save(model, tmp_path / "saved")
    assert_same_bits(gt.load(build(), tmp_path / "saved"), model)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    gt.save(converted(), tmp_path / "saved")
    gt.load(build(), tmp_path / "saved")


def foreign_file(path: Path) -> None:
    path.write_text("mine")


def foreign_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("mine")


def folder_with_an_addition(path: Path) -> None:
    gt.save(converted(), path)
    (path / "notes.txt").write_text("mine")


def folder_with_a_like_named_file(path: Path) -> None:
    path.mkdir()
    (path / "model.safetensors").write_text("mine")


@pytest.mark.parametrize(
    "occupy", [foreign_file, foreign_folder, folder_with_an_addition, folder_with_a_like_named_file]
)
def test_what_is_not_ours_is_never_overwritten(occupy: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "saved"
    occupy(path)
    before = sorted((found, found.read_bytes()) for found in tmp_path.rglob("*") if found.is_file())
    with pytest.raises(InvalidValueError, match="Choose another path"):
        gt.save(converted(), path)
    assert sorted((found, found.read_bytes()) for found in tmp_path.rglob("*") if found.is_file()) == before


def test_a_path_without_a_parent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="existing directory"):
        gt.save(converted(), tmp_path / "absent" / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing", [False, True], ids=["new", "over an earlier one"])
def test_a_full_disk_leaves_what_was_there_and_nothing_half_made(
    existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "saved"
    model = converted("trimmed")
    if existing:
        gt.save(model, path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        gt.save(converted("components"), path)
    assert [found.name for found in tmp_path.iterdir()] == (["saved"] if existing else [])
    if existing:
        assert_same_bits(gt.load(build(), path), model)


def test_a_failed_swap_brings_the_earlier_model_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "saved"
    model = converted("trimmed")
    gt.save(model, path)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(StorageError, match="Input/output error"):
        gt.save(converted("components"), path)
    assert [found.name for found in tmp_path.iterdir()] == ["saved"]
    assert_same_bits(gt.load(build(), path), model)


class WithExtraState(nn.Linear):
    def get_extra_state(self) -> object:
        return {"python": "object"}


@pytest.mark.parametrize(
    "model", [WithExtraState(2, 3), nn.Linear(2, 3, device="meta")], ids=["extra state", "meta"]
)
def test_a_state_that_is_no_plain_tensors_is_refused_by_name(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no plain tensor"):
        gt.save(model, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_the_file_format_lacks_are_refused_by_name(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    model.register_buffer("phase", torch.ones(2, dtype=torch.complex128))
    with pytest.raises(UnsupportedError, match=r"'phase' in the model's state is torch\.complex128"):
        gt.save(model, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [None, 5, "", b"saved", "a\0b", "a\ud800b"], ids=repr)
def test_what_can_be_no_path_is_refused(path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (gt.save, gt.load):
        with pytest.raises(InvalidValueError, match="path: expected a path on a local disk"):
            use(nn.Linear(2, 3), path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_the_disk_refuses_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="File name too long"):
        gt.save(build(), tmp_path / ("x" * 300))
    assert list(tmp_path.iterdir()) == []


def edit_json(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "gradtrace.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return edit


def edit_tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    """With a checksum that fits, as somebody would who knows the format."""

    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        seal(folder)

    return edit


def seal(folder: Path) -> None:
    checksum = google_crc32c.value((folder / "model.safetensors").read_bytes())
    edit_json(lambda document: document.update(crc32c=f"{checksum:08x}"))(folder)


def sealed_pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"0.weight": [1.0]}))
    seal(folder)


def edit_bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return edit


def first_part(document: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = document["layers"]["0"]["sub_operators"][0]
    return part


DAMAGES: dict[str, tuple[Callable[[Path], None], type[GradtraceError], str]] = {
    "a flipped bit": (
        edit_bytes("model.safetensors", lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])),
        UnreadableFileError,
        "damaged or was altered: expected crc32c",
    ),
    "truncated weights": (
        edit_bytes("model.safetensors", lambda raw: raw[:-9]),
        UnreadableFileError,
        "damaged",
    ),
    "truncated structure": (
        edit_bytes("gradtrace.json", lambda raw: raw[:-9]),
        UnreadableFileError,
        "not JSON",
    ),
    "a pickle for weights": (
        edit_bytes("model.safetensors", lambda raw: pickle.dumps({"weight": [1.0]})),
        UnreadableFileError,
        "damaged or was altered",
    ),
    "a pickle with a checksum": (
        sealed_pickle,
        UnreadableFileError,
        "cannot be read",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        UnreadableFileError,
        "cannot be read",
    ),
    "no structure": (
        lambda folder: (folder / "gradtrace.json").unlink(),
        UnreadableFileError,
        "is no saved model",
    ),
    "a newer version": (edit_json(lambda d: d.update(format="2.0")), UnsupportedFormatError, "got '2.0'"),
    "another kind of file": (
        edit_json(lambda d: d.update(kind="plan")),
        UnreadableFileError,
        "is no saved model",
    ),
    "no layers": (edit_json(lambda d: d.pop("layers")), UnreadableFileError, "is broken"),
    "a layer that is no object": (
        edit_json(lambda d: d["layers"].update({"0": 1})),
        UnreadableFileError,
        "layer '0'",
    ),
    "a size that is none": (
        edit_json(lambda d: d["layers"]["0"].update(in_features="24")),
        UnreadableFileError,
        "in_features: expected a size",
    ),
    "a bias that is none": (
        edit_json(lambda d: d["layers"]["0"].update(bias=1)),
        UnreadableFileError,
        "bias: expected true or false",
    ),
    "an index out of range": (
        edit_json(lambda d: first_part(d)["inputs"].append(24)),
        UnreadableFileError,
        "layer '0'.*inputs below 24",
    ),
    "an index twice": (
        edit_json(lambda d: first_part(d)["inputs"].append(first_part(d)["inputs"][0])),
        UnreadableFileError,
        "twice",
    ),
    "a structure that differs from the weights": (
        edit_json(lambda d: first_part(d)["inputs"].reverse()),
        MismatchError,
        "differ in the inputs of '0'",
    ),
    "a sub-operator less": (
        edit_json(lambda d: d["layers"]["0"]["sub_operators"].pop()),
        MismatchError,
        "differ in the weights of '0'",
    ),
    "more sub-operators than any memory holds": (
        edit_json(
            lambda d: d["layers"]["0"].update(
                sub_operators=[{"inputs": list(range(24)), "outputs": list(range(40))}] * 2000
            )
        ),
        MismatchError,
        "differ in the weights of '0'",
    ),
    "an alias of nothing": (
        edit_json(lambda d: d.update(aliases={"a": "../../etc/passwd"})),
        UnreadableFileError,
        "is broken",
    ),
    "an alias that is a list": (
        edit_json(lambda d: d.update(aliases={"a": ["0.weight"]})),
        UnreadableFileError,
        "is broken",
    ),
    "a tensor less": (edit_tensors(lambda t: t.pop("1.weight")), MismatchError, "file has no '1.weight'"),
    "a tensor more": (
        edit_tensors(lambda t: t.update(extra=torch.ones(1))),
        MismatchError,
        "model has no 'extra'",
    ),
    "a tensor of another shape": (
        edit_tensors(lambda t: t.update({"1.weight": torch.ones(41)})),
        MismatchError,
        r"'1.weight': expected torch.float32 of shape \(41,\)",
    ),
    "indices out of range in the weights": (
        edit_tensors(lambda t: t.update({"0.inputs": t["0.inputs"] + 1000})),
        MismatchError,
        "differ in the inputs of '0'",
    ),
    "another layer name": (
        edit_json(lambda d: d["layers"].update({"__class__": d["layers"].pop("0")})),
        MismatchError,
        "no linear layer '__class__'",
    ),
}


@pytest.mark.parametrize(("damage", "error", "words"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_refused_and_the_model_is_as_it_was(
    damage: Callable[[Path], None], error: type[GradtraceError], words: str, tmp_path: Path
) -> None:
    gt.save(converted(), tmp_path / "saved")
    damage(tmp_path / "saved")
    assert_refused(build(), tmp_path / "saved", error, words)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: build(hidden=41),
            MismatchError,
            r"layer '0': expected \(outputs, inputs\) \(40, 24\), got \(41, 24",
        ),
        (lambda: build(bias=False), MismatchError, "layer '3': expected a bias, got none"),
        (lambda: build().double(), MismatchError, r"model\.to\(torch\.float32\)"),
        (nn.Sequential, MismatchError, "no linear layer '0'"),
        (
            lambda: nn.Sequential(nn.ReLU()),
            UnsupportedError,
            "'0' is a ReLU.*use the model that this was made for",
        ),
        (lambda: nn.Sequential(*build(), nn.Linear(2, 2)), MismatchError, "file has no '4.bias'"),
        (converted, StateError, "layer '0' has been converted already"),
    ],
    ids=["wider", "no bias", "another dtype", "no layer", "another module", "more layers", "converted"],
)
def test_another_model_is_refused_and_is_as_it_was(
    make: Callable[[], nn.Module], error: type[GradtraceError], words: str, tmp_path: Path
) -> None:
    gt.save(converted(), tmp_path / "saved")
    assert_refused(make(), tmp_path / "saved", error, words)


def test_a_model_without_data_is_told_to_get_some(tmp_path: Path) -> None:
    gt.save(converted(), tmp_path / "saved")
    model = build().to("meta")
    with pytest.raises(UnsupportedError, match=r"'0\.weight' .* meta device.* Call model\.to_empty"):
        gt.load(model, tmp_path / "saved")
    assert type(model[0]) is nn.Linear
    assert_same_bits(gt.load(model.to_empty(device="cpu"), tmp_path / "saved").eval(), converted())


def assert_refused(model: nn.Module, path: Path, error: type[GradtraceError], words: str) -> None:
    modules = [id(module) for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=words):
        gt.load(model, path)
    assert [id(module) for module in model.modules()] == modules
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for name in ("absent", "file"):
        assert_refused(build(), tmp_path / name, UnreadableFileError, "is no saved model")
