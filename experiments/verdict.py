"""The answer of a comparison in a sentence or two."""

from __future__ import annotations

from collections.abc import Sequence

from baselines import BASELINES
from experiments.comparison import Entry, Protocol
from experiments.statistics import Pair, Verdict


def verdict_sentence(protocol: Protocol, entries: Sequence[Entry], pairs: Sequence[Pair]) -> str:
    """What was found about the subject of a comparison, with differences, intervals and caveats.

    The subject is the program in question: of the entries that are no baselines, the one with the lowest tuning loss,
    set beside the baselines if there are any. Tuning and reported runs have different seeds, so that being chosen
    does not flatter it. Among baselines only, the first is set beside the others.
    """
    subject, others = _subject(entries)
    seeds = len(protocol.seeds)
    name = subject.name
    if (candidates := sum(not _is_baseline(e) for e in entries)) > 1:
        name += f", best of {candidates} by tuning loss,"
    numbers = f"test loss {subject.mean:.4g}"
    if subject.accuracy is not None:
        numbers += f", accuracy {subject.accuracy:.1%}"
    opening = f"On {protocol.task.name}, {name} ({numbers})"
    if seeds == 1:
        beside = " beside " + _join([f"{e.name} ({e.mean:.4g})" for e in others]) if others else ""
        text = f"Single run: {opening[:1].lower()}{opening[1:]}{beside}; one seed cannot tell a difference from chance."
    elif not others:
        text = f"{opening} ran alone: there is nothing to compare it with."
    else:
        own = [pair.seen_from(subject.name) for pair in pairs if subject.name in (pair.first, pair.second)]
        beside = _clauses([pair for pair in own if pair.second in {e.name for e in others}])
        text = f"{opening} {beside} ({seeds} seeds, every optimizer tuned on the same learning rates)."
    return " ".join([text, *_caveats(entries, seeds)])


def _subject(entries: Sequence[Entry]) -> tuple[Entry, list[Entry]]:
    candidates = [e for e in entries if not _is_baseline(e)]
    subject = min(candidates, key=lambda e: e.tuning.loss) if candidates else entries[0]
    others = [e for e in entries if e is not subject]
    return subject, [e for e in others if _is_baseline(e)] or others


def _is_baseline(entry: Entry) -> bool:
    return any(entry.program == baseline.program for baseline in BASELINES.values())


def _clauses(pairs: Sequence[Pair]) -> str:
    words = {
        Verdict.BETTER: "is better than",
        Verdict.WORSE: "is worse than",
        Verdict.EQUIVALENT: "is equivalent to",
        Verdict.NO_DIFFERENCE: "is not shown to differ from",
    }
    groups = {v: [_with_interval(pair) for pair in pairs if pair.verdict is v] for v in words}
    return _join([f"{words[v]} {_join(group)}" for v, group in groups.items() if group])


def _with_interval(pair: Pair) -> str:
    shown = pair.seen_from(pair.second) if pair.verdict is Verdict.BETTER else pair
    i = shown.interval
    return f"{pair.second} (by {shown.difference:.3g}, {i.level:.0%} interval {i.low:.3g} to {i.high:.3g})"


def _caveats(entries: Sequence[Entry], seeds: int) -> list[str]:
    found = []
    if edges := [e.name for e in entries if e.edge]:
        found.append(f"The best learning rate of {_join(edges)} is on an end of the widened ladder: it may do better.")
    if failed := [f"{e.name} {e.diverged} of {seeds}" for e in entries if e.diverged]:
        found.append(f"Runs that failed, counted as the loss before training: {', '.join(failed)}.")
    return found


def _join(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
