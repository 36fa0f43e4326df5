"""Recognise programs that need no training: duplicates, and programs that cannot work."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from optforge.primitives import Program
from optforge.primitives.analysis.fingerprint import Behaviour, behave_many
from optforge.search.duplicates.probes import descends, explode
from optforge.search.fitness.evaluator import Evaluator, Fitness, Status


class Verdict(enum.StrEnum):
    """What can be said of a program before training it, in the order in which it is found out: cheapest first."""

    IGNORES_GRADIENT = "ignores_gradient"
    SAME_KEY = "same_key"  # structurally a program seen before
    NOT_FINITE = "not_finite"  # overflows, divides by zero or leaves its domain on the probes
    SAME_BEHAVIOUR = "same_behaviour"  # does on the probes what a program seen before did
    SAME_UP_TO_RATE = "same_up_to_rate"  # does so but for one factor: the ladder has that program's learning rates
    UNBOUNDED_STATE = "unbounded_state"  # grows geometrically over simulated steps
    NO_DESCENT = "no_descent"  # does not go downhill on simulated quadratics; asked only if the search wants it
    NEW = "new"


class Identity(NamedTuple):
    """A program's structural key and behavioural fingerprints (empty if not needed), and what they say.

    `direction` is the fingerprint up to a learning-rate factor.
    """

    key: str
    fingerprint: str
    verdict: Verdict
    direction: str = ""


REASONS = {
    Verdict.IGNORES_GRADIENT: "the update does not depend on the gradient",
    Verdict.NOT_FINITE: "not finite on the probes: it overflows, divides by zero or leaves a domain",
    Verdict.UNBOUNDED_STATE: "its state grows geometrically over simulated steps",
    Verdict.NO_DESCENT: "its updates do not go downhill on simulated quadratics",
}


@dataclass
class DuplicateCache:
    """Programs seen so far, by structural key and by fingerprint, each mapped to the number it was added under.

    Attributes:
        check_descent: whether programs must go downhill on simulated quadratics.
        by_rate: whether programs that differ by a learning-rate factor count as one.
    """

    check_descent: bool = False
    by_rate: bool = True
    keys: dict[str, int] = field(default_factory=dict)
    fingerprints: dict[str, int] = field(default_factory=dict)
    directions: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)  # keys of programs that behave like one added before
    judged: dict[str, Verdict] = field(default_factory=dict)  # keys that need no second look

    def identify_all(self, programs: Sequence[Program], numbers: Sequence[int]) -> list[Identity]:
        """Judge several programs in order, and add each new one under its number before the next is judged.

        The same as one `identify` and `add` after the other, with the probes run for all at once.
        """
        unknown = {p.key: p for p in programs if depends_on_gradient(p) and not self._knows(p.key)}
        behaviours = dict(zip(unknown, behave_many(list(unknown.values())), strict=True))
        finite = {k: p for k, p in unknown.items() if behaviours[k].finite}
        exploding = dict(zip(finite, explode(list(finite.values())), strict=True))
        found = []
        for program, number in zip(programs, numbers, strict=True):
            identity = self._judge(program, behaviours, exploding)
            if identity.verdict is Verdict.NEW:
                self.add(identity, number)
            found.append(identity)
        return found

    def identify(self, program: Program) -> Identity:
        """Judge a program, cheapest check first. The verdict on a key is the same however often it is asked for."""
        if not depends_on_gradient(program) or self._knows(program.key):
            return self._judge(program, {}, {})
        behaviours = {program.key: behave_many([program])[0]}
        return self._judge(program, behaviours, {program.key: explode([program])[0]})

    def _knows(self, key: str) -> bool:
        return key in self.keys or key in self.judged

    def _twin(self, behaviour: Behaviour) -> Verdict | None:
        if behaviour.fingerprint in self.fingerprints:
            return Verdict.SAME_BEHAVIOUR
        if self.by_rate and behaviour.direction in self.directions:
            return Verdict.SAME_UP_TO_RATE
        return None

    def _judge(self, program: Program, behaviours: dict[str, Behaviour], exploding: dict[str, bool]) -> Identity:
        """The verdict, given what the probes showed of programs whose keys are not known."""
        if not depends_on_gradient(program):
            return Identity("", "", Verdict.IGNORES_GRADIENT)
        key = program.key
        if key in self.keys:
            return Identity(key, "", Verdict.SAME_KEY)
        if key in self.judged:
            return Identity(key, "", self.judged[key])
        behaviour = behaviours[key]
        # what a program does alone comes before what is known by then, for a resumed search must judge it as before
        if not behaviour.finite:
            self.judged[key] = Verdict.NOT_FINITE
        elif exploding[key]:
            self.judged[key] = Verdict.UNBOUNDED_STATE
        elif self.check_descent and not descends(program):
            self.judged[key] = Verdict.NO_DESCENT
        elif (twin := self._twin(behaviour)) is not None:
            self.judged[key] = twin
            same = self.fingerprints if twin is Verdict.SAME_BEHAVIOUR else self.directions
            self.aliases[key] = same[behaviour.fingerprint if twin is Verdict.SAME_BEHAVIOUR else behaviour.direction]
        return Identity(key, behaviour.fingerprint, self.judged.get(key, Verdict.NEW), behaviour.direction)

    def number(self, key: str) -> int:
        """The number under which a program with this key, or one that behaves like it, was added."""
        return self.keys[key] if key in self.keys else self.aliases[key]

    def add(self, identity: Identity, number: int) -> None:
        """Remember a program under `number`, so that later ones like it are recognised."""
        self.keys[identity.key] = number
        if identity.fingerprint:
            self.fingerprints[identity.fingerprint] = number
        if identity.direction:
            self.directions.setdefault(identity.direction, number)

    def restore(self, programs: Iterable[tuple[int, Program]]) -> None:
        """Remember programs that were added in an earlier session, in order of their numbers."""
        numbers, known = zip(*programs, strict=True) if (programs := list(programs)) else ((), ())
        for number, program, behaviour in zip(numbers, known, behave_many(known), strict=True):
            self.add(Identity(program.key, behaviour.fingerprint, Verdict.NEW, behaviour.direction), number)


def depends_on_gradient(program: Program) -> bool:
    """Whether the gradient reaches the update, structurally."""
    return "g" in program.live.names or any(s.init == "g" for s in program.live_state)


class Cached:
    """Wraps an evaluator so that no program is trained twice and none is trained that cannot work."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.cache = DuplicateCache(by_rate=False)  # its fitness would be right at another learning rate only
        self.known: list[Fitness] = []

    def __call__(self, programs: Sequence[Program], generation: int = 0) -> list[Fitness]:
        """Fitness of each program, in order; equal programs get equal fitness, that of the first time."""
        numbers: list[int] = []
        new: list[Program] = []
        rejected: dict[int, Fitness] = {}
        for position, program in enumerate(programs):
            identity = self.cache.identify(program)
            if identity.verdict in REASONS:
                rejected[position] = Fitness(math.inf, Status.DIVERGED, REASONS[identity.verdict])
                numbers.append(-1)
            elif identity.verdict is Verdict.NEW:
                numbers.append(len(self.known) + len(new))
                self.cache.add(identity, numbers[-1])
                new.append(program)
            else:
                numbers.append(self.cache.number(identity.key))
        self.known += self.evaluator(new, generation) if new else []
        return [rejected.get(i) or self.known[number] for i, number in enumerate(numbers)]
