"""The pictures of searches and training runs, and of loss against memory; `experiments.report.plots` has the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from optforge.experiments.colours import COLOURS, DASHES, MARKERS
from optforge.experiments.compare.comparison import Comparison
from optforge.experiments.report.plots import Panel
from optforge.experiments.report.runs import Row, SearchRun
from optforge.search.duplicates.cache import Verdict

_VECTOR = 3000  # more points than that become a picture within the picture


def fitness_panel(run: SearchRun, ancestors: Sequence[Row]) -> Panel:
    """All scores over programs, the best so far, and the champion's ancestors."""
    top = _top(run)
    above = sum(row.score > top for row in run.finite)
    failed = len(run.rows) - len(run.finite)

    def draw(axes: Any) -> None:
        shown = [r for r in run.finite if r.score <= top]
        _dots(axes, [r.number + 1 for r in shown], [r.score for r in shown])
        _steps(axes, run, 0, "best so far")
        line = [r for r in ancestors if r.score <= top]
        axes.plot([r.number + 1 for r in line], [r.score for r in line], linestyle="--", linewidth=1.2, marker="o",
                  markersize=5, markerfacecolor="none", color=COLOURS[1], label="ancestors of the best")  # fmt: skip
        _finish(axes, "programs trained", "score (lower is better)", above=True)

    caption = "Score of every program (dots), the best so far, and the lineage of the best."
    caption += f" {above} programs with scores above {top:.3g} lie outside." if above else ""
    caption += f" {failed} could not be trained." if failed else ""
    return Panel("Fitness over programs", caption, draw)


def duplicates_panel(run: SearchRun) -> Panel:
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
    return Panel("Cache hits and redundancy", caption, draw)


def pareto_panel(run: SearchRun, front: Sequence[Row]) -> Panel:
    """Score against statements, with state as mark and colour."""
    top = _top(run)

    def draw(axes: Any) -> None:
        shown = [r for r in run.finite if r.score <= top]
        _dots(axes, [r.live for r in shown], [r.score for r in shown])
        sizes = sorted({r.state_bytes() for r in front if r.score <= top})
        for index, size in enumerate(sizes):
            rows = sorted((r for r in front if r.state_bytes() == size and r.score <= top), key=lambda r: r.live)
            axes.plot([r.live for r in rows], [r.score for r in rows], marker=MARKERS[index % len(MARKERS)],
                      markersize=8, linewidth=1.2, linestyle=":", color=COLOURS[index % len(COLOURS)],
                      label=f"{size:.4g} B of state")  # fmt: skip
        _finish(axes, "statements with effect", "score (lower is better)", above=True)

    caption = (
        "Programs that none other beats in one of score, state (bytes for each parameter) and statements without "
        "losing in another; all others are pale."
    )
    return Panel("Pareto front", caption, draw)


def controls_panel(runs: Sequence[tuple[str, SearchRun]], budget: int) -> Panel:
    """Best so far of several searches over candidate-steps; `budget` programs are what all of them have."""
    each = next((run.steps_each for _, run in runs), None)
    unit = f"candidate-steps (millions; {each:,} a program)" if each else "programs trained"
    scale = each / 1e6 if each else 1.0

    def draw(axes: Any) -> None:
        for index, (label, run) in enumerate(runs):
            _steps(axes, run, index, label, scale)
        if any(len(run.rows) != budget for _, run in runs):
            axes.axvline(budget * scale, color=axes.ink, linewidth=1, linestyle=":")
        _finish(axes, unit, "best score so far")

    caption = "Best score so far; steps are counted as allotted, with no rebate for runs that ended early."
    if any(len(run.rows) != budget for _, run in runs):
        caption += " The dotted line is the largest budget that all of them had."
    return Panel("Search and controls", caption, draw)


def memory_panel(comparison: Comparison) -> Panel:
    """Test loss against optimizer state."""

    def draw(axes: Any) -> None:
        for index, entry in enumerate(comparison.entries):
            low, high = entry.interval.low, entry.interval.high
            bars = None if math.isnan(low) else np.maximum([[entry.mean - low], [high - entry.mean]], 0)
            axes.errorbar(entry.state_bytes, entry.mean, yerr=bars, color=COLOURS[index % len(COLOURS)],
                          marker=MARKERS[index % len(MARKERS)], markersize=8, capsize=5, linewidth=2,
                          linestyle="none", label=_short(entry.name))  # fmt: skip
        best = sorted((e.state_bytes, e.mean) for e in comparison.entries)
        front = [(b, m) for i, (b, m) in enumerate(best) if all(m < other for _, other in best[:i])]
        axes.plot(*zip(*front, strict=True), color=axes.ink, linewidth=1, linestyle=":", zorder=0)
        axes.margins(x=0.2)
        _finish(axes, "optimizer state [bytes for each parameter]", f"test {comparison.protocol.task.metric}")

    return Panel(
        "Loss against memory",
        "Mean test loss with its interval; lower left is better, and the dotted line is the Pareto front.",
        draw,
    )


def training_panel(runs: Sequence[tuple[str, dict[str, Any]]]) -> Panel:
    """Training loss, smoothed, and validation loss of single runs."""

    def draw(axes: Any) -> None:
        for index, (label, found) in enumerate(runs):
            colour = COLOURS[index % len(COLOURS)]
            curve = np.array([math.nan if x is None else x for x in found["curve"]], dtype=float)
            width = max(1, len(curve) // 50)
            smooth = np.convolve(curve, np.ones(width) / width, mode="valid")
            steps = np.arange(width, len(curve) + 1)
            axes.plot(steps, smooth, color=colour, linewidth=1.2, alpha=0.75, label=f"{_short(label)}, training")
            valid = [(s, x) for s, x in found["valid_curve"] if x is not None]
            axes.plot([s for s, _ in valid], [x for _, x in valid], color=colour, linewidth=2, markersize=6,
                      marker=MARKERS[index % len(MARKERS)], label=f"{_short(label)}, validation")  # fmt: skip
        _finish(axes, "step", "loss")

    caption = "Loss of the batches, a moving mean over a fiftieth of the run, and validation loss."
    return Panel("Training", caption, draw)


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


def _steps(axes: Any, run: SearchRun, index: int, label: str, scale: float = 1.0) -> None:
    curve = run.best_so_far()
    x, y = [n * scale for n, _ in curve], [score for _, score in curve]
    axes.step([*x, len(run.rows) * scale], [*y, *y[-1:]], where="post", linewidth=2.2, label=_short(label),
              color=COLOURS[index % len(COLOURS)], linestyle=DASHES[index % len(DASHES)])  # fmt: skip


def _finish(axes: Any, x: str, y: str, above: bool = False) -> None:
    """Labels and a legend, which with `above` gets room over all points."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if above:
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.15 * (high - low))
    place: dict[str, Any] = (
        {"loc": "upper center", "ncols": 3, "columnspacing": 1.0, "handlelength": 1.4} if above else {}
    )
    axes.legend(frameon=False, fontsize=10, labelcolor=axes.ink, **place)


def _short(name: str, longest: int = 28) -> str:
    name = name.replace("$", r"\$")  # which would begin a formula
    return name if len(name) <= longest else "…" + name[1 - longest :]
