"""One window on the device: flat accumulators, and their way to the host beside the training thread."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from gradtrace.errors import StateError, UnsupportedError
from gradtrace.kernels.accumulate import Totals

__all__ = ["DeviceWindow", "HostWindow", "one_device"]


@dataclass(frozen=True, eq=False)
class HostWindow:
    """A closed window on the host: `totals` flat over N dependencies, `flags` int32 (steps, parameters).

    `ready` is the CUDA event after which the copy is complete; None on the CPU. `grad_weight` is (N,)
    float32, None where it is not recorded.
    """

    totals: Totals
    flags: torch.Tensor
    ready: torch.cuda.Event | None
    grad_weight: torch.Tensor | None = None

    def wait(self) -> None:
        """Block the calling thread until the copy from the device is complete."""
        if self.ready is not None:
            self.ready.synchronize()


def _buffers(
    size: int, steps: int, parameters: int, device: torch.device, pinned: bool, products: bool
) -> HostWindow:
    def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device, pin_memory=pinned)

    totals = Totals(
        grad_sum=zeros((size,), torch.float32),
        grad_sumsq=zeros((size,), torch.float32),
        events=zeros((size,), torch.int16),
        votes=zeros((size,), torch.int16),
    )
    flags = zeros((steps, parameters), torch.int32)
    return HostWindow(totals, flags, None, zeros((size,), torch.float32) if products else None)


class DeviceWindow:
    """The open window: 12 bytes a dependency on the device (4 + 4 + 2 + 2), an int32 per step and parameter.

    On the CPU two sets of buffers are swapped. On CUDA the one device set is copied to one of two pinned host
    sets on a side stream; only the next accumulation waits for that copy, so it runs beside the next forward
    pass. Sums of products with the weights take 4 bytes more.

    Args:
        size: dependencies recorded, N.
        steps: longest window, in steps; the 16-bit counts hold up to 32,767.
        parameters: number of parameters, P.
        device: where the gradients are.
        products: whether sums of products with the weights are kept.
    """

    def __init__(
        self, size: int, steps: int, parameters: int, device: torch.device, *, products: bool = False
    ) -> None:
        self.device = device
        self._on_cuda = device.type == "cuda"
        host = torch.device("cpu")
        self._free: queue.Queue[HostWindow] = queue.Queue()
        for _ in range(2):
            self._free.put(_buffers(size, steps, parameters, host, self._on_cuda, products))
        self._open = (
            _buffers(size, steps, parameters, device, False, products) if self._on_cuda else self._free.get()
        )
        self._stream = torch.cuda.Stream(device) if self._on_cuda else None  # type: ignore[no-untyped-call]
        self._copied: torch.cuda.Event | None = None
        self._waits_since: float | None = None
        self._blocked = 0.0

    @property
    def blocked(self) -> float:
        """Seconds that `close` has waited for buffers in all, a wait that still goes on included."""
        since = self._waits_since
        return self._blocked + (0.0 if since is None else perf_counter() - since)

    @property
    def waits(self) -> bool:
        """Whether `close` is waiting for buffers right now."""
        return self._waits_since is not None

    def open(self) -> HostWindow:
        """The buffers to accumulate into; on CUDA, the current stream first waits for the last copy."""
        if self._copied is not None:
            torch.cuda.current_stream(self.device).wait_event(self._copied)
            self._copied = None
        return self._open

    def close(self, waiting: Callable[[], None] = lambda: None) -> HostWindow:
        """Hand over what was accumulated, start from zero; waits only while both host sets are in use.

        Meanwhile `waiting` is called now and then, and may raise: then nothing has happened.
        """
        if self._stream is None:
            closed, self._open = self._open, self._take(waiting)
            return closed
        target = self._take(waiting)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            for source, copy in zip(_tensors(self._open), _tensors(target), strict=True):
                copy.copy_(source, non_blocking=True)
                source.zero_()
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(self._stream)
        self._copied = ready
        return HostWindow(target.totals, target.flags, ready, target.grad_weight)

    def _take(self, waiting: Callable[[], None]) -> HostWindow:
        began = self._waits_since = perf_counter()
        try:
            while True:
                try:
                    return self._free.get(timeout=0.1)
                except queue.Empty:
                    waiting()
        finally:
            self._blocked += perf_counter() - began
            self._waits_since = None

    def release(self, window: HostWindow) -> None:
        """Give a host set back, from the writer's thread."""
        if not self._on_cuda:
            for tensor in _tensors(window):
                # By numpy: a second thread that runs torch's parallel code has OpenMP keep a second team,
                # and with more threads than cores every parallel region of the training waits longer.
                tensor.numpy().fill(0)
        self._free.put(HostWindow(window.totals, window.flags, None, window.grad_weight))


def one_device(parameters: Sequence[torch.Tensor]) -> torch.device:
    """The one device all parameters are on.

    Raises:
        StateError: there are none.
        UnsupportedError: they are spread over several devices.
    """
    devices = {parameter.device for parameter in parameters}
    if not devices:
        raise StateError(
            "recorded parameters",
            expected="at least one that trains",
            got="all are frozen",
            remedy="set requires_grad, or widen include=",
        )
    if len(devices) > 1:
        raise UnsupportedError(
            "recorded parameters",
            expected="all on one device",
            got=", ".join(sorted(map(str, devices))),
            remedy="record each device's part with a Recorder of its own and include= patterns",
        )
    return devices.pop()


def _tensors(window: HostWindow) -> list[torch.Tensor]:
    return [*window.totals, window.flags, *([] if window.grad_weight is None else [window.grad_weight])]
