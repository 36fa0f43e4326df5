"""What the package knows of one optimizer.

Every module of an optimizer ends with its `ROWS`. `baselines.table` collects them; commands, documentation and tests
follow from the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from torch.optim.optimizer import Optimizer

from optforge.primitives import Program
from optforge.primitives.routing import Predicate


@dataclass(frozen=True)
class Oracle:
    """Somebody else's implementation of the same rule, which tests compare with.

    Attributes:
        path: module and class, as in ``torch.optim.AdamW``.
        options: what it must be told to mean the same as our defaults, beside the hyperparameters.
        renamed: hyperparameters that it calls by other names, ours to theirs; None for one that it does not have.
        note: where the two differ, and hence are not compared.
        dims: for parameters of how many dimensions they are the same; none if tests compare them in some other way.
    """

    path: str
    options: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str | None] = field(default_factory=dict)
    note: str = ""
    dims: tuple[int, ...] = (0, 1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class NamedProgram:
    """A program that goes by a name.

    Attributes:
        name: as in commands, lower case with dashes.
        build: makes the program.
        paper: authors, year and where to find it.
        when: for which training to use it, in a few sentences.
    """

    name: str
    build: Callable[[], Program]
    paper: str
    when: str

    @cached_property
    def program(self) -> Program:
        """The rule in the primitive language, with the paper's default hyperparameters."""
        return self.build()

    @property
    def year(self) -> int:
        """When it was published: the first year that `paper` names."""
        found = re.search(r"\b(1[89]|20)\d\d\b", self.paper)
        if found is None:
            raise ValueError(f"the paper of {self.name} must name its year, got {self.paper!r}")
        return int(found[0])

    @property
    def about(self) -> Any:
        """The function or class whose docstring says what the rule does, and which variant of it this is."""
        return self.build


@dataclass(frozen=True, kw_only=True)
class Baseline(NamedProgram):
    """A hand-written optimizer and its program; each is the oracle of the other.

    Attributes:
        optimizer: makes the hand-written form; a class, or one with options (`functools.partial`).
        lr_range: where the best learning rate usually lies for networks trained from scratch.
        cases: values of hyperparameters, as the program names them, with which tests compare both forms and `oracles`.
        oracles: independent implementations.
        full_batch: whether the rule is meant for gradients of the whole training set.
        where: says of a parameter's name and the parameter whether the program shall train it, and not its fallback;
            for ``ProgramOptimizer(…, where=row.where)``.
        visible: learning rate, if it is not 0.1, and hyperparameters with which a few steps move weights of size 1
            visibly, even in bfloat16; for tests.
    """

    optimizer: Callable[..., Optimizer]
    lr_range: tuple[float, float]
    cases: tuple[Mapping[str, float], ...]
    oracles: tuple[Oracle, ...] = ()
    full_batch: bool = False
    where: Predicate | None = None
    visible: Mapping[str, float] = field(default_factory=dict)

    @property
    def about(self) -> Any:
        """The class of the hand-written form."""
        return self.optimizer.func if isinstance(self.optimizer, partial) else self.optimizer

    def by_hand(self, **hypers: float) -> dict[str, Any]:
        """The program's hyperparameters, with `hypers` in place of defaults, as the hand-written form names them.

        Numbered ones are gathered: ``beta1`` and ``beta2`` become ``betas=(…, …)``, ``eps1`` and ``eps2`` ``eps``.
        """
        gathered: dict[str, list[float]] = {}
        options: dict[str, Any] = {}
        fallback = self.program.fallback.defaults() if self.program.fallback else {}
        for name, value in (fallback | self.program.defaults() | hypers).items():
            if numbered := re.fullmatch(r"(beta|eps)[0-9]", name):
                gathered.setdefault({"beta": "betas", "eps": "eps"}[numbered[1]], []).append(value)
            else:
                options[name] = value
        return options | {name: tuple(values) for name, values in gathered.items()}
