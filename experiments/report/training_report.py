"""The report of single training runs: their numbers, curves, programs and provenance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optforge.experiments.colours import COLOURS, MARKERS, short_label
from optforge.experiments.errors import UserError
from optforge.experiments.report.comparison_json import finite_or_nan
from optforge.experiments.report.comparison_report import program_blocks
from optforge.experiments.report.document import Figure, Figures, Fold, Paragraph, Section, Table, facts, number
from optforge.experiments.report.runs import read_program


def training_opening(runs: Sequence[tuple[str, dict[str, Any], Path]]) -> tuple[Paragraph, ...]:
    """What came of each training run, in a sentence that claims no more than that."""
    verdicts = [Paragraph(_verdict(label, found), "verdict") for label, found, _ in runs]
    return (*verdicts, Paragraph("single runs: they cannot tell optimizers apart; use optforge compare", "warning"))


def training_sections(runs: Sequence[tuple[str, dict[str, Any], Path]]) -> list[Section]:
    """Everything after the verdicts of single training runs: for each its name, its result, and the result's file.

    Raises:
        UserError: if one is not what `optforge train` writes.
    """
    rows, programs, sources = [], [], []
    for label, found, source in runs:
        try:
            rows.append(_row(label, found))
            [(int(s), finite_or_nan(x)) for s, x in found["valid_curve"]]
            if not [finite_or_nan(x) for x in found["curve"]]:
                raise ValueError("a curve without points")
            options = {k: v for k, v in found.get("options", {}).items() if v not in (None, {}, [])}
            sources.append(Fold(label, (facts("", {"options": options, **found["provenance"]}),)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{source} is not a training run's result ({type(error).__name__}: {error}); was it edited?"
            ) from None
        if "card" in found:  # of a meta-trained rule, which is no program
            programs.append(Fold(label, (facts(f"{found.get('rule')}, meta-trained", found["card"]),)))
        else:
            programs.append(Fold(label, program_blocks(read_program(found["program"], source)), open=len(runs) == 1))
    header = (
        "run", "task", "lr", "seed", "steps", "train loss", "validation loss", "test loss", "test accuracy", "ended",
        "seconds",
    )  # fmt: skip
    curves = Figures((_curves([(label, found) for label, found, _ in runs]),))
    return [
        Section("Training", (Table("", header, tuple(rows), numeric=2), curves)),
        Section("Programs of the training runs", tuple(programs)),
        Section("Configuration and provenance of the training runs", tuple(sources)),
    ]


def _verdict(label: str, found: dict[str, Any]) -> str:
    loss = {k: number(finite_or_nan(found.get(f"{k}_loss"))) for k in ("valid", "test")}
    ended = "" if found.get("status") == "ok" else f"; it {found.get('status')}: {found.get('reason')}"
    losses = f"validation loss {loss['valid']}, test loss {loss['test']}"
    return f"{label} on {found.get('task')}: {losses} (single run){ended}."


def _row(label: str, found: dict[str, Any]) -> tuple[str, ...]:
    losses = [number(finite_or_nan(found[k])) for k in ("train_loss", "valid_loss", "test_loss")]
    accuracy = "–" if found["test_accuracy"] is None else f"{found['test_accuracy']:.2%}"
    numbers = (f"{found['lr']:.3g}", str(found["seed"]), str(found["steps"]), *losses, accuracy)
    return (label, str(found["task"]), *numbers, str(found["status"]), f"{found['seconds']:.1f}")


def _curves(runs: Sequence[tuple[str, dict[str, Any]]]) -> Figure:
    """Training loss, smoothed, and validation loss."""

    def draw(axes: Any) -> None:
        for index, (label, found) in enumerate(runs):
            colour = COLOURS[index % len(COLOURS)]
            curve = np.array([math.nan if x is None else x for x in found["curve"]], dtype=float)
            width = max(1, len(curve) // 50)
            smooth = np.convolve(curve, np.ones(width) / width, mode="valid")
            steps, name = np.arange(width, len(curve) + 1), short_label(label)
            axes.plot(steps, smooth, color=colour, linewidth=1.2, alpha=0.75, label=f"{name}, training")
            valid = [(s, x) for s, x in found["valid_curve"] if x is not None]
            axes.plot([s for s, _ in valid], [x for _, x in valid], color=colour, linewidth=2, markersize=6,
                      marker=MARKERS[index % len(MARKERS)], label=f"{name}, validation")  # fmt: skip
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.legend(frameon=False, fontsize=10, labelcolor=axes.ink)

    caption = "Loss of the batches, a moving mean over a fiftieth of the run, and validation loss."
    return Figure("Training", caption, draw)
