"""The C++ compiler of the machine."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from optforge.primitives.user_warnings import warn

# No errno and no traps, which nobody reads; everything else as IEEE has it: NaN, infinity, order, no fused roundings.
_FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
_NATIVE = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"


@lru_cache(maxsize=1)
def compiler() -> str | None:
    """The command of the C++ compiler: what the variable CXX says, else the usual names; None if there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def build(source: str) -> ctypes.CDLL | None:
    """`source` as a loaded library; None without a compiler, and with a warning if the one that is there fails.

    With OpenMP if the compiler has it. Nothing stays on disk.
    """
    command = compiler()
    if command is None:
        return None
    with TemporaryDirectory(prefix="optforge-") as folder:
        text, library = Path(folder, "step.cpp"), Path(folder, "step.so")
        text.write_text(source, encoding="utf-8")
        for extra in (("-fopenmp", _NATIVE), (_NATIVE,), ()):
            arguments = [command, *_FLAGS, *extra, "-o", str(library), str(text)]
            done = subprocess.run(arguments, capture_output=True, stdin=subprocess.DEVNULL)
            if done.returncode == 0:
                return ctypes.CDLL(str(library))
    said = done.stderr.decode(errors="replace").strip()[:400]
    warn(f"{command} fails to compile, and slower code is used instead: {said}", UserWarning)
    return None
