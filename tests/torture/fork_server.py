"""Lives a training many times over at the price of a fork: imports once, then forks a child for each request.

Reads one JSON request a line on its standard input and answers each with one JSON line. A request names the
`program`, its `folder`, and what kills it: `after`, in seconds from its birth, or `trap`, a phase and how
many operations on the disk it may still do.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # every optimizer imports it when it is made
from kill_trap import Trap
from plain_training import train as train_plainly

from gradtrace.recorder import stream


def main() -> None:
    """Answer requests until the input ends."""
    torch.set_num_threads(1)
    # Under back-pressure entries grow longer by design; here the machine's load must decide nothing.
    stream._GRACE = 3600.0
    for line in sys.stdin:
        print(json.dumps(_live(json.loads(line))), flush=True)


def _live(request: dict[str, Any]) -> dict[str, Any]:
    train = train_plainly
    if request["program"] == "lightning":
        from lightning_training import train  # a second or more that the plain training need not pay
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        _be_the_child(train, request, sink)
    os.close(sink)
    began = time.perf_counter()
    told = b""
    while True:
        left = None if request["after"] is None else began + request["after"] - time.perf_counter()
        if left is not None and (left <= 0 or not select.select([source], [], [], left)[0]):
            os.kill(child, signal.SIGKILL)
            request["after"] = None
            continue
        part = os.read(source, 1 << 16)
        if not part:
            break
        told += part
    os.close(source)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"told": told.decode().splitlines(), "status": status, "seconds": time.perf_counter() - began}


def _be_the_child(train: Callable[..., None], request: dict[str, Any], sink: int) -> None:
    folder = Path(request["folder"])
    status = 1
    try:
        output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        trap = Trap(*request["trap"]) if request["trap"] else None

        def tell(line: str) -> None:
            # A single write to a pipe, unbuffered: what was told before a kill has been told.
            os.write(sink, f"{line}\n".encode())
            if trap is not None:
                trap.enter(line)

        tell("starting")
        train(folder, tell)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
