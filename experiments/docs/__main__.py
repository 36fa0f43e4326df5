"""`python -m experiments.docs`, or `make docs`: write docs/language.md, docs/optimizers.md and docs/tasks.md.

With ``--check`` it only says whether they are current.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from optforge.experiments.docs import language, optimizers, tasks
from optforge.experiments.files import write_atomic


def pages() -> dict[Path, str]:
    """What each generated file should hold."""
    return {
        language.PAGE: language.language_page(),
        optimizers.PAGE: optimizers.optimizers_page(),
        tasks.PAGE: tasks.tasks_page(),
    }


def main() -> None:
    """Write the files, or with --check exit with 1 if one is stale."""
    parser = argparse.ArgumentParser(
        prog="python -m optforge.experiments.docs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is stale")
    arguments = parser.parse_args()
    for path, text in pages().items():
        if not arguments.check:
            write_atomic(path, text)
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path.name} is stale; write it again with: make docs")


if __name__ == "__main__":
    main()
