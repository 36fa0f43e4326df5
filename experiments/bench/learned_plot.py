"""The picture of docs/learned.md: final loss over initial learning rate, for each method and task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optforge.experiments.colours import COLOURS, DASHES

SHOWN = ("optforge", "AdamHD", "LDoG", "Prodigy", "Mechanic", "AdamW")


def draw(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the picture, PNG or SVG by the ending of `path`: means over seeds, at most the loss at the start."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from optforge.experiments.bench.learned_tables import reference

    tasks = list(dict.fromkeys(c["task"] for c in cells))
    figure, axes = plt.subplots(1, len(tasks), figsize=(4.7 * len(tasks), 3.8), squeeze=False, layout="constrained")
    for ax, task in zip(axes[0], tasks, strict=True):
        for name, colour, dash in zip(SHOWN, COLOURS, (*DASHES, DASHES[0]), strict=False):
            own = [c for c in cells if c["task"] == task and c["method"] == name]
            rates = sorted({c["lr"] for c in own})
            losses = [np.mean([np.nanmin([c["final"], c["start"]]) for c in own if c["lr"] == lr]) for lr in rates]
            if rates:
                ax.plot(rates, losses, color=colour, linestyle=dash, marker="o", markersize=3, label=name)
        best = reference(cells, task)
        ax.axhspan(best, 1.25 * best, color="0.85", label="within 1.25 × AdamW tuned")
        ax.set(xscale="log", yscale="log", title=task, xlabel="initial learning rate")
        ax.grid(alpha=0.3)
    axes[0][0].set_ylabel("final validation loss [nats]")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)  # no part of a curve below it
    figure.savefig(path, dpi=150)
    plt.close(figure)
