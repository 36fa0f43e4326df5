"""Programs as Python source: the same op templates as the interpreter, pasted instead of called.

Generated source contains only register names (``x3``), table templates and positions; no text of a program file ever
reaches it, so that names and numbers in a file cannot become code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from optforge.primitives.backends.interpret import Stepped, own_dims
from optforge.primitives.lazy import EAGER, Lazy, laziness
from optforge.primitives.op import namespace
from optforge.primitives.ops import Op
from optforge.primitives.program import Const, Program, fold


class Emitter:
    """Writes the live statements of a program as Python lines.

    The generated code reads its inputs as ``a0, a1, …`` (in the order of `reads`), literals as ``k[i]`` (see
    `constants`), and the parameter's dimensions as ``dims``. Values that are one number for all parameters (the
    statements `shared`, hyperparameters, literals) are float64; the first time one meets a tensor, `cast` says how it
    is rounded. What `lazy` guards is computed only where ``due[i]``, the truth of condition i, says so; `due` has the
    expressions of these.
    """

    def __init__(
        self, program: Program, shared: frozenset[int], shared_names: frozenset[str], lazy: Lazy = EAGER
    ) -> None:
        self.program, self.shared, self.lazy = program, shared, lazy
        slots = [s.name for s in program.state]  # dead slots, too: they pass through
        self.reads = [*slots, *sorted(program.live.names - set(slots))]
        self.constants: list[float] = []
        self.lines: list[str] = []
        self.casts: dict[str, str] = {}
        self.shared_values = {f"a{i}" for i, name in enumerate(self.reads) if name in shared_names}
        self.shared_lines: list[str] = []
        update, state, _ = fold(program, self.leaf, self.apply)
        self.update = self.cast(str(update))
        self.state = [self.cast(str(s)) for s in state]
        named = [
            f"x{a}" if type(a) is int else self.leaf(a.value if type(a) is Const else str(a)) for a in lazy.conditions
        ]
        self.due = [f"bool({value} > 0)" for value in named]

    def leaf(self, value: str | float) -> str:
        """Expression of a name or literal."""
        if isinstance(value, str):
            return f"a{self.reads.index(value)}"
        if value not in self.constants:
            self.constants.append(value)
        name = f"k[{self.constants.index(value)}]"
        self.shared_values.add(name)
        return name

    def apply(self, op: Op, args: list[str], index: int) -> str:
        """Emit one statement; returns the name of its result."""
        name = f"x{index}"
        if index in self.shared:
            self.shared_values.add(name)
            self.shared_lines.append(f"{name} = {op.torch.format(*args, dims='dims')}")
        else:
            given = [self.cast(a) for a in args]
            value = self.call(op, given, index)
            if index in self.lazy.choices:
                value = f"{given[1]} if due[{self.lazy.choices[index]}] else {given[2]}"
            line = f"{name} = {value}"
            if index in self.lazy.guards:
                condition, taken = self.lazy.guards[index]
                line = f"if {'' if taken else 'not '}due[{condition}]: {line}"
            self.lines.append(line)
        return name

    def cast(self, value: str) -> str:
        """Expression of `value` in the parameter's dtype."""
        if value not in self.shared_values:
            return value
        if value not in self.casts:
            self.casts[value] = f"c{len(self.casts)}"
        return self.casts[value]

    def call(self, op: Op, args: list[str], index: int) -> str:
        """Expression of one operation on values of the parameter's dtype."""
        return op.torch.format(*args, dims="dims")

    def literals(self) -> tuple[Tensor, ...]:
        """The literals, as the generated code wants them."""
        return tuple(torch.tensor(c, dtype=torch.float64) for c in self.constants)


@lru_cache(maxsize=1024)
def compile_step(program: Program) -> Callable[[Mapping[str, Tensor], Sequence[int]], Stepped]:
    """A function equal to `execute` for this program, without its walking overhead (about 1 µs per statement)."""
    names = frozenset(program.names) - {s.name for s in program.state} - {"g", "p"}
    source = Emitter(program, program.shared, names, laziness(program))
    casts = [f"{new} = {old}.to(dtype)" for old, new in source.casts.items()]
    due = [f"due = ({', '.join(source.due)},)"] if source.due else []
    lines = [*source.shared_lines, *due, *casts, *source.lines]
    function = define("a, k, dims, dtype", len(source.reads), lines, source.update, source.state)
    reads, k = source.reads, source.literals()

    def run(inputs: Mapping[str, Tensor], dims: Sequence[int]) -> Stepped:
        g = inputs["g"]
        return Stepped(*function([inputs[n] for n in reads], k, own_dims(g, dims), g.dtype))

    return run


class HoistedStep:
    """A step in two parts: `numbers`, equal for all parameters of a group, and the call, for one parameter.

    ::

        numbers, due = hoisted.known({"beta": …, "step": …})            # once
        update, state = hoisted(inputs, [n.to(dtype) for n in numbers], range(p.ndim), due)  # for each parameter

    Args:
        program: the rule.
        lazy: whether to leave out what is not due (see `primitives.lazy`).
        extra: what templates shall see in place of `primitives.op.namespace`, by name.
    """

    def __init__(self, program: Program, *, lazy: bool = True, extra: Mapping[str, Any] | None = None) -> None:
        own = {s.name for s in program.state} | {"g", "p"}
        source = Emitter(program, program.shared, frozenset(program.names) - own, laziness(program) if lazy else EAGER)
        self.reads = [name if name in own else None for name in source.reads]
        unpack = [f"{''.join(f'{new}, ' for new in source.casts.values())} = c"] if source.casts else []
        count = len(source.reads)
        self.count = len(source.casts)
        body = [*unpack, *source.lines]
        self.function = define("a, c, dims, due", count, body, source.update, source.state, extra)
        due = f"({''.join(f'{condition}, ' for condition in source.due)})"
        self._numbers = define("a, k, dims", count, source.shared_lines, due, list(source.casts))
        self._names, self._literals = source.reads, source.literals()

    def known(self, values: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], tuple[bool, ...]]:
        """What the step needs to know beside tensors, 0-dimensional float64, and which of its conditions are true.

        `values` holds what they are made of.
        """
        due, numbers = self._numbers([values.get(n) for n in self._names], self._literals, ())
        return numbers, due

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        numbers: Sequence[Tensor],
        dims: Sequence[int],
        due: tuple[bool, ...] = (),
    ) -> Stepped:
        """One step of a parameter; `numbers` are rounded to its dtype, `due` says which conditions are true."""
        tensors = [None if n is None else inputs[n] for n in self.reads]
        return Stepped(*self.function(tensors, numbers, tuple(dims), due))


hoist = lru_cache(maxsize=1024)(HoistedStep)


def define(
    signature: str,
    inputs: int,
    lines: Sequence[str],
    update: str,
    state: Sequence[str],
    extra: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """A Python function with the given body that unpacks ``a`` and returns ``update, (state…)``."""
    unpack = [f"{''.join(f'a{i}, ' for i in range(inputs))} = a"] if inputs else []
    body = [*unpack, *lines, f"return {update}, ({''.join(f'{s}, ' for s in state)})"]
    code = f"def step({signature}):\n" + "\n".join(f"    {line}" for line in body)
    scope = namespace() | dict(extra or {})
    exec(compile(code, "<optforge program>", "exec"), scope)
    return scope["step"]
