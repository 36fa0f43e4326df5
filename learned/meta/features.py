"""What a learned rule sees of a parameter, declared as a program: its registers are the features.

The features of Metz et al. 2022 (Practical tradeoffs between memory, compute, and performance in learned optimizers,
arXiv:2203.11860, §4, "small_fc_lopt") in spirit: averages of the gradient at several decays, divided by roots of
elementwise and of factored second moments, the parameter, and the time as tanh(step / scale). Variants: decays for
runs of 100 steps, averages without their bias, and logarithms of sizes, as an LSTM of Andrychowicz et al. 2016 sees
them. Being a program, the features print, have a price and a key, and weights can say which ones they were trained on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optforge.primitives import Builder, Kind, Program, ProgramError, parse_program, print_program
from optforge.primitives.backends.source import Emitter, define
from optforge.primitives.blocks import debias, momentum
from optforge.primitives.builder import Expr
from optforge.primitives.program import Arg
from optforge.primitives.routing import can_train

FIRST = (0.5, 0.9, 0.99)  # decays of averages of the gradient
SECOND = (0.9, 0.99)  # decays of averages of its square
ADAM = 10  # the feature that is Adam's step: the average at 0.9 over the root of the second moment at 0.99
TIMES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # in steps


class Features(NamedTuple):
    """A program, and which of its values are features: of its own, and of its fallback, equally many.

    The last is the size of the gradient, in whose units a rule may step; the others are what a network sees. The
    update of the program is the sum of its features, so that none of them is dead; nothing applies it.
    """

    program: Program
    registers: tuple[int, ...]
    fallback: tuple[int, ...]

    @property
    def text(self) -> str:
        """As JSON, for files."""
        return json.dumps(
            {"program": print_program(self.program), "registers": self.registers, "fallback": self.fallback}
        )

    @classmethod
    def parse(cls, text: str) -> Features:
        """The inverse of `text`; `ProgramError` for anything else."""
        try:
            found = json.loads(text)
            registers, fallback = (tuple(map(int, found[name])) for name in ("registers", "fallback"))
            program = parse_program(found["program"])
        except (ValueError, KeyError, TypeError) as error:
            raise ProgramError(f"this is no feature program: {error}") from None
        for part, own in ((program, registers), (program.fallback, fallback)):
            if part is None or len(own) != len(registers) or not all(0 <= i < len(part.body) for i in own):
                raise ProgramError("a feature program needs a fallback, and as many registers of it as of its own")
        return cls(program, registers, fallback)

    def part(self, shape: Sequence[int]) -> tuple[Program, tuple[int, ...]]:
        """The program and the registers for a parameter of `shape`."""
        if can_train(self.program, shape):
            return self.program, self.registers
        assert self.program.fallback is not None
        return self.program.fallback, self.fallback

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Features ``[elements, features]`` of one parameter, and the next value of each slot.

        Args:
            inputs: gradient ``g``, parameter ``p``, slots, and ``step`` as a 0-dimensional float64.
        """
        g = inputs["g"]
        program, registers = self.part(g.shape)
        reads, function, literals = _compiled(program, registers)
        _, values = function([inputs[name] for name in reads], literals, tuple(range(g.ndim)), g.dtype)
        values = [x.to(g.device) for x in values]  # what only depends on the step is on the CPU
        columns = [x.expand(g.shape).reshape(-1) for x in values[len(program.state) :]]
        state = {s.name: x for s, x in zip(program.state, values, strict=False)}
        return torch.stack(columns, -1), state


@lru_cache(maxsize=64)
def _compiled(program: Program, registers: tuple[int, ...]) -> tuple[list[str], Callable[..., Any], tuple[Tensor, ...]]:
    """What `primitives.backends.source.compile_step` makes of a program, with `registers` returned after the state."""
    names = frozenset(program.names) - {s.name for s in program.state} - {"g", "p"}
    source = Emitter(program, program.shared, names)
    found = [source.cast(f"x{i}") for i in registers]
    casts = [f"{new} = {old}.to(dtype)" for old, new in source.casts.items()]
    lines = [*source.shared_lines, *casts, *source.lines]
    function = define("a, k, dims, dtype", len(source.reads), lines, source.update, [*source.state, *found])
    return source.reads, function, source.literals()


def difference(ours: Features, theirs: Features) -> str:
    """Where two feature programs first differ, in words; empty if they are the same."""
    lines = zip_longest(*(str(f.program).splitlines() for f in (theirs, ours)), fillvalue="nothing")
    for there, here in lines:
        if there != here:
            return f"it has {there!r} where {here!r} is expected"
    return "" if ours[1:] == theirs[1:] else "other registers of it are features"


@cache
def default_features() -> Features:
    """The features of the rules that come with the package, 26 of them."""
    vector, fallback = _declare(False, None)
    program, registers = _declare(True, vector)
    return Features(program, registers, fallback)


def _declare(matrix: bool, fallback: Program | None) -> tuple[Program, tuple[int, ...]]:
    b = Builder()

    def root(x: Expr) -> Expr:
        return b.sqrt(x + 1e-16)

    def unit(x: Expr) -> Expr:  # second moment 1 over the tensor
        return x / root(b.mean(b.square(x)))

    g = b.clip(b.g, 1e9)  # whose square is a number in float32
    averages = [g] + [debias(b, momentum(b, b.slot(f"m{i}"), g, d), d) for i, d in enumerate(FIRST)]
    squares = [debias(b, momentum(b, b.slot(f"v{i}"), b.square(g), d), d) for i, d in enumerate(SECOND)]
    found = [unit(m) for m in averages]
    found += [m / root(v) for v in squares for m in averages]
    for i, decay in enumerate(SECOND):
        factored = squares[i]
        if matrix:  # Shazeer & Stern 2018, Adafactor, algorithm 4
            row, col = b.slot(f"row{i}", Kind.ROW), b.slot(f"col{i}", Kind.COL)
            of_rows = debias(b, momentum(b, row, b.row_mean(b.square(g)), decay), decay)
            of_cols = debias(b, momentum(b, col, b.col_mean(b.square(g)), decay), decay)
            factored = b.outer(of_rows, of_cols) / (b.mean_of(of_rows) + 1e-16)
        found.append(averages[2] / root(factored))
    found.append(unit(b.p))
    found += [b.log(squares[0] + 1e-16) * 0.05, b.log(squares[1] + 1e-16) * 0.05]
    found.append((b.log(squares[0] + 1e-16) - b.log(squares[1] + 1e-16)) * 0.5)
    found.append(b.log(b.mean(b.square(b.p)) + 1e-12) * 0.05)
    found += [b.tanh(b.step / scale) for scale in TIMES]
    found.append(root(squares[0]))
    registers: list[Arg] = [x.arg for x in found]
    return b.build(sum(found[1:], found[0]), fallback), tuple(registers)  # type: ignore[arg-type]
