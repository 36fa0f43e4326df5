"""Update rules that are small networks: what is learned is a function from what a parameter saw to its next step.

A rule is pure: weights θ, parameters, gradients and state go in, updates and state come out, so that `torch.func` can
train many problems at once with it. Both rules here act on each coordinate alone and share θ among all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from optforge.learned.meta.features import ADAM, Features, default_features
from optforge.primitives.backends.interpret import initial_slot

Weights = Mapping[str, Tensor]
State = dict[str, Tensor]


class Rule(Protocol):
    """A learned update rule.

    Attributes:
        name: short name of its kind.
        shapes: of its weights, by name.
        settings: all that must agree for weights to fit beside their shapes, as text by name.
    """

    name: str

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...  # noqa: D102

    @property
    def settings(self) -> dict[str, str]: ...  # noqa: D102

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Weights to begin meta-training with, float32."""
        ...

    def init(self, p: Tensor) -> State:
        """State of one parameter before its first step."""
        ...

    def step(
        self, weights: Weights, ps: Sequence[Tensor], gs: Sequence[Tensor], states: Sequence[State], step: Tensor
    ) -> tuple[list[Tensor], list[State]]:
        """Updates, to be subtracted after scaling by the learning rate, and the next state of each parameter.

        `step` is 1 on the first step, 0-dimensional float64, and the same for all these parameters.
        """
        ...


class LSTMRule:
    """The coordinatewise LSTM of Andrychowicz et al. 2016 (Learning to learn by gradient descent by gradient descent,
    arXiv:1606.04474, §2.1): two layers of 20 units, whose state belongs to a coordinate.

    A gradient g enters as (log|g| / p, sign g) where |g| ≥ exp(−p), else as (−1, exp(p) g), with p = 10 (there,
    appendix A). The output is scaled by 0.1. On its quadratics the paper leaves both out, as ``LSTMRule(p=None,
    scale=1)`` does. Variant: p ← p − lr · update, with lr = 1, where the paper adds.
    """

    name = "lstm"

    def __init__(self, hidden: int = 20, layers: int = 2, p: float | None = 10.0, scale: float = 0.1) -> None:
        self.hidden, self.layers, self.p, self.scale = hidden, layers, p, scale

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names are those of `torch.nn.LSTM`, whose order of gates (i, f, g, o) is meant, and of a linear layer."""
        h = self.hidden
        found: dict[str, tuple[int, ...]] = {}
        for k in range(self.layers):
            inputs = h if k else 1 if self.p is None else 2
            found |= {f"weight_ih_l{k}": (4 * h, inputs), f"weight_hh_l{k}": (4 * h, h), f"bias_l{k}": (4 * h,)}
        return found | {"out.weight": (1, h), "out.bias": (1,)}

    @property
    def settings(self) -> dict[str, str]:
        """Of the preprocessing and of the output."""
        return {"p": repr(self.p), "scale": repr(self.scale)}

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Random weights; outputs are small at first."""
        return _random(self.shapes, "out.weight", generator)

    def init(self, p: Tensor) -> State:
        """Zeros ``[layers, elements, hidden]``, for hidden state and cell."""
        zeros = torch.zeros((self.layers, p.numel(), self.hidden), dtype=p.dtype, device=p.device)
        return {"hidden": zeros, "cell": zeros.clone()}

    def preprocess(self, g: Tensor) -> Tensor:
        """Gradients ``[…]`` as pairs ``[…, 2]``; as they are, ``[…, 1]``, without preprocessing."""
        if self.p is None:
            return g[..., None]
        large = g.abs() >= math.exp(-self.p)
        size = torch.where(large, torch.log(torch.where(large, g.abs(), 1.0)) / self.p, -1.0)
        return torch.stack([size, torch.where(large, g.sign(), math.exp(self.p) * g)], -1)

    def step(
        self, weights: Weights, ps: Sequence[Tensor], gs: Sequence[Tensor], states: Sequence[State], step: Tensor
    ) -> tuple[list[Tensor], list[State]]:
        """One step of all coordinates together; see `Rule.step`."""
        sizes = [p.numel() for p in ps]
        x = self.preprocess(torch.cat([g.reshape(-1) for g in gs]))
        hidden, cell = (torch.cat([s[name] for s in states], 1) for name in ("hidden", "cell"))
        hs, cs = [], []
        for k in range(self.layers):
            gates = x @ weights[f"weight_ih_l{k}"].T + hidden[k] @ weights[f"weight_hh_l{k}"].T + weights[f"bias_l{k}"]
            i, f, g, o = gates.chunk(4, -1)
            c = f.sigmoid() * cell[k] + i.sigmoid() * g.tanh()
            x = o.sigmoid() * c.tanh()
            hs.append(x)
            cs.append(c)
        out = self.scale * (x @ weights["out.weight"].T + weights["out.bias"])
        updates = [u.view(p.shape) for u, p in zip(out.squeeze(-1).split(sizes), ps, strict=True)]
        parts = zip(torch.stack(hs).split(sizes, 1), torch.stack(cs).split(sizes, 1), strict=True)
        return updates, [{"hidden": h, "cell": c} for h, c in parts]

    @classmethod
    def of(cls, settings: Mapping[str, str]) -> LSTMRule:
        """The rule with these `settings`."""
        p = settings["p"]
        return cls(p=None if p == "None" else float(p), scale=float(settings["scale"]))


class MLPRule:
    """A network for each coordinate over the features of a declared program, after Metz et al. 2022
    (arXiv:2203.11860): two hidden layers, and outputs d and s that make the step ``scale · d · exp(s)``.

    The time is a feature, too. Variants: 32 units; s is bounded by ±6 softly; a second pair of outputs makes a step in
    units of the gradient's size (the last feature), which is added, so that both Adam and momentum are close by; a
    linear function of the features is added to all four, and lets meta-training begin with Adam's step; and nothing
    rescales the steps of a tensor to one root mean square as Celo2 does (Moudgil et al. 2026, arXiv:2602.19142): on
    functions with a minimum to be found in 100 steps, how far to go is what there is to learn.
    """

    name = "mlp"

    def __init__(self, features: Features | None = None, hidden: int = 32, scale: float = 0.01) -> None:
        self.features = default_features() if features is None else features
        self.hidden, self.scale = hidden, scale

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of three linear layers, and of the linear part."""
        widths = [len(self.features.registers) - 1, self.hidden, self.hidden, 4]
        found: dict[str, tuple[int, ...]] = {}
        for k in range(3):
            found |= {f"layers.{k}.weight": (widths[k + 1], widths[k]), f"layers.{k}.bias": (widths[k + 1],)}
        return found | {"skip.weight": (4, widths[0])}

    @property
    def settings(self) -> dict[str, str]:
        """The feature program and the scale."""
        return {"features": self.features.text, "scale": repr(self.scale)}

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Random weights whose outputs are small, beside Adam's step (β 0.9 and 0.99) at a rate of 3 · scale.

        Other features than the default may not have that step; the linear part begins with zeros then.
        """
        found = _random(self.shapes, "layers.2.weight", generator)
        found["skip.weight"] = torch.zeros(self.shapes["skip.weight"])
        if self.features == default_features():
            found["skip.weight"][0, ADAM] = 3.0
        return found

    def init(self, p: Tensor) -> State:
        """The slots of the feature program."""
        program, _ = self.features.part(p.shape)
        return {slot.name: initial_slot(slot, p, p) for slot in program.state}

    def step(
        self, weights: Weights, ps: Sequence[Tensor], gs: Sequence[Tensor], states: Sequence[State], step: Tensor
    ) -> tuple[list[Tensor], list[State]]:
        """One step; features are computed tensor by tensor, the network sees all coordinates together."""
        seen = [self.features({"g": g, "p": p, "step": step, **s}) for p, g, s in zip(ps, gs, states, strict=True)]
        inputs = torch.cat([features for features, _ in seen])
        x = known = inputs[:, :-1]
        for k in range(3):
            x = (x.relu() if k else x) @ weights[f"layers.{k}.weight"].T + weights[f"layers.{k}.bias"]
        x = x + known @ weights["skip.weight"].T
        steps = x[:, :2] * torch.exp(6.0 * torch.tanh(x[:, 2:] / 6.0))
        out = self.scale * (steps[:, 0] + steps[:, 1] * inputs[:, -1])
        parts = out.split([p.numel() for p in ps])
        return [u.view(p.shape) for u, p in zip(parts, ps, strict=True)], [state for _, state in seen]

    @classmethod
    def of(cls, settings: Mapping[str, str]) -> MLPRule:
        """The rule of the package with this scale; its features are not read from `settings`."""
        return cls(scale=float(settings["scale"]))


RULES: dict[str, type[LSTMRule] | type[MLPRule]] = {"lstm": LSTMRule, "mlp": MLPRule}
"""Kinds of rules by name."""


def _random(shapes: Mapping[str, tuple[int, ...]], last: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform within 1/√fan-in, a tenth of that for the layer `last`; biases 0."""
    found = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            found[name] = torch.zeros(shape)
            continue
        bound = (0.1 if name == last else 1.0) / math.sqrt(shape[1])
        found[name] = (2 * torch.rand(shape, generator=generator) - 1) * bound
    return found


def flatten(weights: Weights, rule: Rule) -> Tensor:
    """Weights as one vector, in the order of `Rule.shapes`."""
    return torch.cat([weights[name].reshape(-1) for name in rule.shapes])


def unflatten(theta: Tensor, rule: Rule) -> dict[str, Tensor]:
    """The inverse of `flatten`; views of `theta`."""
    sizes = [math.prod(shape) for shape in rule.shapes.values()]
    parts = zip(rule.shapes.items(), theta.split(sizes), strict=True)
    return {name: part.view(shape) for (name, shape), part in parts}
