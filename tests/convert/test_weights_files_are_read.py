"""read_weights: what other programs saved, under canonical names; damaged files and pickles are refused."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gradtrace.convert.weights_file import read_weights
from gradtrace.errors import InvalidValueError, MismatchError, UnreadableFileError

STATE = {"net.0.weight": torch.arange(6.0).view(2, 3), "net.0.bias": torch.ones(2, dtype=torch.bfloat16)}


def safetensors(path: Path) -> None:
    save_file(STATE, path)


def state_dict(path: Path) -> None:
    torch.save(STATE, path)


def old_state_dict(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)


def compiled_state_dict(path: Path) -> None:
    torch.save({f"_orig_mod.{name}": value for name, value in STATE.items()}, path)


def lightning_checkpoint(path: Path) -> None:
    hyper = {"lr": 0.1, "layers": [1, 2]}
    torch.save(
        {"state_dict": STATE, "epoch": 3, "pytorch-lightning_version": "2.6", "hyper_parameters": hyper}, path
    )


@pytest.mark.parametrize(
    "write", [safetensors, state_dict, old_state_dict, compiled_state_dict, lightning_checkpoint]
)
@pytest.mark.parametrize("name", ["weights.ckpt", "weights.safetensors", "weights"])
def test_the_tensors_come_under_canonical_names_whatever_the_file_is_called(
    write: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    weights = read_weights(tmp_path / name)
    assert list(weights) == list(STATE) or sorted(weights) == sorted(STATE)
    for key, value in STATE.items():
        assert weights[key].dtype == value.dtype
        assert torch.equal(weights[key], value)


def test_a_real_lightning_checkpoint_is_read(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Small(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self, width: int) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Linear(width, 2)

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            return self.net(batch[0]).sum()  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    trainer = lightning.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Small(3)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    weights = read_weights(tmp_path / "last.ckpt")
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        "net.weight": (2, 3),
        "net.bias": (2,),
    }


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))]
)
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(
    save: Callable[[object, Path], object], tmp_path: Path
) -> None:
    path, trace = tmp_path / "weights.ckpt", tmp_path / "it ran"
    save({"state_dict": STATE, "callback": Evil(trace)}, path)
    with pytest.raises(UnreadableFileError, match="Save only the state_dict") as caught:
        read_weights(path)
    assert not trace.exists()
    assert "weights_only" not in str(caught.value)


def test_a_saved_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3), tmp_path / "weights.pt")
    with pytest.raises(UnreadableFileError, match="more than plain tensors"):
        read_weights(tmp_path / "weights.pt")


@pytest.mark.parametrize("write", [safetensors, state_dict, old_state_dict, lightning_checkpoint])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.98])
def test_a_truncated_file_is_refused(write: Callable[[Path], None], kept: float, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    write(path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * kept)])
    with pytest.raises(UnreadableFileError, match="damaged"):
        read_weights(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"\x00" * 100,
        b"\x08" + b"\x00" * 7 + b"{broken}",
        b"\x80\x04N.",
        b"\x89PNG\r\n\x1a\n" * 9,
    ],
)
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(UnreadableFileError, match=r"weights file '.*weights'"):
        read_weights(tmp_path / "weights")


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "weights", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UnreadableFileError, match="damaged"):
        read_weights(tmp_path / "weights")


@pytest.mark.parametrize(
    "content", [[1, 2], torch.ones(3), {"a": 1}, {"state_dict": {"a": "b"}}, {3: torch.ones(1)}]
)
def test_a_file_without_a_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights")
    with pytest.raises(UnreadableFileError, match="holds no state_dict"):
        read_weights(tmp_path / "weights")


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="No such file"):
        read_weights(tmp_path / "absent")
    with pytest.raises(UnreadableFileError, match="Is a directory"):
        read_weights(tmp_path)


@pytest.mark.parametrize("path", [None, "", "a\0b"], ids=repr)
def test_what_can_be_no_path_is_refused(path: Any) -> None:
    with pytest.raises(InvalidValueError, match="weights file: expected a path"):
        read_weights(path)


def test_two_names_that_are_one_are_refused(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(1), "_orig_mod.a.weight": torch.zeros(1)}, tmp_path / "weights")
    with pytest.raises(MismatchError, match=r"'a\.weight' twice"):
        read_weights(tmp_path / "weights")
