"""Runs a script of this folder on several ranks at the price of a fork each: imports once, forks on request.

Reads one JSON request a line on its standard input: `script`, the `modules` that it imports, the `arguments`
and the `outputs` (files) of its ranks, and for how many seconds they are waited for. Answers with one JSON
line, their exit statuses.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from importlib import import_module

import gradtrace.recorder.recorder  # noqa: F401


def main() -> None:
    """Answer requests until the input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        for module in request["modules"]:
            import_module(module)
        children = [
            _fork(request["script"], arguments, output)
            for arguments, output in zip(request["arguments"], request["outputs"], strict=True)
        ]
        print(json.dumps(_statuses(children, time.monotonic() + request["patience"])), flush=True)


def _statuses(children: list[int], deadline: float) -> list[int]:
    ended: dict[int, int] = {}
    while len(ended) < len(children):
        for child in set(children) - set(ended):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                ended[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [ended[child] for child in children]


def _fork(script: str, arguments: list[str], output: str) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 1)
        os.dup2(1, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name="__main__")
        # As an interpreter does before it ends: a thread that hangs must hang the rank.
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
