"""`Program`: an update rule as immutable, typed, straight-line data, and `fold`, the one function that walks it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

from optforge.primitives.key import structural_key
from optforge.primitives.kinds import SHARED_SIGNALS, SIGNALS, Hyper, Kind, ProgramError, Slot
from optforge.primitives.ops import OPS, Op, get_op
from optforge.primitives.statements import Arg, Const, Instr, show_arg

VERSION = 1
"""Of the text form."""

MAX_INSTRUCTIONS = 1000
MAX_STATE = 64
MAX_HYPERS = 64


V = TypeVar("V")


@dataclass(frozen=True)
class Program:
    """An update rule for one parameter. The engine applies ``p ← p - lr · update``.

    Attributes:
        state: optimizer state, by name; what a step reads of a slot is its value before the step.
        hypers: hyperparameters with defaults and scales.
        body: statements in static single assignment form; each may read only earlier ones.
        update: what the learning rate multiplies; of kind TENSOR.
        next_state: for each slot, its value after the step, of the slot's kind.
        fallback: the program for parameters that have no rows and columns (biases, norms), for rules that need them.

    Raises:
        ProgramError: at construction, naming the instruction and its text, if anything is ill-typed. An ill-typed
            program therefore does not exist. Statements without effect are allowed: they are stepping stones for
            evolution, and `key`, `live` and cost ignore them.
    """

    state: tuple[Slot, ...]
    hypers: tuple[Hyper, ...]
    body: tuple[Instr, ...]
    update: Arg
    next_state: tuple[Arg, ...]
    fallback: Program | None = None
    kinds: tuple[Kind, ...] = field(init=False, repr=False, compare=False)  # of each statement's result
    names: dict[str, Kind] = field(init=False, repr=False, compare=False)  # everything readable by name

    def __post_init__(self) -> None:
        if len(self.body) > MAX_INSTRUCTIONS:
            raise ProgramError(f"{len(self.body)} instructions; at most {MAX_INSTRUCTIONS} are allowed")
        if len(self.state) > MAX_STATE or len(self.hypers) > MAX_HYPERS:
            raise ProgramError(f"at most {MAX_STATE} slots and {MAX_HYPERS} hyperparameters are allowed")
        if len(self.next_state) != len(self.state):
            raise ProgramError(f"{len(self.state)} slots but {len(self.next_state)} next values; each slot needs one")
        names = dict(SIGNALS)
        items: tuple[Slot | Hyper, ...] = (*self.state, *self.hypers)
        for item in items:
            if item.name in names:
                raise ProgramError(f"{type(item).__name__.lower()} {item.name!r} is named twice")
            names[item.name] = item.kind if isinstance(item, Slot) else Kind.SCALAR
        kinds: list[Kind] = []
        for index, (op, args) in enumerate(self.body):
            try:
                # registers and names, most of what there is, without a call
                found = tuple([
                    kinds[a] if (t := type(a)) is int and 0 <= a < index  # type: ignore[operator,index]
                    else names[a] if t is str and a in names
                    else _kind(a, index, kinds, names)
                    for a in args
                ])  # fmt: skip
                result = _RESULTS.get((op, found)) if type(op) is str else None
                if result is None:
                    result = _RESULTS[op, found] = _result(op, found)
            except ProgramError as error:
                raise ProgramError(f"instruction x{index} = {_short(op, args)}: {error}") from None
            kinds.append(result)
        self._check_result("update", self.update, Kind.TENSOR, kinds, names)
        for slot, arg in zip(self.state, self.next_state, strict=True):
            self._check_result(f"next {slot.name}", arg, slot.kind, kinds, names)
        if self.fallback is not None and self.fallback.needs_matrix:
            raise ProgramError("the fallback program itself needs rows and columns")
        if self.fallback is not None and self.fallback.fallback is not None:
            raise ProgramError("the fallback program itself has a fallback; there is at most one")
        object.__setattr__(self, "kinds", tuple(kinds))
        object.__setattr__(self, "names", names)

    @staticmethod
    def _check_result(what: str, arg: Arg, kind: Kind, kinds: list[Kind], names: dict[str, Kind]) -> None:
        try:
            found = _kind(arg, len(kinds), kinds, names)
        except ProgramError as error:
            raise ProgramError(f"{what} {_short_arg(arg)}: {error}") from None
        if found is not kind:
            raise ProgramError(f"{what} {_short_arg(arg)}: expected kind {kind.name}, got {found.name}")

    def kind_of(self, arg: Arg) -> Kind:
        """Kind of a value that the program may read."""
        return _kind(arg, len(self.kinds), self.kinds, self.names)

    @cached_property
    def live(self) -> Liveness:
        """What can influence some future update, found through the state loop.

        A slot that is overwritten before it is read, or that only feeds itself, is dead, and so is all that only
        serves it.
        """
        instructions: set[int] = set()
        names: set[str] = set()
        body, following = self.body, dict(zip([slot.name for slot in self.state], self.next_state, strict=True))
        todo: list[Arg] = [self.update]
        for arg in todo:  # which grows on the way
            if type(arg) is int:
                if arg not in instructions:
                    instructions.add(arg)
                    todo += body[arg].args
            elif type(arg) is str and arg not in names:
                names.add(arg)
                if arg in following:
                    todo.append(following[arg])
        return Liveness(tuple(sorted(instructions)), frozenset(names))

    @cached_property
    def live_state(self) -> tuple[Slot, ...]:
        """Slots that matter, in order."""
        return tuple(s for s in self.state if s.name in self.live.names)

    @cached_property
    def shared(self) -> frozenset[int]:
        """Live statements whose value is one number for all parameters: no tensor and no slot enters them."""
        names = frozenset(h.name for h in self.hypers) | SHARED_SIGNALS
        return self.depends_only_on(names)

    def depends_only_on(self, names: frozenset[str]) -> frozenset[int]:
        """Live statements that read nothing but literals and `names`, directly or through other statements."""
        found: set[int] = set()
        for index in self.live.instructions:
            args = self.body[index].args
            if all(a in found if type(a) is int else type(a) is Const or a in names for a in args):
                found.add(index)
        return frozenset(found)

    @cached_property
    def needs_matrix(self) -> bool:
        """Whether a live part of it is only meaningful for parameters of at least two dimensions."""
        return any(OPS[self.body[i].op].needs_matrix for i in self.live.instructions) or any(
            s.kind.needs_matrix for s in self.live_state
        )

    @cached_property
    def sides(self) -> frozenset[Kind]:
        """Of which sides of a parameter it holds square matrices: in a slot, dead ones included, or on the way."""
        kinds = [*(s.kind for s in self.state), *(self.kinds[i] for i in self.live.instructions)]
        return frozenset(kind for kind in kinds if kind.is_square)

    @cached_property
    def reduces(self) -> bool:
        """Whether a live part of it mixes elements of a parameter (so that it cannot run on a shard)."""
        return any(OPS[self.body[i].op].reduces for i in self.live.instructions)

    @cached_property
    def key(self) -> str:
        """Structural identity, 32 hexadecimal digits; see `primitives.key.structural_key`."""
        return structural_key(self)

    def defaults(self) -> dict[str, float]:
        """Default of each hyperparameter."""
        return {h.name: h.default for h in self.hypers}

    def with_defaults(self, **values: float) -> Program:
        """The same program with other default hyperparameters; unknown names raise `ProgramError`."""
        check_hypers(self, values)
        hypers = tuple(Hyper(h.name, values.get(h.name, h.default), h.scale) for h in self.hypers)
        return Program(self.state, hypers, self.body, self.update, self.next_state, self.fallback)

    def pruned(self) -> Program:
        """The same rule without dead statements, dead slots and hyperparameters that nothing reads."""
        position = {old: new for new, old in enumerate(self.live.instructions)}

        def moved(arg: Arg) -> Arg:
            return position[arg] if type(arg) is int else arg

        names = self.live.names
        kept = [(s, moved(a)) for s, a in zip(self.state, self.next_state, strict=True) if s.name in names]
        return Program(
            tuple(slot for slot, _ in kept),
            tuple(h for h in self.hypers if h.name in names),
            tuple(Instr(self.body[i].op, tuple(map(moved, self.body[i].args))) for i in self.live.instructions),
            moved(self.update),
            tuple(arg for _, arg in kept),
            self.fallback,
        )

    def __str__(self) -> str:
        return print_program(self)


def print_program(program: Program) -> str:
    """Text of a program, one item a line, ending in a newline."""
    return f"optforge {VERSION}\n" + "\n".join(_lines(program)) + "\n"


def _lines(program: Program) -> Iterator[str]:
    for hyper in program.hypers:
        yield f"hyper {hyper.name} = {hyper.default!r} {hyper.scale}"
    for slot in program.state:
        yield f"slot {slot.name} = {slot.init} {slot.kind.name.lower()}"
    for index, instr in enumerate(program.body):
        yield f"x{index} = {instr}"
    yield f"update {show_arg(program.update)}"
    for slot, arg in zip(program.state, program.next_state, strict=True):
        yield f"next {slot.name} = {show_arg(arg)}"
    if program.fallback is not None:
        yield "fallback"
        yield from _lines(program.fallback)


class Liveness(NamedTuple):
    """Indices of live instructions in order, and the names (signals, slots, hyperparameters) they read."""

    instructions: tuple[int, ...]
    names: frozenset[str]


class Folded(NamedTuple, Generic[V]):
    """Outcome of a walk: the update, the next value of each slot, and the value of each visited instruction."""

    update: V
    next_state: tuple[V, ...]
    values: dict[int, V]


def fold(
    program: Program,
    leaf: Callable[[str | float], V],
    apply: Callable[[Op, list[V], int], V],
    *,
    only_live: bool = True,
) -> Folded[V]:
    """Walk a program once, in order, with a small algebra.

    Args:
        program: what to walk.
        leaf: value of a name (signal, slot, hyperparameter) or of a literal number.
        apply: value of an operation, given its row, its arguments' values and its position in the body.
        only_live: visit only what can influence an update; dead slots then keep the value they had.

    Returns:
        The values of the update and of each slot's successor. Interpreter, code generator, formulas, keys and cost
        are all algebras of this one walk.
    """
    values: dict[int, V] = {}

    def read(arg: Arg) -> V:
        if type(arg) is int:
            return values[arg]
        return leaf(arg.value if type(arg) is Const else arg)  # type: ignore[arg-type]

    body = program.body
    visit: Iterable[int] = program.live.instructions if only_live else range(len(body))
    for index in visit:
        op, args = body[index]
        values[index] = apply(OPS[op], [read(a) for a in args], index)
    live = program.live.names
    following = tuple(
        read(arg if not only_live or slot.name in live else slot.name)
        for slot, arg in zip(program.state, program.next_state, strict=True)
    )
    return Folded(read(program.update), following, values)


def check_hypers(program: Program, values: dict[str, float]) -> dict[str, float]:
    """Defaults of `program` overridden by `values`, or `ProgramError` naming what is unknown or out of range."""
    merged = program.defaults()
    by_name = {h.name: h for h in program.hypers}
    for name, value in values.items():
        if name not in by_name:
            known = ", ".join(by_name) or "none"
            raise ProgramError(f"unknown hyperparameter {name!r}; this program has: {known}")
        merged[name] = by_name[name].check(value)
    return merged


_RESULTS: dict[tuple[str, tuple[Kind, ...]], Kind] = {}  # what `_result` said before


def _result(op: str, kinds: tuple[Kind, ...]) -> Kind:
    """Kind of what `op` makes of arguments of these kinds."""
    row = get_op(op)
    if len(kinds) != row.arity:
        raise ProgramError(f"{row.name} takes {row.arity} argument(s), got {len(kinds)}")
    result = row.result.get(kinds)
    if result is None:
        raise ProgramError(f"{row.name} does not accept arguments of kind ({', '.join(k.name for k in kinds)})")
    return result


def _kind(arg: Arg, before: int, kinds: Sequence[Kind], names: dict[str, Kind]) -> Kind:
    kind_of_arg = type(arg)
    if kind_of_arg is int:
        if 0 <= arg < before:  # type: ignore[operator]
            return kinds[arg]  # type: ignore[index]
        raise ProgramError(f"register x{arg} is not written before this point")
    if kind_of_arg is str:
        kind = names.get(arg)  # type: ignore[arg-type]
        if kind is not None:
            return kind
        raise ProgramError(f"unknown name {_short_arg(arg)}; it is no signal, slot or hyperparameter of this program")
    if kind_of_arg is Const:
        value = arg.value  # type: ignore[union-attr]
        if type(value) is not float or not math.isfinite(value):
            raise ProgramError(f"constant {_short_arg(arg)} is not a finite float")
        if value == 0 and math.copysign(1, value) < 0:  # equal to 0.0, but dividing by it is not: no program may tell
            raise ProgramError("constant -0.0 is not allowed; write 0.0")
        return Kind.SCALAR
    raise ProgramError(f"argument {_short_arg(arg)} is neither a register, a name nor a Const")


def _short_arg(arg: object) -> str:
    text = show_arg(arg) if type(arg) in (int, str, Const) else repr(arg)  # type: ignore[arg-type]
    return text if len(text) <= 60 else text[:57] + "…"


def _short(op: object, args: Sequence[Arg]) -> str:
    text = f"{_short_arg(op)}({', '.join(map(_short_arg, args[:4]))}{', …' if len(args) > 4 else ''})"
    return text if len(text) <= 120 else text[:117] + "…"
