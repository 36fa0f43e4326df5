"""What a search did so far, in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from optforge.search.duplicates.cache import Verdict


@dataclass
class Statistics:
    """What a search did so far, in numbers of programs."""

    verdicts: Counter[Verdict] = field(default_factory=Counter)
    trained: int = 0
    diverged: int = 0
    failed: int = 0  # the evaluation broke, which says nothing about the program
    failure: str = ""  # why, of the first
    statements: int = 0  # of trained programs
    dead: int = 0  # of these, without effect on the update

    @property
    def generated(self) -> int:
        """All programs made by mutation, trained or not."""
        return self.verdicts.total()

    @property
    def duplicates(self) -> int:
        """Programs recognised by key or by fingerprint."""
        return sum(self.verdicts[v] for v in (Verdict.SAME_KEY, Verdict.SAME_BEHAVIOUR, Verdict.SAME_UP_TO_RATE))

    @property
    def redundancy(self) -> float:
        """Share of the trained programs' statements that are without effect."""
        return self.dead / max(1, self.statements)

    def cache_hits(self, *, behavioural: bool = True) -> float:
        """Share of the programs that could have been trained which were recognised; by key alone, or by all means.

        By key alone, programs that only their behaviour gave away count as trained.
        """
        hits = self.duplicates if behavioural else self.verdicts[Verdict.SAME_KEY]
        return hits / max(1, self.duplicates + self.verdicts[Verdict.NEW])
