"""Run a Lightning Trainer as part of a larger program: without its announcements, and with Ctrl-C as usual."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Lightning tells about hardware, processes and data loading, and its use of a deprecated class.

    Also what torch says of models sharded by FSDP whose output is a view: it matters only to changes in place.
    """
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers", module="lightning")
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", module="lightning")
            warnings.filterwarnings("ignore", message=".*returned a view tensor", module="torch.distributed")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def fit(trainer: Any, module: Any, batches: Any = None, checkpoint: Path | None = None) -> None:
    """`Trainer.fit`, where Ctrl-C is a KeyboardInterrupt as everywhere else.

    Lightning turns it into an exit with code 1 and leaves further interrupts ignored. A checkpoint
    is data: nothing in it is executed.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, batches, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
