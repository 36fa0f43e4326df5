"""Run a Lightning Trainer as part of a larger program: without its announcements, and with Ctrl-C as usual."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Lightning tells about hardware, processes, loading and modes, and its use of a deprecated class.

    Also what torch says of models sharded by FSDP whose output is a view: it matters only to changes in place; of what
    vmap does one by one; and what optimizers say of losses that are not finite, which end the run with a sentence of
    its own.
    """
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers", module="lightning")
            warnings.filterwarnings("ignore", message="Found .* in eval mode", module="lightning")
            warnings.filterwarnings("ignore", message=".*performance drop .* batching rule")
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", module="lightning")
            warnings.filterwarnings("ignore", message=".*returned a view tensor", module="torch.distributed")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def fit(trainer: Any, module: Any, batches: Any = None, checkpoint: Path | None = None) -> None:
    """`Trainer.fit`, where Ctrl-C is a KeyboardInterrupt as everywhere else, between two steps.

    Lightning turns it into an exit with code 1 and leaves further interrupts ignored. A checkpoint
    is data: nothing in it is executed.
    """
    handler, between = signal.getsignal(signal.SIGINT), _BetweenSteps()
    ours = handler is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, between.ask)
    trainer.callbacks.append(between)
    try:
        trainer.fit(module, batches, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from None
    finally:
        trainer.callbacks.remove(between)
        if ours or trainer.interrupted:
            signal.signal(signal.SIGINT, handler)
    if between.asked:
        raise KeyboardInterrupt


class _BetweenSteps(Callback):
    """Lets an interrupt wait for the end of the step, unless it comes a second time.

    In the middle of one it may leave a lock taken, as of the queue to the thread that writes TensorBoard's files, and
    closing these would then wait for ever.
    """

    asked = False

    def ask(self, number: int, frame: Any) -> None:
        """Handle the signal."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_train_batch_start(self, *_: Any) -> None:
        """Raise what was asked for."""
        if self.asked:
            raise KeyboardInterrupt
