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
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # every optimizer imports it when it is made
from kill_trap import Trap
from plain_training import train as train_plainly

from gradtrace.ledger import commit_store, entry_store
from gradtrace.ledger.commit import Commit, encode_commit
from gradtrace.ledger.header import FORMAT
from gradtrace.ledger.retention import plan_merges
from gradtrace.ledger.storage import Storage
from gradtrace.ledger.writer import LedgerWriter
from gradtrace.recorder import stream


def main() -> None:
    """Answer requests until the input ends."""
    torch.set_num_threads(1)
    # Under back-pressure entries grow longer by design; here the machine's load must decide nothing.
    stream._GRACE = 3600.0
    for line in sys.stdin:
        print(json.dumps(_live(json.loads(line))), flush=True)


def _live(request: dict[str, Any]) -> dict[str, Any]:
    train: Callable[..., None] = train_plainly
    if request["program"] == "merging":
        train = partial(
            train_plainly, entry_steps=2
        )  # entries short enough for several merges, one on another
    elif request["program"] == "lightning":
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

        _write_down_commits(folder / "commits.jsonl")
        _tell_of_merges(tell)
        tell("starting")
        train(folder, tell)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _write_down_commits(path: Path) -> None:
    real = commit_store.write_commit

    def write_commit(storage: Storage, run: str, commit: Commit) -> None:
        real(storage, run, commit)
        with path.open("ab") as file:
            file.write(encode_commit(commit, run=run, version=FORMAT) + b"\n")

    vars(entry_store)["write_commit"] = write_commit


def _tell_of_merges(tell: Callable[[str], None]) -> None:
    real = LedgerWriter.merge

    def merge(self: LedgerWriter) -> int:
        if plan_merges(self.entries):
            tell("merging")
        return real(self)

    LedgerWriter.merge = merge  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    main()
