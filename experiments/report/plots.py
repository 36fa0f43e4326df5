"""The pictures of a comparison: one PNG for Markdown, and SVGs that follow a web page's light or dark theme."""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optforge.experiments.colours import COLOURS, DASHES, MARKERS
from optforge.experiments.compare.comparison import Comparison
from optforge.experiments.compare.measures import best_of
from optforge.experiments.programs.surfaces import SURFACES, Surface
from optforge.experiments.programs.trajectories import LADDER, Trajectory, drawable, heights, trajectory
from optforge.primitives import Program, ProgramError

_INK, _GRID = "#0A0B0C", "#0D0E0F"  # in SVGs, stand-ins for the page's colours
_SIZE = (4.7, 3.9)


@dataclass(frozen=True)
class Panel:
    """One picture: a title, what it shows in a sentence, and the function that draws it on axes."""

    title: str
    caption: str
    draw: Callable[[Any], None]


def panels(comparison: Comparison, search: dict[str, Any] | None = None) -> list[Panel]:
    """The pictures that a comparison (and the search before it, if any) has data for.

    `search["curve"]` is a list of (number of the program, best score so far); `search["references"]`, if
    there, maps names to scores that are drawn as lines.
    """
    protocol = comparison.protocol
    seeds = len(protocol.seeds)
    level = f"{1 - protocol.alpha:.0%}"
    watched = all(run.valid_curve for entry in comparison.entries for run in entry.runs)
    found = [
        Panel(
            "Final test loss",
            f"Mean and {level} interval over seeds; pale dots are single runs, crosses failed ones "
            "(counted as the loss before training)."
            if seeds > 1
            else "A single run each.",
            lambda ax: _draw_final(ax, comparison),
        ),
        Panel(
            "Learning-rate sensitivity",
            "Mean validation loss of the tuning runs, with their range; large marks are the tuned rates, "
            "crosses rates at which a run failed.",
            lambda ax: _draw_sensitivity(ax, comparison),
        ),
        Panel(
            "Validation loss" if watched else "Training loss",
            f"{'Validation loss' if watched else 'Loss of the batch'} as tuned, mean and range over the reported runs"
            + (", and the target." if watched and comparison.target is not None else "."),
            lambda ax: _draw_curves(ax, comparison, watched),
        ),
    ]
    if any(entry.tuning.trials for entry in comparison.entries):
        caption = "Lowest validation loss in tuning among the first k trials: what a smaller budget would have found."
        found.append(Panel("Best of k trials", caption, lambda ax: _draw_best_of(ax, comparison)))
    if search is not None and search.get("curve"):
        caption = "Best score among the programs evaluated so far; lower is better."
        found.append(Panel("Search", caption, lambda ax: _draw_search(ax, search, comparison)))
    return found


def png(shown: Sequence[Panel]) -> bytes:
    """All panels in one PNG, two abreast, on white."""
    columns = min(2, len(shown))
    rows = math.ceil(len(shown) / 2)
    figure = _figure((columns * _SIZE[0], rows * _SIZE[1]))
    for index, panel in enumerate(shown):
        axes = figure.add_subplot(rows, columns, index + 1)
        _dress(axes, "#222222", "#dddddd")
        axes.set_title(panel.title, loc="left", fontweight="bold", color="#222222")
        panel.draw(axes)
    return _save(figure, "png", "report", dpi=130, facecolor="white")


def svg(panel: Panel) -> str:
    """One panel as a transparent SVG element in the page's colours: ``--ink``, ``--grid``, ``--c0``, …"""
    figure = _figure(_SIZE)
    axes = figure.add_subplot()
    _dress(axes, _INK, _GRID)
    panel.draw(axes)
    text = _save(figure, "svg", panel.title, transparent=True, metadata={"Date": None}).decode()
    prefix = "".join(c for c in panel.title.lower() if c.isalpha())
    colours = [(colour, f"var(--c{index})") for index, colour in enumerate(COLOURS)]
    text = re.sub("#[0-9a-f]{6}", lambda found: found[0].upper(), text)
    for old, new in (*colours, (_INK, "var(--ink)"), (_GRID, "var(--grid)"), (' id="', f' id="{prefix}-')):
        text = text.replace(old, new)
    text = text.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    return text[text.index("<svg") :]


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="tight")  # twice as fast as "constrained"


def _save(figure: Any, kind: str, salt: str, **options: Any) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def _dress(axes: Any, ink: str, grid: str) -> None:
    axes.set_facecolor("none")
    axes.tick_params(colors=ink, which="both", labelsize=10)
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set_color(ink)
        part.set_size(11)
    for side, spine in axes.spines.items():
        spine.set_color(ink)
        spine.set_visible(side in ("left", "bottom"))
    axes.grid(True, color=grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.ink = ink


def _style(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
    }


def _legend(axes: Any, columns: int = 2) -> None:
    """Below the axes, where no curve can be."""
    axes.legend(loc="upper left", bbox_to_anchor=(-0.05, -0.17), ncols=columns, frameon=False, fontsize=10,
                labelcolor=axes.ink, borderaxespad=0, columnspacing=1.2)  # fmt: skip


def _log_ticks(axis: Any, subs: Sequence[float] = (1.0,), label: Callable[[float], str] = "{:g}".format) -> None:
    """Ticks at `subs` of each decade. Labels without TeX and no minor ticks: these take most of the time of a plot."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axis.set_minor_locator(NullLocator())


def _power(value: float) -> str:
    return "10" + f"{round(math.log10(value))}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _log_if_positive(axes: Any, lowest: float) -> None:
    if lowest > 0:
        axes.set_yscale("log")
        _log_ticks(axes.yaxis, (1.0, 2.0, 5.0))


def _draw_final(axes: Any, comparison: Comparison) -> None:
    order = sorted(range(len(comparison.entries)), key=lambda i: comparison.entries[i].mean, reverse=True)
    for row, index in enumerate(order):
        entry, style = comparison.entries[index], _style(index)
        counted = np.array([run.counted for run in entry.runs])
        spread = np.linspace(-0.22, 0.22, len(counted)) if len(counted) > 1 else np.zeros(1)
        failed = np.array([run.failed for run in entry.runs])
        axes.scatter(counted[~failed], (row + spread)[~failed], s=16, color=style["color"], alpha=0.45, linewidths=0)
        axes.scatter(counted[failed], (row + spread)[failed], s=36, color=style["color"], marker="x")
        bounds = [[entry.mean - entry.interval.low], [entry.interval.high - entry.mean]]
        error = None if math.isnan(entry.interval.low) else np.maximum(bounds, 0)
        axes.errorbar(entry.mean, row, xerr=error, color=style["color"], marker=style["marker"],
                      markersize=7, capsize=5, linewidth=2.2, linestyle="none")  # fmt: skip
    axes.set_yticks(range(len(order)), [_short(comparison.entries[i].name) for i in order])
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlabel(f"test {comparison.protocol.task.metric}")
    axes.grid(False, axis="y")


def _draw_sensitivity(axes: Any, comparison: Comparison) -> None:
    lowest = math.inf
    for index, entry in enumerate(comparison.entries):
        style, tuning = _style(index), entry.tuning
        rates, counted = np.array(tuning.rates), np.array(tuning.counted)
        failed = np.array(tuning.failed).any(axis=1)
        mean = counted.mean(axis=1)
        lowest = min(lowest, float(counted.min()))
        axes.plot(rates, mean, **style, markersize=3.5, linewidth=1.8, label=_short(entry.name))
        axes.fill_between(
            rates, counted.min(axis=1), counted.max(axis=1), color=style["color"], alpha=0.15, linewidth=0
        )
        axes.plot(rates[failed], mean[failed], "x", color=style["color"], markersize=7)
        best = tuning.rates.index(tuning.lr)
        axes.plot(rates[best], mean[best], style["marker"], color=style["color"], markersize=11,
                  markeredgecolor=axes.ink, markeredgewidth=1.2)  # fmt: skip
    axes.set_xscale("log")
    _log_ticks(axes.xaxis, label=_power)
    _log_if_positive(axes, lowest)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("validation loss")
    _legend(axes)


def _draw_curves(axes: Any, comparison: Comparison, watched: bool) -> None:
    lowest = math.inf
    for index, entry in enumerate(comparison.entries):
        style = _style(index)
        curves = np.array([run.valid_curve if watched else run.curve for run in entry.runs if not run.failed])
        if not curves.size:
            continue
        steps = np.arange(1, curves.shape[1] + 1) * comparison.protocol.steps / curves.shape[1]
        lowest = min(lowest, float(curves.min()))
        axes.plot(steps, curves.mean(axis=0), **style, markersize=3.5, linewidth=1.8, label=_short(entry.name))
        axes.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=style["color"], alpha=0.15, linewidth=0)
    if not math.isfinite(lowest):
        axes.text(0.5, 0.5, "every run failed", ha="center", color=axes.ink, transform=axes.transAxes)
        return
    if watched and comparison.target is not None:
        axes.axhline(comparison.target, color=axes.ink, linestyle=":", linewidth=1)
    _log_if_positive(axes, lowest)
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss" if watched else "training loss")
    _legend(axes)


def _draw_best_of(axes: Any, comparison: Comparison) -> None:
    lowest = math.inf
    for index, entry in enumerate(comparison.entries):
        if entry.tuning.trials:
            best = best_of([trial.loss for trial in entry.tuning.trials])
            lowest = min(lowest, best[-1])
            style = _style(index) | {"markevery": [2**k - 1 for k in range(len(best).bit_length())]}
            axes.step(
                range(1, len(best) + 1),
                best,
                **style,
                where="post",
                markersize=5,
                linewidth=1.8,
                label=_short(entry.name),
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _log_if_positive(axes, lowest)
    axes.set_xlabel("trials")
    axes.set_ylabel("best validation loss in tuning")
    _legend(axes)


def profile_panel(profiles: dict[str, list[float]], problems: int) -> Panel:
    """Shares of problems on which each optimizer is within a factor of the best; see `compare.measures.profile`.

    Of so many `problems`, those that the profiles do not have are counted in the caption.
    """

    def draw(axes: Any) -> None:
        most = max(ratios[-1] for ratios in profiles.values())
        end = min(max(most * 1.02, 1.05), 100.0)
        for index, (name, ratios) in enumerate(profiles.items()):
            style = _style(index) | {"marker": None}
            shares = np.arange(1, len(ratios) + 1) / len(ratios)
            axes.step([1, *ratios, end], [0, *shares, shares[-1]], where="post", **style, linewidth=2,
                      label=_short(name))  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(1, end)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("within this factor of the best test loss")
        axes.set_ylabel("share of problems")
        _log_ticks(axes.xaxis, (1.0, 2.0, 5.0) if end > 5 else (1.0, 1.2, 1.5, 2.0, 3.0))
        _legend(axes)

    caption = "A problem is a task, a horizon and a seed; higher is better. Runs that failed count as before training."
    if left := problems - min(map(len, profiles.values())):
        caption += f" Left out: {left} of {problems} problems, where a loss is not positive and ratios mean nothing."
    return Panel("Performance profile", caption, draw)


def trajectory_panels(programs: Sequence[tuple[str, Program]]) -> list[Panel]:
    """Paths of the first `_MOST_PATHS` programs on two surfaces, as `optforge trajectories` draws them.

    Programs are left out that are large or cannot be run on two numbers; without any other there is no panel.
    """
    small = [p for p in enumerate(programs) if len(p[1][1].live.instructions) <= _LARGE][:_MOST_PATHS]
    return [panel for name in _SURFACES if (panel := _trajectory_panel(SURFACES[name], small))]


def _trajectory_panel(surface: Surface, programs: Sequence[tuple[int, tuple[str, Program]]]) -> Panel | None:
    paths: list[tuple[int, Trajectory]] = []
    for index, (name, program) in programs:
        with contextlib.suppress(ProgramError, RuntimeError), np.errstate(all="ignore"):
            paths.append((index, trajectory(name, program, surface)))
    if not paths:
        return None

    def draw(axes: Any) -> None:
        x, y, height, levels = heights(surface, 80, 10)
        axes.contour(x, y, height, levels, colors=axes.ink, linewidths=0.6, alpha=0.25)
        for index, path in paths:
            label = f"{_short(path.name)}, lr {path.lr:.2g}".replace("$", r"\$")
            axes.plot(*drawable(path.points, surface).T, **_style(index), linewidth=1.6, markersize=4, label=label,
                      markevery=max(1, surface.steps // 20))  # fmt: skip
        axes.plot(*surface.start, "o", markersize=9, color=axes.ink, markerfacecolor="none", label="start")
        axes.plot(*zip(*surface.minima, strict=True), "*", markersize=13, color=axes.ink, label="minimum",
                  linestyle="none")  # fmt: skip
        axes.set_xlim(*surface.frame[:2])
        axes.set_ylim(*surface.frame[2:])
        axes.grid(False)
        _legend(axes, columns=1 if any(len(path.name) > 14 for _, path in paths) else 2)

    caption = f"{surface.steps} steps in the plane, each program at the best of {len(LADDER)} rates, with its defaults."
    if any(path.fallback for _, path in paths):
        caption += " What needs a matrix follows its fallback."
    return Panel(f"Paths: {surface.name}", caption, draw)


_SURFACES, _MOST_PATHS, _LARGE = ("rosenbrock", "saddle"), 5, 60  # together they take less than two seconds


def _draw_search(axes: Any, search: dict[str, Any], comparison: Comparison) -> None:
    points = [(n, score) for n, score in search["curve"] if score is not None and math.isfinite(score)]
    if points:
        numbers, scores = zip(*points, strict=True)
        last = max(search.get("programs", 0), *numbers)
        axes.step([*numbers, last], [*scores, scores[-1]], where="post", color=axes.ink, linewidth=2.2,
                  label="best so far")  # fmt: skip
    names = [entry.name for entry in comparison.entries]
    for index, (name, score) in enumerate(search.get("references", {}).items()):
        style = _style(names.index(name) if name in names else len(names) + index)
        axes.axhline(score, color=style["color"], linestyle=DASHES[1 + index % 4], linewidth=1.6, label=_short(name))
    axes.set_xlabel("programs evaluated")
    axes.set_ylabel("score of the search")
    _legend(axes)


def _short(name: str, longest: int = 24) -> str:
    return name if len(name) <= longest else "…" + name[1 - longest :]
