"""What is seen of a running search: how different the living are, and the key that ends it."""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from baselines import BASELINES
from experiments.searching.quit_key import QuitKey
from experiments.searching.view import Diversity

pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")

SCRIPT = """
import sys, time
from experiments.searching.quit_key import QuitKey
try:
    with QuitKey() as key:
        print("listens" if key.listens else "deaf", flush=True)
        time.sleep(30)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def test_programs_that_differ_in_numbers_only_are_one_structure() -> None:
    adam, lion = BASELINES["adamw"].program, BASELINES["lion"].program
    diversity = Diversity(4)
    for program, score in ((adam, 0.5), (adam.with_defaults(beta1=0.5), 0.25), (lion, 0.25000001), (lion, math.inf)):
        diversity.add(program, score)
    assert (diversity.living, diversity.structures, diversity.behaviours) == (4, 2, 3)
    for _ in range(3):
        diversity.add(lion, 0.1)
    assert (diversity.living, diversity.structures, diversity.behaviours) == (4, 1, 2)  # the oldest have left


def until(terminal: int, word: bytes, seconds: float = 60) -> bytes:
    """What a terminal shows until `word` is among it, or it is closed."""
    seen, end = b"", time.monotonic() + seconds
    while word not in seen and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                seen += os.read(terminal, 1024)
            except OSError:
                break
    return seen


def answer_to(key: bytes, script: str) -> bytes:
    """What a script at a terminal of its own says to a key."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(Path(__file__).parents[1])
        os.execv(sys.executable, [sys.executable, "-c", script])
    try:
        assert b"listens" in until(terminal, b"listens")
        os.write(terminal, key)
        return until(terminal, b"stopped", 25)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


@pytest.mark.parametrize("key", [b"q", b"xQ", b"\x03"])
def test_q_at_the_terminal_interrupts_as_control_c_does(key: bytes) -> None:
    assert b"stopped" in answer_to(key, SCRIPT)


def test_q_is_heard_where_the_main_thread_begins_to_wait_at_that_very_moment() -> None:
    """The thread that reads the key runs when the main one lets go of the interpreter: just before it waits."""
    busy = "sys.setswitchinterval(100); end = time.monotonic() + 0.3\n        while time.monotonic() < end: pass"
    assert b"stopped" in answer_to(b"q", SCRIPT.replace("time.sleep(30)", f"{busy}\n        time.sleep(30)"))


def test_without_a_terminal_nothing_listens() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("30", "0.3")],
        cwd=Path(__file__).parents[1], input="qqq", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "deaf\n"
    with QuitKey() as key:  # pytest's stdin is no terminal either
        assert not key.listens
