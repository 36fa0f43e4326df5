"""What searches look like: scores over programs, the Pareto front, duplicates, controls, and unseen tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optforge.experiments.colours import COLOURS, DASHES, MARKERS, short_label
from optforge.experiments.report.document import Figure
from optforge.experiments.report.runs import SearchRun, bytes_of_state
from optforge.search.duplicates.cache import Verdict
from optforge.search.ledger import Summary

_VECTOR = 3000  # more points than that become a picture within the picture


def scores_figure(run: SearchRun, ancestors: Sequence[Summary]) -> Figure:
    """All scores over programs, the best so far, and the champion's ancestors."""
    top = _top(run)
    above = sum(row.score > top for row in run.finite)
    failed = len(run.rows) - len(run.finite)

    def draw(axes: Any) -> None:
        shown = [r for r in run.finite if r.score <= top]
        _dots(axes, [r.number + 1 for r in shown], [r.score for r in shown])
        _best_so_far(axes, run, 0, "best so far")
        line = [r for r in ancestors if r.score <= top]
        axes.plot([r.number + 1 for r in line], [r.score for r in line], linestyle="--", linewidth=1.2, marker="o",
                  markersize=5, markerfacecolor="none", color=COLOURS[1], label="ancestors of the best")  # fmt: skip
        _finish(axes, "programs trained", "score (lower is better)", above=True)

    caption = (
        "Score of every program (dots), the best so far, and the lineage of the best. A score is the mean log ratio "
    )
    caption += "to AdamW's loss, each at its own best learning rate: 0 is as good as AdamW."
    caption += f" {above} programs with scores above {top:.3g} lie outside." if above else ""
    caption += f" {failed} could not be trained." if failed else ""
    return Figure("Fitness over programs", caption, draw)


def pareto_figure(run: SearchRun, front: Sequence[Summary]) -> Figure:
    """Score against statements, with state as mark and colour."""
    top = _top(run)

    def draw(axes: Any) -> None:
        shown = [r for r in run.finite if r.score <= top]
        _dots(axes, [r.live for r in shown], [r.score for r in shown])
        by_size: dict[float, list[Summary]] = {}
        for row in sorted((r for r in front if r.score <= top), key=lambda r: (bytes_of_state(r), r.live)):
            by_size.setdefault(bytes_of_state(row), []).append(row)
        for index, (size, rows) in enumerate(by_size.items()):
            axes.plot([r.live for r in rows], [r.score for r in rows], marker=MARKERS[index % len(MARKERS)],
                      markersize=8, linewidth=1.2, linestyle=":", color=COLOURS[index % len(COLOURS)],
                      label=f"{size:.4g} B of state")  # fmt: skip
        _finish(axes, "statements with effect", "score (lower is better)", above=True)

    caption = "Programs that none other beats in one of score, state (bytes per parameter) and statements without "
    return Figure("Pareto front", caption + "losing in another; all others are pale.", draw)


def duplicates_figure(run: SearchRun) -> Figure:
    """Cache hits and redundant statements, both up to then."""

    def draw(axes: Any) -> None:
        trained = np.cumsum([size for size, _ in run.batches])
        count = {v: np.cumsum([by[v] for _, by in run.batches]) for v in Verdict}
        key = count[Verdict.SAME_KEY]
        known = key + count[Verdict.SAME_BEHAVIOUR] + count[Verdict.SAME_UP_TO_RATE]
        offered = np.maximum(1, known + count[Verdict.NEW])
        body = np.cumsum([r.statements for r in run.rows])
        dead = np.cumsum([r.statements - r.live for r in run.rows])
        at = np.minimum(trained, len(body)) - 1
        curves = {
            "cache hits, key and behaviour": known / offered,
            "cache hits, key only": key / offered,
            "redundant statements": dead[at] / np.maximum(1, body[at]),
        }
        for index, (label, curve) in enumerate(curves.items()):
            axes.plot(trained, 100 * curve, color=COLOURS[index], linestyle=DASHES[index], linewidth=2, label=label)
        axes.set_ylim(0, None)
        _finish(axes, "programs trained", "share so far [%]")

    caption = (
        "Share of the programs offered for training that had been trained already, recognised by structure or by "
        "behaviour, and share of the statements of trained programs that are without effect."
    )
    return Figure("Cache hits and redundancy", caption, draw)


def controls_figure(runs: Sequence[tuple[str, SearchRun]], budget: int) -> Figure:
    """Best so far of several searches over candidate-steps; `budget` programs are what all of them have."""
    each = next((run.steps_each for _, run in runs), None)
    unit = f"candidate-steps (millions; {each:,} per program)" if each else "programs trained"
    scale = each / 1e6 if each else 1.0
    unequal = any(len(run.rows) != budget for _, run in runs)

    def draw(axes: Any) -> None:
        for index, (label, run) in enumerate(runs):
            _best_so_far(axes, run, index, label, scale)
        if unequal:
            axes.axvline(budget * scale, color=axes.ink, linewidth=1, linestyle=":")
        _finish(axes, unit, "best score so far")

    caption = "Best score so far; steps are counted as allotted, with no rebate for runs that ended early."
    caption += " The dotted line is the largest budget that all of them had." if unequal else ""
    return Figure("Search and controls", caption, draw)


def unseen_tasks_figure(funnel: Mapping[str, Any]) -> Figure:
    """The search's own score and meta-validation over a search; `funnel` is the content of ``funnel.json``."""
    curve = funnel["curve"]

    def draw(axes: Any) -> None:
        trained = [row["trained"] for row in curve]
        axes.step(trained, [row["proxy"] for row in curve], where="post", color=axes.ink, linewidth=2.2,
                  label="score of the search (left)")  # fmt: skip
        axes.set_xlabel("programs trained")
        axes.set_ylabel("best score of the search")
        other = axes.twinx()
        other.tick_params(colors=axes.ink)
        other.set_ylabel("log ratio to AdamW's loss [nats]", color=axes.ink)
        other.set_facecolor("none")
        other.plot(trained, [row["meta"] for row in curve], color=COLOURS[0], marker="o", markersize=4,
                   label="unseen tasks (right)")  # fmt: skip
        if all(row["low"] is not None for row in curve):
            low, high = ([row[end] for row in curve] for end in ("low", "high"))
            other.fill_between(trained, low, high, color=COLOURS[0], alpha=0.15, linewidth=0)
        other.axhline(0.0, color=COLOURS[0], linestyle=":", linewidth=1.2, label="AdamW (right)")
        if funnel["overfitting"] is not None:
            other.axvline(funnel["overfitting"], color=COLOURS[1], linestyle="--", label="meta-overfitting from here")
        handles = [line for side in (axes, other) for line in side.get_legend_handles_labels()[0]]
        axes.legend(handles, [line.get_label() for line in handles], frameon=False, fontsize=9, labelcolor=axes.ink)

    caption = (
        "The best program so far by the search's own score (left axis), and the same program on tasks that the search "
        "never saw, with its 95% interval over seeds (right axis; below 0 is better than tuned AdamW)."
    )
    return Figure("Meta-validation", caption, draw)


def _top(run: SearchRun) -> float:
    """Up to which score programs are drawn: half of them at least, and the start."""
    scores = [r.score for r in run.finite]
    low, shown = scores[0], max(scores[len(scores) // 2], min(run.rows[0].score, scores[-1]))
    return min(scores[-1], low + 1.5 * (shown - low)) if shown > low else scores[-1]


def _dots(axes: Any, x: Sequence[float], y: Sequence[float]) -> None:
    many = len(x) > _VECTOR
    if many:
        axes.get_figure().set_dpi(200)
    axes.scatter(x, y, s=7, color="#808890", alpha=0.45, linewidths=0, rasterized=many)


def _best_so_far(axes: Any, run: SearchRun, index: int, label: str, scale: float = 1.0) -> None:
    curve = run.best_so_far()
    x, y = [n * scale for n, _ in curve], [score for _, score in curve]
    axes.step([*x, len(run.rows) * scale], [*y, *y[-1:]], where="post", linewidth=2.2, label=short_label(label),
              color=COLOURS[index % len(COLOURS)], linestyle=DASHES[index % len(DASHES)])  # fmt: skip


def _finish(axes: Any, x: str, y: str, above: bool = False) -> None:
    """Labels and a legend, which with `above` gets room over all points."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    place: dict[str, Any] = {}
    if above:
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.15 * (high - low))
        place = {"loc": "upper center", "ncols": 3, "columnspacing": 1.0, "handlelength": 1.4}
    axes.legend(frameon=False, fontsize=10, labelcolor=axes.ink, **place)
