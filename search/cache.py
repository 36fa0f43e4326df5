"""Recognise programs that need no training: duplicates, and programs that cannot work."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from primitives import Program
from primitives.fingerprint import Behaviour, behave, behave_many
from search.fitness import Evaluator, Fitness, Status


class Verdict(enum.StrEnum):
    """What can be said of a program before training it, in the order in which it is found out."""

    SAME_KEY = "same_key"  # structurally a program seen before
    IGNORES_GRADIENT = "ignores_gradient"
    NOT_FINITE = "not_finite"  # overflows, divides by zero or leaves its domain on the probes
    SAME_BEHAVIOUR = "same_behaviour"  # does on the probes what a program seen before did
    NEW = "new"


class Identity(NamedTuple):
    """A program's structural key and behavioural fingerprint (empty if it was not needed), and what they say."""

    key: str
    fingerprint: str
    verdict: Verdict


REASONS = {
    Verdict.IGNORES_GRADIENT: "the update does not depend on the gradient",
    Verdict.NOT_FINITE: "not finite on the probes: it overflows, divides by zero or leaves a domain",
}


@dataclass
class DuplicateCache:
    """Programs seen so far, by structural key and by fingerprint, each mapped to the number it was added under."""

    keys: dict[str, int] = field(default_factory=dict)
    fingerprints: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)  # keys of programs that behave like one added before
    judged: dict[str, Verdict] = field(default_factory=dict)  # keys that need no second look

    def identify_all(self, programs: Sequence[Program], numbers: Sequence[int]) -> list[Identity]:
        """Judge several programs in order, and add each new one under its number before the next is judged.

        The same as one `identify` and `add` after the other, with the probes run for all at once.
        """
        unknown = {p.key: p for p in programs if p.key not in self.keys and p.key not in self.judged}
        tried = {key: p for key, p in unknown.items() if depends_on_gradient(p)}
        behaviours = dict(zip(tried, behave_many(list(tried.values())), strict=True))
        found = []
        for program, number in zip(programs, numbers, strict=True):
            identity = self.identify(program, behaviours.get(program.key))
            if identity.verdict is Verdict.NEW:
                self.add(identity, number)
            found.append(identity)
        return found

    def identify(self, program: Program, behaviour: Behaviour | None = None) -> Identity:
        """Judge a program, cheapest check first. The verdict on a key is the same however often it is asked for."""
        key = program.key
        if key in self.keys:
            return Identity(key, "", Verdict.SAME_KEY)
        if key in self.judged:
            return Identity(key, "", self.judged[key])
        if not depends_on_gradient(program):
            self.judged[key] = Verdict.IGNORES_GRADIENT
            return Identity(key, "", Verdict.IGNORES_GRADIENT)
        behaviour = behaviour or behave(program)
        if not behaviour.finite:
            self.judged[key] = Verdict.NOT_FINITE
        elif behaviour.fingerprint in self.fingerprints:
            self.judged[key] = Verdict.SAME_BEHAVIOUR
            self.aliases[key] = self.fingerprints[behaviour.fingerprint]
        return Identity(key, behaviour.fingerprint, self.judged.get(key, Verdict.NEW))

    def number(self, key: str) -> int:
        """The number under which a program with this key, or one that behaves like it, was added."""
        return self.keys[key] if key in self.keys else self.aliases[key]

    def add(self, identity: Identity, number: int) -> None:
        """Remember a program under `number`, so that later ones like it are recognised."""
        self.keys[identity.key] = number
        if identity.fingerprint:
            self.fingerprints[identity.fingerprint] = number


def depends_on_gradient(program: Program) -> bool:
    """Whether the gradient reaches the update, structurally."""
    return "g" in program.live.names or any(s.init == "g" for s in program.live_state)


class Cached:
    """Wraps an evaluator so that no program is trained twice and none is trained that cannot work."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.cache = DuplicateCache()
        self.known: list[Fitness] = []

    def __call__(self, programs: Sequence[Program]) -> list[Fitness]:
        """Fitness of each program, in order; equal programs get equal fitness."""
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
        self.known += self.evaluator(new) if new else []
        return [rejected.get(i) or self.known[number] for i, number in enumerate(numbers)]
