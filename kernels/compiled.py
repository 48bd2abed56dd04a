"""C files of this package as loaded libraries: compiled once a machine by the system's compiler, then kept.

The library lies in the user's cache folder under a name made from all that decides its content (source,
flags, compiler, processor), and takes that name only when it is whole: any number of processes may compile at
once. Where that folder cannot be trusted or written to, each process compiles into a folder of its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from gradtrace.kernels.cache_folder import cache_folder

__all__ = ["load"]

_log = logging.getLogger(__name__)

# No -ffast-math: NaN and infinity count. No contraction, unless a file asks for it: sums have the bits of the
# plain-torch reference.
_FLAGS = ("-std=c99", "-O3", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
# Processors and compilers that know no -march=native get what the compiler takes for granted.
_TUNINGS = (("-march=native",), ())
_PATIENCE = 60.0  # seconds a compiler may take


@cache
def load(source: Path, *options: str) -> ctypes.CDLL | None:
    """Compile `source` if need be and load it; None, with the reason in the log, where that is impossible.

    `options` go to the compiler after those that all files are compiled with. The compiler is $CC, else cc:
    `CC=false` turns it off.
    """
    if sys.platform == "win32":
        return None
    try:
        command = _compiler()
        name = f"{source.stem}-{_fingerprint(source, options, command)}.so"
        try:
            return _kept(cache_folder(), name, source, options, command)
        except OSError as error:
            _log.info("the folder of compiled kernels is of no use (%s): compiling without it", error)
            with tempfile.TemporaryDirectory(prefix="gradtrace-") as folder:
                return ctypes.CDLL(str(_compile(source, Path(folder) / name, options, command)))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        # ctypes and subprocess put whole paths and outputs into their messages: one line will do.
        reason = " ".join(str(error).split())[:500]
        _log.info("%s is not compiled, its plain-torch form runs instead: %s", source.name, reason)
        return None


def _kept(folder: Path, name: str, source: Path, options: tuple[str, ...], command: list[str]) -> ctypes.CDLL:
    path = folder / name
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            _log.info("compiling %s again, what was kept cannot be loaded: %s", source.name, error)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as scratch:
        built = _compile(source, Path(scratch) / name, options, command)
        library = ctypes.CDLL(str(built))  # only what can be loaded is kept
        with built.open("rb") as file:
            os.fsync(file.fileno())  # a power cut must not leave a name without its content
        built.replace(path)
    return library


def _compile(source: Path, target: Path, options: tuple[str, ...], command: list[str]) -> Path:
    """Raises SubprocessError, with what the compiler said, where it fails."""
    said = ""
    for tuning in _TUNINGS:
        line = [*command, *_FLAGS, *options, *tuning, str(source), "-o", str(target), "-lm"]
        done = subprocess.run(
            line, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=False
        )
        if done.returncode == 0 and target.exists():
            return target
        said = done.stderr or f"{command[0]} ended with {done.returncode}"
    raise subprocess.SubprocessError(said)


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CC") or "cc")
    found = shutil.which(command[0])
    if found is None:
        raise FileNotFoundError(f"no C compiler {command[0]!r}")
    return [found, *command[1:]]


def _fingerprint(source: Path, options: tuple[str, ...], command: list[str]) -> str:
    program = os.stat(os.path.realpath(command[0]))
    parts = [
        source.read_bytes(),
        repr((_FLAGS, options, _TUNINGS, command, program.st_size, program.st_mtime_ns)).encode(),
        repr((platform.system(), platform.machine(), ctypes.sizeof(ctypes.c_void_p))).encode(),
        _processor(),
    ]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:24]


def _processor() -> bytes:
    """What tells processors apart that one home folder may serve: -march=native is for one of them."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    wanted = (b"vendor_id", b"cpu family", b"model", b"stepping", b"flags", b"CPU", b"Features")
    return b"\n".join(sorted({line for line in lines if line.startswith(wanted)}))
