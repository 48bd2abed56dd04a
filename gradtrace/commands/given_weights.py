"""The weights file a user names, and the module around it where there is a factory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["given_weights"]


def given_weights(path: Path, model: str | None) -> tuple[dict[str, Tensor], nn.Module | None]:
    """The arrays in the file by name, and the module that `--model` builds around them, if it is given."""
    from gradtrace.commands.named_target import built_model
    from gradtrace.convert.weights_file import read_weights

    arrays = dict(read_weights(path))
    return arrays, None if model is None else built_model(model, arrays)
