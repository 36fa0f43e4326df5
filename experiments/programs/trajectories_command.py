"""`optforge trajectories`: which paths are drawn on which surfaces, the files, and what the terminal says of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from optforge.experiments.errors import UserError, nearest, unknown
from optforge.experiments.files import check_can_write, write_atomic
from optforge.experiments.programs.names import resolve_program, unique_names
from optforge.experiments.programs.surfaces import SURFACES, Surface
from optforge.experiments.programs.trajectories import Picture, Trajectory, as_json, trajectory
from optforge.experiments.progress import progress_bar
from optforge.primitives import Program

DEFAULT = ("gradient-descent", "momentum", "rmsprop", "adam", "lion")


def trajectories_command(
    optimizers: Sequence[str],
    *,
    surfaces: Sequence[str],
    rates: Sequence[str],
    steps: int | None,
    seed: int,
    out: Path,
    gif: bool,
    json_file: Path | None,
) -> None:
    """Draw the paths of `optimizers` on each surface, as ``OUT/SURFACE.png`` and ``OUT/SURFACE.gif``.

    Args:
        optimizers: optimizers' names, program files, or ``RUN_DIR#RANK``; `DEFAULT` if there are none.
        surfaces: names of surfaces; all if there are none.
        rates: learning rates, each for all optimizers (``0.1``) or for one of them (``lion=0.01``).
        steps: length of every path; the surface's own by default.
        seed: of the noise.
        out: folder, made if it is not there.
        gif: whether to write animations, too.
        json_file: file for all points and losses.

    Raises:
        UserError, ProgramError: before anything is written, if what was asked for does not exist or fit.
    """
    for name in surfaces:
        if name not in SURFACES:
            raise unknown("surface", name, SURFACES)
    chosen = [SURFACES[name] for name in dict.fromkeys(surfaces)] or list(SURFACES.values())
    texts = list(optimizers or DEFAULT)
    programs = [resolve_program(text) for text in texts]
    names = unique_names([name for name, _ in programs])
    lrs = learning_rates(rates, texts, names)
    check_can_write("--json", json_file)
    drawn: list[tuple[Surface, list[Trajectory]]] = [
        (surface, _paths(surface, names, [program for _, program in programs], lrs, steps, seed)) for surface in chosen
    ]
    record = {"seed": seed, "surfaces": [as_json(surface, paths) for surface, paths in drawn]}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for surface, paths in drawn:
            _draw(out / surface.name, Picture(surface, paths), gif)
        if json_file is not None:
            write_atomic(json_file, json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror}") from None
    for surface, paths in drawn:
        print("\n".join(_summary(surface, paths)))
    print(f"written to {out}: {', '.join(s.name + ('.png and .gif' if gif else '.png') for s in chosen)}")


def learning_rates(options: Sequence[str], texts: Sequence[str], names: Sequence[str]) -> list[float | None]:
    """The learning rate of each optimizer from ``--lr RATE`` and ``--lr NAME=RATE``; None where neither gives one.

    `texts` are the optimizers as they were written, `names` what they are called; either may stand before the ``=``.

    Raises:
        UserError: for a rate that is no positive number, and for a name that is no optimizer's.
    """
    common: float | None = None
    own: dict[str, float] = {}
    for option in options:
        name, equals, number = option.rpartition("=")
        try:
            rate = float(number)
        except ValueError:
            rate = math.nan
        if not (math.isfinite(rate) and rate > 0):
            raise UserError(f"--lr takes a positive number, or NAME=NUMBER, got {option[:60]!r}")
        if equals and name not in (*texts, *names):
            drawn = ", ".join(names)
            raise UserError(f"--lr {option[:60]}: {name[:60]!r} is not drawn{nearest(name, names)} (drawn: {drawn})")
        if equals:
            own[name] = rate
        else:
            common = rate
    return [own.get(name, own.get(text, common)) for text, name in zip(texts, names, strict=True)]


def _paths(
    surface: Surface,
    names: Sequence[str],
    programs: Sequence[Program],
    lrs: Sequence[float | None],
    steps: int | None,
    seed: int,
) -> list[Trajectory]:
    each = zip(names, programs, lrs, strict=True)
    return [trajectory(name, program, surface, lr=lr, steps=steps, seed=seed) for name, program, lr in each]


def _draw(path: Path, picture: Picture, gif: bool) -> None:
    write_atomic(path.with_suffix(".png"), picture.png())
    if gif:
        with progress_bar(f"{path.name}.gif", len(picture.frames())) as report:
            animation = picture.gif(lambda done: report(done, ""))
        write_atomic(path.with_suffix(".gif"), animation)


def _summary(surface: Surface, paths: Sequence[Trajectory]) -> list[str]:
    width = max(len(path.name) for path in paths)
    lines = [f"{surface.name}, {len(paths[0].points) - 1} steps from {surface.start}, lowest {surface.lowest:g}"]
    for path in paths:
        loss = path.losses[-1]
        end = f"ends at {loss:.3g}" if math.isfinite(loss) else "diverges"
        notes = ["fallback for vectors"] if path.fallback else []
        notes += [f"leaves the frame at step {path.left}"] if path.left is not None else []
        lines.append(f"  {path.name:{width}}  lr {path.lr:<8.3g} {'; '.join([end, *notes])}")
    return lines
