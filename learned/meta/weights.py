"""Weights of learned rules as files: safetensors, which execute nothing, with a card that says how they came about.

A file holds the tensors of `Rule.shapes` and, as metadata, the kind of rule, its settings (the feature program among
them) and the card. It is read for a rule: one that was trained on other features is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from optforge.learned.meta.features import Features, difference
from optforge.learned.meta.models import RULES, MLPRule, Rule
from optforge.primitives import ProgramError

FORMAT = "1"
FOLDER = resources.files("optforge.learned") / "weights"


class Learned(NamedTuple):
    """A rule with its weights, and the card: what they were trained on, for how long, from which seed and commit."""

    rule: Rule
    weights: dict[str, Tensor]
    card: dict[str, Any]


def shipped() -> list[str]:
    """Names of the weights that come with the package."""
    found = (f.name for f in FOLDER.iterdir()) if FOLDER.is_dir() else iter(())
    return sorted(name.removesuffix(".safetensors") for name in found if name.endswith(".safetensors"))


def pack(learned: Learned) -> bytes:
    """The content of a weights file."""
    rule, weights, card = learned
    metadata = {"optforge": FORMAT, "rule": rule.name, "card": json.dumps(card), **rule.settings}
    tensors = {name: weights[name].detach().contiguous() for name in rule.shapes}
    return safetensors.torch.save(tensors, metadata)


def load(which: str | Path, rule: Rule | None = None) -> Learned:
    """Weights by the name of shipped ones (see `shipped`) or from a file.

    Args:
        which: name or path.
        rule: what they are for; by default the package's rule of the kind that the file names.

    Raises:
        ProgramError: if there are none, if the file is damaged or is something else, or if the weights were trained
            for another rule, with what differs.
    """
    if not isinstance(which, str | Path):
        raise ProgramError(f"expected the name or path of weights, got {which!r}; shipped are: {', '.join(shipped())}")
    path = Path(str(FOLDER / f"{which}.safetensors")) if str(which) in shipped() else Path(which)
    try:
        there = path.is_file()
    except OSError:  # such a long name is none of a file
        there = False
    if not there:
        raise ProgramError(
            f"there are no weights {str(which)[:200]!r}; name a .safetensors file, or one of: {', '.join(shipped())}"
        )
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ProgramError(
            f"{path} is no safetensors file, or only a part of one ({error}); copy or train it again"
        ) from None
    kind = metadata.get("rule")
    if metadata.get("optforge") != FORMAT or kind not in RULES:
        raise ProgramError(f"{path} holds tensors, but not the weights of a learned rule ({' or '.join(RULES)})")
    if rule is None:
        try:
            rule = RULES[kind].of(metadata)
            if not math.isfinite(rule.scale):
                raise ValueError(f"its scale is {rule.scale}")
        except (KeyError, ValueError) as error:
            raise ProgramError(f"{path} does not say how its rule was set: {error}") from None
    _check(path, rule, kind, metadata, tensors)
    try:
        card = json.loads(metadata.get("card", "{}"))
    except ValueError:
        card = None
    if not isinstance(card, dict):
        raise ProgramError(f"the card of {path} is no JSON object; was the file edited?")
    return Learned(rule, tensors, card)


def _check(path: Path, rule: Rule, kind: str, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    if kind != rule.name:
        raise ProgramError(f"{path} holds weights of the rule {kind!r}, not of {rule.name!r}")
    for name, ours in rule.settings.items():
        theirs = metadata.get(name, "nothing")
        if theirs == ours:
            continue
        if name == "features" and isinstance(rule, MLPRule):
            try:
                differs = difference(rule.features, Features.parse(theirs))
            except ProgramError as error:
                raise ProgramError(
                    f"{path} does not say what its features are ({error}); copy or train it again"
                ) from None
            raise ProgramError(
                f"the weights in {path} were trained on another feature program: {differs}; give the rule with the "
                "features that they were trained on, or train anew with: optforge meta-train mlp"
            )
        raise ProgramError(f"the weights in {path} were trained with {name} {theirs[:40]}, and the rule has {ours}")
    for name, shape in rule.shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else "nothing"
        if found != shape:
            raise ProgramError(f"{path} has {found} for {name!r} of the rule {rule.name!r}, which needs {shape}")
        if not tensors[name].is_floating_point():
            raise ProgramError(f"{name!r} in {path} is of {tensors[name].dtype}; weights are floating-point numbers")
        if not torch.isfinite(tensors[name]).all():
            raise ProgramError(f"{name!r} in {path} is not finite; these weights train nothing")


def card_markdown(learned: Learned, name: str) -> str:
    """The card as a Markdown page."""
    lines = [f"# {name}", ""]
    count = sum(w.numel() for w in learned.weights.values())
    lines += [f"Weights of the learned rule `{learned.rule.name}`, {count:,} numbers.", "", "| | |", "|---|---|"]
    for key, value in learned.card.items():
        if value is None:
            continue
        text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
        if isinstance(value, dict):
            text = "; ".join(f"{k}: {v:.4g}" if isinstance(v, float) else f"{k}: {v}" for k, v in value.items())
        lines.append(f"| {key} | {text} |")
    if isinstance(learned.rule, MLPRule):
        lines += ["", "The features are registers of this program:", "", "```"]
        lines += [str(learned.rule.features.program).rstrip(), "```"]
    return "\n".join(lines) + "\n"
