"""The paths of a comparison's programs on two surfaces, as `optforge trajectories` draws them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from optforge.experiments.colours import curve_style, short_label
from optforge.experiments.programs.surfaces import SURFACES, Surface
from optforge.experiments.programs.trajectories import LR_GRID, drawable, heights, trajectory
from optforge.experiments.report.document import Figure
from optforge.experiments.report.drawing import legend_below
from optforge.primitives import Program, ProgramError
from optforge.primitives.routing import can_train

MOST_PATHS, LARGEST = 5, 60  # programs, and statements of a program: two surfaces then take less than two seconds


def path_figures(programs: Sequence[tuple[str, Program]], largest: int = LARGEST) -> tuple[Figure, ...]:
    """Paths of the first `MOST_PATHS` programs with up to `largest` statements that can train a vector."""
    small = [
        (index, name, program)
        for index, (name, program) in enumerate(programs)
        if len(program.live.instructions) <= largest and (program.fallback or can_train(program, (2,)))
    ]
    return tuple(_figure(SURFACES[name], small[:MOST_PATHS]) for name in ("rosenbrock", "saddle") if small)


def _figure(surface: Surface, programs: Sequence[tuple[int, str, Program]]) -> Figure:
    def draw(axes: Any) -> None:
        x, y, height, levels = heights(surface, 80, 10)
        axes.contour(x, y, height, levels, colors=axes.ink, linewidths=0.6, alpha=0.25)
        for index, name, program in programs:
            with contextlib.suppress(ProgramError, RuntimeError), np.errstate(all="ignore"):
                path = trajectory(name, program, surface)
                label = f"{short_label(name)}, lr {path.lr:.2g}"
                axes.plot(*drawable(path.points, surface).T, **curve_style(index), linewidth=1.6, markersize=4,
                          label=label, markevery=max(1, surface.steps // 20))  # fmt: skip
        axes.plot(*surface.start, "o", markersize=9, color=axes.ink, markerfacecolor="none", label="start")
        axes.plot(*zip(*surface.minima, strict=True), "*", markersize=13, color=axes.ink, label="minimum",
                  linestyle="none")  # fmt: skip
        axes.set_xlim(*surface.frame[:2])
        axes.set_ylim(*surface.frame[2:])
        axes.grid(False)
        legend_below(axes, columns=1 if any(len(name) > 14 for _, name, _ in programs) else 2)

    caption = f"{surface.steps} steps in the plane, each program with its default hyperparameters at the best of "
    caption += f"{len(LR_GRID)} learning rates."
    if any(not can_train(program, (2,)) for _, _, program in programs):
        caption += " Programs that need a matrix follow their fallback."
    return Figure(f"Paths: {surface.name}", caption, draw)
