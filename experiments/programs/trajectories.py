"""The paths of update rules on two-dimensional surfaces: computed, drawn as PNG, animated as GIF."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from optforge.experiments.colours import COLOURS, curve_style, short_label
from optforge.experiments.programs.surfaces import Surface
from optforge.primitives import Program, ProgramError
from optforge.primitives.backends.interpret import Simulation
from optforge.primitives.routing import can_train, route

LR_GRID = tuple(10 ** (k / 4) for k in range(-20, 9))
"""Learning rates to choose from where a surface does not name one: quarter-decades from 1e-5 to 100."""

_FRAMES, _MILLISECONDS, _HOLD = 60, 80, 2500  # of an animation; the last picture stays for longer
PALETTE = (*COLOURS, "#000000", "#882255")
"""Eight colours; from the ninth path on, dashes differ."""
_WIDE = 1e6  # what is further from the frame than so many of its widths is not drawn


@dataclass(frozen=True)
class Trajectory:
    """One path.

    Attributes:
        name: of the optimizer.
        lr: learning rate.
        points: ``(steps + 1, 2)``, the start first; not finite where the rule diverged.
        losses: the surface's value, without noise, at each point.
        left: the step with which the path left the frame and did not return; None if it ends inside.
        fallback: whether the rule needs a matrix, so that its fallback was followed.
    """

    name: str
    lr: float
    points: np.ndarray
    losses: np.ndarray
    left: int | None
    fallback: bool

    @property
    def label(self) -> str:
        """Text for a legend."""
        notes = ["fallback for vectors"] if self.fallback else []
        notes += [f"leaves the frame at step {self.left}"] if self.left is not None else []
        return "\n   ".join([f"{short_label(self.name, 28)}, lr {self.lr:.3g}", *notes])


def follow(program: Program, surface: Surface, rates: Sequence[float], steps: int, seed: int = 0) -> np.ndarray:
    """The points that `program` visits from the surface's start, in float64, for several learning rates at once.

    A point is one parameter of shape ``(2,)``, so that norms are over both of its numbers, and rules that work on rows
    and columns use their fallback. The noise of a step is the same for all programs and rates.

    Returns:
        An array ``(rates, steps + 1, 2)``; not finite from where a rule diverged.

    Raises:
        ProgramError: if the program needs a matrix and has no fallback.
    """
    program = route(program, (2,))
    lr = torch.tensor(rates, dtype=torch.float64).unsqueeze(1)
    start = torch.tensor(surface.start, dtype=torch.float64).expand(len(rates), 2)
    noises = list(surface.noises(steps, seed))
    path = Simulation(program, dims=(1,)).follow(
        start, lambda step, p: surface.gradient(p) + noises[step - 1], steps, lr=lr
    )
    points = [start, *(p - lr * stepped.update for p, stepped in path)]
    return torch.stack(points, dim=1).numpy()


def trajectory(
    name: str, program: Program, surface: Surface, *, lr: float | None = None, steps: int | None = None, seed: int = 0
) -> Trajectory:
    """The path of one program.

    Without `lr` it has the surface's learning rate, or, if that has none, the rate of `LR_GRID` with the lowest mean
    loss over the second half of the path, among those that never leave the frame (or else among those that end in it).
    """
    lr = surface.lr if lr is None else lr
    steps = surface.steps if steps is None else steps
    rates = LR_GRID if lr is None else (lr,)
    try:
        found = follow(program, surface, rates, steps, seed)
    except ProgramError as error:
        raise ProgramError(f"{name}: {error}") from None
    losses = surface.function(torch.from_numpy(found)).numpy()
    inside = _inside(found, surface)
    loss = np.where(inside[:, -1], losses[:, steps // 2 :].mean(axis=1), np.inf)
    best = min(range(len(rates)), key=lambda i: (not inside[i].all(), loss[i]))
    gone = steps + 1 - int(np.argmax(inside[best, ::-1])) if inside[best].any() else 0
    left = gone if gone <= steps else None
    return Trajectory(name, rates[best], found[best], losses[best], left, not can_train(program, (2,)))


def _inside(points: np.ndarray, surface: Surface) -> np.ndarray:
    left, right, bottom, top = surface.frame
    x, y = points[..., 0], points[..., 1]
    return (left <= x) & (x <= right) & (bottom <= y) & (y <= top)


class Picture:
    """The contours of a surface, and the paths on it up to any step."""

    def __init__(self, surface: Surface, paths: Sequence[Trajectory]) -> None:
        from matplotlib.figure import Figure
        from matplotlib.patheffects import Normal, Stroke

        self.steps = len(paths[0].points) - 1
        self.figure = Figure(figsize=(9.0, 5.0), layout="constrained")
        self.axes = self.figure.add_subplot()
        self.axes.set_xlim(*surface.frame[:2])
        self.axes.set_ylim(*surface.frame[2:])
        self.axes.set_xlabel("$w_1$")
        self.axes.set_ylabel("$w_2$", rotation=0, labelpad=12)
        self.axes.set_title(surface.formula, loc="left", fontsize=11)
        _contours(self.axes, surface)
        halo = [Stroke(linewidth=3, foreground="white"), Normal()]
        self.lines, self.heads = [], []
        for index, path in enumerate(paths):
            style = curve_style(index, PALETTE)
            (line,) = self.axes.plot([], [], linewidth=1.8, markersize=4.5, label=path.label, path_effects=halo,
                                     zorder=3, **style)  # fmt: skip
            (head,) = self.axes.plot([], [], style["marker"], color=style["color"], markersize=9,
                                     markeredgecolor="white", zorder=5)  # fmt: skip
            self.lines.append(line)
            self.heads.append(head)
        self.drawn = [drawable(path.points, surface) for path in paths]
        self.axes.plot(*surface.start, "o", markersize=11, color="white", markeredgecolor="black", markeredgewidth=1.6,
                       label="start", zorder=4)  # fmt: skip
        self.axes.plot(*zip(*surface.minima, strict=True), "*", markersize=21, color="#F0E442", markeredgecolor="black",
                       label="minimum", linestyle="none", zorder=3.5)  # fmt: skip
        self.figure.legend(loc="outside right upper", fontsize=10, frameon=False, handlelength=3.2)
        self.clock = self.axes.set_title("", loc="right", fontsize=11)
        self.moving = [*sorted(self.axes.lines, key=lambda line: line.get_zorder()), self.clock]
        for artist in self.moving:
            artist.set_animated(True)
        self.show(self.steps)
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")  # laid out once: frames must not jitter

    def show(self, step: int) -> None:
        """Draw the paths up to `step`; markers are at the same steps in all of them."""
        every = max(1, self.steps // 20)
        for line, head, points in zip(self.lines, self.heads, self.drawn, strict=True):
            seen = points[: step + 1]
            line.set_data(*seen.T)
            line.set_markevery(every)
            head.set_data(*seen[-1:].T if len(points) > step else ([], []))
        self.clock.set_text(f"step {step}")

    def png(self, dpi: int = 100) -> bytes:
        """The picture as it is, as a PNG file."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
        return buffer.getvalue()

    def gif(self, report: Callable[[int], None] = lambda done: None, dpi: int = 75) -> bytes:
        """The paths as they grow, as a GIF file that repeats; `report` is told how many frames are done."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from PIL import Image

        self.figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(self.figure)
        canvas.draw()  # what moves is left out, and drawn over it for each frame: five times as fast as all of it
        background = canvas.copy_from_bbox(self.figure.bbox)
        images = []
        for done, step in enumerate(self.frames(), start=1):
            self.show(step)
            canvas.restore_region(background)
            for artist in self.moving:
                self.axes.draw_artist(artist)
            images.append(Image.fromarray(np.array(canvas.buffer_rgba())[..., :3]))
            report(done)
        # one palette for all frames, so that what stands still does not flicker
        palette = images[-1].quantize(200, Image.Quantize.MAXCOVERAGE, kmeans=1)
        palette.putpalette([255 if level > 248 else level for level in palette.getpalette() or ()])  # white is white
        first, *others = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
        durations = [_MILLISECONDS] * len(others) + [_HOLD]
        buffer = io.BytesIO()
        first.save(buffer, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
        return buffer.getvalue()

    def frames(self) -> list[int]:
        """The steps that the animation shows, at most 60."""
        return np.unique(np.linspace(0, self.steps, min(_FRAMES, self.steps + 1)).round().astype(int)).tolist()


def heights(surface: Surface, points: int = 300, count: int = 14) -> tuple[np.ndarray, ...]:
    """x, y and the height above the minimum on a grid, and `count` levels evenly spaced in its logarithm."""
    left, right, bottom, top = surface.frame
    x, y = np.meshgrid(np.linspace(left, right, points), np.linspace(bottom, top, points))
    height = surface.function(torch.from_numpy(np.stack([x, y], axis=-1))).numpy() - surface.lowest
    return x, y, height, np.geomspace(max(np.quantile(height, 0.002), height.max() * 1e-6), height.max(), count)


def _contours(axes: Any, surface: Surface) -> None:
    from matplotlib.colors import LogNorm

    x, y, height, levels = heights(surface)
    ratio = levels[-1] / levels[0]
    axes.contourf(x, y, height, levels, norm=LogNorm(levels[0], levels[-1] * ratio**2), cmap="Greys", extend="min")
    axes.contour(x, y, height, levels, colors="#999999", linewidths=0.6)


def drawable(points: np.ndarray, surface: Surface) -> np.ndarray:
    """The points before the first that is not finite or so far away that drawing loses precision."""
    width = max(surface.frame[1] - surface.frame[0], surface.frame[3] - surface.frame[2])
    with np.errstate(invalid="ignore"):
        wild = np.flatnonzero(~(np.abs(points).max(axis=1) < _WIDE * width))
    return points[: wild[0]] if len(wild) else points


def as_json(surface: Surface, paths: Sequence[Trajectory]) -> dict[str, Any]:
    """Everything that the pictures of one surface show, as numbers; what is not finite is null."""
    return {
        "surface": surface.name,
        "start": surface.start,
        "minima": surface.minima,
        "lowest": surface.lowest,
        "frame": surface.frame,
        "source": surface.source,
        "paths": [
            {
                "optimizer": path.name,
                "lr": path.lr,
                "fallback": path.fallback,
                "left_frame_at": path.left,
                "losses": list(_finite(path.losses.tolist())),
                "points": [list(_finite(point)) for point in path.points.tolist()],
            }
            for path in paths
        ],
    }


def _finite(values: Sequence[float]) -> Iterator[float | None]:
    return (value if np.isfinite(value) else None for value in values)
