"""What `--model pkg.mod:factory` and `--validate pkg.mod:function` name: found, called, blamed on failure."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gradtrace.errors import GradtraceError, InvalidValueError, MismatchError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["built_model", "called", "named_target", "quality"]


def named_target(text: str, option: str) -> Callable[..., Any]:
    """The callable that "pkg.mod:name" names; modules of the working directory are found too."""
    module_name, _, name = text.partition(":")
    if not module_name or not name:
        raise InvalidValueError(option, expected="pkg.mod:name, e.g. recipes.mnist:model", got=repr(text))
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with redirect_stdout(sys.stderr):  # standard output is ours, with --json for a machine to read
            target = getattr(import_module(module_name), name)
    except Exception as error:  # an import runs the user's code, which may raise anything
        raise InvalidValueError(
            option,
            expected=f"module {module_name!r} to import and to hold {name!r}",
            got=f"{type(error).__name__}: {error}",
            remedy="run it from the folder that the module path starts in",
        ) from error
    if not callable(target):
        raise InvalidValueError(option, expected=f"{text} to be callable", got=type(target).__name__)
    found: Callable[..., Any] = target
    return found


def called(text: str, option: str, *arguments: object) -> object:
    """What the callable that `text` names returns; raises InvalidValueError for whatever it raises."""
    target = named_target(text, option)
    try:
        with redirect_stdout(sys.stderr):
            return target(*arguments)
    except GradtraceError:
        raise
    except Exception as error:
        raise InvalidValueError(
            option, expected=f"{text} to return", got=f"{type(error).__name__}: {error}"
        ) from error


def built_model(text: str, weights: Mapping[str, Tensor]) -> nn.Module:
    """The module that the factory `text` makes, holding `weights` (parameter or buffer name -> tensor).

    Raises:
        InvalidValueError: the factory cannot be found, fails, or returns no module.
        MismatchError: the weights are not this model's; the first odd name is told.
    """
    import torch
    from torch import nn

    model = called(text, "--model")
    if not isinstance(model, nn.Module):
        raise InvalidValueError(
            "--model", expected=f"{text}() to return a torch.nn.Module", got=type(model).__name__
        )
    # remove_duplicate=False: a file may name a tied parameter by either name.
    there = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
    required = {name for name, _ in model.named_parameters()}
    for name, value in weights.items():
        if name not in there or tuple(there[name].shape) != tuple(value.shape):
            got = f"shape {tuple(there[name].shape)}" if name in there else "no such parameter"
            raise MismatchError(
                f"weights of another model: {name!r}",
                expected=f"shape {tuple(value.shape)} in {text}()",
                got=got,
                remedy="pass the factory of the model that was trained",
            )
    missing = sorted(required - set(weights) - _tied(model, weights))
    if missing:
        raise MismatchError(
            "weights of another model",
            expected=f"all parameters of {text}()",
            got=f"none named {missing[0]!r}",
            remedy="pass the factory of the model that was trained",
        )
    with torch.no_grad():
        for name, value in weights.items():
            there[name].copy_(value)
    return model.eval()


def _tied(model: nn.Module, weights: Mapping[str, object]) -> set[str]:
    # Names that need no array of their own, because the same tensor is given under another name.
    every = dict(model.named_parameters(remove_duplicate=False))
    given = {id(every[name]) for name in weights if name in every}
    return {name for name, parameter in every.items() if id(parameter) in given}


def quality(text: str, model: nn.Module) -> float:
    """What the function `text` says of `model`: one finite number, larger = better."""
    from gradtrace.comparison.quality import checked_quality

    return checked_quality(called(text, "--validate", model), "--validate", f"{text}(model)")
