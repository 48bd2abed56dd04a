"""Running tasks one after the other here, on processes of our own, or on any executor; results in order."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

from gradtrace.errors import StateError

__all__ = ["on_processes", "processors", "results_in_order"]

Task = TypeVar("Task")
Result = TypeVar("Result")


def results_in_order(
    function: Callable[[Task], Result], tasks: Sequence[Task], executor: Executor | None
) -> Iterator[Result]:
    """Yield the function's results in the order of the tasks; without an executor, one is done at a time.

    What a task raises is raised here, and the tasks that have not begun are given up.
    """
    if executor is None:
        yield from map(function, tasks)
        return
    waiting = [executor.submit(function, task) for task in tasks]
    yield from _results(waiting)


def on_processes(function: Callable[[Task], Result], tasks: Sequence[Task], most: int) -> Iterator[Result]:
    """The same on at most so many new processes.

    They do not run the user's script again, as new processes otherwise do: without an `if __name__` guard it
    would train again. So function and tasks must be of modules, not of the script. Raises StateError where a
    process died.
    """
    context = get_context("spawn")  # a fork would take torch's threads along, half
    with ProcessPoolExecutor(min(most, len(tasks)), mp_context=context) as pool:
        with _script_left_alone():
            waiting = [pool.submit(function, task) for task in tasks]
        try:
            yield from _results(waiting)
        except BrokenExecutor as error:
            raise StateError(
                "a process of the analysis died",
                expected="enough memory for all of them",
                got=str(error),
                remedy="pass executor=concurrent.futures.ThreadPoolExecutor(1) to do without processes",
            ) from error


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _results(waiting: list[Future[Result]]) -> Iterator[Result]:
    waiting.reverse()
    try:
        while waiting:
            # Popped, so that what was yielded is not kept here.
            yield waiting.pop().result()
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def _script_left_alone() -> Iterator[None]:
    main = sys.modules["__main__"]
    kept: dict[str, object] = {
        name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)
    }
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(kept)
