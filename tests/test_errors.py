"""Every error is a GradtraceError and the matching builtin, and reads as one line."""

from __future__ import annotations

import builtins
import inspect
import pickle

import pytest

from gradtrace import errors

CLASSES = [getattr(errors, name) for name in errors.__all__ if name != "GradtraceError"]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_also_a_builtin(kind: type[errors.GradtraceError]) -> None:
    assert issubclass(kind, errors.GradtraceError)
    assert [
        base for base in kind.__mro__[1:] if base.__module__ == builtins.__name__ and base is not Exception
    ]
    assert inspect.getdoc(kind)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_message_is_one_line_with_expected_got_and_remedy(kind: type[errors.GradtraceError]) -> None:
    error = kind("density", expected="a number in\n(0, 1]", got="'x'", remedy="pass density=0.3")
    assert str(error) == "density: expected a number in (0, 1], got 'x'. Pass density=0.3"


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_cross_process_boundaries(kind: type[errors.GradtraceError]) -> None:
    error = kind("plan", got="something else")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\u202eb", "a\ud800b", "a\x00b"])
def test_a_message_can_be_printed_whatever_a_file_calls_its_layers(name: str) -> None:
    message = str(errors.InvalidValueError(f"layer '{name}'", got=name))
    assert message.isprintable()
    assert message.encode("utf-8").decode() == message
    assert "\\" in message
