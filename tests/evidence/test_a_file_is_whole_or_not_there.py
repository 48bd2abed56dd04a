"""What can be no path is refused before anything is written, by every file alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradtrace.errors import InvalidValueError, StorageError, UnreadableFileError
from gradtrace.evidence.mask import Mask
from gradtrace.structure.plan import Plan

MASK, PLAN = Mask({"w": np.eye(3, dtype=bool)}), Plan({})
NO_PATHS = [None, 5, "", b"mask", "a\0b", "a\ud800b", np.ones(2)]


@pytest.mark.parametrize("path", NO_PATHS, ids=repr)
@pytest.mark.parametrize("use", [MASK.save, Mask.load, PLAN.save, Plan.load])
def test_what_can_be_no_path_is_refused(
    use: Callable[[Any], object], path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidValueError, match="path: expected a path on a local disk, got"):
        use(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("save", [MASK.save, PLAN.save])
def test_a_name_that_the_disk_refuses_is_a_storage_error(
    save: Callable[[Any], object], tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match="File name too long"):
        save(tmp_path / ("x" * 300))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("load", [Mask.load, Plan.load])
def test_a_name_too_long_cannot_be_read(load: Callable[[Any], object], tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="File name too long"):
        load(tmp_path / ("x" * 300))
