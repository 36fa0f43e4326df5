"""What can be compared: programs, and programs that learn their learning rate."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor
from torch.optim.optimizer import Optimizer

from optforge.experiments.programs.names import resolve_program
from optforge.learned import learn
from optforge.primitives import Program, parse_program, print_program

_LEARNED = "learned\n"  # begins the text of such a rule


@dataclass(frozen=True)
class LearnedRate:
    """A rule for `search.training.trial.Trial`: a program whose learning rate is learned while it trains."""

    program: Program

    @property
    def text(self) -> str:
        """The program's text with a first line of its own."""
        return _LEARNED + print_program(self.program)

    def optimizer(self, params: Iterable[Tensor], lr: float, steps: int) -> Optimizer:
        """`learned.learn` from the initial rate `lr`."""
        return learn(params, self.program, lr, total_steps=steps)


def parse_rule(text: str) -> Program | LearnedRate:
    """The rule with this text. Raises `ProgramError` if it is none."""
    if text.startswith(_LEARNED):
        return LearnedRate(parse_program(text.removeprefix(_LEARNED)))
    return parse_program(text)


def resolve_entrant(text: str) -> tuple[str, Program | LearnedRate]:
    """What an argument of a comparison means, and a short name for it.

    Args:
        text: a PROGRAM as `resolve_program` takes it, or ``learned(PROGRAM)``.

    Raises:
        UserError, ProgramError: as `resolve_program`.
    """
    if found := re.fullmatch(r"learned\((.*)\)", text.strip()):
        name, program = resolve_program(found[1])
        return f"learned({name})", LearnedRate(program)
    return resolve_program(text)


def base_program(rule: Program | LearnedRate) -> Program:
    """The program in a rule."""
    return rule.program if isinstance(rule, LearnedRate) else rule


def with_base(rule: Program | LearnedRate, program: Program) -> Program | LearnedRate:
    """The rule with another program in it."""
    return replace(rule, program=program) if isinstance(rule, LearnedRate) else program


__all__ = ["LearnedRate", "base_program", "parse_rule", "resolve_entrant", "with_base"]
