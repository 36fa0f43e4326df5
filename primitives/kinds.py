"""What a value looks like relative to one parameter, and the names a program may use.

A program is written for *one* parameter of unknown shape. Every value in it has a `Kind`, which says along which axes
of that parameter it varies. Hyperparameters carry a `Scale`: an invertible map to an unconstrained space in which
steps of equal size mean equal things, as learning needs it.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass


class ProgramError(ValueError):
    """A program is malformed. The message names the offending instruction and its text."""


class Kind(enum.IntEnum):
    """Shape of a value relative to a parameter of shape ``(n, *rest)``, seen as a matrix of n rows and m columns.

    The bits say whether the value varies along the first axis (rows), along the remaining axes (columns), over pairs of
    rows, or over pairs of columns, so that broadcasting two values joins their kinds with a bitwise *or*. What varies
    over pairs broadcasts with its own kind and with scalars only. Of all kinds the first dimension by all others is
    the matrix that `primitives.linalg` works on.
    """

    SCALAR = 0  # one number per parameter: shape (), or (1, 1, …)
    ROW = 1  # one number per row:     shape (n, 1, …)
    COL = 2  # one number per column:  shape (1, *rest)
    TENSOR = 3  # the parameter's own shape
    LEFT = 4  # one number per pair of rows, what a matrix is multiplied with from the left: shape (n, n, 1, …)
    RIGHT = 8  # one number per pair of columns, what it is multiplied with from the right: shape (m, *rest)

    @property
    def is_square(self) -> bool:
        """Whether it is a square matrix of one side of the parameter."""
        return self in (Kind.LEFT, Kind.RIGHT)

    @property
    def needs_matrix(self) -> bool:
        """Whether it is only meaningful for parameters with at least two dimensions."""
        return self not in (Kind.SCALAR, Kind.TENSOR)

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of a value of this kind for a parameter of `shape`: reduced dimensions keep size 1.

        A parameter of fewer than two dimensions has no square matrices; one number stands for them there.
        """
        rows, rest = tuple(shape[:1]), tuple(shape[1:])
        if self.is_square:
            if not rest:
                return (1,) * len(rows)
            return (*rows, *rows, *(1,) * (len(rest) - 1)) if self is Kind.LEFT else (math.prod(rest), *rest)
        ones = (1,) * len(shape)
        return (rows if self & Kind.ROW else ones[:1]) + (rest if self & Kind.COL else ones[1:])

    def elements(self, shape: Sequence[int]) -> int:
        """How many numbers a value of this kind holds for a parameter of `shape`."""
        return math.prod(self.shape(shape))


_KINDS = {kind.value: kind for kind in Kind}


def join(*kinds: Kind) -> Kind | None:
    """Kind of an elementwise operation over values of the given kinds; None if these do not broadcast."""
    bits = 0
    for kind in kinds:
        bits |= kind
    return _KINDS.get(bits)


@dataclass(frozen=True)
class Scale:
    """An invertible map between a hyperparameter's natural values and an unconstrained real line.

    `lower` and `upper` bound the natural values (lower is allowed, upper is not). Zero on the `log` scale means
    "switched off" and maps to minus infinity, from which a step in unconstrained space never returns. On the `unit`
    scale zero is a value like others, the first one: all that lies below it on the line is zero, too.
    """

    name: str
    forward: Callable[[float], float]
    inverse: Callable[[float], float]
    lower: float
    upper: float

    def contains(self, value: float) -> bool:
        """Whether `value` is finite and within the natural range."""
        return math.isfinite(value) and self.lower <= value < self.upper


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def _exp(x: float) -> float:
    return math.exp(min(x, 709.0))  # beyond it lies infinity, which is out of range


def _share(x: float) -> float:
    return min(-math.expm1(-max(x, 0.0)), 1 - 2**-53)  # the largest float below 1


SCALES: dict[str, Scale] = {
    # multiplicative quantities: epsilon, weight decay, learning rate
    "log": Scale("log", _log, _exp, 0.0, math.inf),
    # decays of exponential moving averages: 0.9, 0.99, 0.999 are equal steps apart
    "unit": Scale("unit", lambda x: -math.log1p(-x), _share, 0.0, 1.0),
    # anything that may be negative
    "linear": Scale("linear", lambda x: x, lambda x: x, -math.inf, math.inf),
}

# Inputs that every program may read. What spans the whole model enters as a signal.
SIGNALS: dict[str, Kind] = {
    "g": Kind.TENSOR,  # gradient of the loss
    "p": Kind.TENSOR,  # the parameter itself
    "lr": Kind.SCALAR,  # learning rate of this step
    "step": Kind.SCALAR,  # 1 on this parameter's first step
    "progress": Kind.SCALAR,  # share of training done, in [0, 1]
    "global_norm": Kind.SCALAR,  # Euclidean norm of the gradients of all parameters together
}
SHARED_SIGNALS = frozenset(name for name, kind in SIGNALS.items() if kind is Kind.SCALAR)

MAX_NAME = 40
_NAME = re.compile(rf"[a-z][a-z0-9_]{{0,{MAX_NAME - 1}}}", re.ASCII)
_REGISTER = re.compile(r"x[0-9]+", re.ASCII)
_WORDS = ("update", "next", "hyper", "slot", "optforge", "fallback", "nan", "inf")  # words and numbers of the text form
# Options of torch optimizers and of their parameter groups, beside which hyperparameters stand.
_OPTIONS = ("self", "params", "param_names", "name", "program", "total_steps", "maximize", "initial_lr",
            "capturable", "differentiable", "foreach", "fused", "compile", "state_dtype", "where",
            "use_fallback")  # fmt: skip
RESERVED = frozenset(_WORDS + _OPTIONS)


def check_name(name: object, what: str) -> str:
    """Return `name` if it may name a hyperparameter or slot, else raise `ProgramError`.

    Names are lower-case identifiers of at most 40 ASCII characters that are neither a signal, a keyword of the text
    form, nor of the form ``x12`` (a register).
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        shown = repr(name) if len(repr(name)) <= 60 else repr(name)[:57] + "…"
        raise ProgramError(
            f"{what} name {shown} is not a lower-case identifier of at most {MAX_NAME} letters, digits and underscores"
        )
    if name in SIGNALS or name in RESERVED or _REGISTER.fullmatch(name):
        raise ProgramError(f"{what} name {name!r} is reserved; choose another")
    return name


@dataclass(frozen=True)
class Hyper:
    """A named hyperparameter with a default value and the name of its scale (`log`, `unit` or `linear`)."""

    name: str
    default: float
    scale: str = "linear"

    def __post_init__(self) -> None:
        check_name(self.name, "hyperparameter")
        if self.scale not in SCALES:
            raise ProgramError(f"hyper {self.name}: unknown scale {self.scale!r}; choose one of {', '.join(SCALES)}")
        object.__setattr__(self, "default", self.check(self.default) + 0.0)  # + 0.0 turns -0.0 into 0.0

    def check(self, value: object) -> float:
        """Return `value` as a float if it lies within the scale's range, else raise `ProgramError`."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ProgramError(f"hyper {self.name}: expected a number, got {value!r}")
        scale = SCALES[self.scale]
        if not scale.contains(value):
            raise ProgramError(
                f"hyper {self.name}: {value!r} is outside [{scale.lower:g}, {scale.upper:g}) of its {self.scale} scale"
            )
        return float(value)


@dataclass(frozen=True)
class Slot:
    """One piece of optimizer state.

    `init` is the value before the first step: a finite number, or ``"p"`` / ``"g"`` for a copy of the parameter or of
    its first gradient (tensor slots only). A number stands in every place, but in square matrices (left, right) on the
    diagonal alone: they begin as so many times the identity.
    """

    name: str
    kind: Kind = Kind.TENSOR
    init: float | str = 0.0

    def __post_init__(self) -> None:
        check_name(self.name, "slot")
        if not isinstance(self.kind, Kind):
            raise ProgramError(f"slot {self.name}: {self.kind!r} is not a Kind")
        if isinstance(self.init, str):
            if self.init not in ("p", "g") or self.kind is not Kind.TENSOR:
                raise ProgramError(
                    f"slot {self.name}: init {self.init!r} must be a number, or 'p' or 'g' for a tensor slot"
                )
        elif isinstance(self.init, bool) or not isinstance(self.init, int | float) or not math.isfinite(self.init):
            raise ProgramError(f"slot {self.name}: init {self.init!r} is not a finite number")
        else:
            object.__setattr__(self, "init", float(self.init) + 0.0)
