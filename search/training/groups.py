"""Parameter groups as a training run usually wants them: decay where it helps, smaller rates for lower layers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from torch import nn

Group = dict[str, Any]

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
_NUMBERED = re.compile(r"(.*?\.)?[0-9]+(?=\.)")


def parameter_groups(
    model: nn.Module,
    *,
    lr: float | None = None,
    weight_decay: float | None = None,
    decay_embeddings: bool = True,
    layer_decay: float | None = None,
    layer: Callable[[str], int] | None = None,
) -> list[Group]:
    """Groups of a model's trainable parameters, for any torch optimizer.

    ::

        AdamW(parameter_groups(model, weight_decay=0.1), lr=1e-3)

    Weight decay is for matrices and filters; parameters of fewer than two dimensions (biases) and those of norms get
    none, as in Goyal et al. 2017, §5.1, for the latter. Parameters that are frozen are left out, and one that several
    modules share comes once, by its first name.

    Args:
        model: whose parameters; frozen are those with ``requires_grad=False``.
        lr: rate of the topmost layer; needed with `layer_decay`, otherwise the optimizer's own rate may do.
        weight_decay: of the groups that decay; without it, no group says anything of decay.
        decay_embeddings: whether weights of `torch.nn.Embedding` and `EmbeddingBag` decay.
        layer_decay: factor between the rate of a layer and that of the one above it, in (0, 1]: Howard & Ruder 2018
            (ULMFiT), §3.2; Clark et al. 2020 (ELECTRA).
        layer: number of a parameter's layer by its name, 0 the lowest; by default `layers_by_name`.

    Returns:
        Groups with named parameters, from the lowest layer to the highest. Each has a `name` (``"decay"``,
        ``"no_decay"``, after ``"layer0."`` and so on where layers have rates of their own) and, as asked for,
        `weight_decay` and `lr`.

    Raises:
        ValueError: if nothing can be trained, or an option is out of range.
    """
    _check(lr, weight_decay, layer_decay)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("the model has no parameters to train; is everything frozen?")
    embeddings = {
        p for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) for p in m.parameters(recurse=False)
    }
    norms = {p for m in model.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    if layer_decay is None:
        depth = dict.fromkeys((name for name, _ in named), 0)
    else:  # frozen layers count as well, so that a rate does not depend on what else is trained
        names = [name for name, _ in model.named_parameters()]
        depth = layers_by_name(names) if layer is None else {name: layer(name) for name in names}
    top = max(depth.values())
    groups: dict[tuple[int, bool], Group] = {}
    for name, p in named:
        decays = p.ndim >= 2 and p not in norms and (decay_embeddings or p not in embeddings)
        key = (depth[name], decays or weight_decay is None)
        if key not in groups:
            groups[key] = _group(*key, top, lr, weight_decay, layer_decay)
        groups[key]["params"].append((name, p))
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], not key[1]))]


def layers_by_name(names: list[str]) -> dict[str, int]:
    """Number of each parameter's layer, 0 the lowest, from names in the order of ``model.named_parameters()``.

    A name with a number belongs to the layer that its part up to the first number names (``blocks.3``); layers come in
    the order in which they are met. What comes before all of them (embeddings) is the lowest layer, and everything else
    without a number (final norm, head) the highest.
    """
    layers: dict[str, int] = {}
    depth: dict[str, int | None] = {}
    for name in names:
        found = _NUMBERED.match(name)
        if found:
            depth[name] = layers.setdefault(found[0], len(layers) + 1)
        else:
            depth[name] = None if layers else 0
    lowest = min((d for d in depth.values() if d is not None), default=0)
    return {name: (len(layers) + 1 if d is None else d) - lowest for name, d in depth.items()}


def _group(
    layer: int, decays: bool, top: int, lr: float | None, weight_decay: float | None, layer_decay: float | None
) -> Group:
    words = [] if layer_decay is None else [f"layer{layer}"]
    words += [] if weight_decay is None else ["decay" if decays else "no_decay"]
    group: Group = {"name": ".".join(words) or "all", "params": []}
    if weight_decay is not None:
        group["weight_decay"] = weight_decay if decays else 0.0
    if lr is not None:
        group["lr"] = lr * (1.0 if layer_decay is None else layer_decay ** (top - layer))
    return group


def _check(lr: float | None, weight_decay: float | None, layer_decay: float | None) -> None:
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be a number in (0, 1], got {layer_decay}")
    if layer_decay is not None and lr is None:
        raise ValueError("layer_decay needs lr, the rate of the topmost layer")
