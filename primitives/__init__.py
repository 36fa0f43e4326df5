"""The language of update rules: programs as data, and everything that can be asked of one."""

from primitives.builder import Builder
from primitives.interpret import execute
from primitives.kinds import SCALES, SIGNALS, Hyper, Kind, ProgramError, Slot
from primitives.ops import OPS, Op, subset
from primitives.optimizer import ProgramOptimizer
from primitives.program import Const, Instr, Program, fold
from primitives.task import Split, Splits, Task, TensorSplit
from primitives.text import parse_program, print_program

__all__ = [
    "OPS", "SCALES", "SIGNALS", "Builder", "Const", "Hyper", "Instr", "Kind", "Op", "Program", "ProgramError",
    "ProgramOptimizer", "Slot", "Split", "Splits", "Task", "TensorSplit", "execute", "fold", "parse_program",
    "print_program", "subset",
]  # fmt: skip
