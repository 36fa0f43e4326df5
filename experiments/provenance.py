"""Where a number comes from: source, versions, hardware, and a hash of the data."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optforge.search.training.task import Splits

_PACKAGES = ("optforge", "torch", "lightning", "numpy", "scipy", "scikit-learn")
_SOURCES = ("optforge", "primitives", "baselines", "learned", "search", "experiments")
_HASHED_AT_ONCE = 4096
_MAX_HASHED = 65536


def provenance() -> dict[str, Any]:
    """Time (UTC), source commit, versions of Python and of the packages that numbers depend on, and the hardware.

    The commit is None where the source is not a git checkout, and ends in ``+changes`` where it was edited
    since.
    """
    import torch

    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(Path(__file__).resolve().parent),
        "versions": versions,
        "hardware": {
            "cpu": cpu_model(),
            "cores": _usable_cores(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": f"{platform.system()} {platform.machine()}",
        },
    }


def git_commit(folder: Path) -> str | None:
    """The commit that the package in `folder` is checked out at, or None; ``+changes`` if its source was edited."""
    if not (folder.parent / ".git").exists():  # installed, possibly inside some other project's checkout
        return None
    commands = (["rev-parse", "HEAD"], ["status", "--porcelain", "--", *_SOURCES])
    found = []
    for arguments in commands:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder.parent), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        found.append(done.stdout.strip())
    return found[0] + ("+changes" if found[1] else "")


def cpu_model() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def data_hash(splits: Splits) -> dict[str, str]:
    """SHA-256 of each split, over at most 65,536 evenly spaced examples: inputs and targets with types and shapes."""
    import torch

    hashes = {}
    for name, split in zip(splits._fields, splits, strict=True):
        digest = hashlib.sha256(str(len(split)).encode())
        stride = max(1, -(-len(split) // _MAX_HASHED))
        for indices in torch.arange(0, len(split), stride).split(_HASHED_AT_ONCE):
            for tensor in split.batch(indices):
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        hashes[name] = digest.hexdigest()
    return hashes
