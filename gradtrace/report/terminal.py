"""Where tables and lines are printed: what is no terminal gets every line whole."""

from __future__ import annotations

from rich.console import Console

__all__ = ["terminal"]


def terminal(*, stderr: bool = False) -> Console:
    """A console that takes text literally and breaks lines only on a terminal.

    In a pipe or a file there is no edge to break at: a path or a sentence cut at 80 columns is only harder
    to search for.
    """
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    console.soft_wrap = not console.is_terminal
    return console
