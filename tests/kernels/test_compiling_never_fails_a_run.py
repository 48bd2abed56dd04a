"""The compiled pass is there or it is not: either way a run goes on, and nobody else's code is loaded."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradtrace.kernels import accumulate_cpu, compiled
from gradtrace.kernels.accumulate_cpu import compiled_pass
from gradtrace.kernels.compiled import load

SOURCE = Path(accumulate_cpu.__file__).with_name("accumulate_cpu.c")
needs_compiler = pytest.mark.skipif(compiled_pass() is None, reason="needs a C compiler")
ONE_STEP = """
import torch
from gradtrace.kernels.accumulate import EVENT, SEEN, Totals, accumulate_
from gradtrace.kernels.accumulate_cpu import compiled_pass

size = 200_000
grad = torch.linspace(-3, 3, size)
totals = Totals(*(torch.zeros(size, dtype=dtype) for dtype in [torch.float32] * 2 + [torch.int16] * 2))
flags = torch.zeros(1, dtype=torch.int32)
accumulate_(totals, flags, [grad], [0], [0])
assert totals.grad_sum.equal(grad) and flags.tolist() == [SEEN | EVENT]
"""


@pytest.fixture(autouse=True)
def nothing_loaded_yet() -> Iterator[None]:
    load.cache_clear()
    yield
    load.cache_clear()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept libraries, not made yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gradtrace"


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        said, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert errors == ""  # silent
    return said.strip()


def a_compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "script",
    ["echo no licence >&2; exit 1", "exit 0", 'while [ "$1" != -o ]; do shift; done; echo junk > "$2"'],
    ids=["fails", "does nothing", "writes junk"],
)
def test_a_compiler_that_is_no_good_leaves_the_plain_form_and_a_line_in_the_log(
    script: str,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CC", a_compiler(tmp_path, script))
    with caplog.at_level(logging.INFO):
        assert load(SOURCE) is None
    assert "accumulate_cpu.c is not compiled, its plain-torch form runs instead" in caplog.messages[-1]
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("name", ["no-such-compiler", "false", '"'], ids=["missing", "false", "unbalanced"])
def test_a_run_without_a_compiler_says_nothing_and_adds_the_same(name: str, cache: Path) -> None:
    code = "assert compiled_pass() is None"
    finish(python(ONE_STEP + code, CC=name))


@needs_compiler
def test_what_is_compiled_is_kept_for_the_next_process_and_for_this_user_only(cache: Path) -> None:
    assert load(SOURCE) is not None
    (kept,) = cache.iterdir()
    assert cache.stat().st_mode & 0o777 == 0o700
    written = kept.stat().st_mtime_ns
    load.cache_clear()
    assert load(SOURCE) is not None
    assert kept.stat().st_mtime_ns == written


@needs_compiler
@pytest.mark.parametrize("what", ["file in the way", "link to another folder", "writable by others"])
def test_a_folder_that_cannot_be_trusted_is_left_alone_and_the_pass_compiled_without_it(
    what: str, cache: Path, tmp_path: Path
) -> None:
    cache.parent.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if what == "file in the way":
        cache.write_text("")
    elif what == "link to another folder":
        cache.symlink_to(elsewhere)
    else:
        cache.mkdir()
        cache.chmod(0o777)
    assert load(SOURCE) is not None
    assert list(elsewhere.iterdir()) == []
    assert cache.is_file() or list(cache.iterdir()) == []


@needs_compiler
def test_a_kept_file_that_cannot_be_loaded_is_compiled_again(cache: Path) -> None:
    load(SOURCE)
    (kept,) = cache.iterdir()
    whole = kept.stat().st_size
    kept.unlink()  # a loaded library must not be written to
    kept.write_bytes(b"\x7fELF and then nothing")
    load.cache_clear()
    assert load(SOURCE) is not None
    assert kept.stat().st_size == whole


@needs_compiler
@pytest.mark.parametrize("changed", ["processor", "source", "options"])
def test_another_processor_source_or_option_has_a_file_of_its_own(
    changed: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(SOURCE)
    source = SOURCE
    if changed == "processor":
        monkeypatch.setattr(compiled, "_processor", lambda: b"another one")
    elif changed == "source":
        source = tmp_path / SOURCE.name
        source.write_text(SOURCE.read_text() + "\n")
    else:
        monkeypatch.setenv("CC", "cc -DANOTHER")
    load.cache_clear()
    assert load(source) is not None
    assert len(list(cache.iterdir())) == 2


@needs_compiler
def test_processes_that_compile_at_once_leave_one_whole_file(cache: Path) -> None:
    code = f"""
from pathlib import Path
from gradtrace.kernels.compiled import load
print(load(Path({str(SOURCE)!r})) is not None)
"""
    for process in [python(code) for _ in range(4)]:
        assert finish(process) == "True"
    (kept,) = cache.iterdir()
    assert kept.suffix == ".so"


@needs_compiler
def test_a_process_forked_from_one_that_used_threads_goes_on_with_one() -> None:
    code = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of newer Pythons: a fork beside threads
torch.set_num_threads(2)
accumulate_(totals, flags, [grad], [0], [0])
child = os.fork()
if child == 0:
    accumulate_(totals, flags, [grad], [0], [0])  # torch's own loops over as many elements hang here
    os._exit(7 if totals.events[:9].tolist() == [3] * 9 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert finish(python(ONE_STEP + code)) == "7"
