"""The C++ compiler of the machine."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from optforge.primitives.user_warnings import warn

# No errno and no traps, which nobody reads; everything else as IEEE has it: NaN, infinity, order, no fused roundings.
_FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
MOST_KEPT = 512
"""Libraries in the cache folder."""

_NATIVE = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"


@lru_cache(maxsize=1)
def compiler() -> str | None:
    """The command of the C++ compiler: what the variable CXX says, else the usual names; None if there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def build(source: str) -> ctypes.CDLL | None:
    """`source` as a loaded library; None without a compiler, and with a warning if the one that is there fails.

    With OpenMP if the compiler has it. What was built is kept in the user's cache folder and not built twice.
    """
    command = compiler()
    if command is None:
        return None
    kept = _kept(f"{command}\0{_about(command)}\0{_FLAGS}\0{source}")
    if kept is not None and kept.is_file():
        with suppress(OSError):  # damaged, or of another system: rebuild
            return ctypes.CDLL(str(kept))
    with TemporaryDirectory(prefix="optforge-") as folder:
        text, library = Path(folder, "step.cpp"), Path(folder, "step.so")
        text.write_text(source, encoding="utf-8")
        for extra in (("-fopenmp", _NATIVE), (_NATIVE,), ()):
            arguments = [command, *_FLAGS, *extra, "-o", str(library), str(text)]
            done = subprocess.run(arguments, capture_output=True, stdin=subprocess.DEVNULL)
            if done.returncode == 0:
                if kept is not None:
                    _keep(library, kept)
                return ctypes.CDLL(str(library))
    said = done.stderr.decode(errors="replace").strip()[:400]
    warn(f"{command} fails to compile, and slower code is used instead: {said}", UserWarning)
    return None


@lru_cache(maxsize=4)
def _about(command: str) -> str:
    """What else a library depends on: the compiler's version, and the machine whose instructions it uses."""
    said = subprocess.run([command, "--version"], capture_output=True, stdin=subprocess.DEVNULL).stdout
    return f"{said.decode(errors='replace')}\0{platform.node()}\0{torch.backends.cpu.get_cpu_capability()}"


def _kept(key: str) -> Path | None:
    """Where a library is kept; None if there is no folder that only this user can write to."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "optforge")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except (OSError, RuntimeError):
        return None
    if hasattr(os, "getuid") and (about.st_uid != os.getuid() or about.st_mode & 0o022):
        return None
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()}.so"


def _keep(library: Path, kept: Path) -> None:
    """Copy it there at once, in place of the oldest ones if there are many. A cache that is full does no harm."""
    with suppress(OSError):
        for old in sorted(kept.parent.glob("*.so"), key=lambda path: path.stat().st_mtime)[: -MOST_KEPT + 1]:
            old.unlink(missing_ok=True)
        copy = kept.with_suffix(f".{os.getpid()}")
        try:
            copy.write_bytes(library.read_bytes())
            os.replace(copy, kept)
        finally:
            copy.unlink(missing_ok=True)
