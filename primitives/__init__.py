"""The language of update rules: programs as data, and everything that can be asked of one."""

from optforge.primitives.backends.interpret import execute
from optforge.primitives.builder import Builder
from optforge.primitives.kinds import SCALES, SIGNALS, Hyper, Kind, ProgramError, Slot
from optforge.primitives.ops import OPS, Op, subset
from optforge.primitives.optimizer import ProgramOptimizer
from optforge.primitives.program import Program, fold, print_program
from optforge.primitives.statements import Const, Instr
from optforge.primitives.text import parse_program

__all__ = [
    "OPS", "SCALES", "SIGNALS", "Builder", "Const", "Hyper", "Instr", "Kind", "Op", "Program", "ProgramError",
    "ProgramOptimizer", "Slot", "execute", "fold", "parse_program",
    "print_program", "subset",
]  # fmt: skip
