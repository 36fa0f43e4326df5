"""A key that ends a run as Ctrl-C does."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from typing import Any


class QuitKey:
    """While entered: q or Q at the terminal does what Ctrl-C does. Nothing where there is no terminal of one's own."""

    def __init__(self) -> None:
        self._left = threading.Event()
        self._thread: threading.Thread | None = None
        self._before: list[Any] = []

    def __enter__(self) -> QuitKey:
        try:
            import termios
            import tty
        except ImportError:  # not on this system
            return self
        try:
            terminal = sys.stdin.fileno()
            if os.tcgetpgrp(terminal) == os.getpgrp():  # in the background, to ask for keys would stop the process
                self._before = termios.tcgetattr(terminal)
                tty.setcbreak(terminal)
                self._thread = threading.Thread(target=self._wait, args=(terminal,), daemon=True)
                self._thread.start()
        except (OSError, ValueError, termios.error):  # no terminal, or closed
            pass
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        if self._thread is not None:
            import termios

            self._thread.join()
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._before)

    @property
    def listens(self) -> bool:
        """Whether the key does anything."""
        return self._thread is not None

    def _wait(self, terminal: int) -> None:
        while not self._left.is_set():
            if select.select([terminal], [], [], 0.1)[0]:
                key = os.read(terminal, 1)
                if not key:
                    return
                if key in b"qQ":
                    # A signal wakes the main thread where it waits for a worker; one that comes just before the wait
                    # begins would be seen after it, hence more than one.
                    while not self._left.is_set():
                        os.kill(os.getpid(), signal.SIGINT)
                        self._left.wait(0.5)
                    return
