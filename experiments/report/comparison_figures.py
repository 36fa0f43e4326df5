"""What a comparison looks like: final losses, learning-rate sensitivity, curves, tuning budgets, memory, profiles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from optforge.experiments.colours import curve_style, short_label
from optforge.experiments.compare.comparison import Comparison, Entry
from optforge.experiments.compare.measures import best_of
from optforge.experiments.report.document import Figure
from optforge.experiments.report.drawing import legend_below, log_if_positive, log_ticks, power_of_ten
from optforge.search.evolution.archive import pareto


def comparison_figures(comparison: Comparison) -> tuple[Figure, ...]:
    """The pictures that a comparison on one task has data for."""
    found = [_final_loss(comparison), _sensitivity(comparison), _curves(comparison)]
    if any(entry.tuning.trials for entry in comparison.entries):
        found.append(_best_of_k(comparison))
    return (*found, _memory(comparison))


def profile_figure(profiles: dict[str, list[float]], problems: int) -> Figure:
    """Shares of problems on which each optimizer is within a factor of the best; see `compare.measures.profile`.

    The caption counts those of `problems` that the profiles leave out.
    """

    def draw(axes: Any) -> None:
        end = min(max(max(ratios[-1] for ratios in profiles.values()) * 1.02, 1.05), 100.0)
        for index, (name, ratios) in enumerate(profiles.items()):
            style = curve_style(index) | {"marker": None}
            shares = np.arange(1, len(ratios) + 1) / len(ratios)
            axes.step([1, *ratios, end], [0, *shares, shares[-1]], where="post", **style, linewidth=2,
                      label=short_label(name))  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(1, end)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("within this factor of the best test loss")
        axes.set_ylabel("share of problems")
        log_ticks(axes.xaxis, (1.0, 2.0, 5.0) if end > 5 else (1.0, 1.2, 1.5, 2.0, 3.0))
        legend_below(axes)

    caption = (
        "A problem is a task, a horizon and a seed; higher is better. Failed runs count as the loss before training."
    )
    if left := problems - min(map(len, profiles.values())):
        caption += f" Left out: {left} of {problems} problems, where a loss is not positive and ratios mean nothing."
    return Figure("Performance profile", caption, draw)


def _final_loss(comparison: Comparison) -> Figure:
    seeds, level = len(comparison.protocol.seeds), 1 - comparison.protocol.alpha
    caption = f"Mean and {level:.0%} interval over {seeds} seeds. Pale dots are single runs, crosses failed ones "
    caption = caption + "(counted as the loss before training)." if seeds > 1 else "A single run each."

    def draw(axes: Any) -> None:
        order = sorted(range(len(comparison.entries)), key=lambda i: comparison.entries[i].mean, reverse=True)
        for row, index in enumerate(order):
            entry, colour = comparison.entries[index], curve_style(index)["color"]
            counted = np.array([run.counted for run in entry.runs])
            spread = row + (np.linspace(-0.22, 0.22, len(counted)) if len(counted) > 1 else np.zeros(1))
            failed = np.array([run.failed for run in entry.runs])
            axes.scatter(counted[~failed], spread[~failed], s=16, color=colour, alpha=0.45, linewidths=0)
            axes.scatter(counted[failed], spread[failed], s=36, color=colour, marker="x")
            axes.errorbar(entry.mean, row, xerr=_bars(entry), **_point(index))
        axes.set_yticks(range(len(order)), [short_label(comparison.entries[i].name) for i in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.set_xlabel(f"test {comparison.protocol.task.metric}")
        axes.grid(False, axis="y")

    return Figure("Final test loss", caption, draw)


def _sensitivity(comparison: Comparison) -> Figure:
    def draw(axes: Any) -> None:
        lowest = math.inf
        for index, entry in enumerate(comparison.entries):
            style, tuning = curve_style(index), entry.tuning
            rates, counted = np.array(tuning.rates), np.array(tuning.counted)
            failed, mean = np.array(tuning.failed).any(axis=1), counted.mean(axis=1)
            lowest = min(lowest, float(counted.min()))
            _band(axes, rates, counted.T, index, entry.name)
            axes.plot(rates[failed], mean[failed], "x", color=style["color"], markersize=7)
            best = tuning.rates.index(tuning.lr)
            axes.plot(rates[best], mean[best], style["marker"], color=style["color"], markersize=11,
                      markeredgecolor=axes.ink, markeredgewidth=1.2)  # fmt: skip
        axes.set_xscale("log")
        log_ticks(axes.xaxis, label=power_of_ten)
        log_if_positive(axes, lowest)
        axes.set_xlabel("learning rate")
        axes.set_ylabel("validation loss")
        legend_below(axes)

    caption = "Mean validation loss of the tuning runs, with their range; large marks are the tuned learning rates, "
    return Figure("Learning-rate sensitivity", caption + "crosses learning rates at which a run failed.", draw)


def _curves(comparison: Comparison) -> Figure:
    watched = all(run.valid_curve for entry in comparison.entries for run in entry.runs)
    target = comparison.target if watched else None

    def draw(axes: Any) -> None:
        lowest = math.inf
        for index, entry in enumerate(comparison.entries):
            curves = np.array([run.valid_curve if watched else run.curve for run in entry.runs if not run.failed])
            if curves.size:
                steps = np.arange(1, curves.shape[1] + 1) * comparison.protocol.steps / curves.shape[1]
                lowest = min(lowest, float(curves.min()))
                _band(axes, steps, curves, index, entry.name)
        if not math.isfinite(lowest):
            axes.text(0.5, 0.5, "every run failed", ha="center", color=axes.ink, transform=axes.transAxes)
            return
        if target is not None:
            axes.axhline(target, color=axes.ink, linestyle=":", linewidth=1)
        log_if_positive(axes, lowest)
        axes.set_xlabel("step")
        axes.set_ylabel("validation loss" if watched else "training loss")
        legend_below(axes)

    caption = (
        f"{'Validation loss' if watched else 'Loss of the batch'} of the tuned optimizers: mean and range over seeds"
    )
    caption += "." if target is None else "; the dotted line is the target."
    return Figure("Validation loss" if watched else "Training loss", caption, draw)


def _best_of_k(comparison: Comparison) -> Figure:
    def draw(axes: Any) -> None:
        lowest = math.inf
        for index, entry in enumerate(comparison.entries):
            if entry.tuning.trials:
                best = best_of([trial.loss for trial in entry.tuning.trials])
                lowest = min(lowest, best[-1])
                style = curve_style(index) | {"markevery": [2**k - 1 for k in range(len(best).bit_length())]}
                axes.step(range(1, len(best) + 1), best, **style, where="post", markersize=5, linewidth=1.8,
                          label=short_label(entry.name))  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        log_if_positive(axes, lowest)
        axes.set_xlabel("trials")
        axes.set_ylabel("best validation loss in tuning")
        legend_below(axes)

    caption = "Lowest validation loss among the first k tuning trials: what a smaller tuning budget would have found."
    return Figure("Best of k trials", caption, draw)


def _memory(comparison: Comparison) -> Figure:
    def draw(axes: Any) -> None:
        for index, entry in enumerate(comparison.entries):
            axes.errorbar(entry.state_bytes, entry.mean, yerr=_bars(entry), **_point(index),
                          label=short_label(entry.name))  # fmt: skip
        front = pareto(comparison.entries, lambda e: (e.state_bytes, e.mean))
        axes.plot([e.state_bytes for e in front], [e.mean for e in front], color=axes.ink, linewidth=1, linestyle=":",
                  zorder=0)  # fmt: skip
        axes.margins(x=0.2)
        axes.set_xlabel("optimizer state [bytes per parameter]")
        axes.set_ylabel(f"test {comparison.protocol.task.metric}")
        legend_below(axes)

    caption = "Mean test loss with its interval; lower left is better, and the dotted line is the Pareto front."
    return Figure("Loss against memory", caption, draw)


def _band(axes: Any, x: np.ndarray, curves: np.ndarray, index: int, name: str) -> None:
    """The mean of ``[curves, points]`` and its range."""
    style = curve_style(index)
    axes.plot(x, curves.mean(axis=0), **style, markersize=3.5, linewidth=1.8, label=short_label(name))
    axes.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=style["color"], alpha=0.15, linewidth=0)


def _bars(entry: Entry) -> np.ndarray | None:
    """Lengths of the error bars below and above the mean; None for a single run."""
    low, high = entry.interval.low, entry.interval.high
    return None if math.isnan(low) else np.maximum([[entry.mean - low], [high - entry.mean]], 0)


def _point(index: int) -> dict[str, Any]:
    return curve_style(index) | {"markersize": 7, "capsize": 5, "linewidth": 2.2, "linestyle": "none"}
