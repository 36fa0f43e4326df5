"""The answer of a comparison in a sentence or two."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optforge.experiments.compare.comparison import Comparison, Entry, Protocol
from optforge.experiments.compare.measures import FLOOR, POWER
from optforge.experiments.compare.spaces import RATE
from optforge.experiments.compare.statistics import Pair, Verdict

CONTROL = "random control"
"""Name of the random program that is compared as a control; it is nobody's candidate."""

MANY = 6
"""With more tasks and horizons than these, a sentence counts them; which they are is in the tables."""


def task_label(comparison: Comparison) -> str:
    """The task of a comparison, with the horizon if it is not the task's own: ``digits``, ``digits ×4``."""
    protocol = comparison.protocol
    return protocol.task.name + (f" ×{protocol.horizon:g}" if protocol.horizon != 1 else "")


def tuned_dimensions(protocol: Protocol, entries: Sequence[Entry]) -> str:
    """In how many dimensions optimizers were tuned, with those of a control that has fewer."""
    fewer = {e.name: len(e.tuning.space) for e in entries if 0 < len(e.tuning.space) < protocol.dimensions}
    named = "".join(f", {name} in {count}" for name, count in fewer.items())
    return f"{protocol.dimensions} dimension{'s' * (protocol.dimensions > 1)}{named}"


def verdict_sentence(protocol: Protocol, entries: Sequence[Entry], pairs: Sequence[Pair]) -> str:
    """What was found about the subject of a comparison, with differences, intervals and caveats.

    The subject is the program in question: of the entries that are no references, the one with the lowest tuning loss,
    set beside the references if there are any. Tuning and reported runs have different seeds, so that being chosen
    does not flatter it. Among references only, the first is set beside the others.
    """
    subject, others = _subject(entries)
    seeds = len(protocol.seeds)
    name = subject.name
    if (candidates := sum(not e.reference for e in entries)) > 1:
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
        text = f"{opening} {beside} ({seeds} seeds, every optimizer tuned {_budget(protocol, entries)})."
    return " ".join([text, *_caveats(entries, seeds)])


def contest_sentence(comparisons: Sequence[Comparison]) -> str:
    """What was found on several tasks or horizons: what the subject is on each, seen from every other optimizer.

    On one alone it is that comparison's own sentence. A result that was not shown is followed by the difference that
    would have been: the promise that the numbers of seeds and the spread between them allow.
    """
    first = comparisons[0]
    if len(comparisons) == 1 or len(first.protocol.seeds) == 1:
        one, beside = _subject(first.entries)
        promise = _promise(comparisons, one.name, [e.name for e in beside])
        return " ".join([*(c.verdict for c in comparisons), *promise])
    candidates = [e.name for e in first.entries if not e.reference]
    subject = subject_name(comparisons)
    names = [e.name for e in first.entries if e.name not in candidates] if candidates else []
    others = names or [e.name for e in first.entries if e.name != subject]
    if not others:
        return " ".join(c.verdict for c in comparisons)
    horizons = len({c.protocol.horizon for c in comparisons})
    tasks = len({c.protocol.task.name for c in comparisons})
    over = f"{tasks} task{'s' * (tasks > 1)}" + f" and {horizons} horizons" * (horizons > 1)
    clauses = []
    for other in others:
        groups: dict[Verdict, list[tuple[Comparison, Pair]]] = {}
        for c in comparisons:
            pair = next(p for p in c.pairs if {p.first, p.second} == {subject, other}).seen_from(subject)
            groups.setdefault(pair.verdict, []).append((c, pair))
        said = [f"{v.value} on {_places(groups[v], len(comparisons))}" for v in _WORDS if v in groups]
        clauses.append(f"against {other} {', '.join(said)}")
    best = f", best of {len(candidates)} by tuning loss," if len(candidates) > 1 else ""
    lead = f"Over {over}, {subject}{best} is {'; '.join(clauses)}"
    budget = _budget(first.protocol, [e for c in comparisons for e in c.entries])
    text = (
        f"{lead} ({len(first.protocol.seeds)} seeds, every optimizer tuned {budget}; shares of the other's test loss)."
    )
    return " ".join([text, *_promise(comparisons, subject, others), *_edges(comparisons)])


def subject_name(comparisons: Sequence[Comparison]) -> str:
    """The program in question: of those that are no references the one that tuned best, or else the first."""
    entries = comparisons[0].entries
    candidates = [e.name for e in entries if not e.reference] or [entries[0].name]
    return min(candidates, key=lambda name: sum(_rank(c, name) for c in comparisons))


def _rank(comparison: Comparison, name: str) -> int:
    """How many optimizers tuned better; what choosing between candidates may look at."""
    own = comparison.entry(name).tuning.loss
    return sum(e.tuning.loss < own for e in comparison.entries)


def _share(comparison: Comparison, name: str, difference: float) -> float:
    """A difference as a share of an optimizer's mean loss; infinite where that is as good as solved."""
    entry = comparison.entry(name)
    start = sum(abs(run.start) for run in entry.runs) / len(entry.runs)
    return difference / entry.mean if entry.mean > FLOOR * start else math.inf


def _relative(comparison: Comparison, pair: Pair) -> str:
    share = _share(comparison, pair.second, pair.difference)
    if not math.isfinite(share):
        return f"by {pair.difference:+.3g}"
    return f"{share:+.1%}" if share <= 1 else f"{1 + share:.3g} times"


def _places(found: Sequence[tuple[Comparison, Pair]], total: int) -> str:
    """Where something was found, with each difference; if there are many, how often, with the least and the largest."""
    if total <= MANY:
        return _join([f"{task_label(c)} ({_relative(c, pair)})" for c, pair in found])
    shares = sorted(found, key=lambda x: _share(x[0], x[1].second, x[1].difference))
    ends = list(dict.fromkeys(_relative(c, pair) for c, pair in (shares[0], shares[-1])))
    return f"{len(found)} of {total} ({' to '.join(ends)})"


def _promise(comparisons: Sequence[Comparison], subject: str, others: Sequence[str]) -> list[str]:
    """What would have been found where nothing was, of the pairs that the verdict speaks of."""
    told = [{subject, other} for other in others]
    pairs = [(c, p) for c in comparisons for p in c.pairs if {p.first, p.second} in told]
    unknown = [(c, p) for c, p in pairs if p.verdict is Verdict.NO_DIFFERENCE]
    shares = sorted(x for c, p in unknown if math.isfinite(x := _share(c, p.second, p.detectable)))
    if not shares:
        return []
    low, high = (f"{x:.1%}" if x < 1 else "100% or more" for x in (shares[0], shares[-1]))
    size = low if low == high else f"{low} to {high}, by pair,"
    promise = f"Where no difference is shown, one of {size} would have been found with a chance of {POWER:.0%}"
    both_failed = any(math.isnan(p.detectable) for _, p in unknown)
    return [promise + "; nothing is promised of pairs that both failed on a seed" * both_failed + "."]


def _edges(comparisons: Sequence[Comparison]) -> list[str]:
    edges = [f"{_at_edge(e)} of {e.name} on {task_label(c)}" for c in comparisons for e in c.entries if e.edge]
    if len(comparisons) > MANY:
        names, runs = [e.name for e in comparisons[0].entries], len(comparisons) * len(comparisons[0].protocol.seeds)
        counts = {name: sum(c.entry(name).diverged for c in comparisons) for name in names}
        failed = [f"{name} {count} of {runs}" for name, count in counts.items() if count]
    else:
        failed = [f"{e.name} on {task_label(c)} {e.diverged}" for c in comparisons for e in c.entries if e.diverged]
    found = []
    if edges:
        found.append(f"At the boundary of their widened ranges, and so possibly better than shown: {', '.join(edges)}.")
    if failed:
        found.append(f"Runs that failed, counted as the loss before training: {', '.join(failed)}.")
    return found


def _budget(protocol: Protocol, entries: Sequence[Entry]) -> str:
    if not protocol.trials:
        return "on the same learning rates"
    counts = sorted({len(e.tuning.trials) for e in entries})
    return f"with {'/'.join(map(str, counts))} trials in {tuned_dimensions(protocol, entries)}"


def _subject(entries: Sequence[Entry]) -> tuple[Entry, list[Entry]]:
    candidates = [e for e in entries if not e.reference]
    subject = min(candidates, key=lambda e: e.tuning.loss) if candidates else entries[0]
    others = [e for e in entries if e is not subject]
    return subject, [e for e in others if e.reference] or others


_WORDS = {
    Verdict.BETTER: "is better than",
    Verdict.WORSE: "is worse than",
    Verdict.EQUIVALENT: "is equivalent to",
    Verdict.NO_DIFFERENCE: "is not shown to differ from",
}


def _clauses(pairs: Sequence[Pair]) -> str:
    groups = {v: [_with_interval(pair) for pair in pairs if pair.verdict is v] for v in _WORDS}
    return _join([f"{_WORDS[v]} {_join(group)}" for v, group in groups.items() if group])


def _with_interval(pair: Pair) -> str:
    shown = pair.seen_from(pair.second) if pair.verdict is Verdict.BETTER else pair
    i = shown.interval
    return f"{pair.second} (by {shown.difference:.3g}, {i.level:.0%} interval {i.low:.3g} to {i.high:.3g})"


def _caveats(entries: Sequence[Entry], seeds: int) -> list[str]:
    found = []
    where = "ranges" if entries[0].tuning.trials else "learning-rate grid"
    if edges := [f"{_at_edge(e)} of {e.name}" for e in entries if e.edge]:
        found.append(f"The best {_join(edges)} lies at the boundary of the widened {where}: it may do better.")
    if failed := [f"{e.name} {e.diverged} of {seeds}" for e in entries if e.diverged]:
        found.append(f"Runs that failed, counted as the loss before training: {', '.join(failed)}.")
    return found


def _at_edge(entry: Entry) -> str:
    """Which quantities it is that lie at an edge, so far as that is known."""
    names = ["learning rate" if name == RATE else name for name in entry.tuning.edges]
    return _join(names) if names else "configuration" if entry.tuning.trials else "learning rate"


def _join(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
