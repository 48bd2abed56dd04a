"""Hooks for as long as a model runs once: registered together, and removed whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["AfterForward", "listening"]

AfterForward = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]
"""Called with a module, its positional and its keyword arguments, and what it returned."""


@contextmanager
def listening(hooks: Iterable[tuple[nn.Module, AfterForward]]) -> Iterator[None]:
    """Call each hook after every forward pass of its module. Compiled models run eagerly meanwhile."""
    with ExitStack() as stack:
        for module, hook in hooks:
            handle = module.register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        # Compiled code would trace the hooks.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
