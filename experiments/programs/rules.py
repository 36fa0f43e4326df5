"""What can be trained and compared: programs, programs that learn their hyperparameters, and meta-trained rules."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from torch import Tensor
from torch.optim.optimizer import Optimizer

from optforge.baselines import averaged, is_schedule_free
from optforge.experiments.programs.names import resolve_program
from optforge.learned import MetaOptimizer, learn
from optforge.learned.meta.optimizer import HYPER_RATE
from optforge.learned.meta.weights import Learned, pack
from optforge.primitives import Program, ProgramOptimizer, parse_program, print_program
from optforge.search.training.trial import Rule

_LEARNED = re.compile(r"learned ?(.*)\n")  # begins the text of such a rule
_RATE = ("lr",)


@dataclass(frozen=True)
class Averaging(Rule):
    """A rule for `search.training.trial.Trial`: a program whose averages are evaluated, if it is Schedule-Free."""

    program: Program

    @property
    def text(self) -> str:
        """The program's text with a first line of its own."""
        return "averaging\n" + print_program(self.program)

    def optimizer(self, params: Iterable[Tensor], lr: float, steps: int) -> Optimizer:
        """The program's."""
        return ProgramOptimizer(params, self.program, lr, total_steps=steps)

    def evaluated(self, optimizer: Optimizer) -> AbstractContextManager[None]:
        """The averages of Schedule-Free, what is trained of others."""
        return averaged(optimizer) if is_schedule_free(optimizer) else nullcontext()


@dataclass(frozen=True)
class LearnedRate(Averaging):
    """The same for a program some of whose hyperparameters are learned while it trains.

    Attributes:
        what: their names, see `learned.learn`.
    """

    what: tuple[str, ...] = _RATE

    @property
    def text(self) -> str:
        """The program's text with a first line of its own."""
        names = "" if self.what == _RATE else f" {','.join(self.what)}"
        return f"learned{names}\n{print_program(self.program)}"

    def optimizer(self, params: Iterable[Tensor], lr: float, steps: int) -> Optimizer:
        """`learned.learn` from the initial rate `lr`."""
        return learn(params, self.program, lr, what=self.what, total_steps=steps)


@dataclass(frozen=True, eq=False)
class MetaTrained(Rule):
    """The same for a rule that is a network.

    Attributes:
        weights: the rule with its weights.
        learns: whether a factor of its rate is learned on the way.
    """

    weights: Learned
    learns: bool = False

    @property
    def text(self) -> str:
        """A hash of the weights' file."""
        return f"meta-trained {hashlib.sha256(pack(self.weights)).hexdigest()}{' learned' if self.learns else ''}"

    def optimizer(self, params: Iterable[Tensor], lr: float, steps: int) -> Optimizer:
        """Its `MetaOptimizer`."""
        return MetaOptimizer(params, self.weights, lr, learn_lr=HYPER_RATE if self.learns else 0.0)


def parse_rule(text: str) -> Program | LearnedRate:
    """The rule with this text. Raises `ProgramError` if it is none."""
    if found := _LEARNED.match(text):
        what = tuple(found[1].split(",")) if found[1] else _RATE
        return LearnedRate(parse_program(text[found.end() :]), what)
    return parse_program(text)


def configured(program: Program, values: Mapping[str, float]) -> Program:
    """`program` with these hyperparameters, also those of the same name in its fallback; the learning rate is left."""

    def part(one: Program) -> Program:
        return one.with_defaults(**{name: x for name, x in values.items() if name in one.defaults()})

    new, fallback = part(program), program.fallback and part(program.fallback)
    return Program(new.state, new.hypers, new.body, new.update, new.next_state, fallback)


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


def base_program(rule: Program | Rule) -> Program:
    """The program in a rule. Raises `TypeError` for one that is none, such as a network."""
    if isinstance(rule, Averaging):
        return rule.program
    if not isinstance(rule, Program):
        raise TypeError(f"{rule.text} has no program")
    return rule


def with_base(rule: Program | LearnedRate, program: Program) -> Program | LearnedRate:
    """The rule with another program in it."""
    return replace(rule, program=program) if isinstance(rule, LearnedRate) else program
