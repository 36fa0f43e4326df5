"""Run a Lightning Trainer as part of a larger program: without its announcements, and with Ctrl-C as usual."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Lightning tells about hardware and data loading, and its use of a deprecated class."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers", module="lightning")
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", module="lightning")
            yield
    finally:
        logger.setLevel(level)


def fit(trainer: Any, module: Any, batches: Any) -> None:
    """`Trainer.fit`, where Ctrl-C is a KeyboardInterrupt as everywhere else.

    Lightning turns it into an exit with code 1 and leaves further interrupts ignored.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, batches)
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
