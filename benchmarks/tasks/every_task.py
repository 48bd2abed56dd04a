"""All tasks by name: those that criteria are searched on, then the two that judge."""

from __future__ import annotations

from tasks.byte_text import BYTE_TEXT, LARGE_START_BYTE_TEXT, SMALL_BYTE_TEXT
from tasks.function_home import FUNCTION_HOME
from tasks.function_table import FUNCTION_TABLE
from tasks.image_convolution import IMAGE_CONVOLUTION
from tasks.image_mlp import IMAGE_MLP
from tasks.sparse_groups import SPARSE_GROUPS
from tasks.task import Task

__all__ = ["EVERY_TASK"]

EVERY_TASK: dict[str, Task] = {
    task.name: task
    for task in (
        IMAGE_MLP,
        IMAGE_CONVOLUTION,
        SPARSE_GROUPS,
        SMALL_BYTE_TEXT,
        BYTE_TEXT,
        LARGE_START_BYTE_TEXT,
        FUNCTION_HOME,
        FUNCTION_TABLE,
    )
}
