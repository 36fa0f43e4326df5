"""The picture of a search's funnel: its own score beside that on tasks it never saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optforge.experiments.colours import COLOURS
from optforge.experiments.report.plots import Panel


def panel(content: Mapping[str, Any]) -> Panel:
    """The proxy and meta-validation over a search, the meta-overfitting point marked; `content` as in funnel.json."""
    caption = (
        "The best program so far on the search's own task (left axis), and the same program on tasks the search never "
        "saw, as the log ratio to tuned AdamW's loss with its 95% interval over seeds (right axis)."
    )
    return Panel("Meta-validation", caption, lambda axes: _draw(axes, content))


def _draw(axes: Any, content: Mapping[str, Any]) -> None:
    curve = content["curve"]
    trained = [row["trained"] for row in curve]
    axes.step(trained, [row["proxy"] for row in curve], where="post", color=axes.ink, linewidth=2.2, label="proxy")
    axes.set_xlabel("programs trained")
    axes.set_ylabel("best score on the proxy")
    other = axes.twinx()
    other.tick_params(colors=axes.ink)
    other.set_ylabel("meta-validation [nats]", color=axes.ink)
    other.set_facecolor("none")
    values = [row["meta"] for row in curve]
    other.plot(trained, values, color=COLOURS[0], marker="o", markersize=4, label="meta-validation")
    if all(row["low"] is not None for row in curve):
        low, high = ([row[end] for row in curve] for end in ("low", "high"))
        other.fill_between(trained, low, high, color=COLOURS[0], alpha=0.15, linewidth=0)
    other.axhline(0.0, color=COLOURS[0], linestyle=":", linewidth=1.2, label="AdamW")
    if content["overfitting"] is not None:
        other.axvline(content["overfitting"], color=COLOURS[1], linestyle="--", label="meta-overfitting from here")
    handles = [line for side in (axes, other) for line in side.get_legend_handles_labels()[0]]
    axes.legend(handles, [line.get_label() for line in handles], frameon=False, fontsize=9, labelcolor=axes.ink)
