"""Whether the processes of torch.distributed record one model together, and where they meet."""

from __future__ import annotations

from typing import Any

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from gradtrace.errors import StateError, UnsupportedError
from gradtrace.recorder.meeting import Alone, Meeting, StoreMeeting
from gradtrace.recorder.shards import is_sharded

__all__ = ["meeting_for"]

# Told by class name, so that none need be installed: there p.grad is no parameter's own gradient.
_NOT_WHOLE = ("FullyShardedDataParallel", "DeepSpeedEngine")


def meeting_for(model: nn.Module, together: bool | None) -> Meeting:
    """Where the ranks that record `model` meet.

    Args:
        model: as the user trains it: inside DDP, or with DTensors for parameters.
        together: whether all ranks record it together; None: if it is in DDP or holds DTensors.

    Raises:
        StateError: it is to be recorded together and torch.distributed is not initialised.
        UnsupportedError: it is spread over some of the processes only, or in a way without usable gradients.
    """
    for module in model.modules():
        if type(module).__name__ in _NOT_WHOLE:
            raise UnsupportedError(
                f"a model inside {type(module).__name__}",
                expected="gradients of single parameters: DDP, FSDP2 (fully_shard) or tensor parallel",
                remedy="shard it with torch.distributed.fsdp.fully_shard, or leave the recorder out",
            )
    ready = distributed.is_available() and distributed.is_initialized()
    size = distributed.get_world_size() if ready else 1
    if together is None:
        together = size > 1 and _spread(model, size)
    elif together and not ready:
        raise StateError(
            "together=True",
            expected="torch.distributed to be initialised",
            got="a process on its own",
            remedy="call torch.distributed.init_process_group first, or leave together out",
        )
    if not together or size == 1:
        return Alone()
    store = distributed.distributed_c10d._get_default_store()
    return StoreMeeting(store, distributed.get_rank(), size)


def _spread(model: nn.Module, size: int) -> bool:
    """Whether training keeps this model alike over all processes; over some only is an UnsupportedError."""
    group_sizes = {
        distributed.get_world_size(module.process_group)
        for module in model.modules()
        if isinstance(module, DistributedDataParallel)
    }
    for parameter in model.parameters():
        if is_sharded(parameter):
            mesh: Any = parameter.device_mesh  # type: ignore[attr-defined]
            group_sizes.add(mesh._get_root_mesh().size())
    if group_sizes - {size}:
        raise UnsupportedError(
            f"a model spread over {min(group_sizes)} of {size} processes",
            expected="one over all processes",
            remedy="record each part by itself, with together=False and a path of its own",
        )
    return bool(group_sizes)
