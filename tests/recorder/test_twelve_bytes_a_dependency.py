"""What recording keeps on the device is 12 bytes a dependency, whatever the length of a window."""

from __future__ import annotations

import pytest
import torch

from gradtrace.recorder.window import DeviceWindow


@pytest.mark.parametrize("size", [1, 1000, 4097])
@pytest.mark.parametrize("steps", [1, 32, 4096])
def test_an_open_window_holds_twelve_bytes_for_each(size: int, steps: int) -> None:
    totals = DeviceWindow(size, steps, 1, torch.device("cpu")).open().totals
    assert sum(total.untyped_storage().nbytes() for total in totals) == 12 * size
